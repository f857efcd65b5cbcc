"""Many cases of volumes: read (in a child), fuse and write overlap; a report per case; resume after a kill.

A case is done when its report OUT/<name>.json says so, and with what options: it is written last, so that a
kill at any moment leaves either a whole case or one that is made again. Memory holds one case in each of the
three stages and one waiting between them, whatever their number.
"""

from __future__ import annotations

import csv
import io as text_io
import json
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmif_trt import overwriting, weights
from mmif_trt.clinical import outputs
from mmif_trt.clinical.case import Case, Loaded, VolumeFuser, fuse, load
from mmif_trt.clinical.decoder import Decoder
from mmif_trt.clinical.series import collect, pair
from mmif_trt.files import disk_is_full, read_regular, write_atomic
from mmif_trt.image import InputError
from mmif_trt.running import Stop, explain
from mmif_trt.volume import Fused, Options

COLUMNS = ("name", "a", "b", "modality_b", "palette", "low_a", "high_a", "low_b", "high_b")


@dataclass
class Work:
    case: Case
    loaded: Loaded | None = None
    fused: Fused | None = None
    error: str = ""
    started: float = 0.0


def plan(source: str, secret: bytes, across: bool = False) -> tuple[list[Case], list[str]]:
    """Cases of a manifest (.csv) or a folder of DICOM studies, and what is not paired. secret: the key of the
    names (pseudonym.py). across: see series.pair. Headers are read in a child process, as pixels are.
    Raises InputError."""
    if os.path.isdir(source):
        with Decoder() as decoder:
            return _paired(source, decoder, secret, across)
    if not source.lower().endswith(".csv"):
        raise InputError(f"{source}: expected a manifest .csv or a folder of DICOM studies")
    return sorted(_manifest(source), key=lambda case: case.name), []


def _paired(root: str, decoder: Decoder, secret: bytes, across: bool) -> tuple[list[Case], list[str]]:
    from mmif_trt.io.walk import shown, walk

    there = walk(root)
    paths, unread = _dicom_of(there.files)
    read = list(decoder.headers(paths))
    found = collect(read, secret)
    got = {path for path, _ in read}
    damaged = [path for path in paths if path not in got]
    cases, left = pair(found, across)
    lines = [
        f"{len(names)} {what}: {shown(names)}"
        for what, names in (
            ("files that cannot be read", [*there.lost, *unread]),
            ("DICOM files with a damaged header", damaged),
            ("passed over", there.passed),
        )
        if names
    ]
    return cases, [*left, *lines]


def _dicom_of(files: list[str]) -> tuple[list[str], list[str]]:
    """(the DICOM files by their first bytes, those that cannot be opened and why)."""
    from mmif_trt.io import dicom

    found, unread = [], []
    for path in files:
        try:
            if dicom.begins_as_dicom(path):
                found.append(path)
        except (OSError, InputError) as error:
            unread.append(f"{path}: {getattr(error, 'strerror', None) or 'no regular file'}")
    return found, unread


def _manifest(path: str) -> list[Case]:
    try:
        rows = list(csv.DictReader(text_io.StringIO(read_regular(path).decode("utf-8-sig"), newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{path}: cannot be read ({type(error).__name__}); expected a CSV in UTF-8"
        ) from None
    cases, base = [], Path(path).parent
    for line, row in enumerate(rows, 2):
        if None in row or not {"name", "a", "b"} <= set(row) <= set(COLUMNS):
            raise InputError(
                f"{path}: columns {list(row)}; expected {', '.join(COLUMNS)}, the first three needed"
            )
        name = row["name"] or ""
        if not name or name != os.path.basename(name) or name.startswith(".") or not (row["a"] and row["b"]):
            raise InputError(
                f"{path}, line {line}: name {name!r}; expected a file name, and paths in a and b"
            )
        own: dict[str, Any] = {key: row[key] for key in ("modality_b", "palette") if row.get(key)}
        for side in "ab":
            texts = [row.get(f"{end}_{side}") or "" for end in ("low", "high")]
            if any(texts):
                try:
                    own[f"value_range_{side}"] = (float(texts[0]), float(texts[1]))
                except ValueError:
                    raise InputError(f"{path}, line {line}: range {texts}; expected two numbers") from None
        cases.append(Case(name, (str(base / row["a"]),), (str(base / row["b"]),), own))
    if len({case.name for case in cases}) < len(cases):
        raise InputError(f"{path}: a name that is there twice; expected each once")
    return cases


@dataclass(frozen=True)
class Run:
    """What decides all cases of a run: how volumes are fused, and what runs the network, as asked for."""

    options: Options = field(default_factory=Options)
    runtime: str = "auto"
    precision: str = "auto"


def asked(case: Case, run: Run) -> dict[str, Any]:
    """All that decides what a case looks like, beside its files, as JSON has it."""
    own = {
        "runtime": run.runtime,
        "precision": run.precision,
        "spatial_registration": case.registration or None,
        "weights": weights.in_use()["lagn"]["sha256"],
    }
    wanted: dict[str, Any] = json.loads(json.dumps({**asdict(case.options(run.options)), **own}))
    return wanted


def difference(case: Case, out: Path, suffix: str, run: Run) -> str | None:
    """None for a case that is to be done; of a done one what differs from now, in words, empty if nothing."""
    try:
        report = json.loads(read_regular(out / f"{case.name}.json"))
    except (InputError, OSError, ValueError):
        return None
    if report.get("status") != "done" or not (out / f"{case.name}{suffix}").exists():
        return None
    was, now = report.get("asked") or {}, asked(case, run)
    return ", ".join(
        key if isinstance(now.get(key), dict) else f"{key} {was.get(key)}, now {now.get(key)}"
        for key in sorted(was.keys() | now.keys())
        if was.get(key) != now.get(key)
    )


def files_of(case: Case, out: Path, suffix: str) -> list[str]:
    """All that a case writes, its record last."""
    return [*outputs.names(str(out / f"{case.name}{suffix}")), str(out / f"{case.name}.json")]


def refuse_overwriting(cases: list[Case], out: Path, suffix: str, log: str, others: list[str]) -> None:
    """Raises InputError where an output of a case is a source of any, or of another case, or a file that no
    record in `out` claims. log: of the run, which is added to. others: further files that the run reads."""
    claimed = {os.path.basename(log)}.union(*(_claimed(out, case) for case in cases))
    inputs = [path for case in cases for path in (*case.a, *case.b, case.registration) if path]
    overwriting.check(
        [*inputs, *others],
        [*(path for case in cases for path in files_of(case, out, suffix)), log],
        lambda path: os.path.basename(path) in claimed,
    )


def _claimed(out: Path, case: Case) -> set[str]:
    """The names that a record of ours says are this case's; its own too. An empty one has nothing to lose."""
    path = out / f"{case.name}.json"
    try:
        text = read_regular(path).decode()
        record = json.loads(text) if text else {"name": case.name, "status": "", "files": []}
    except (InputError, OSError, ValueError):
        return set()
    if not isinstance(record, dict) or record.get("name") != case.name or "status" not in record:
        return set()
    files = record.get("files")
    return {path.name, *(os.path.basename(str(x)) for x in (files if isinstance(files, list) else ()))}


def carry(
    cases: list[Case],
    out: Path,
    suffix: str,
    fuser: VolumeFuser,
    stop: Stop,
    on_case: Callable[[Case, str], None],
    run: Run,
) -> dict[str, int]:
    """Carry every case through; counts of done and failed. on_case(case, error or ""): by the writer.

    Each report holds what decided its case (asked). A full disk sets `stop`.
    """
    read: queue.Queue[Work | None] = queue.Queue(1)
    fused: queue.Queue[Work | None] = queue.Queue(1)
    count = {"done": 0, "failed": 0}
    threads = [
        threading.Thread(target=_reader, args=(cases, read, stop, run), name="read", daemon=True),
        threading.Thread(target=_writer, args=(fused, out, suffix, run, stop, on_case, count), name="write"),
    ]
    for thread in threads:
        thread.start()
    try:
        while (work := read.get()) is not None:
            if not work.error:
                try:
                    assert work.loaded is not None
                    work.fused = fuse(work.loaded, fuser)
                except Exception as error:
                    work.error = explain(error)
            fused.put(work)
    finally:
        stop.reason = stop.reason or ("" if work is None else "interrupted")
        fused.put(None)
        for thread in threads[1:]:
            thread.join()
    threads[0].join()
    return count


def _reader(cases: list[Case], read: queue.Queue[Work | None], stop: Stop, run: Run) -> None:
    with Decoder() as decoder:
        for case in cases:
            if stop.reason:
                break
            work = Work(case, started=time.monotonic())
            try:
                work.loaded = load(case, decoder, run.options)
            except Exception as error:
                work.error = explain(error)
            read.put(work)
    read.put(None)


def _writer(
    fused: queue.Queue[Work | None],
    out: Path,
    suffix: str,
    run: Run,
    stop: Stop,
    on_case: Callable[[Case, str], None],
    count: dict[str, int],
) -> None:
    full = f"the disk of {out} is full"
    while (work := fused.get()) is not None:
        if stop.reason == full:
            continue  # told once; these are made by the next run
        report: dict[str, Any] = {"name": work.case.name, "status": "failed", "message": work.error}
        report["files"] = sorted(_claimed(out, work.case) - {f"{work.case.name}.json"})
        try:
            if not work.error:
                assert work.loaded is not None and work.fused is not None
                target = str(out / f"{work.case.name}{suffix}")
                # A claim first: a run that is killed below finds its own files again, and no stranger's.
                report["files"] = sorted({*report["files"], *outputs.names(target)})
                _write_record(out, {**report, "status": "writing"})
                files = outputs.save(target, work.fused, work.loaded.a, work.loaded.b)
                done = json.loads(outputs.report_of(work.fused, files))
                how = asked(work.case, run)
                report = {**done, "name": work.case.name, "status": "done", "message": "", "asked": how}
            report["seconds"] = round(time.monotonic() - work.started, 3)
            _write_record(out, report)
        except Exception as error:
            work.error = explain(error)
            if disk_is_full(error):
                stop.reason = stop.reason or full
        count["failed" if work.error else "done"] += 1
        try:
            on_case(work.case, work.error)
        except OSError as error:  # its log lies on the same disk
            if disk_is_full(error):
                stop.reason = stop.reason or full


def _write_record(out: Path, record: dict[str, Any]) -> None:
    write_atomic(out / f"{record['name']}.json", (json.dumps(record, indent=1) + "\n").encode())
