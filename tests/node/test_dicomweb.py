"""Results out and sources in by DICOMweb and DIMSE, with Orthanc as the peer; services that misbehave."""

from __future__ import annotations

import contextlib
import http.server
import io
import os
import socket
import ssl
import subprocess
import threading
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest
from peers import Certificates, Node, Orthanc, echoscu, needs, storescu, until
from phantoms import PLANTED, STUDY, affine_of, encoded, slices, write_mr, write_pet
from ports import free_port
from pydicom import uid
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    RLELossless,
    XRayRadiationDoseSRStorage,
)
from pynetdicom.dsutils import encode

from mmif_trt import cli, dicomweb
from mmif_trt.image import InputError
from mmif_trt.io.dicom.write import MARK
from mmif_trt.node import classes, guard, retrieve, send
from mmif_trt.node.settings import Settings
from mmif_trt.running import Stop

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
SHAPE = (3, 20, 20)


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    needs("Orthanc")
    if not PLUGIN.exists():
        pytest.skip("the DICOMweb plugin is not installed (apt-get install orthanc-dicomweb)")
    move = free_port()
    server = Orthanc(
        tmp_path_factory.mktemp("orthanc"),
        Plugins=[str(PLUGIN)],
        DicomWeb={"Enable": True, "Root": "/dicom-web/"},
        RegisteredUsers={"fusion": "secret"},
        DicomModalities={"mmif": ["MMIF", "127.0.0.1", move]},
        DicomAlwaysAllowMove=True,
        DicomAlwaysAllowGet=True,
        TranscodeDicomProtocol=False,  # like archives that send what they have, or nothing
    )
    server.move = move  # type: ignore[attr-defined]
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def login(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("login") / "auth"
    path.write_text("Basic fusion:secret\n")
    path.chmod(0o600)
    return str(path)


@pytest.fixture(scope="module")
def sources(orthanc: Orthanc, login: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that we stored in Orthanc by STOW-RS."""
    folder = tmp_path_factory.mktemp("sources")
    affine = affine_of(shape=SHAPE, spacing=(5.0, 6.0, 6.0))
    write_mr(folder / "mr", affine, SHAPE)
    write_pet(folder / "pt", affine, SHAPE)
    service = dicomweb.service(url_of(orthanc), login)
    for path in (*(folder / "mr").iterdir(), *(folder / "pt").iterdir()):
        dataset = pydicom.dcmread(path)
        assert not dicomweb.holds(service, dataset)
        assert dicomweb.store(service, dataset) == dicomweb.SENT
        assert dicomweb.holds(service, pydicom.dcmread(path))
    return folder


def url_of(orthanc: Orthanc) -> str:
    return f"http://127.0.0.1:{orthanc.http}/dicom-web"


def contents(folder: Path) -> dict[str, Any]:
    found = [pydicom.dcmread(path) for path in folder.rglob("*") if path.is_file()]
    return {str(dataset.SOPInstanceUID): dataset for dataset in found}


def same(a: Path, b: Path) -> bool:
    one, two = contents(a), contents(b)
    names = ("PatientName", "PatientID", "SpecificCharacterSet", "PixelData", "SeriesInstanceUID")
    stored = all(one[uid].get_item(x).value == two[uid].get_item(x).value for uid in one for x in names)
    return one.keys() == two.keys() and stored


def test_a_study_by_web_is_what_was_stored(
    orthanc: Orthanc, login: str, sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["fetch", "--study", STUDY, "--dicomweb", url_of(orthanc), "--dicomweb-auth", login]
    assert cli.main([*command, "-o", str(tmp_path / "all")]) == 0
    assert same(sources, tmp_path / "all")
    series = str(pydicom.dcmread(next((sources / "pt").iterdir())).SeriesInstanceUID)
    assert cli.main([*command, "--series", series, "-o", str(tmp_path / "one")]) == 0
    assert same(sources / "pt", tmp_path / "one")
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "all").iterdir())
    said = capsys.readouterr().err
    assert "6 instances" in said and not [x for x in (*PLANTED.values(), STUDY) if x in said]
    assert not [name for name in os.listdir(tmp_path / "all") if STUDY in name]


@pytest.mark.parametrize("how", ["get", "move"])
def test_a_study_by_dimse_is_what_was_stored(
    how: str, orthanc: Orthanc, sources: Path, tmp_path: Path
) -> None:
    command = ["fetch", "--study", STUDY, "--from", f"PACS@127.0.0.1:{orthanc.dicom}"]
    if how == "move":
        command += ["--move-port", str(orthanc.move)]  # type: ignore[attr-defined]
    assert cli.main([*command, "-o", str(tmp_path / "all")]) == 0
    assert same(sources, tmp_path / "all")


@pytest.mark.parametrize("how", ["get", "move"])
def test_compressed_images_and_a_dose_report_come_too(
    how: str, orthanc: Orthanc, login: str, tmp_path: Path
) -> None:
    study, sent = f"{STUDY}.{len(how)}", dict[str, str]()  # of its own
    for number, (kind, syntax) in enumerate(
        (
            *([("private", ExplicitVRLittleEndian)] if how == "move" else []),  # by C-GET Orthanc gives up
            ("MR", RLELossless),
            ("MR", ExplicitVRLittleEndian),
            ("SR", ExplicitVRLittleEndian),
        )
    ):
        one = slices(np.ones((1, 16, 16)), affine_of(shape=(1, 16, 16)))[0]
        one.StudyInstanceUID, one.SOPInstanceUID = study, f"{study}.{number}"
        if kind in ("SR", "private"):
            del one.PixelData, one.Rows
            one.SOPClassUID = XRayRadiationDoseSRStorage if kind == "SR" else classes.PRIVATE[0]
            one.Modality = "SR" if kind == "SR" else "MR"
        elif syntax == RLELossless:
            one.compress(syntax, generate_instance_uid=False)
        assert dicomweb.store(dicomweb.service(url_of(orthanc), login), one) == dicomweb.SENT
        sent[one.SOPInstanceUID] = syntax
    command = ["fetch", "--study", study, "--from", f"PACS@127.0.0.1:{orthanc.dicom}"]
    if how == "move":
        command += ["--move-port", str(orthanc.move)]  # type: ignore[attr-defined]
    assert cli.main([*command, "-o", str(tmp_path)]) == 0
    assert {uid: one.file_meta.TransferSyntaxUID for uid, one in contents(tmp_path).items()} == sent


@pytest.mark.parametrize("option, syntax", [("+x=", ExplicitVRLittleEndian), ("+xr", RLELossless)])
def test_what_dcmqrscp_may_not_send_is_said(
    option: str, syntax: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It sends one compression, which its options name, or none."""
    needs("dcmqrscp", "dcmqridx", "echoscu")
    port, store = free_port(), tmp_path / "db"
    store.mkdir()
    for number, compressed in enumerate((False, True)):
        one = slices(np.ones((1, 16, 16)), affine_of(shape=(1, 16, 16)))[0]
        one.StudyInstanceUID, one.SOPInstanceUID = STUDY, f"{STUDY}.{number}"
        if compressed:
            one.compress(RLELossless, generate_instance_uid=False)
        (store / f"{number}.dcm").write_bytes(encoded(one))
        subprocess.run(["dcmqridx", str(store), str(store / f"{number}.dcm")], check=True)
    table = f"HostTable BEGIN\nHostTable END\nAETable BEGIN\nPACS {store} RW (9, 1024mb) ANY\nAETable END\n"
    (tmp_path / "cfg").write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 16384\nMaxAssociations = 4\n{table}"
    )
    running = subprocess.Popen(["dcmqrscp", "-c", str(tmp_path / "cfg"), option])
    try:
        until(lambda: echoscu(port, "PACS") == 0)
        command = ["fetch", "--study", STUDY, "--from", f"PACS@127.0.0.1:{port}", "-o", str(tmp_path / "out")]
        assert cli.main(command) == 1
    finally:
        running.kill()
        running.wait()
    assert "1 instances" in (said := capsys.readouterr().err) and "1 were not received: the PACS says" in said
    (one,) = contents(tmp_path / "out").values()
    assert one.file_meta.TransferSyntaxUID == syntax


def test_contexts_fit_an_association(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = classes.to_get(1)
    assert (
        len(offered) < 128
        and len(offered) == len(set(map(repr, offered)))
        and not [x for _, some in offered for x in some if UID(x).is_deflated]
    )
    assert {one for one, some in offered if len(some) == 1} == {getattr(uid, x) for x in classes.MAIN}
    monkeypatch.setattr(classes, "MAX_CONTEXTS", 60)
    assert len(classes.to_get(2)) == 58


def test_another_study_is_not_taken(tmp_path: Path) -> None:
    """While the port for a C-MOVE is open, anybody may store."""
    kept, received = list[str](), retrieve.Received()
    _, on_store = retrieve._handler(received, STUDY, lambda uid, data: kept.append(uid), Stop())
    other, syntax = dataset(), UID("1.2.840.10008.1.2.1")

    def stored(body: bytes) -> int:
        request = SimpleNamespace(DataSet=io.BytesIO(body), AffectedSOPInstanceUID="1.2.3")
        event = SimpleNamespace(
            encoded_dataset=lambda: body, context=SimpleNamespace(transfer_syntax=syntax), request=request
        )
        return int(on_store(event))

    assert stored(encode(other, False, True)) == 0xA900 and not kept
    other.StudyInstanceUID = STUDY
    assert stored(encode(other, False, True)) == 0x0000 and kept == ["1.2.3"] and received.count == 1
    syntax = UID("1.2.840.10008.1.2.1.99")
    tracemalloc.start()
    packer = zlib.compressobj(9, wbits=-15)
    head, zeros = encode(other, False, True), bytes(1 << 20)
    body = packer.compress(head + b"\xe0\x7f\x10\x00OB\x00\x00\x00\x00\x00\x40")
    body += b"".join(packer.compress(zeros) for _ in range(256)) + packer.flush()
    tracemalloc.reset_peak()
    assert stored(body) == 0x0000 and tracemalloc.get_traced_memory()[1] < 64 << 20, "it was not inflated"
    tracemalloc.stop()


@contextlib.contextmanager
def pacs_that_moves(answers: Any, *syntaxes: str) -> Iterator[int]:
    """The port of a PACS with one study; answers: its generator of answers to a C-MOVE. syntaxes: of its
    answers to a C-FIND, where not all."""
    from pynetdicom import AE, evt

    def found(event: Any) -> Iterator[Any]:
        event.identifier.SeriesInstanceUID = "1.2.1"
        yield 0xFF00, event.identifier

    ae: Any = AE("PACS")
    ae.add_supported_context(retrieve.FIND, *([list(syntaxes)] if syntaxes else []))
    ae.add_supported_context(retrieve.MOVE)
    port = free_port()
    handlers = [(evt.EVT_C_FIND, found), (evt.EVT_C_MOVE, answers)]
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
    try:
        yield port
    finally:
        server.shutdown()


def test_the_port_of_a_move_is_open_to_the_pacs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On loopback unless stated, for the PACS's AE title and ours; silent connections take no place."""
    from pynetdicom import build_context

    needs("echoscu", "storescu")
    port, seen = free_port(), dict[str, Any]()

    def moves(event: Any) -> Iterator[Any]:
        rows = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        seen["listens"] = [row for row in rows if row.endswith(f":{port:04X}")][:1]
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            seen["titles"] = {
                (calling, called): storescu(port, tmp_path / "in", called, calling)
                for calling, called in (("STRANGER", "MMIF"), ("PACS", "OTHER"), ("PACS", "MMIF"))
            }
        yield "127.0.0.1", port, {"contexts": [build_context(dataset().SOPClassUID)]}
        yield 0

    write_mr(tmp_path / "in", affine_of(shape=SHAPE), SHAPE)
    with pacs_that_moves(moves) as pacs:
        command = ["fetch", "--study", STUDY, "--from", f"PACS@127.0.0.1:{pacs}", "--move-port", str(port)]
        assert cli.main([*command, "-o", str(tmp_path / "out")]) == 0
        assert "3 instances" in capsys.readouterr().err
        assert cli.main([*command, "--move-host", "192.0.2.1", "-o", str(tmp_path / "out")]) == 2
        assert "--move-host 192.0.2.1" in capsys.readouterr().err
    assert seen["listens"] == [f"0100007F:{port:04X}"]
    good = seen["titles"].pop(("PACS", "MMIF"))
    assert good == 0 and all(seen["titles"].values())
    assert cli.main([*command[:5], "--move-host", "127.0.0.1", "-o", str(tmp_path / "out")]) == 2
    assert "expected only with --move-port" in capsys.readouterr().err


def test_a_pacs_that_cannot_decompress_sends_as_it_proposes(tmp_path: Path) -> None:
    """One context with the stored syntax first, as of dcmtk's dcmqrscp."""
    from pynetdicom import build_context

    one = slices(np.ones((1, 16, 16)), affine_of(shape=(1, 16, 16)))[0]
    one.compress(RLELossless)

    def moves(event: Any) -> Iterator[Any]:
        proposed = build_context(one.SOPClassUID, [RLELossless, ExplicitVRLittleEndian])
        yield "127.0.0.1", port, {"contexts": [proposed]}
        yield 1
        yield 0xFF00, one

    port = free_port()
    with pacs_that_moves(moves) as pacs:
        command = ["fetch", "--study", STUDY, "--from", f"PACS@127.0.0.1:{pacs}", "--move-port", str(port)]
        assert cli.main([*command, "-o", str(tmp_path)]) == 0
    assert contents(tmp_path)[one.SOPInstanceUID].file_meta.TransferSyntaxUID == RLELossless


def test_the_order_of_a_peer_counts_where_it_names_a_compressed_syntax_first() -> None:
    ours = [ExplicitVRLittleEndian, "1.2.840.10008.1.2", RLELossless]
    proposed = {"1": [RLELossless, ExplicitVRLittleEndian], "2": [*ours[1::-1], RLELossless], "3": []}

    def context(name: str, syntaxes: list[str]) -> SimpleNamespace:
        return SimpleNamespace(abstract_syntax=name, transfer_syntax=[UID(x) for x in syntaxes])

    supported = [context(name, ours) for name in proposed]
    primitive = SimpleNamespace(presentation_context_definition_list=[context(*x) for x in proposed.items()])
    association = SimpleNamespace(
        requestor=SimpleNamespace(primitive=primitive),
        acceptor=SimpleNamespace(supported_contexts=supported),
    )
    guard._in_their_order(SimpleNamespace(assoc=association))
    first, *others = (one.transfer_syntax for one in supported)
    assert first == [RLELossless, *ours[:2]] and others == [ours] * 2


@pytest.mark.parametrize(
    "most, syntaxes, expected",
    [
        (16, [], "without answering"),
        (guard.MAX_ANSWER_BYTES, [DeflatedExplicitVRLittleEndian], "does not offer"),
    ],
)
def test_an_answer_to_a_find_may_not_fill_the_memory(
    most: int,
    syntaxes: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(guard, "MAX_ANSWER_BYTES", most)
    with pacs_that_moves(lambda event: iter(()), *syntaxes) as pacs:
        command = ["fetch", "--study", STUDY, "--from", f"PACS@127.0.0.1:{pacs}", "-o", str(tmp_path)]
        assert cli.main(command) == 2
    said = capsys.readouterr().err
    assert expected in said and said.count("\n") == 1


@pytest.mark.parametrize("how", ["never answers", "answers without end"])
def test_a_move_that_brings_nothing_ends(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pynetdicom import build_context

    monkeypatch.setattr(retrieve, "STALL_S", 1.0)
    over = threading.Event()

    def moves(event: Any) -> Iterator[Any]:
        yield "127.0.0.1", port, {"contexts": [build_context(dataset().SOPClassUID)]}
        yield 1_000
        while how != "never answers" and not over.is_set() and not event.is_cancelled:
            yield 0xFF00, dataset()
        over.wait(60)

    port = free_port()
    with pacs_that_moves(moves) as pacs:
        command = ["fetch", "--study", STUDY, "--from", f"PACS@127.0.0.1:{pacs}", "--move-port", str(port)]
        assert cli.main([*command, "-o", str(tmp_path / "out")]) == 2
        over.set()
    said = capsys.readouterr().err
    assert "sent no instance for 1 s" in said and said.count("\n") == 1


def test_what_is_missing_is_reported_in_one_line(
    orthanc: Orthanc, login: str, sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("Basic fusion:wrong")
    wrong.chmod(0o600)
    pacs, web = f"PACS@127.0.0.1:{orthanc.dicom}", url_of(orthanc)
    for words, expected in (
        (["--study", "1.2.3", "--from", pacs], "no such study"),
        (["--study", "1.2.3", "--dicomweb", web, "--dicomweb-auth", login], "no such study"),
        (
            ["--study", STUDY, "--series", "1.2.3", "--from", pacs],
            "not in the study; expected some of its 2 series",
        ),
        (["--study", STUDY, "--dicomweb", web, "--dicomweb-auth", str(wrong)], "answers 401"),
        (["--study", STUDY, "--dicomweb", web], "answers 401"),
        (["--study", STUDY, "--from", f"PACS@127.0.0.1:{free_port()}"], "no association"),
        (
            ["--study", STUDY, "--dicomweb", f"http://127.0.0.1:{free_port()}/x"],
            "does not answer, or hangs up;",
        ),
        (["--study", "x", "--from", pacs], "--study: not a UID"),
        (["--study", STUDY], "expected exactly one of them"),
        (["--study", STUDY, "--dicomweb", "ftp://x/y"], "expected http"),
        (["--study", STUDY, "--dicomweb", "http://u:zzpass@x/y"], "expected them in --dicomweb-auth"),
        (["--study", STUDY, "--dicomweb", "http://pacs/x", "--dicomweb-auth", login], "expected https"),
        (["--study", STUDY, "--dicomweb-auth", login, "--from", pacs], "expected only with --dicomweb"),
    ):
        assert cli.main(["fetch", *words, "-o", str(tmp_path / "out")]) == 2, words
        said = capsys.readouterr().err
        assert expected in said and said.count("\n") == 1 and "zzpass" not in said, said


def test_the_node_sends_by_web_and_asks_before_it_sends_again(
    orthanc: Orthanc, login: str, sources: Path, tmp_path: Path
) -> None:
    settings = Settings("MMIF", 1, tmp_path, None, dicomweb=dicomweb.service(url_of(orthanc), login))
    dataset = pydicom.dcmread(next((sources / "mr").iterdir()))
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.826.0.1.3680043.8.498.99"
    path, before, there = tmp_path / "x.dcm", list[int](), orthanc.get("/statistics")["CountInstances"]
    dataset.save_as(path)

    def sent(in_doubt: bool) -> str:
        return send.send(settings, path, in_doubt, lambda: before.append(1), Stop())[0]

    assert [sent(True), sent(True), sent(False)] == ["sent", "there", "sent"] and len(before) == 2
    assert orthanc.get("/statistics")["CountInstances"] == there + 1


def test_results_of_a_folder_are_stored_once(
    orthanc: Orthanc, login: str, sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By STOW-RS, then by C-STORE: the second asks and finds them there; no source is ever sent."""
    (tmp_path / "out").mkdir()
    for index, path in enumerate((sources / "mr").iterdir()):
        fused = pydicom.dcmread(path)
        uid = f"1.2.826.0.1.3680043.8.498.7{index}"
        fused.SOPInstanceUID = fused.file_meta.MediaStorageSOPInstanceUID = uid
        fused.ImageComments = MARK if index else "somebody else's"
        fused.save_as(tmp_path / "out" / f"{index}.dcm")
    before = orthanc.get("/statistics")["CountInstances"]
    web = ["--dicomweb", url_of(orthanc), "--dicomweb-auth", login]
    for to in (web, ["--to", f"PACS@127.0.0.1:{orthanc.dicom}"]):
        assert cli.main(["store", str(tmp_path / "out"), *to]) == 0
    said = capsys.readouterr().err
    assert "1 passed over, 2 sent ->" in said and "1 passed over, 2 there ->" in said
    assert orthanc.get("/statistics")["CountInstances"] == before + 2
    assert cli.main(["store", str(tmp_path / "out"), "--to", f"PACS@127.0.0.1:{free_port()}"]) == 1
    assert "unreachable" in capsys.readouterr().err


def test_a_folder_is_stored_whatever_else_is_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pipe, which never ends; a deflated object, which is not ours and may be a bomb; ours, damaged."""
    from pynetdicom import AE, evt

    got: list[str] = []

    def on_store(event: Any) -> int:
        got.append(str(event.request.AffectedSOPInstanceUID))
        return 0

    write_mr(tmp_path / "mr", affine_of(shape=SHAPE), SHAPE)
    out, (first, *rest) = tmp_path / "out", contents(tmp_path / "mr").values()
    out.mkdir()
    os.mkfifo(out / "a.dcm")
    for name, fused in (("b", first), ("c", rest[0]), ("d", rest[1])):
        fused.ImageComments = MARK
        if name == "b":
            fused.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
        if name == "c":
            del fused.SeriesInstanceUID
        fused.save_as(out / f"{name}.dcm")
    ae: Any = AE("PACS")
    ae.add_supported_context(first.SOPClassUID)
    port = free_port()
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store)])
    try:
        assert cli.main(["store", str(out), "--to", f"PACS@127.0.0.1:{port}"]) == 1
    finally:
        server.shutdown()
    assert got == [rest[1].SOPInstanceUID]
    said = capsys.readouterr().err
    assert "c.dcm: failed (an entry is missing)" in said and "1 failed, 2 passed over, 1 sent" in said
    for empty in (tmp_path / "mr", tmp_path / "nothing"):  # the sources themselves; no DICOM at all
        empty.mkdir(exist_ok=True)
        assert cli.main(["store", str(empty), "--to", f"PACS@127.0.0.1:{port}"]) == 0
        assert "; expected fused DICOM objects, as batch --format dcm" in capsys.readouterr().err


@pytest.mark.nightly
def test_the_whole_node_by_web(orthanc: Orthanc, login: str, tmp_path: Path) -> None:
    affine = affine_of(shape=SHAPE, spacing=(5.0, 6.0, 6.0))
    write_mr(tmp_path / "in" / "mr", affine, SHAPE, StudyInstanceUID="1.2.826.0.1.3680043.8.498.5")
    write_pet(tmp_path / "in" / "pt", affine, SHAPE, StudyInstanceUID="1.2.826.0.1.3680043.8.498.5")
    before = orthanc.get("/statistics")["CountInstances"]
    node = Node(tmp_path / "node", 0, "--dicomweb", url_of(orthanc), "--dicomweb-auth", login)
    node.start()
    try:
        assert storescu(node.port, tmp_path / "in") == 0
        until(lambda: orthanc.get("/statistics")["CountInstances"] == before + 1)
        until(lambda: node.metric("sent_total") == 1)
        assert not [x for x in (*PLANTED.values(), "secret") if x in node.log]
    finally:
        assert node.stop() == 0


class Service(http.server.BaseHTTPRequestHandler):
    """Answers as its server's `answer` says: (status, headers, body or parts of it)."""

    def do_POST(self) -> None:
        self.server.seen.append((self.path, dict(self.headers)))  # type: ignore[attr-defined]
        status, headers, parts = self.server.answer  # type: ignore[attr-defined]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            for part in parts:
                self.wfile.write(part)
        except OSError:  # hung up on
            pass

    do_GET = do_POST

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def stub() -> Iterator[Any]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
    server.seen = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def dataset() -> Any:
    made = pydicom.Dataset()
    made.SOPClassUID, made.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    made.StudyInstanceUID, made.SeriesInstanceUID = "1.2", "1.2.1"
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    return made


NOTHING, JSON = {"Content-Length": "0"}, {"Content-Type": "application/dicom+json"}
OK = (200, {**JSON, "Content-Length": "2"}, [b"{}"])
ANSWERS = {
    "refused": ((409, NOTHING, []), dicomweb.REFUSED),
    "not ours to store": ((403, NOTHING, []), dicomweb.UNREACHABLE),
    "busy": ((503, NOTHING, []), dicomweb.UNREACHABLE),
    "another place": (
        (307, {"Location": "http://127.0.0.1:9/", "Content-Length": "0"}, []),
        dicomweb.UNREACHABLE,
    ),
    "no end": (
        (200, {"Content-Type": "application/dicom+json"}, [b" " * 65_536] * 2_000),
        dicomweb.UNREACHABLE,
    ),
}


def multipart(*parts: bytes, boundary: bytes = b"X") -> list[bytes]:
    head = b"\r\n--" + boundary + b"\r\nContent-Type: application/dicom\r\n\r\n"
    return [head + part for part in parts] + [b"\r\n--" + boundary + b"--\r\n"]


RELATED = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=X'}
PACKER = zlib.compressobj(9, wbits=-15)
BOMB = PACKER.compress(bytes(64 << 20)) + PACKER.flush()


def as_file(body: bytes, syntax: str) -> bytes:
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = meta.MediaStorageSOPClassUID = meta.MediaStorageSOPInstanceUID = syntax
    stream = pydicom.filebase.DicomBytesIO()
    pydicom.filewriter.write_file_meta_info(stream, meta)
    return b"\0" * 128 + b"DICM" + stream.getvalue() + body


@pytest.mark.parametrize(
    "headers, parts, said",
    [
        (RELATED, [b"\0" * 65_536] * 400, "sends an answer without an end"),
        (RELATED, multipart(b"\0" * (20 << 20), boundary=b"Y"), "sends an answer without an end"),
        ({"Content-Type": "multipart/related"}, [b"\0" * 65_536] * 400, "sends an answer without an end"),
        (RELATED, multipart(as_file(BOMB, "1.2.840.10008.1.2.1.99")), "inflates to over"),
        ({"Content-Type": "application/dicom"}, [b"\0" * 65_536] * 400, "outside a multipart message"),
        (RELATED, multipart(b"no DICOM"), "without a transfer syntax"),
        ({"Content-Type": "text/html"}, [b"<p>"], "expected the complete study"),
        (RELATED, multipart(encoded(slices(np.zeros((1, 8, 8)), affine_of())[0]))[:1], "that is cut off"),
        (RELATED, multipart(as_file(b"\x08\0\x05\0SQ\0\0\xff\xff\xff\xff" * 9, "1.2.840.10008.1.2.1")), ""),
    ],
    ids=["no boundary", "another boundary", "none stated", "bomb", "no multipart", "noise", "a page"]
    + ["no last boundary", "cut"],
)
def test_a_study_from_a_service_that_lies(
    headers: dict[str, str],
    parts: list[bytes],
    said: str,
    stub: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Memory for one instance, not for whatever a service sends; one line, no traceback."""
    from mmif_trt.io.dicom import meta

    monkeypatch.setattr(dicomweb, "MAX_INSTANCE_BYTES", 1 << 20)
    monkeypatch.setattr(meta, "MAX_INFLATED_BYTES", 1 << 20)
    monkeypatch.setattr(dicomweb, "announced", lambda *_: None)
    stub.answer = (200, headers, parts)
    command = ["fetch", "--study", STUDY, "--dicomweb", f"http://127.0.0.1:{stub.server_port}/x"]
    assert cli.main([*command, "-o", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1 and STUDY not in told, told
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("kind", ANSWERS)
def test_what_a_service_may_answer(kind: str, stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stub.answer, expected = ANSWERS[kind]
    service = dicomweb.service(f"http://127.0.0.1:{stub.server_port}/x")
    assert dicomweb.store(service, dataset()) == expected
    assert len(stub.seen) == 1, "no second try here, and no redirect followed"
    assert not dicomweb.holds(service, dataset())


def test_a_token_goes_to_the_service_and_into_no_message(
    stub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login other password else")
    monkeypatch.setenv("HOME", str(tmp_path))
    auth = tmp_path / "auth"
    auth.write_text("Bearer zz-token")
    auth.chmod(0o600)
    stub.answer = OK
    service = dicomweb.service(f"http://127.0.0.1:{stub.server_port}/x", str(auth))
    dicomweb.store(service, dataset())
    (path, headers), *_ = stub.seen
    assert path == "/x/studies" and headers["Authorization"] == "Bearer zz-token"
    assert "zz-token" not in repr(service)
    auth.chmod(0o644)
    with pytest.raises(InputError, match="others can read it; expected mode 0600"):
        dicomweb.service("http://127.0.0.1/x", str(auth))
    for text in ("zz-token", "Basic nocolon", "Bearer a\nBearer b", ""):
        auth.write_text(text)
        auth.chmod(0o600)
        with pytest.raises(InputError, match="expected one line") as caught:
            dicomweb.service("http://127.0.0.1/x", str(auth))
        assert "token" not in str(caught.value).replace("TOKEN", "").lower().replace(
            str(tmp_path).lower(), ""
        )


def test_only_a_certificate_that_is_trusted(stub: Any, tmp_path: Path) -> None:
    certificates = Certificates(tmp_path / "tls")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificates.ours("pacs")[:2])
    stub.socket = context.wrap_socket(stub.socket, server_side=True)
    stub.answer = OK
    url = f"https://127.0.0.1:{stub.server_port}/x"
    assert dicomweb.store(dicomweb.service(url), dataset()) == dicomweb.UNREACHABLE
    stranger = str(tmp_path / "tls" / "stranger-ca.pem")
    assert dicomweb.store(dicomweb.service(url, None, stranger), dataset()) == dicomweb.UNREACHABLE
    with pytest.raises(InputError, match="its certificate is not trusted"):
        dicomweb.announced(dicomweb.service(url), "1.2")
    assert not stub.seen, "nothing was sent to it"
    ours = certificates.ours("pacs")[2]
    assert dicomweb.store(dicomweb.service(url, None, ours), dataset()) == dicomweb.SENT
