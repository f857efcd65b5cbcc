"""What the node does when things around it fail: the PACS, the disk, a scanner that pauses."""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pydicom
import pytest
from disks import disk
from peers import Node, needs, run_storescu, storescu, until
from phantoms import affine_of, grid, slices, uptake, write_mr, write_series
from ports import free_port

from mmif_trt import dicomweb
from mmif_trt.node import run, sending
from mmif_trt.node.audit import Audit
from mmif_trt.node.classes import PRIVATE
from mmif_trt.node.counters import Counters
from mmif_trt.node.send import FIND
from mmif_trt.node.server import Receiver
from mmif_trt.node.settings import Settings
from mmif_trt.node.spool import Spool
from mmif_trt.node.web import Pulse
from mmif_trt.running import Stop

pynetdicom = pytest.importorskip("pynetdicom", reason="needs the clinical extra")

QUICK = ("--quiet-s", "1")
SHAPE = (20, 48, 40)
AFFINE = affine_of(spacing=(5.0, 4.0, 4.0), shape=SHAPE)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mr; pt early and pt late: one PET series in two parts."""
    needs("storescu", "storescp")
    root = tmp_path_factory.mktemp("study")
    write_mr(root / "mr", AFFINE, SHAPE)
    pet = slices(20 * uptake(grid(AFFINE, SHAPE)), AFFINE, "PT")
    write_series(root / "pt early", pet[:14])
    write_series(root / "pt late", pet[14:])
    write_series(root / "pt few", pet[:13])
    return root


@contextmanager
def pacs(folder: Path, port: int) -> Iterator[Path]:
    """A storescp that keeps each instance it receives in a file of its own, even the same one twice."""
    folder.mkdir(exist_ok=True)
    command = ["storescp", "--aetitle", "PACS", "-uf", "-od", str(folder), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield folder
    finally:
        process.kill()
        process.wait()


def queue(spool: Spool, name: str, data: bytes) -> list[str]:
    spool.scratch(name).write_bytes(data)
    return spool.queue(name, spool.scratch(name))


def outgoing(node: Node) -> list[Path]:
    return sorted((node.folder / "spool" / "outgoing").iterdir())


def test_a_pacs_that_stays_down_is_asked_less_and_less_often_even_across_a_restart(
    study: Path, tmp_path: Path
) -> None:
    port = free_port()
    node = Node(tmp_path / "node", port, *QUICK)
    node.start()
    try:
        for folder in ("mr", "pt early", "pt late"):
            assert storescu(node.port, study / folder) == 0
        until(lambda: node.log.count("the PACS does not answer") >= 3)
        assert re.findall(r"next try in (\d+) s", node.log)[:3] == ["1", "2", "4"]
        (waiting,) = outgoing(node)
        whole = waiting.read_bytes()
        node.kill()
        with pacs(tmp_path / "pacs", port) as folder:
            node.start()
            (sent,) = until(lambda: list(folder.iterdir()))
            until(lambda: node.metric("sent_total") == 1 and not outgoing(node))
            time.sleep(2)
            assert len(list(folder.iterdir())) == 1 and node.metric("fusions_total") == 0
            theirs, ours = pydicom.dcmread(sent), pydicom.dcmread(pydicom.filebase.DicomBytesIO(whole))
            assert theirs.SOPInstanceUID == ours.SOPInstanceUID and theirs.PixelData == ours.PixelData
    finally:
        node.kill()


def test_an_instance_that_the_pacs_refuses_holds_up_no_other(study: Path, tmp_path: Path) -> None:
    got: list[str] = []

    def on_store(event: Any) -> int:
        got.append(str(event.dataset.StudyInstanceUID))
        return 0xA700 if got[-1] == phantoms.STUDY and got.count(got[-1]) < 3 else 0

    port = free_port()
    ae: Any = pynetdicom.AE("PACS")
    ae.supported_contexts = pynetdicom.AllStoragePresentationContexts
    server = ae.start_server(
        ("127.0.0.1", port), False, evt_handlers=[(pynetdicom.evt.EVT_C_STORE, on_store)]
    )
    other = {"StudyInstanceUID": "1.2.3"}
    write_mr(tmp_path / "mr2", AFFINE, SHAPE, **other)
    pet = slices(20 * uptake(grid(AFFINE, SHAPE)), AFFINE, "PT", **other)
    write_series(tmp_path / "pt2", pet)
    both = tmp_path / "both"  # in one association: no sender is slow enough to split a study
    for source in (study / "mr", study / "pt early", study / "pt late", tmp_path / "mr2", tmp_path / "pt2"):
        shutil.copytree(source, both / source.name)
    node = Node(tmp_path / "node", port, *QUICK)
    node.start()
    try:
        assert storescu(node.port, both) == 0
        until(lambda: node.metric("sent_total") == 2 and not outgoing(node))
        assert got.count("1.2.3") == 1 and got.count(phantoms.STUDY) == 3
        assert node.log.count("the PACS refused") == 2
    finally:
        node.kill()
        server.shutdown()


def test_late_instances_make_a_complete_series_that_says_what_it_replaces(
    study: Path, tmp_path: Path
) -> None:
    port = free_port()
    node = Node(tmp_path / "node", port, *QUICK)
    node.start()
    try:
        with pacs(tmp_path / "pacs", port) as folder:
            assert storescu(node.port, study / "mr") == storescu(node.port, study / "pt early") == 0
            until(lambda: node.metric("sent_total") == 1)
            (first,) = folder.iterdir()
            assert storescu(node.port, study / "pt late") == 0
            until(lambda: node.metric("sent_total") == 2)
            (second,) = set(folder.iterdir()) - {first}
            part, whole = pydicom.dcmread(first), pydicom.dcmread(second)
            assert len(part.SourceImageSequence) == 34 and len(whole.SourceImageSequence) == 40
            assert part.SeriesInstanceUID != whole.SeriesInstanceUID
            assert f"replaces {part.SOPInstanceUID}, made before" in whole.DerivationDescription
            assert "replaces" not in part.DerivationDescription
            assert "which the PACS has: it now has both" in node.log
            # When the sources are forgotten and some of them are sent again, that part does not replace the
            # whole.
            node.kill()
            shutil.rmtree(node.folder / "spool" / "incoming")
            node.start()
            assert storescu(node.port, study / "mr") == storescu(node.port, study / "pt few") == 0
            until(lambda: "a fusion of more instances is done" in node.log or len(list(folder.iterdir())) > 2)
            assert len(list(folder.iterdir())) == 2
    finally:
        node.kill()


def test_a_failure_may_be_forgotten_while_it_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page on another thread said that the spool was gone."""
    spool = Spool(tmp_path)
    spool.mark_failed("pair_30_ffff", "set aside")
    assert spool.gauges()["cases_set_aside"] == 1
    monkeypatch.setattr("mmif_trt.node.spool.is_regular", lambda mark: mark.unlink() is None)
    assert spool.gauges()["cases_set_aside"] == 0


def test_a_partial_fusion_that_still_waits_gives_way(tmp_path: Path) -> None:
    """In the spool itself: names end in the number of instances and which they are."""
    spool = Spool(tmp_path)
    assert queue(spool, "pair_34_aaaa", b"part") == [] and queue(spool, "other_34_bbbb", b"x") == []
    for name in ("pair_30_ffff", "pair_50_ffff", "other_40_ffff"):
        spool.mark_failed(name, "missing slices")
    assert queue(spool, "pair_40_cccc", b"whole") == ["pair_34_aaaa"]
    assert [path.stem for path in spool.waiting()] == ["other_34_bbbb", "pair_40_cccc"]
    assert spool.gauges()["cases_failed"] == 2 and spool.state("pair_30_ffff") == "new", "it is fused now"
    assert (
        spool.larger("pair_34_aaaa") and not spool.larger("pair_41_dddd") and not spool.larger("pair_40_cccc")
    )
    whole = spool.waiting()[1]
    spool.mark_sent(whole, "1.2.3")
    assert spool.state("pair_40_cccc") == "sent" and not whole.exists() and spool.larger("pair_39_eeee")
    (mark,) = spool.sent_before("pair_41_dddd")
    assert spool.uid_of(mark) == "1.2.3" and not spool.sent_before("pair_40_cccc")
    mark.write_bytes(b"DICM" * 4000)  # a kill after the file became the mark, before it shrank
    with Spool(tmp_path) as again:
        assert again.state("pair_40_cccc") == "sent" and spool.uid_of(mark) == ""
    spool.mark_sent(tmp_path / "outgoing" / "pair_34_aaaa.dcm", "1.2.4")  # it was being sent when it gave way
    assert spool.state("pair_34_aaaa") == "sent"


def test_a_pause_within_an_association_ends_no_study(study: Path, tmp_path: Path) -> None:
    """Nor does an object of a vendor's own class, at which dcmtk's senders end the association if it is not
    taken."""
    node = Node(tmp_path / "node", free_port(), *QUICK)
    node.start()
    try:
        assert storescu(node.port, study / "mr") == 0
        ae: Any = pynetdicom.AE("SCANNER")
        for uid in (phantoms.SOP["PT"], PRIVATE[0]):
            ae.add_requested_context(uid, "1.2.840.10008.1.2.1")
        association = ae.associate("127.0.0.1", node.port, ae_title="MMIF")
        private = pydicom.dcmread(next((study / "mr").iterdir()), stop_before_pixels=True)
        private.SOPClassUID, private.SOPInstanceUID = PRIVATE[0], f"{private.StudyInstanceUID}.1"
        del private.Rows
        assert association.send_c_store(private).Status == 0
        for folder in ("pt early", "pt late"):
            for path in sorted((study / folder).iterdir()):
                assert association.send_c_store(pydicom.dcmread(path)).Status == 0
            time.sleep(2.5)  # more than twice --quiet-s
            assert not outgoing(node)
        association.release()
        (whole,) = until(lambda: outgoing(node))
        assert len(pydicom.dcmread(whole).SourceImageSequence) == 40
        assert node.metric("fusions_total") == 1
    finally:
        node.kill()


def test_a_sender_that_hangs_up_holds_no_study(tmp_path: Path) -> None:
    """It closes the connection with its last instance, without a release: that is stored after the close."""
    settings = Settings("MMIF", free_port(), tmp_path, ("PACS", "127.0.0.1", 1), peers=None)
    with Spool(tmp_path) as spool:
        receiver = Receiver(settings, spool, counters := Counters(), Audit(None, "MMIF"))
        receiver.start()
        try:
            for number in range(5):
                (dataset,) = slices(np.zeros((1, 4, 4)), AFFINE, StudyInstanceUID=f"1.2.{number}")
                ae: Any = pynetdicom.AE("SCANNER")
                ae.add_requested_context(dataset.SOPClassUID)
                association = ae.associate("127.0.0.1", settings.port, ae_title="MMIF")
                channel, send = association.dul.socket, association.dul.socket.send

                def last(data: bytes, channel: Any = channel, send: Any = send) -> None:
                    send(data)
                    if data[11] & 3 == 2:  # the last fragment of a data set (PS3.8, E.2)
                        channel.socket.close()

                channel.send = last
                association.send_c_store(dataset)
            until(lambda: counters.snapshot().get("instances_received_total") == 5, 20)
            until(lambda: not receiver.sending(), 20)
        finally:
            receiver.stop()


def test_an_association_that_stays_open_holds_a_study_only_so_long(study: Path, tmp_path: Path) -> None:
    node = Node(tmp_path / "node", free_port(), *QUICK, "--hold-s", "5")
    node.start()
    try:
        ae: Any = pynetdicom.AE("SCANNER")
        for modality in ("MR", "PT"):
            ae.add_requested_context(phantoms.SOP[modality], "1.2.840.10008.1.2.1")
        ae.add_requested_context("1.2.840.10008.1.1")
        association = ae.associate("127.0.0.1", node.port, ae_title="MMIF")
        for folder in ("mr", "pt early", "pt late"):
            for path in sorted((study / folder).iterdir()):
                assert association.send_c_store(pydicom.dcmread(path)).Status == 0
        time.sleep(2.5)
        assert not outgoing(node) and association.is_established
        # An echo now and then: an idle association is ended after 30 s.
        (whole,) = until(lambda: association.send_c_echo().Status == 0 and outgoing(node))
        assert association.is_established, "the association never ended"
        assert len(pydicom.dcmread(whole).SourceImageSequence) == 40
        association.release()
    finally:
        node.kill()


@pytest.mark.parametrize("find", ["answered", "not offered", "aborted"])
def test_killed_when_the_pacs_has_it_and_we_do_not_know(study: Path, tmp_path: Path, find: str) -> None:
    """The worst moment: the PACS has the instance, and its answer was never read. The node asks before it
    sends again; a PACS that answers no C-FIND receives the same instance twice."""
    stored: list[str] = []
    asked: list[str] = []

    def on_store(event: Any) -> int:
        stored.append(str(event.dataset.SOPInstanceUID))
        if len(stored) == 1:
            node.kill()
        return 0

    def on_find(event: Any) -> Iterator[tuple[int, Any]]:
        asked.append(str(event.identifier.SOPInstanceUID))
        assert event.identifier.QueryRetrieveLevel == "IMAGE" and event.identifier.StudyInstanceUID
        if find == "aborted":
            event.assoc.abort()
        for uid in stored:
            if uid == asked[-1]:
                yield 0xFF00, event.identifier

    port = free_port()
    ae: Any = pynetdicom.AE("PACS")
    ae.supported_contexts = pynetdicom.AllStoragePresentationContexts
    if find != "not offered":
        ae.add_supported_context(FIND)
    handlers = [(pynetdicom.evt.EVT_C_STORE, on_store), (pynetdicom.evt.EVT_C_FIND, on_find)]
    server = ae.start_server(("127.0.0.1", port), False, evt_handlers=handlers)
    node = Node(tmp_path / "node", port, *QUICK)
    node.start()
    try:
        for folder in ("mr", "pt early", "pt late"):
            assert storescu(node.port, study / folder) == 0
        until(lambda: stored and node.process and node.process.poll() is not None)
        assert len(outgoing(node)) == 1 and not asked
        node.start()
        until(lambda: node.metric("sent_total") == 1)
        time.sleep(1.5)
        assert not outgoing(node) and not list((node.folder / "spool" / "doubt").iterdir())
        expected = {"answered": (1, 1), "not offered": (2, 0), "aborted": (2, 1)}
        assert (len(stored), len(asked)) == expected[find]
        assert len(set(stored)) == 1 and ("was there already" in node.log) == (find == "answered")
    finally:
        node.kill()
        server.shutdown()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ends_is_seen_and_ends_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted fault of ours: the sender ends. Such a node would accept series, send none, and look
    healthy."""
    settings = Settings("MMIF", free_port(), tmp_path, ("PACS", "127.0.0.1", free_port()), host="127.0.0.1")
    settings = replace(settings, http_port=free_port())

    def ends(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(run, "POLL_S", 2.0)
    monkeypatch.setattr(sending, "_send_one", ends)
    queue(Spool(tmp_path), "pair_34_aaaa", b"waits")
    ended: list[bool] = []
    node = threading.Thread(target=lambda: ended.append(run.serve(settings, Stop())))
    node.start()

    def failing() -> Any:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{settings.http_port}/health", timeout=10).close()
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())["failed"]

    assert until(failing) == (503, ["send"])
    node.join(timeout=30)
    assert ended == [False] and len(Spool(tmp_path).waiting()) == 1, "it stopped, and lost nothing"


def test_one_that_cannot_be_sent_or_marked_floods_and_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged file, the first in the queue, and one that is sent where nothing can be renamed any more."""
    sent, turns, stop = list[str](), list[float](), Stop()

    def send(settings: Any, path: Path, *rest: Any) -> tuple[str, str]:
        pydicom.dcmread(path)
        sent.append(path.stem)
        return dicomweb.SENT, "1.2"

    def sleep(seconds: float) -> None:
        turns.append(seconds)
        stop.reason = "enough" if len(turns) == 5 else ""

    def read_only(path: Path, uid: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(sending, "send", send)
    monkeypatch.setattr(sending.time, "sleep", sleep)
    write_mr(tmp_path / "mr", AFFINE, SHAPE)
    with Spool(tmp_path / "spool") as spool:
        queue(spool, "a_1_x", b"damaged")
        for name in ("b_1_x", "c_1_x"):
            queue(spool, name, next((tmp_path / "mr").iterdir()).read_bytes())
        monkeypatch.setattr(spool, "mark_sent", read_only)
        settings = Settings("MMIF", 1, tmp_path, ("PACS", "127.0.0.1", 1), retry_s=3600.0)
        sending.send_all(settings, spool, Counters(), Audit(None, "MMIF"), Pulse(), stop)
        assert sent == ["b_1_x", "c_1_x"] and len(spool.waiting()) == 3


def test_a_full_disk_postpones_and_loses_nothing(study: Path, tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "3m") as small:
        node = Node(small / "node", free_port(), *QUICK, "--min-free-mb", "0.01")
        node.start()
        try:
            for folder in ("mr", "pt early", "pt late"):
                assert storescu(node.port, study / folder) == 0
            ballast = small / "ballast"
            with ballast.open("wb", buffering=0) as file:
                try:
                    while file.write(b"0" * 4096):
                        pass
                except OSError:
                    pass
            until(lambda: node.metric("fusions_postponed_total") >= 2)
            assert not outgoing(node) and not list((node.folder / "spool" / "failed").iterdir())
            assert not list((node.folder / "spool").rglob("*.mmif-tmp"))
            refused = run_storescu(node.port, study / "mr")
            assert "OutOfResources" in refused.stdout + refused.stderr
            ballast.unlink()
            (whole,) = until(lambda: outgoing(node))
            assert len(pydicom.dcmread(whole).SourceImageSequence) == 40
            assert node.metric("fusions_failed_total") == 0
        finally:
            node.kill()
