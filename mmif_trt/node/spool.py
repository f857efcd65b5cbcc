"""The node's folder on disk: what has arrived, and what waits to be sent. Only this survives a crash.

    incoming/<study>/<instance>.dcm   as received, complete (renamed into place, fsync)
    outgoing/<case>.dcm               fused, to be sent
    doubt/<case>                      a mark: it was sent, and no answer was received yet
    sent/<case>                       a mark with the UID that the PACS accepted
    failed/<case>                     a mark with the reason: never retried
    tries/                            marks of attempts to fuse, see tries.py
    fused/<study>                     a mark: its cases were settled once
    scratch/                          temporary files of a fusion; emptied at start
    .lock                             held by the node that uses this spool

All names are pseudonyms (pseudonym.py). A case's name and the fused instance's UIDs are computed from its
sources: a fusion repeated after a crash is the same instance, and a PACS that has it keeps one. After a crash
the node asks the PACS (C-FIND) before resending. If more of a series arrives after it was fused, or an
instance is received again with different content, the new set of instances is another case of the same pair:
it replaces the old one if that still waits, and refers to it if the PACS has it already (a node cannot
withdraw an instance from a PACS). A smaller set never follows a larger one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmif_trt.clinical import pseudonym
from mmif_trt.clinical.case import Case
from mmif_trt.clinical.pairing import collect, pair, take_out
from mmif_trt.files import (
    TMP_SUFFIX,
    OutputError,
    ends_with,
    is_regular,
    make_folder,
    read_regular,
    sync_folder,
    write_atomic,
)
from mmif_trt.image import InputError
from mmif_trt.node.tries import Tries

FOLDERS = ("incoming", "outgoing", "doubt", "sent", "failed", "tries", "fused", "scratch")
RECOUNT_S = 10.0
MAX_MARK_BYTES = 4096
NAME_DIGITS = 24  # of an instance's file
NEW, SAME, DIFFERENT, CORRECTED = "new", "same", "different", "corrected"


class Spool:
    """`with` holds the lock: one node at a time. Raises InputError if another has it."""

    def __init__(self, root: Path, key_file: str | None = None) -> None:
        self.root, self._key_file = root, key_file
        self.tries = Tries(root / "tries")
        self._lock: int | None = None
        for name in FOLDERS:
            make_folder(root / name)
        key = pseudonym.key_in(root, key_file)
        assert key is not None
        self._key = key
        sync_folder(root)
        self._used, self._counted = 0, -RECOUNT_S
        self._arrived: dict[str, float] = {}  # study -> monotonic time of its last instance
        self._arriving: set[tuple[str, str]] = set()  # study and instance of those being stored now
        self._turn = threading.Condition()
        self._started = time.monotonic()

    def __enter__(self) -> Spool:
        self._take_lock()
        for left in (*self.root.rglob(f"*{TMP_SUFFIX}"), *(self.root / "scratch").iterdir()):
            with contextlib.suppress(IsADirectoryError):  # somebody else's
                left.unlink(missing_ok=True)  # from a write interrupted by a crash: never acknowledged
        for mark in (self.root / "sent").iterdir():
            if is_regular(mark) and mark.stat().st_size > MAX_MARK_BYTES:  # a crash amid mark_sent
                mark.write_bytes(b"")
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take_lock(self) -> None:
        descriptor = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise InputError(
                f"--spool {self.root}: another node uses it; expected one folder per node"
            ) from None
        if self._lock is not None:
            os.close(self._lock)
        self._lock = descriptor

    def ensure(self) -> None:
        """Recreates what was lost with the folder (unmounted, deleted): folders, lock and key."""
        if all((self.root / name).is_dir() for name in FOLDERS):
            return
        for name in FOLDERS:
            make_folder(self.root / name)
        if self._lock is not None:
            self._take_lock()
        key = self.root / pseudonym.FILE
        if self._key_file is None and not key.exists():
            write_atomic(key, f"{self._key.hex()}\n".encode())
            os.chmod(key, 0o600)

    def folder(self, study: str) -> Path:
        return self.root / "incoming" / pseudonym.name_of(self._key, study)

    def put(self, study: str, instance: str, head: bytes, body: memoryview) -> str:
        """Stores one instance durably: only then may the peer be told Success. NEW; SAME if it exists
        already; DIFFERENT if it exists with different content: the first stays; CORRECTED if so and the study
        was fused: then the new one replaces it."""
        this = ((folder := self.folder(study)).name, instance)
        with self._turn:  # a twin waits: side by side, both would be the first, and the last one stay
            self._turn.wait_for(lambda: this not in self._arriving)
            self._arriving.add(this)
        try:
            return self._put(folder, instance, head, body)
        finally:
            with self._turn:
                self._arriving.discard(this)
                self._turn.notify_all()

    def _put(self, folder: Path, instance: str, head: bytes, body: memoryview) -> str:
        make_folder(folder)
        name, outcome = pseudonym.name_of(self._key, instance, NAME_DIGITS), NEW
        is_fused = self.is_fused(folder)
        # Only then may a corrected one be there: to look for it always takes the square of a study's size.
        known = sorted(folder.glob(f"{name}*.dcm")) if is_fused else [folder / f"{name}.dcm"]
        first = next((path for path in known if os.path.lexists(path)), None)
        if first is not None:
            if ends_with(first, body):  # its meta information may be from another peer
                return SAME
            if not is_fused:
                return DIFFERENT
            outcome, name = CORRECTED, f"{name}-{hashlib.sha256(body).hexdigest()[:8]}"
        write_atomic(folder / f"{name}.dcm", head, body)
        if outcome == CORRECTED and first is not None:
            first.unlink(missing_ok=True)
        self._arrived[folder.name] = time.monotonic()
        self._used += len(head) + len(body)
        return outcome

    def kept(self, instances: Iterable[str]) -> set[str]:
        """Those of these SOP Instance UIDs that are here, with the content acknowledged last."""
        here = {path.name[:NAME_DIGITS] for path in (self.root / "incoming").glob("*/*.dcm")}
        return {uid for uid in instances if pseudonym.name_of(self._key, uid, NAME_DIGITS) in here}

    def used(self) -> int:
        """Bytes of all files here, counted every RECOUNT_S; arrivals in between are added."""
        if time.monotonic() - self._counted > RECOUNT_S:
            self._counted, total = time.monotonic(), 0
            for path in self.root.rglob("*"):
                with contextlib.suppress(OSError):  # just sent, or renamed
                    total += path.stat().st_size
            self._used = total
        return self._used

    def studies(self) -> list[Path]:
        return sorted(path for path in (self.root / "incoming").iterdir() if path.is_dir())

    def quiet_s(self, study: Path) -> float:
        """Seconds since something of this study arrived: by the monotonic clock or, if it arrived before the
        node started, by the folder's time, as far as the machine's clock can be trusted."""
        now = time.monotonic()
        if study.name in self._arrived:
            return now - self._arrived[study.name]
        # An arrival renames a file into the folder, which sets the folder's time; files may be in transit.
        return max(time.time() - study.stat().st_mtime, now - self._started)

    def arrivals(self, study: Path) -> int:
        """A number that changes with each arrival."""
        return study.stat().st_mtime_ns

    def cases(self, study: Path, decoder: Any, across: bool = False) -> tuple[list[Case], list[str]]:
        """(the fusions of a study that are neither sent, waiting nor failed; what is refused, and why).
        decoder: clinical.decoder's; across: see pairing.pair."""
        paths = sorted(str(path) for path in study.glob("*.dcm") if is_regular(path))
        headers = list(decoder.headers(paths))
        found = collect(headers, self._key)
        owners: dict[str, set[str]] = {}
        for one in found.series:
            owners.setdefault(one.uid, set()).add(one.study)
        shared = {uid for uid, studies in owners.items() if len(studies) > 1}
        tags = sorted({one.tag for one in take_out(found, shared)})
        cases, _ = pair(found, across)
        refused = [f"series {tag} has instances of several patients: not fused" for tag in tags]
        if lost := len(paths) - len(headers):
            refused.append(f"{lost} instances cannot be read: left out")
        return [case for case in cases if self.state(self.name(case)) == "new"], refused

    def name(self, case: Case) -> str:
        """From the pair, the number of its instances, and their identity: a grown series is another case."""
        files = [Path(path).name for path in (*case.a, *case.b)]
        return f"{case.name}_{len(files)}_{pseudonym.name_of(self._key, ''.join(files), 8)}"

    def state(self, name: str) -> str:
        for folder, state in (("sent", "sent"), ("failed", "failed")):
            if (self.root / folder / name).exists():
                return state
        return "waiting" if (self.root / "outgoing" / f"{name}.dcm").exists() else "new"

    def sent_before(self, name: str) -> list[Path]:
        """The marks of what the PACS has of this pair, from other sets of instances; smallest first."""
        marks = (self.root / "sent").glob(f"{name.rsplit('_', 2)[0]}_*_*")
        return sorted((mark for mark in marks if mark.name != name), key=lambda mark: instances(mark.name))

    def larger(self, name: str) -> bool:
        """Whether a fusion of this pair with more instances waits or was sent: then this one is obsolete."""
        names = [mark.name for mark in self.sent_before(name)] + [path.stem for path in self.waiting()]
        pair_of = name.rsplit("_", 2)[0]
        return any(x.rsplit("_", 2)[0] == pair_of and instances(x) > instances(name) for x in names)

    def waiting(self) -> list[Path]:
        return sorted(path for path in (self.root / "outgoing").glob("*.dcm") if is_regular(path))

    def scratch(self, name: str) -> Path:
        return (self.root / "scratch" / f"{name}.dcm").absolute()

    def queue(self, name: str, result: Path) -> list[str]:
        """Moves a fusion into the queue, removes those of other sets of its pair and returns their names."""
        target = self.root / "outgoing" / f"{name}.dcm"
        os.replace(result, target)
        sync_folder(target.parent)
        self._used += target.stat().st_size
        pair_of, _, _ = name.rsplit("_", 2)
        gone = [p for p in self.waiting() if p.stem != name and p.stem.rsplit("_", 2)[0] == pair_of]
        for path in gone:
            path.unlink(missing_ok=True)
            self.answered(path)
        for mark in (self.root / "failed").glob(f"{pair_of}_*_*"):
            if instances(mark.name) < instances(name):  # of a study that has arrived in full since
                mark.unlink(missing_ok=True)
        return [path.stem for path in gone]

    def in_doubt(self, path: Path) -> bool:
        """Whether the PACS may have it: it was sent, and no answer was received."""
        return (self.root / "doubt" / path.stem).exists()

    def mark_doubt(self, path: Path) -> None:
        """Durable before the first byte is sent. A full disk does not delay sending, which frees room; after
        a crash the instance is then sent again without asking."""
        with contextlib.suppress(OutputError):
            write_atomic(self.root / "doubt" / path.stem, b"")

    def answered(self, path: Path) -> None:
        (self.root / "doubt" / path.stem).unlink(missing_ok=True)

    def mark_sent(self, path: Path, uid: str) -> None:
        """Needs no room on the disk: the file itself becomes the mark, and shrinks to the UID."""
        mark = self.root / "sent" / path.stem
        try:
            os.replace(path, mark)
        except FileNotFoundError:  # a larger set replaced it while it was sent
            write_atomic(mark, uid.encode())
            return
        sync_folder(mark.parent)
        with open(mark, "r+b") as file:
            file.truncate(0)
            file.write(uid.encode())

    def uid_of(self, mark: Path) -> str:
        """The UID in a mark of what the PACS accepted; "" if a crash left it empty."""
        try:
            return read_regular(mark).decode("ascii") if mark.stat().st_size <= 64 else ""
        except (OSError, InputError, UnicodeDecodeError):
            return ""

    def mark_failed(self, name: str, reason: str) -> None:
        write_atomic(self.root / "failed" / name, reason.encode())

    def is_fused(self, study: Path) -> bool:
        return (self.root / "fused" / study.name).exists()

    def mark_fused(self, study: Path) -> None:
        if not self.is_fused(study):
            write_atomic(self.root / "fused" / study.name, b"")

    def forget(self, keep_s: float, settled: Mapping[str, int]) -> list[str]:
        """Removes the sources of studies that have been quiet for keep_s, and are settled with their present
        `arrivals`; returns which. Not while one is stored: it may be in its place before it shows."""
        gone = []
        for study in self.studies():
            with self._turn, contextlib.suppress(OSError):  # what cannot be removed stays
                is_quiet = self.quiet_s(study) > keep_s and study.name not in dict(self._arriving)
                if is_quiet and settled.get(study.name) == self.arrivals(study):
                    for path in study.iterdir():
                        path.unlink()
                    study.rmdir()
                    (self.root / "fused" / study.name).unlink(missing_ok=True)
                    self._arrived.pop(study.name, None)
                    gone.append(study.name)
        return gone

    def gauges(self) -> dict[str, int]:
        """For /health and /metrics. Raises OSError if the folder is gone."""
        failed = [mark for mark in (self.root / "failed").iterdir() if is_regular(mark)]
        aside = 0
        for mark in failed:
            with contextlib.suppress(FileNotFoundError):  # see queue
                aside += read_regular(mark)[:9] == b"set aside"
        return {
            "queue_length": len(self.waiting()),
            "studies_held": len(self.studies()),
            "cases_failed": len(failed),
            "cases_set_aside": aside,
        }

    def room(self) -> int:
        """Free bytes of the disk."""
        status = os.statvfs(self.root)
        return status.f_bavail * status.f_frsize


def instances(name: str) -> int:
    """How many instances a case with this name is made of."""
    return int(name.rsplit("_", 2)[1])
