"""The node under attack, nightly and seeded: mutated PDUs, kill -9, crowds, strangers to TLS; the node's
guide has the results. MMIF_FUZZ_SEED gives others, MMIF_ATTACKS a share of the counts (1: all)."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import phantoms
import pytest
from peers import Certificates, Node, echoscu, needs, storescu, until
from phantoms import affine_of, write_mr, write_pet
from ports import free_port

pytestmark = pytest.mark.nightly
SEED = int(os.environ.get("MMIF_FUZZ_SEED", "1"))
SHARE = float(os.environ.get("MMIF_ATTACKS", "1"))
SHAPE = (3, 20, 20)
PDUS, KILLS, CROWD, STRANGERS = (max(4, round(SHARE * count)) for count in (2500, 84, 200, 100))


def study(folder: Path, number: int = 0) -> Path:
    affine = affine_of(shape=SHAPE, spacing=(5.0, 6.0, 6.0))
    root = "1.2.826.0.1.3680043.8.498.77"
    uids = {"StudyInstanceUID": f"{root}.1.{number}", "FrameOfReferenceUID": f"{root}.2.{number}"}
    write_mr(folder / "mr", affine, SHAPE, **uids)
    write_pet(folder / "pt", affine, SHAPE, **uids)
    return folder


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    needs("storescu", "echoscu")
    one = Node(tmp_path / "node", free_port(), "--peer", "SCANNER")
    one.start()
    yield one
    one.kill()


def is_well(node: Node, folder: Path) -> None:
    assert node.process is not None and node.process.poll() is None, "it lives"
    until(lambda: echoscu(node.port) == 0, 60)
    assert storescu(node.port, folder) == 0
    assert "Traceback" not in node.log and not [x for x in phantoms.PLANTED.values() if x in node.log]


def conversation(node: Node, folder: Path) -> list[bytes]:
    """The PDUs of a real peer that stores a study, recorded on their way."""
    said = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as between:

        def relay() -> None:
            near, _ = between.accept()
            far = socket.create_connection(("127.0.0.1", node.port))

            def back() -> None:
                with contextlib.suppress(OSError):
                    while part := far.recv(65_536):
                        near.sendall(part)
                    near.shutdown(socket.SHUT_WR)

            thread = threading.Thread(target=back)
            thread.start()
            with contextlib.suppress(OSError):
                while part := near.recv(65_536):
                    said.extend(part)
                    far.sendall(part)
                far.shutdown(socket.SHUT_WR)
            thread.join()
            near.close()
            far.close()

        thread = threading.Thread(target=relay)
        thread.start()
        assert storescu(between.getsockname()[1], folder) == 0
        thread.join()
    found, at = [], 0
    while at < len(said):
        length = struct.unpack_from(">L", said, at + 2)[0]
        found.append(bytes(said[at : at + 6 + length]))
        at += 6 + length
    return found


def mutated(pdu: bytes, rng: random.Random) -> bytes:
    out = bytearray(pdu)
    for _ in range(rng.choice((1, 1, 3, 10))):
        at, kind = rng.randrange(len(out)), rng.randrange(6)
        if kind == 0:
            out[at] = rng.randrange(256)
        elif kind == 1:
            out[at : at + 4] = rng.choice((b"\0\0\0\0", b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\1\0\0"))
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            out[at:at] = out[at : at + rng.randrange(1, 300)] * rng.randrange(1, 4)
        elif kind == 4:
            out[at:at] = rng.randbytes(rng.randrange(1, 200))
        else:
            out[at] = rng.choice((0x10, 0x20, 0x21, 0x30, 0x40, 0x50, 0x51, 0x52, 0x54, 0x55, 0x58))
        if len(out) < 6:
            break
    if rng.random() < 0.6 and len(out) >= 6:  # the frame is right: what is inside gets parsed
        out[2:6] = struct.pack(">L", len(out) - 6)
    return bytes(out)


def test_mutated_pdus(node: Node, tmp_path: Path) -> None:
    folder, rng = study(tmp_path / "in"), random.Random(SEED)
    pdus = conversation(node, folder)
    assert {pdu[0] for pdu in pdus} >= {1, 4, 5}
    before, sent = node.memory_mb(), 0
    for _ in range(PDUS):
        which = rng.randrange(len(pdus))
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", node.port), 10) as channel:
            channel.settimeout(0.5 if which else 0.02)
            for index, pdu in enumerate(pdus[: which + 1]):
                channel.sendall(mutated(pdu, rng) if index == which else pdu)
                if index == 0:
                    with contextlib.suppress(TimeoutError):
                        channel.recv(65_536)
        sent += 1
    is_well(node, folder)
    after = node.memory_mb()
    print(f"{sent} mutated PDUs, seed {SEED}: resident {before:.0f} MB before, {after:.0f} MB after")
    assert after < before + 100


class Pacs:
    """Counts what it receives; answers C-FIND from what it has."""

    def __init__(self) -> None:
        from pynetdicom import AE, AllStoragePresentationContexts, evt
        from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind

        self.got: Counter[str] = Counter()
        ae, self.port = AE("PACS"), free_port()
        ae.supported_contexts = AllStoragePresentationContexts
        ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)

        def store(event: Any) -> int:
            self.got[str(event.request.AffectedSOPInstanceUID)] += 1
            return 0

        def find(event: Any) -> Iterator[Any]:
            if str(event.identifier.SOPInstanceUID) in self.got:
                yield 0xFF00, event.identifier

        self.server = ae.start_server(
            ("127.0.0.1", self.port), False, evt_handlers=[(evt.EVT_C_STORE, store), (evt.EVT_C_FIND, find)]
        )


def test_kills_at_any_moment(tmp_path: Path) -> None:
    """Every acknowledged study is fused and delivered, no instance twice, and nothing half stays."""
    needs("storescu")
    rng, pacs, kills = random.Random(SEED), Pacs(), 0
    node = Node(tmp_path / "node", pacs.port, "--peer", "SCANNER")
    node.start()
    ended = threading.Event()

    def kill() -> None:
        nonlocal kills
        while kills < KILLS:
            time.sleep(rng.uniform(0.3, 9))
            node.kill()
            kills += 1
            node.start()
        ended.set()

    thread = threading.Thread(target=kill)
    thread.start()
    studies = 0
    try:
        while not ended.is_set():
            folder = study(tmp_path / "in", studies)
            until(lambda where=folder: storescu(node.port, where) == 0)
            shutil.rmtree(folder)
            studies += 1
            time.sleep(rng.uniform(0, 4))
        while (seen := len(pacs.got)) < studies:  # a busy machine has formed a queue by now
            until(lambda before=seen: len(pacs.got) > before)
        time.sleep(5)
        left = [path for path in (node.folder / "spool").rglob("*") if path.name.endswith(".mmif-tmp")]
        print(f"{kills} kills, {studies} studies acknowledged, {sum(pacs.got.values())} stored, seed {SEED}")
        assert len(pacs.got) == sum(pacs.got.values()) == studies and not left
        assert not list((node.folder / "spool" / "failed").iterdir()), "set aside"
        assert "Traceback" not in node.log
    finally:
        thread.join()
        node.kill()
        pacs.server.shutdown()


def test_a_crowd_at_once(node: Node, tmp_path: Path) -> None:
    from pynetdicom import AE
    from pynetdicom.sop_class import Verification

    def client(number: int) -> str:
        ae = AE("SCANNER")
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = 60
        ae.add_requested_context(Verification)
        association = ae.associate("127.0.0.1", node.port, ae_title="MMIF")
        if not association.is_established:
            return "rejected" if association.is_rejected else "not let in"
        status = association.send_c_echo().get("Status")
        association.release()
        return "served" if status == 0 else "not answered"

    with ThreadPoolExecutor(CROWD) as pool:
        counts = Counter(pool.map(client, range(CROWD)))
    print(f"{CROWD} clients at once: {dict(counts)}")
    assert counts["served"] >= 4 and counts["not answered"] == 0
    is_well(node, study(tmp_path / "in"))


def test_strangers_to_tls(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path / "tls")
    node = Node(tmp_path / "node", free_port(), "--any-peer", "--tls", *certificates.ours("node"))
    node.start()
    let_in = 0
    try:
        for number in range(STRANGERS):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            kind = number % 4
            if kind == 1:
                context.load_cert_chain(
                    str(tmp_path / "tls" / "stranger.pem"), str(tmp_path / "tls" / "stranger.key")
                )
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", node.port), 20) as plain,
            ):
                channel = context.wrap_socket(plain) if kind < 2 else plain
                request = struct.pack(">H2x16s16s32x", 1, b"MMIF".ljust(16), b"SCANNER".ljust(16))
                channel.sendall(
                    struct.pack(">BBL", 1, 0, len(request)) + request if kind < 3 else os.urandom(300)
                )
                let_in += channel.recv(1)[:1] in (b"\x02", b"\x03")
        print(f"{STRANGERS} strangers to TLS, {let_in} heard")
        assert not let_in and node.metric("instances_received_total") == 0
        ours = certificates.dcmtk("scanner")
        assert storescu(node.port, study(tmp_path / "in"), "MMIF", "SCANNER", *ours) == 0
        assert "Traceback" not in node.log
    finally:
        node.kill()
