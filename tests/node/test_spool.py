"""The spool by itself: what is kept, how it reaches the disk, who may work in it, what is set aside."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import phantoms
import pytest
from peers import until

pytest.importorskip("pynetdicom", reason="needs the clinical extra")

from mmif_trt import files
from mmif_trt.clinical import case, outputs
from mmif_trt.clinical.case import Case
from mmif_trt.clinical.child import Child
from mmif_trt.clinical.decoder import Decoder
from mmif_trt.image import InputError
from mmif_trt.io.dicom import write as dicom_write
from mmif_trt.node import tries
from mmif_trt.node.audit import Audit
from mmif_trt.node.counters import Counters
from mmif_trt.node.fusing import Fusing
from mmif_trt.node.settings import Settings
from mmif_trt.node.spool import CORRECTED, DIFFERENT, NEW, SAME, Spool
from mmif_trt.node.tries import DIED, LEFT, MOST, OPEN
from mmif_trt.running import Stop
from mmif_trt.stages import geometry
from mmif_trt.volume import Options

STUDY, INSTANCE, HEAD = "1.2.3", "1.2.3.4", b"\0" * 128 + b"DICM"


def put(spool: Spool, body: bytes, instance: str = INSTANCE) -> str:
    return spool.put(STUDY, instance, HEAD, memoryview(body))


def kept(spool: Spool) -> list[bytes]:
    return sorted(path.read_bytes()[len(HEAD) :] for path in spool.folder(STUDY).iterdir())


def test_the_first_of_two_is_kept_until_it_is_fused(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    assert put(spool, b"first") == NEW and put(spool, b"first") == SAME
    assert put(spool, b"other") == DIFFERENT and kept(spool) == [b"first"]
    name = spool.name(Case("pair", tuple(map(str, spool.folder(STUDY).iterdir())), ()))
    spool.mark_fused(spool.folder(STUDY))
    assert put(spool, b"first") == SAME
    assert put(spool, b"other") == CORRECTED and kept(spool) == [b"other"]
    corrected = spool.name(Case("pair", tuple(map(str, spool.folder(STUDY).iterdir())), ()))
    assert corrected != name and not spool.larger(corrected), "a case of its own, of as many instances"
    assert put(spool, b"other") == SAME and put(spool, b"x", "1.2.3.5") == NEW


def test_of_two_at_the_same_time_one_is_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool, begun, write, answers = Spool(tmp_path), threading.Event(), files.write_atomic, list[str]()

    def slow(*args: Any) -> None:
        begun.set()
        time.sleep(0.2)
        write(*args)

    monkeypatch.setattr("mmif_trt.node.spool.write_atomic", slow)
    first = threading.Thread(target=lambda: answers.append(put(spool, b"first")))
    first.start()
    assert begun.wait(10) and put(spool, b"other") == DIFFERENT
    first.join()
    assert answers == [NEW] and kept(spool) == [b"first"]


def test_one_node_at_a_time(tmp_path: Path) -> None:
    with Spool(tmp_path), pytest.raises(InputError, match="another node uses it"), Spool(tmp_path):
        pass
    with Spool(tmp_path):
        pass


def test_a_folder_that_went_away_is_made_again(tmp_path: Path) -> None:
    """Names stay the same: the key is put back."""
    with Spool(tmp_path / "spool") as spool:
        assert put(spool, b"first") == NEW
        before = spool.folder(STUDY).name
        shutil.rmtree(tmp_path / "spool")
        with pytest.raises(OSError):
            spool.gauges()
        spool.ensure()
        assert put(spool, b"again") == NEW and spool.gauges()["studies_held"] == 1
        with pytest.raises(InputError, match="another node"), Spool(tmp_path / "spool"):
            pass
    assert Spool(tmp_path / "spool").folder(STUDY).name == before


def test_nothing_in_the_folder_holds_it_up(tmp_path: Path) -> None:
    """Pipes, links to themselves and folders where files belong: never opened, never counted."""
    spool = Spool(tmp_path)
    put(spool, b"x")
    study = spool.folder(STUDY).name
    for folder in ("outgoing", "sent", "failed", "tries", "scratch", "doubt", "fused", f"incoming/{study}"):
        os.mkfifo(tmp_path / folder / "pipe_1_aa.dcm")
        os.symlink("loop_1_aa.dcm", tmp_path / folder / "loop_1_aa.dcm")
        (tmp_path / folder / "folder_1_aa.dcm").mkdir()
    os.mkfifo(tmp_path / "incoming" / "pipe")
    with Spool(tmp_path) as again, Decoder() as decoder:
        assert not again.waiting() and not again.tries.studies() and again.used() > 0
        assert again.gauges() == {
            **dict.fromkeys(("queue_length", "cases_failed", "cases_set_aside"), 0),
            "studies_held": 1,
        }
        assert again.cases(again.studies()[0], decoder) == ([], ["1 instances cannot be read: left out"])
        for mark in (tmp_path / "sent").iterdir():
            assert again.uid_of(mark) == ""
        (again.folder(STUDY) / f"{INSTANCE}.dcm").unlink(missing_ok=True)
        first = next(path for path in again.folder(STUDY).iterdir() if len(path.stem) == 24)
        first.unlink()
        os.mkfifo(first)
        assert put(again, b"x") == DIFFERENT, "what is there under its name is not it"


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_audit_trail_without_room_is_seen_and_stays_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    audit, write, room = Audit(str(tmp_path / "audit"), "MMIF"), os.write, [True]

    def limited(descriptor: int, data: bytes) -> int:
        return write(descriptor, data if room[0] else data[:20])

    monkeypatch.setattr(os, "write", limited)
    for has_room in (True, False, False, True):
        room[0] = has_room
        audit("start", address=f"{has_room}")
        assert audit.fails is not has_room
    assert [line["address"] for line in lines(tmp_path / "audit")] == ["True", "True"]
    assert caplog.text.count("the audit trail cannot be written") == 1
    (tmp_path / "audit").rename(tmp_path / "audit.1")
    for number in (1, 2):
        audit("start", address=f"rotated {number}")
        assert not audit.fails
    assert len(lines(tmp_path / "audit")) == 2 == len(lines(tmp_path / "audit.1"))
    (tmp_path / "audit").unlink()
    os.mkfifo(tmp_path / "audit")
    audit("start", address="to nowhere")
    assert audit.fails and not (tmp_path / "audit").unlink()
    audit("start", address="rotated 3")
    assert not audit.fails and len(lines(tmp_path / "audit")) == 1
    audit.close()
    with pytest.raises(InputError, match="--audit .*a folder; expected a regular file"):
        Audit(str(tmp_path), "MMIF")


def test_a_syslog_that_goes_away_prints_no_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mmif_trt.node import audit

    path = tmp_path / "log"
    monkeypatch.setattr(audit, "SOCKETS", (str(path),))
    with pytest.raises(InputError, match="no syslog socket here"):
        Audit("syslog", "MMIF")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(path))
    trail = Audit("syslog", "MMIF")
    trail("start")
    assert b"Application Start" in listener.recv(10_000) and not trail.fails
    listener.close()
    path.unlink()
    trail("stop", reason="zz-event")
    assert trail.fails and "zz-event" not in capsys.readouterr().err


def test_an_instance_that_arrives_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The study is due to be forgotten while it is in its place already, and not yet acknowledged; or after
    that and before it is fused, with a --keep-s below --quiet-s."""
    spool = Spool(tmp_path)
    put(spool, b"old")
    study = spool.folder(STUDY)
    fused = {study.name: spool.arrivals(study)}
    time.sleep(0.02)  # the clock of file systems has ticks
    sync, seen = files.sync_folder, list[Any]()

    def synced(folder: Any) -> None:
        sync(folder)
        if Path(folder) == study:
            seen.append((len(list(study.iterdir())), spool.forget(-1.0, {study.name: spool.arrivals(study)})))

    monkeypatch.setattr(files, "sync_folder", synced)
    assert spool.put(STUDY, "1.2.9", b"", memoryview(b"new")) == NEW
    assert seen == [(2, [])] and len(list(study.iterdir())) == 2
    assert not spool.forget(-1.0, fused) and study.exists()
    assert spool.forget(-1.0, {study.name: spool.arrivals(study)}) == [study.name] and not study.exists()


def test_quiet_is_by_the_monotonic_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path)
    put(spool, b"x")
    monkeypatch.setattr(time, "time", lambda: 0.0)  # the machine's clock was set back by decades
    assert 0 <= spool.quiet_s(spool.folder(STUDY)) < 60
    assert 0 <= Spool(tmp_path).quiet_s(spool.folder(STUDY)) < 60, "after a restart too"


def test_acknowledged_means_that_the_folders_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash must not undo it: a new folder is synced after it is made and before put returns."""
    synced: list[str] = []
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        synced.append(os.path.realpath(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", watch)
    spool = Spool(tmp_path / "a" / "spool")
    for folder in (tmp_path, tmp_path / "a", spool.root):
        assert str(folder) in synced, "the new folders, and the key"
    del synced[:]
    put(spool, b"x")
    study = spool.folder(STUDY)
    assert synced[0] == str(study.parent) and synced[-1] == str(study) and len(synced) == 3
    del synced[:]
    spool.scratch("pair_1_aa").write_bytes(b"y")
    spool.queue("pair_1_aa", spool.scratch("pair_1_aa"))
    assert synced == [str(spool.root / "outgoing")]
    spool.mark_sent(spool.waiting()[0], "1.2")
    assert synced[-1] == str(spool.root / "sent")


def fusing(spool: Spool, counters: Counters, *beat: Any) -> Fusing:
    settings = Settings("MMIF", 1, spool.root, ("PACS", "127.0.0.1", 2), quiet_s=0)
    return Fusing(settings, spool, counters, Audit(None, "MMIF"), *beat)


def test_a_study_that_ends_its_process_is_set_aside_and_the_next_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spool, counters, asked, order = Spool(tmp_path), Counters(), list[str](), list[str]()

    def ask(self: Child, request: dict[str, Any], *_: Any) -> dict[str, Any]:
        order.append("ask")
        if "ready" in request:
            return {"outcome": "done", "message": ""}
        asked.append(request["a"][0])
        if request["a"][0] == "poison":
            raise EOFError
        Path(request["result"]).write_bytes(b"fused")
        doubt = "not trustworthy" if request["a"][0] == "doubtful" else ""
        return {"outcome": "done", "message": "", "doubt": doubt}

    monkeypatch.setattr(Child, "ask", ask)
    cases = [Case(name, (name,), ()) for name in ("poison", "good", "doubtful")]
    monkeypatch.setattr(
        Spool, "cases", lambda self, *_: ([c for c in cases if self.state(self.name(c)) == "new"], [])
    )
    one = fusing(spool, counters, lambda: order.append("beat"))
    for attempt in range(MOST[DIED]):
        assert not one.study(None, tmp_path / "incoming" / "s", Stop()), attempt  # type: ignore[arg-type]
    waiting = {path.name.partition("_")[0] for path in spool.waiting()}
    assert waiting == {"good", "doubtful"}, "at the first attempt already"
    assert one.study(None, tmp_path / "incoming" / "s", Stop())  # type: ignore[arg-type]
    assert order == ["beat", "ask"] * (len(order) // 2), "/health counts the time of one request, not of all"
    assert asked.count("poison") == MOST[DIED] and spool.gauges()["cases_set_aside"] == 1
    assert counters.snapshot()["cases_set_aside_total"] == 1 and counters.snapshot()["fusions_total"] == 2
    assert counters.snapshot()["registrations_in_doubt_total"] == 1
    (warning,) = (x for x in caplog.records if "trustworthy" in x.getMessage())
    assert warning.getMessage().startswith("case doubtful") and warning.levelname == "WARNING"


def marked(spool: Spool, name: str, how: str, count: int, study: str = "s") -> None:
    for _ in range(count):
        tries.begin(attempt := spool.tries.next(name), study)
        attempt.rename(attempt.with_suffix(f".{how}"))


@pytest.mark.parametrize("how", [OPEN, LEFT])
def test_a_case_that_ends_the_node_is_set_aside_too(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start finds the marks of the attempts in which node and worker ended together (a container without
    memory), or the node alone; the last one does not try again."""
    asked: list[str] = []

    def ask(self: Child, request: dict[str, Any], *_: Any) -> dict[str, Any]:
        if "ready" not in request:
            asked.append(request["a"][0])
            raise SystemExit  # the node ends here: nothing else is written
        return {"outcome": "done", "message": ""}

    monkeypatch.setattr(Child, "ask", ask)
    cases = [Case("deadly", ("deadly",), ()), Case("next", ("next",), ())]
    monkeypatch.setattr(
        Spool, "cases", lambda self, *_: ([c for c in cases if self.state(self.name(c)) == "new"], [])
    )
    name = Spool(tmp_path).name(cases[0])
    marked(Spool(tmp_path), name, how, MOST[how] - 1)
    assert not Spool(tmp_path).tries.is_spent(name)
    with pytest.raises(SystemExit):
        fusing(Spool(tmp_path), Counters()).study(None, tmp_path / "s", Stop())  # type: ignore[arg-type]
    assert asked == ["next"], "one without marks goes first"
    marked(Spool(tmp_path), name, how, 1)
    cases.pop()
    assert fusing(Spool(tmp_path), Counters()).study(None, tmp_path / "s", Stop())  # type: ignore[arg-type]
    assert asked == ["next"] and Spool(tmp_path).gauges()["cases_set_aside"] == 1


SLOW = """
from mmif_trt.node import worker

class Slow:
    def __init__(self, spool, network):
        assert network == "lagn-quality"
    def make(self, request):
        __import__("time").sleep(600)

worker.Worker = Slow
worker.main()
"""


@pytest.mark.parametrize("end, mark", [("node", LEFT), ("both", OPEN)])
def test_whose_death_it_was(end: str, mark: str, tmp_path: Path) -> None:
    """A worker that is well when the node is killed says so; one that is killed with it cannot. The signal by
    which a service manager or `timeout` ends a group of processes is the node's to handle."""
    spool = Spool(tmp_path)
    attempt = spool.tries.next("case")
    request = {"attempt": str(attempt), "study": "s"}
    command = [sys.executable, "-c", SLOW, "8192", str(tmp_path), "lagn-quality"]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write(json.dumps(request).encode() + b"\n")
    worker.stdin.flush()
    until(attempt.exists)
    worker.terminate()
    assert spool.tries.studies() == {"s"}
    if end == "both":
        worker.kill()
    worker.stdin.close()
    assert worker.wait(60) == (0 if end == "node" else -9)
    worker.stdout.close()
    assert spool.tries.count("case") == {how: int(how == mark) for how in MOST}
    spool.tries.forget("case")
    assert not spool.tries.studies()


def test_new_studies_come_first_then_those_of_before_the_start_then_suspects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a start nothing is known to be settled: what was kept holds up nothing new."""
    from mmif_trt.node import run, web

    spool, seen, stop = Spool(tmp_path), list[str](), Stop()
    for second, study in enumerate(("suspect", "kept", "new", "grown", "newer")):
        (spool.root / "incoming" / study).mkdir()
        os.utime(spool.root / "incoming" / study, (second, second))
    for study in ("kept", "grown"):
        spool.mark_fused(spool.root / "incoming" / study)
    marked(spool, "case", OPEN, 1, "suspect")
    monkeypatch.setattr(run, "ROUND_S", 0.0)

    def study(self: Fusing, decoder: Any, folder: Path, stop: Stop) -> bool:
        seen.append(folder.name)
        stop.reason = "" if len(seen) < 6 else "enough"
        if folder.name == "grown":
            (spool.root / "incoming" / "arrived").mkdir()  # while headers of kept ones are read
        if folder.name == "new":
            raise ValueError("a bug of ours")  # nor does it end the node
        return True

    monkeypatch.setattr(Fusing, "study", study)
    monkeypatch.setattr(Child, "start", lambda self: None)
    monkeypatch.setattr(run, "POLL_S", 0.0)
    settings = Settings("MMIF", 1, tmp_path, ("PACS", "127.0.0.1", 2), quiet_s=0, retry_s=60)
    audit, receiver = Audit(None, "MMIF"), SimpleNamespace(sending=set)
    run._fuse_all(
        settings,
        spool,
        Counters(),
        audit,
        web.Pulse(),
        receiver,
        stop,
        [],
        list,  # type: ignore[arg-type]
    )
    assert seen == ["new", "newer", "grown", "arrived", "kept", "suspect"]


@pytest.mark.parametrize("answer", [EOFError, {"outcome": "failed", "message": "no weights"}])
def test_a_death_before_the_network_is_loaded_is_not_the_fault_of_the_case(
    answer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that was killed three times while its process was starting set the study aside."""

    def ask(self: Child, request: dict[str, Any], *_: Any) -> Any:
        assert "ready" in request
        if isinstance(answer, dict):
            return answer
        raise answer

    monkeypatch.setattr(Child, "ask", ask)
    case = Case("case", ("a",), ())
    monkeypatch.setattr(Spool, "cases", lambda self, *_: ([case], []))
    spool = Spool(tmp_path)
    for _ in range(max(MOST.values()) + 1):
        assert not fusing(spool, Counters()).study(None, tmp_path, Stop())  # type: ignore[arg-type]
    assert not any(spool.tries.count(spool.name(case)).values())
    assert spool.state(spool.name(case)) == "new"


def test_all_that_takes_long_is_loaded_before_a_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reading process and the first fusion took seconds of the first case: a kill during them counted
    against the case."""
    from mmif_trt import fuser
    from mmif_trt.node.worker import Worker

    fused: list[Any] = []
    network = fuser.Fuser(precision="fp32", threads=1)
    stand_in = SimpleNamespace(fuse_volumes=lambda a, b: fused.append((a, b)))

    def load(streams: int, network: str) -> Any:
        assert streams >= 1 and network == "lagn-quality"
        return stand_in

    monkeypatch.setattr(fuser, "Fuser", load)
    worker = Worker(tmp_path, "lagn-quality")
    process = worker.decoder._child._process
    assert process is not None and process.poll() is None and len(fused) == 1
    worker.decoder.close()
    a, b = fused[0]
    done = network.fuse_volumes(a, b)
    assert done.image.is_colour
    # What the node logs of a case, from its record.
    done.record["b"]["notes"] += [f"{geometry.UNSURE}: 7 mm", "of a reader"]
    stand_in.fuse_volumes = lambda *_: done
    monkeypatch.setattr(case, "load", lambda *_: case.Loaded(a, b, Options()))
    monkeypatch.setattr(outputs, "dataset_of", lambda *_: None)
    monkeypatch.setattr(dicom_write, "encode", lambda _: b"")
    request = {"a": [], "b": [], "registration": "", "options": {}, "replaces": []}
    doubt = worker.make({**request, "result": str(tmp_path / "made")})
    assert doubt == f"{geometry.UNSURE}: 7 mm"


def test_the_process_that_fuses_answers_with_the_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmif_trt.node import worker

    answers, request = list[str](), json.dumps({"attempt": str(tmp_path / "a"), "study": "s"})
    monkeypatch.setattr(worker, "serve", lambda _, answer, *__: answers.append(answer(request)))
    monkeypatch.setattr(worker, "Worker", lambda *_: SimpleNamespace(make=lambda _: "why"))
    monkeypatch.setattr(tries, "begin", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["", "1", str(tmp_path), "lagn"])
    worker.main()
    assert json.loads(answers[0]) == {"outcome": "done", "message": "", "doubt": "why"}


def test_the_process_that_fuses_is_told_the_network(tmp_path: Path) -> None:
    """And hands it to its Fuser: see above; what it fuses names it, as everywhere."""
    settings = Settings("MMIF", 1, tmp_path, ("PACS", "127.0.0.1", 2), network="lagn-quality")
    with Spool(tmp_path) as spool:
        child = Fusing(settings, spool, Counters(), Audit(None, "MMIF"))._child
    assert child._command[2:] == ["mmif_trt.node.worker", "16384", str(tmp_path), "lagn-quality"]


@pytest.mark.parametrize("error", [InterruptedError, EOFError])
def test_a_stop_is_not_a_death(error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if it ends the worker first."""
    stop = Stop()

    def ask(self: Child, request: dict[str, Any], *_: Any) -> Any:
        if "ready" in request:
            return {"outcome": "done", "message": ""}
        tries.begin(Path(request["attempt"]), request["study"])
        stop.reason = "interrupted"
        raise error

    monkeypatch.setattr(Child, "ask", ask)
    case = Case("case", ("a",), ())
    monkeypatch.setattr(Spool, "cases", lambda self, *_: ([case], []))
    spool = Spool(tmp_path)
    assert not fusing(spool, Counters()).study(None, tmp_path, stop)  # type: ignore[arg-type]
    assert not any(spool.tries.count(spool.name(case)).values())


def test_a_slice_of_another_patient_refuses_its_series(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    affine, shape = phantoms.affine_of(shape=(6, 32, 32), spacing=(5.0, 4.0, 4.0)), (6, 32, 32)
    folder = spool.folder(phantoms.STUDY)
    folder.mkdir()
    points = phantoms.grid(affine, shape)
    series = {"MR": phantoms.head(points), "PT": phantoms.uptake(points)}
    for modality, values in series.items():
        for index, dataset in enumerate(phantoms.slices(values, affine, modality)):
            if modality == "PT" and index == 3:
                dataset.PatientID = "SOMEBODY-ELSE"
            (folder / f"{modality}{index}.dcm").write_bytes(phantoms.encoded(dataset))
    with Decoder() as decoder:
        cases, refused = spool.cases(folder, decoder)
        assert not cases and len(refused) == 1 and "several patients" in refused[0]
        assert "SOMEBODY" not in refused[0]
        (folder / "PT3.dcm").unlink()
        assert len(spool.cases(folder, decoder)[0]) == 1
        (folder / "MR5.dcm").write_bytes(b"")
        _, refused = spool.cases(folder, decoder)
        assert refused == ["1 instances cannot be read: left out"]


@pytest.mark.nightly
def test_power_cuts_lose_nothing_acknowledged(tmp_path: Path) -> None:
    """On an ext4 of its own that stops as in a power cut (FS_IOC_SHUTDOWN, the journal not flushed)."""
    image, mount = tmp_path / "image", tmp_path / "disk"
    mount.mkdir()
    with open(image, "wb") as file:
        file.truncate(64 << 20)
    made = subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], capture_output=True)
    loop = ["mount", "-o", "loop", str(image), str(mount)]
    if made.returncode or subprocess.run(loop, capture_output=True).returncode:
        pytest.skip("mounting an ext4 is not allowed here (needs root and a loop device)")
    acknowledged = 0
    try:
        for cut in range(20):
            spool = Spool(mount / "spool")
            for _ in range(3):
                body = b"%d" % acknowledged * 500
                assert spool.put(f"1.{cut}", f"1.2.{acknowledged}", HEAD, memoryview(body)) == NEW
                acknowledged += 1
            descriptor = os.open(mount, os.O_RDONLY)
            fcntl.ioctl(descriptor, 0x8004587D, struct.pack("I", 2))
            os.close(descriptor)
            subprocess.run(["umount", str(mount)], check=True)
            subprocess.run(loop, check=True)
            found = list((mount / "spool" / "incoming").glob("*/*.dcm"))
            assert len(found) == acknowledged, f"{acknowledged - len(found)} lost at cut {cut}"
            assert all(path.stat().st_size >= len(HEAD) + 500 for path in found)
            assert (mount / "spool" / ".pseudonym-key").stat().st_size == 65
    finally:
        subprocess.run(["umount", "-l", str(mount)], capture_output=True)


def test_metrics_keep_every_digit() -> None:
    from mmif_trt.node.web import _prometheus

    assert "mmif_instances_received_total 12345678.0\n" in _prometheus(
        {"instances_received_total": 12345678.0}, {}
    )
