"""Who gets in, and that no peer locks others out: silent and dripping peers, titles, addresses, TLS."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import stat
import struct
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from peers import Certificates, Node, echoscu, needs, until
from ports import free_port

pytest.importorskip("pynetdicom", reason="needs the clinical extra")

from mmif_trt.node import admission
from mmif_trt.node.admission import Admission, Asked, Peer, Refused, request_of


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    needs("echoscu")
    root = tmp_path_factory.mktemp("admission")
    options = ("--peer", "SCANNER", "--peer", "FAR@192.0.2.7", "--peer", "HERE@127.0.0.1")
    one = Node(root / "node", free_port(), *options, "--audit", str(root / "audit"))
    one.start()
    yield one
    one.kill()


def threads(node: Node) -> int:
    assert node.process is not None
    return len(list(Path(f"/proc/{node.process.pid}/task").iterdir()))


def test_peers_that_say_nothing_lock_nobody_out(node: Node) -> None:
    """More of each kind than there are places, from the same address as the scanner: no byte, half a header,
    a header without its PDU."""
    kinds = [b"", b"\x01\x00\x00", struct.pack(">BBL", 1, 0, 200) + b"\0" * 10]
    with contextlib.ExitStack() as stack:
        for sent in kinds * 35:
            channel = stack.enter_context(socket.create_connection(("127.0.0.1", node.port)))
            if sent:
                channel.sendall(sent)
        for _ in range(3):
            assert echoscu(node.port) == 0


@pytest.mark.parametrize(
    "data",
    [b"", b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01\x00\xc8" + b"\0" * 200, b"\r\n\r\n"]
    + [struct.pack(">BBL", kind, 0, 4) + b"\0" * 4 for kind in (4, 5, 7)],
    ids=["nothing", "http", "tls", "newlines", "data", "release", "abort"],
)
def test_a_place_is_given_back_when_the_peer_leaves(node: Node, data: bytes) -> None:
    """As a monitor does that checks whether the port is open: the threads end then, not by a timeout."""
    until(lambda: threads(node) > 0)
    assert echoscu(node.port) == 0
    for _ in range(40):
        with socket.create_connection(("127.0.0.1", node.port)) as channel:
            channel.sendall(data)
    assert echoscu(node.port) == 0
    until(lambda: not waiting(node), seconds=admission.FIRST_PDU_S - 2)
    assert "Traceback" not in node.log


def waiting(node: Node) -> int:
    """Connections to the DICOM port, as the kernel lists them: established, or closed by the peer alone."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{node.port:04X}") and row[3] in ("01", "08") for row in rows)


def test_a_request_that_cannot_be_read_gives_its_place_back(node: Node) -> None:
    """A complete frame with noise inside: pynetdicom answers with an abort."""
    head = struct.pack(">H2x16s16s32x", 1, b"MMIF".ljust(16), b"SCANNER".ljust(16))
    for _ in range(30):
        body = head + b"\x10\x00\xff\xff" + b"\xee" * 300
        with socket.create_connection(("127.0.0.1", node.port)) as channel:
            channel.sendall(struct.pack(">BBL", 1, 0, len(body)) + body)
    assert until(lambda: echoscu(node.port) == 0, seconds=8)


def test_ae_titles_and_addresses(node: Node) -> None:
    assert echoscu(node.port) == 0 and echoscu(node.port, calling="HERE") == 0
    for calling, called in (("STRANGER", "MMIF"), ("FAR", "MMIF"), ("SCANNER", "OTHER")):
        assert echoscu(node.port, called, calling) != 0
    for reason in ("calling_aet", "address", "called_aet"):
        assert node.metric(f"refused_{reason}_total") >= 1
    assert "its AE title belongs to another address" in node.log


def test_the_audit_trail(node: Node, tmp_path: Path) -> None:
    """A title that holds a line break and a terminal code stays one line, here and in the log."""
    title = b"EVIL\n\x1b[31mX"
    body = struct.pack(">H2x16s16s32x", 1, b"MMIF".ljust(16), title.ljust(16)) + b"\0" * 8
    with socket.create_connection(("127.0.0.1", node.port)) as channel:
        channel.sendall(struct.pack(">BBL", 1, 0, len(body)) + body)
        assert channel.recv(10)[0] == 3, "rejected"
    assert echoscu(node.port) == 0
    path = node.folder.parent / "audit"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def lines() -> list[dict[str, str]]:
        return [json.loads(line) for line in path.read_text().splitlines()]

    until(lambda: [x for x in lines() if x["kind"] == "association_end" and x["calling_aet"] == "SCANNER"])
    assert lines()[0]["type"] == "Application Start" and lines()[1]["type"] == "Software Configuration"
    (evil,) = [x for x in lines() if x.get("calling_aet", "").startswith("EVIL")]
    assert evil["outcome"] == "failure" and evil["reason"] == "calling_aet" and evil["peer"] == "127.0.0.1"
    raw = path.read_text() + node.log
    assert "\x1b" not in raw and all("EVIL" not in x or x.isprintable() for x in raw.splitlines())
    assert stat.S_IMODE((node.folder / "spool").stat().st_mode) == 0o700


def test_another_method_is_told_which_there_are(node: Node) -> None:
    channel = http.client.HTTPConnection("127.0.0.1", node.http, timeout=30)
    with contextlib.closing(channel):
        channel.request("POST", "/health")
        answer = channel.getresponse()
        assert (answer.status, answer.getheader("Allow")) == (405, "GET, HEAD")


def test_dripping_http_takes_no_descriptors_and_no_turn(node: Node) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(150):
            channel = stack.enter_context(socket.create_connection(("127.0.0.1", node.http)))
            with contextlib.suppress(OSError):
                channel.sendall(b"GET /health HTTP/1.1\r\nX-a: ")
        assert json.loads(node.web("/health"))["status"] == "ok" and echoscu(node.port) == 0
        assert node.metric("http_refused_full_total") >= 80
        assert node.process is not None
        assert len(list(Path(f"/proc/{node.process.pid}/fd").iterdir())) < 150
    assert node.metric("queue_length") == 0


def test_a_certificate_is_bound_to_its_ae_title_and_silence_before_tls_locks_nobody_out(
    tmp_path: Path,
) -> None:
    made = Certificates(tmp_path / "tls")
    (made.folder / "node.key").chmod(0o644)
    options = ("--peer", "SCANNER", "--peer", "PACS", "--tls", *made.ours("node"), "--http-tls")
    one = Node(tmp_path / "node", free_port(), *options)
    one.start(healthy=False)
    try:
        until(lambda: "listening on" in one.log)

        def echo(certificate: str, title: str) -> int:
            words = ["echoscu", "-aec", "MMIF", "-aet", title, *made.dcmtk(certificate)]
            return subprocess.run([*words, "127.0.0.1", str(one.port)], capture_output=True).returncode

        assert echo("scanner", "SCANNER") == 0 and echo("pacs", "PACS") == 0
        assert echo("scanner", "PACS") != 0, "another machine's title"
        assert "certificate names neither" in one.log and "key can be read by other users" in one.log
        with pytest.raises(OSError):  # /health asks for a certificate too
            one.web("/health")
        certificate, key, authority = made.ours("scanner")
        context = ssl.create_default_context(cafile=authority)
        context.load_cert_chain(certificate, key)
        assert one.process is not None
        with contextlib.ExitStack() as stack:
            for _ in range(150):
                stack.enter_context(socket.create_connection(("127.0.0.1", one.http)))
            url = f"https://127.0.0.1:{one.http}/health"
            for _ in range(10):
                assert urllib.request.urlopen(url, timeout=10, context=context).status == 200
            assert len(list(Path(f"/proc/{one.process.pid}/fd").iterdir())) < 150
            assert echo("scanner", "SCANNER") == 0
    finally:
        one.kill()


def test_metrics_on_the_network_need_a_token(tmp_path: Path) -> None:
    from mmif_trt.cli import main

    words = ["node", "--aet", "MMIF", "--port", str(free_port()), "--send-to", "PACS@127.0.0.1:104"]
    words += ["--spool", str(tmp_path / "spool"), "--http-port", str(free_port()), "--http-host", "0.0.0.0"]
    assert main(words) == 2
    (tmp_path / "token").write_text("0123456789abcdef0123\n")
    options = ("--http-host", "0.0.0.0", "--http-token", str(tmp_path / "token"), "--any-peer")
    one = Node(tmp_path / "node", free_port(), *options)
    one.start(healthy=False)
    try:
        until(lambda: "listening on" in one.log)

        def asked(**headers: str) -> int:
            request = urllib.request.Request(f"http://127.0.0.1:{one.http}/metrics", headers=headers)
            try:
                return int(urllib.request.urlopen(request, timeout=10).status)
            except urllib.error.HTTPError as error:
                return int(error.code)

        assert until(lambda: asked(Authorization="Bearer 0123456789abcdef0123")) == 200
        assert asked() == asked(Authorization="Bearer 0123456789abcdef0124") == 401
    finally:
        one.kill()


def test_places_are_kept_for_the_known_and_shared_out_by_address() -> None:
    door = Admission("MMIF", (Peer("A", "192.0.2.1"), Peer("B")), 16, bind_certificates=False)

    def reason(asked: Asked, open_from: list[str]) -> str:
        try:
            door.judge(asked)
            door.find_place(asked, open_from)
        except Refused as refused:
            return refused.reason
        return ""

    known, other = Asked("A", "MMIF", "192.0.2.1"), Asked("B", "MMIF", "192.0.2.2")
    crowd = [f"192.0.2.{i}" for i in range(10, 22)]
    assert reason(other, crowd) == "full" and reason(known, crowd) == ""
    assert reason(other, ["192.0.2.2"] * 8) == "full" and reason(other, ["192.0.2.2"] * 7) == ""
    assert reason(Asked("A", "MMIF", "192.0.2.2"), []) == "address"
    bound = Admission("MMIF", None, 16, bind_certificates=True)
    bound.judge(Asked("CT1", "MMIF", "x", frozenset({"CT1"})))
    with pytest.raises(Refused, match="certificate"):
        bound.judge(Asked("MR1", "MMIF", "x", frozenset({"CT1"})))


def test_a_name_server_that_is_away_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the named peer at the address it had; and a changed name is found when the server is back."""
    away, asked_for, answers = (
        threading.Event(),
        list[str](),
        {"ct.local": "192.0.2.1", "mr.local": "192.0.2.2"},
    )

    def look_up(host: str, *_: Any, **__: Any) -> Any:
        asked_for.append(host)
        if away.is_set():
            waits.wait(60)
            raise OSError("no answer")
        return [(0, 0, 0, "", (answers[host], 0))]

    monkeypatch.setattr(admission.socket, "getaddrinfo", look_up)
    waits = threading.Event()
    door = Admission("MMIF", (Peer("CT", "ct.local"), Peer("MR", "mr.local")), 16, bind_certificates=False)
    monkeypatch.setattr(admission, "RESOLVED_S", 0.0)
    away.set()
    threads = [
        threading.Thread(target=door.judge, args=(Asked("CT", "MMIF", "192.0.2.1"),)) for _ in range(9)
    ]
    for thread in threads:
        thread.start()
    for title, address in (("MR", "192.0.2.2"), ("CT", "192.0.2.1")):
        door.judge(Asked(title, "MMIF", address))
    with pytest.raises(Refused, match="address"):
        door.judge(Asked("CT", "MMIF", "192.0.2.9"))
    until(lambda: sum(thread.is_alive() for thread in threads) == 1, 10)
    assert len(asked_for) == 3
    waits.set()
    for thread in threads:
        thread.join()
    away.clear()
    answers["ct.local"] = "192.0.2.9"
    door.judge(Asked("CT", "MMIF", "192.0.2.9"))


def test_the_first_pdu_has_one_deadline_however_it_drips() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"\x01\x00")
        with pytest.raises(Refused, match="silent"):
            request_of(ours, time.monotonic() + 0.05)
        theirs.sendall(struct.pack(">BBL", 9, 0, 4))
        with pytest.raises(Refused, match="not_dicom"):
            request_of(ours, time.monotonic() + 5)
        theirs.close()
        with pytest.raises(Refused, match="left"):
            request_of(ours, time.monotonic() + 5)
