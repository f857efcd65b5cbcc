"""The node's folder on disk: what arrived, what is fused and waits to be sent. It alone survives a crash.

    incoming/<study>/<instance>.dcm   as received, complete (renamed into place, fsync)
    outgoing/<case>.dcm               fused, to be sent
    doubt/<case>                      a mark: it went out, and no answer was seen yet
    sent/<case>                       a mark with the UID of what the PACS took
    failed/<case>                     a mark with the reason: not tried again

All names are pseudonyms (pseudonym.py). A case's name is made of its sources, and the fused instance's UIDs
are too: a fusion that is repeated after a crash is the same instance, and a PACS that had it keeps one; what
went out before a crash is asked for before it is sent again. Where a series goes on arriving after it was
fused, the larger set of instances is another case of the same pair: it takes the place of the smaller one
where that waits, and names it where the PACS has it already (a node cannot take an instance back from a
PACS). A smaller set never follows a larger one.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Container
from pathlib import Path
from typing import Any

from mmif_trt.clinical import pseudonym
from mmif_trt.clinical.case import Case
from mmif_trt.clinical.series import collect, pair
from mmif_trt.files import TMP_SUFFIX, OutputError, write_atomic

FOLDERS = ("incoming", "outgoing", "doubt", "sent", "failed")
RECOUNT_S = 10.0
MAX_MARK_BYTES = 4096


class Spool:
    def __init__(self, root: Path, key_file: str | None = None) -> None:
        self.root = root
        for name in FOLDERS:
            (root / name).mkdir(parents=True, exist_ok=True)
        key = pseudonym.key_in(root, key_file)
        assert key is not None
        self._key = key
        self._used, self._counted = 0, -RECOUNT_S
        for left in root.rglob(f"*{TMP_SUFFIX}"):  # of a write that a crash cut short: never acknowledged
            left.unlink(missing_ok=True)
        for mark in (root / "sent").iterdir():
            if mark.stat().st_size > MAX_MARK_BYTES:  # a crash between the two steps of mark_sent
                mark.write_bytes(b"")

    def folder(self, study: str) -> Path:
        return self.root / "incoming" / pseudonym.name_of(self._key, study)

    def put(self, study: str, instance: str, head: bytes, body: memoryview) -> None:
        """Keeps one instance, durably: only then may the peer be told Success. The same one again is one."""
        folder = self.folder(study)
        folder.mkdir(exist_ok=True)
        write_atomic(folder / f"{pseudonym.name_of(self._key, instance)}.dcm", head, body)
        self._used += len(head) + len(body)

    def used(self) -> int:
        """Bytes of all files here, counted every RECOUNT_S; what arrives between is added."""
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
        """Seconds since something of this study arrived."""
        # An arrival renames a file into the folder, which dates the folder; the files may be moving.
        return time.time() - study.stat().st_mtime

    def cases(self, study: Path, decoder: Any, across: bool = False) -> list[Case]:
        """The fusions of a study that are neither sent, waiting, nor failed. decoder: console.decoder's;
        across: see series.pair."""
        paths = sorted(str(path) for path in study.glob("*.dcm"))
        found, _ = pair(*collect(decoder.headers(paths), self._key), across)
        return [case for case in found if self.state(self.name(case)) == "new"]

    def name(self, case: Case) -> str:
        """Of the pair, the number of its instances, and which they are: a grown series is another case."""
        files = [Path(path).name for path in (*case.a, *case.b)]
        return f"{case.name}_{len(files)}_{pseudonym.name_of(self._key, ''.join(files), 8)}"

    def state(self, name: str) -> str:
        for folder, state in (("sent", "sent"), ("failed", "failed")):
            if (self.root / folder / name).exists():
                return state
        return "waiting" if (self.root / "outgoing" / f"{name}.dcm").exists() else "new"

    def sent_before(self, name: str) -> list[Path]:
        """The marks of this pair's fusions of other sets of instances, which the PACS has; smallest first."""
        pair_of, _, _ = name.rsplit("_", 2)
        marks = (self.root / "sent").glob(f"{pair_of}_*_*")
        return sorted((mark for mark in marks if mark.name != name), key=lambda mark: instances(mark.name))

    def larger(self, name: str) -> bool:
        """Whether a fusion of this pair with more instances waits or was sent: this one is a remainder."""
        names = [mark.name for mark in self.sent_before(name)] + [path.stem for path in self.waiting()]
        pair_of = name.rsplit("_", 2)[0]
        return any(x.rsplit("_", 2)[0] == pair_of and instances(x) > instances(name) for x in names)

    def waiting(self) -> list[Path]:
        return sorted((self.root / "outgoing").glob("*.dcm"))

    def queue(self, name: str, data: bytes) -> list[str]:
        """Puts a fusion into the queue, and takes out those of smaller sets of the same pair; their names."""
        write_atomic(self.root / "outgoing" / f"{name}.dcm", data)
        self._used += len(data)
        pair_of, _, _ = name.rsplit("_", 2)
        gone = [p for p in self.waiting() if p.stem != name and p.stem.rsplit("_", 2)[0] == pair_of]
        for path in gone:
            path.unlink(missing_ok=True)
            self.answered(path)
        return [path.stem for path in gone]

    def in_doubt(self, path: Path) -> bool:
        """Whether the PACS may have it: it went out, and its answer was not seen."""
        return (self.root / "doubt" / path.stem).exists()

    def mark_doubt(self, path: Path) -> None:
        """Durable before the first byte goes out. A disk without room for it holds up no sending: that makes
        room; after a crash the instance is then sent again without asking."""
        with contextlib.suppress(OutputError):
            write_atomic(self.root / "doubt" / path.stem, b"")

    def answered(self, path: Path) -> None:
        (self.root / "doubt" / path.stem).unlink(missing_ok=True)

    def mark_sent(self, path: Path, uid: str) -> None:
        """Needs no room on the disk: the file itself becomes the mark, and shrinks to the UID."""
        mark = self.root / "sent" / path.stem
        try:
            os.replace(path, mark)
        except FileNotFoundError:  # a larger set took its place while it was sent
            write_atomic(mark, uid.encode())
            return
        with open(mark, "r+b") as file:
            file.truncate(0)
            file.write(uid.encode())

    def uid_of(self, mark: Path) -> str:
        """What a mark says that the PACS took; "" where a crash left it without."""
        return mark.read_text() if mark.stat().st_size <= 64 else ""

    def mark_failed(self, name: str, reason: str) -> None:
        write_atomic(self.root / "failed" / name, reason.encode())

    def forget(self, keep_s: float, settled: Container[str]) -> int:
        """Removes the sources of settled studies that have been quiet for keep_s; returns how many."""
        count = 0
        for study in self.studies():
            if study.name in settled and self.quiet_s(study) > keep_s:
                with contextlib.suppress(OSError):  # something arrives just now: then it stays
                    for path in study.iterdir():
                        path.unlink()
                    study.rmdir()
                    count += 1
        return count

    def room(self) -> int:
        """Free bytes of the disk."""
        status = os.statvfs(self.root)
        return status.f_bavail * status.f_frsize


def instances(name: str) -> int:
    """How many instances a case of this name is made of."""
    return int(name.rsplit("_", 2)[1])
