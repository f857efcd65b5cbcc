"""What a peer of the node cannot do: take its memory, its disk or its threads, or come in without TLS."""

from __future__ import annotations

import contextlib
import io
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pydicom
import pytest
from peers import Certificates, Node, echoscu, needs, run_storescu, storescu, until
from phantoms import affine_of, write_mr, write_pet
from ports import free_port

from mmif_trt.commands.arguments import pacs_of
from mmif_trt.image import InputError

pynetdicom = pytest.importorskip("pynetdicom", reason="needs the clinical extra")

SHAPE = (12, 60, 48)
AFFINE = affine_of(shape=SHAPE)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs("storescu", "echoscu")
    root = tmp_path_factory.mktemp("study")
    write_mr(root / "mr", AFFINE, SHAPE)
    write_pet(root / "pt", AFFINE, SHAPE)
    return root


@pytest.fixture
def node(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Node]:
    """A node whose PACS is down; its options by @pytest.mark.parametrize("node", [...], indirect=True)."""
    one = Node(tmp_path / "node", free_port(), *getattr(request, "param", ()))
    one.start()
    yield one
    one.kill()


def spooled(node: Node) -> list[Path]:
    return [path for path in (node.folder / "spool" / "incoming").rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls") / "made")


def test_tls_both_ways_with_real_dcmtk(study: Path, certificates: Certificates, tmp_path: Path) -> None:
    """Series come in over TLS, the fused one goes on to a storescp over TLS; without a matching certificate,
    nothing."""
    needs("storescp")
    made, port = certificates, free_port()
    (tmp_path / "pacs").mkdir()
    command = ["storescp", "--aetitle", "PACS", "-od", str(tmp_path / "pacs"), *made.dcmtk("pacs"), str(port)]
    pacs = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    node = Node(tmp_path / "node", port, "--tls", *made.ours("node"))
    try:
        node.start()
        with socket.create_connection(("127.0.0.1", node.port)):  # never shakes hands, and holds up nobody
            stranger = made.dcmtk("stranger")[:3] + ["+cf", made.ours("node")[2]]
            for wrong in ([], ["+tla", "+cf", made.ours("node")[2]], stranger):
                assert run_storescu(node.port, study / "mr", *wrong).returncode != 0, wrong
            assert not spooled(node) and node.metric("instances_received_total") == 0
            assert node.metric("refused_tls_total") >= 2
            for folder in ("mr", "pt"):
                done = run_storescu(node.port, study / folder, *made.dcmtk("scanner"))
                assert done.returncode == 0, done.stderr
        (fused,) = until(lambda: list((tmp_path / "pacs").iterdir()))
        until(lambda: node.metric("sent_total") == 1)
        assert pydicom.dcmread(fused).NumberOfFrames == SHAPE[0]
        assert "no certificate signed by the authority" in node.log
    finally:
        node.kill()
        pacs.kill()
        pacs.wait()


def test_tls_any_peer_and_a_pacs_with_a_strangers_certificate(
    study: Path, certificates: Certificates, tmp_path: Path
) -> None:
    """--tls-any-peer takes a client without one; a PACS that cannot prove its name is sent nothing."""
    needs("storescp")
    made, port = certificates, free_port()
    (tmp_path / "pacs").mkdir()
    key, own = made.dcmtk("stranger")[1:3]
    command = ["storescp", "-od", str(tmp_path / "pacs"), "+tls", key, own, "-ic", str(port)]
    pacs = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    node = Node(tmp_path / "node", port, "--tls", *made.ours("node"), "--tls-any-peer")
    try:
        node.start()
        for folder in ("mr", "pt"):
            assert (
                storescu(node.port, study / folder, "MMIF", "SCANNER", "+tla", "+cf", made.ours("node")[2])
                == 0
            )
        until(lambda: node.metric("send_errors_total") >= 2)
        assert node.metric("queue_length") == 1 and not list((tmp_path / "pacs").iterdir())
    finally:
        node.kill()
        pacs.kill()
        pacs.wait()


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_wrong_tls_file_gives_one_line(
    certificates: Certificates, tmp_path: Path, part: int, capsys: pytest.CaptureFixture[str]
) -> None:
    from mmif_trt.cli import main

    files = certificates.ours("node")
    files[part] = str(tmp_path / "none")
    words = ["node", "--aet", "MMIF", "--port", str(free_port()), "--send-to", "PACS@127.0.0.1:104"]
    assert main([*words, "--spool", str(tmp_path / "spool"), "--tls", *files]) == 2
    assert f"--tls {files[part]}: no such file; expected PEM files" in capsys.readouterr().err


def test_limits_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import argparse

    from mmif_trt.cli import main
    from mmif_trt.commands import node as command

    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers())
    words = ["node", "--aet", "MMIF", "--port", "1", "--send-to", "PACS@10.0.0.1:104"]
    words += ["--percentiles-b", "1", "99"]
    settings = command.settings_of(parser.parse_args([*words, "--max-mb", "0.5", "--max-spool-mb", "7"]))
    assert settings.max_instance_bytes == 1 << 19 and settings.max_spool_bytes == 7 << 20
    assert settings.options.percentiles_b == [1, 99] and settings.options.percentiles_a is None
    for wrong, said in (
        (["--tls-any-peer"], "expected with --tls"),
        (["--max-mb", "0"], "expected numbers above 0"),
        (["--max-associations", "-3"], "expected numbers above 0"),
        (["--quiet-s", "nan"], "expected seconds, 0 or more"),
        (["--keep-s", "-1"], "expected seconds, 0 or more"),
    ):
        with contextlib.suppress(SystemExit):
            assert main([*words, "--spool", str(tmp_path / "s"), *wrong]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "text, read",
    [
        ("PACS@10.0.0.1:104", ("PACS", "10.0.0.1", 104)),
        ("PACS@[::1]:104", ("PACS", "::1", 104)),
        ("PACS@[2001:db8::7]:11112", ("PACS", "2001:db8::7", 11112)),
        *(
            (wrong, None)
            for wrong in ("PACS@::1:104", "PACS@[::1]", "P@h:0", "P@h:65536", "P@[h]:1", "@h:1", "P")
        ),
    ],
)
def test_the_name_of_a_pacs(text: str, read: Any) -> None:
    if read:
        assert pacs_of("--to", text) == read
    else:
        with pytest.raises(InputError, match="--to .*expected AET@HOST:PORT, an IPv6 address in brackets"):
            pacs_of("--to", text)


def test_all_of_it_over_ipv6(study: Path, tmp_path: Path) -> None:
    """A named peer at ::1 in, /health at ::1, the fusion out to a PACS at ::1."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("no IPv6 loopback here")
    got: list[str] = []
    ae: Any = pynetdicom.AE("PACS")
    ae.supported_contexts = pynetdicom.AllStoragePresentationContexts
    handlers = [(pynetdicom.evt.EVT_C_STORE, lambda event: got.append("x") or 0)]
    port = free_port()
    server = ae.start_server(("::1", port), False, evt_handlers=handlers)
    options = (
        "--host",
        "::1",
        "--peer",
        "SCANNER@[::1]",
        "--send-to",
        f"PACS@[::1]:{port}",
        "--quiet-s",
        "1",
    )
    node = Node(tmp_path / "node", free_port(), *options)
    node.start()
    try:
        for folder in ("mr", "pt"):
            scanner: Any = pynetdicom.AE("SCANNER")
            paths = sorted((study / folder).iterdir())
            scanner.add_requested_context(pydicom.dcmread(paths[0]).SOPClassUID)
            association = scanner.associate("::1", node.port, ae_title="MMIF")
            assert association.is_established
            for path in paths:
                assert association.send_c_store(pydicom.dcmread(path)).Status == 0
            association.release()
        until(lambda: got)
        assert f"listening on [::1]:{node.port}" in node.log
    finally:
        node.kill()
        server.shutdown()


def associate(node: Node) -> Any:
    ae: Any = pynetdicom.AE("SCANNER")
    ae.add_requested_context(phantoms.SOP["MR"], "1.2.840.10008.1.2.1")
    association = ae.associate("127.0.0.1", node.port, ae_title="MMIF")
    assert association.is_established
    return association


def pour(channel: socket.socket, head: bytes, count: int) -> int:
    """Sends `head`, then megabytes of zeros until the peer hangs up; how many it took."""
    channel.settimeout(20)
    taken = 0
    with contextlib.suppress(OSError):
        channel.sendall(head)
        while taken < count:
            channel.sendall(b"\0" * (1 << 20))
            taken += 1
    return taken


def test_an_announced_giant_pdu_takes_no_memory(study: Path, node: Node) -> None:
    assert storescu(node.port, study / "mr") == 0
    before = node.memory_mb("VmHWM")
    for kind in (1, 4):  # before an association, and in one
        association = associate(node) if kind == 4 else None
        channel = (
            association.dul.socket.socket
            if association
            else socket.create_connection(("127.0.0.1", node.port))
        )
        taken = pour(channel, struct.pack(">BBI", kind, 0, 0x80000000), 300)
        assert taken < 150, f"{taken} MB of a PDU of 2 GB were taken, more than sockets buffer"
        if association:
            association.abort()
        channel.close()
    assert node.memory_mb("VmHWM") < before + 150, "half of what was poured in"
    assert storescu(node.port, study / "pt") == 0, "it still serves"
    with socket.create_server(("127.0.0.1", node.pacs_port)) as no_pacs:  # nor one from the peer it sends to
        no_pacs.settimeout(60)
        channel, _ = no_pacs.accept()
        fused = node.memory_mb("VmHWM")  # what the fusion takes depends on the machine
        assert channel.recv(6)[0] == 1, "it asks for an association"
        taken = pour(channel, struct.pack(">BBI", 2, 0, 0x80000000), 300)
        channel.close()
    assert taken < 150
    until(lambda: node.metric("send_errors_total") >= 1)
    assert node.memory_mb("VmHWM") < fused + 150


@pytest.mark.parametrize("node", [("--max-mb", "8", "--max-memory-mb", "12")], indirect=True)
def test_a_message_without_an_end_takes_no_memory(study: Path, node: Node) -> None:
    """A data set of 200 MB, and one whose end never comes: over 8 MB nothing is kept, and the answer is
    A700."""
    assert storescu(node.port, study / "mr") == 0
    before = node.memory_mb("VmHWM")
    huge = phantoms.slices(np.zeros((1, 4000, 4000)), AFFINE)[0]
    huge.NumberOfFrames, huge.PixelData = 6, huge.PixelData * 6
    association = associate(node)
    assert association.send_c_store(huge).Status == 0xA700
    association.release()
    for count in (3000, 45, 45, 45, 45):  # 196 MB, and then some of 2.9 MB that hang up before the end
        endless = associate(node)
        fragment = struct.pack(">IBB", 65_538, endless.accepted_contexts[0].context_id, 0) + b"\0" * 65_536
        with contextlib.suppress(OSError):
            for _ in range(count):
                endless.dul.socket.socket.sendall(struct.pack(">BBI", 4, 0, len(fragment)) + fragment)
        endless.abort()
    time.sleep(1)
    assert node.memory_mb("VmHWM") < before + 98, "half of one message"
    assert node.metric("instances_refused_total") == 1 and len(spooled(node)) == SHAPE[0]
    assert "over the limit of --max-mb" in node.log
    # The memory of what was refused is free again: 12 MB serve any number of instances of 3 MB, one by one.
    small = phantoms.slices(np.zeros((1, 1200, 1200)), AFFINE)
    association = associate(node)
    for _ in range(8):
        assert association.send_c_store(small[0]).Status == 0
    association.release()


@pytest.mark.parametrize("node", [("--max-memory-mb", "4")], indirect=True)
def test_what_is_done_or_dropped_gives_its_memory_back_at_once(study: Path, node: Node) -> None:
    """Room for one instance of 3 MB: an idle association that has stored its own, and one that broke off
    within its own, leave it to the next."""
    one = phantoms.slices(np.zeros((1, 1200, 1200)), AFFINE)[0]
    idle = associate(node)
    assert idle.send_c_store(one).Status == 0
    broken = associate(node)
    assert broken.send_c_store(one).Status == 0, "the idle one holds nothing"
    half = struct.pack(">IBB", 65_538, broken.accepted_contexts[0].context_id, 0) + b"\0" * 65_536
    head = command_of(broken, one)
    with contextlib.suppress(OSError):
        broken.dul.socket.socket.sendall(head)
        for _ in range(45):  # 2.9 MB, and no last fragment
            broken.dul.socket.socket.sendall(struct.pack(">BBI", 4, 0, len(half)) + half)
    third = associate(node)
    until(lambda: third.send_c_store(one).Status == 0xA700)
    broken.abort()
    until(lambda: third.send_c_store(one).Status == 0, seconds=20)  # below the 30 s of an idle one
    for association in (idle, third):
        association.release()


def command_of(association: Any, dataset: Any) -> bytes:
    """The P-DATA-TF PDU of the C-STORE request for a data set that is to follow."""
    from pynetdicom.dimse_messages import C_STORE_RQ
    from pynetdicom.dimse_primitives import C_STORE
    from pynetdicom.dsutils import encode

    request = C_STORE()
    request.MessageID = 7
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    request.Priority, request.DataSet = 2, io.BytesIO(b"\0\0")
    message: Any = C_STORE_RQ()
    message.primitive_to_message(request)
    command = encode(message.command_set, True, True)
    assert command is not None
    context = association.accepted_contexts[0].context_id
    item = struct.pack(">IBB", len(command) + 2, context, 3) + command  # 3: command, last fragment
    return struct.pack(">BBI", 4, 0, len(item)) + item


@pytest.mark.parametrize(
    "node",
    [
        ("--max-spool-mb", "0.05"),
        ("--max-per-s", "2"),
        ("--max-association-mb", "0.05"),
    ],
    indirect=True,
    ids=["spool", "rate", "association"],
)
def test_a_limit_is_a_clear_status(study: Path, node: Node) -> None:
    done = run_storescu(node.port, study / "mr", "--no-halt")
    assert "OutOfResources" in done.stdout + done.stderr, done
    received, refused = (node.metric(f"instances_{what}_total") for what in ("received", "refused"))
    assert received + refused == SHAPE[0] and refused > 0 and received == len(spooled(node))
    assert echoscu(node.port) == 0 and node.log.count("was refused") == refused


@pytest.mark.parametrize(
    "node",
    [("--max-associations", "2"), ("--max-associations", "5", "--host", "::")],
    indirect=True,
    ids=["all", "of an address that a listener for both families sees as IPv6"],
)
def test_associations_over_the_limit_are_rejected(study: Path, node: Node) -> None:
    open_ones = [associate(node) for _ in range(2)]
    assert echoscu(node.port) != 0
    open_ones[0].release()
    until(lambda: echoscu(node.port) == 0)
    open_ones[1].release()


def cut_after(node: Node, count: int) -> int:
    """The port of a relay to the node that breaks after `count` bytes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def carry() -> None:
        near, _ = listener.accept()
        far = socket.create_connection(("127.0.0.1", node.port))
        back = threading.Thread(target=pump, args=(far, near, 1 << 30), daemon=True)
        back.start()
        pump(near, far, count)
        for channel in (near, far):
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
            channel.close()

    def pump(start: socket.socket, end: socket.socket, left: int) -> None:
        with contextlib.suppress(OSError):
            while left > 0 and (data := start.recv(min(4096, left))):
                end.sendall(data)
                left -= len(data)

    threading.Thread(target=carry, daemon=True).start()
    return int(listener.getsockname()[1])


def test_an_association_that_drops_in_the_middle_leaves_only_whole_instances(study: Path, node: Node) -> None:
    one = next((study / "mr").iterdir()).stat().st_size
    assert storescu(cut_after(node, 5_000 + 4 * one), study / "mr") != 0
    until(lambda: 1 <= len(spooled(node)) < SHAPE[0])
    for path in spooled(node):  # real dcmtk reads each to its end
        assert path.suffix == ".dcm"
        subprocess.run(["dcmdump", "-q", str(path)], check=True, capture_output=True)
        assert path.stat().st_size >= one - 200
    assert storescu(node.port, study / "mr") == 0
    assert len(spooled(node)) == SHAPE[0], "what was received twice is there once"
