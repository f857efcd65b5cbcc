"""The node's folder on disk: what arrived, what is fused and waits to be sent. It alone survives a crash.

    incoming/<study hash>/<instance hash>.dcm   as received, complete (renamed into place, fsync)
    outgoing/<case>.dcm                         fused, to be sent
    sent/<case>                                 a mark: this fusion reached the PACS
    failed/<case>                               a mark with the reason: not tried again

A case's name is made of the sources' UIDs, and the fused instance's UIDs of its sources: a fusion that is
repeated after a crash is the same instance, and a PACS that had it already keeps one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from pathlib import Path

from mmif_trt import io
from mmif_trt.pairing import Case, collect, pair

FOLDERS = ("incoming", "outgoing", "sent", "failed")


class Spool:
    def __init__(self, root: Path) -> None:
        self.root = root
        for name in FOLDERS:
            (root / name).mkdir(parents=True, exist_ok=True)
        for left in root.rglob(f"*{io.TMP_SUFFIX}"):  # of a write that a crash cut short: never acknowledged
            left.unlink(missing_ok=True)

    def put(self, study: str, instance: str, data: bytes) -> None:
        """Keeps one instance, durably: only then may the peer be told Success. The same one again is one."""
        folder = self.root / "incoming" / _hash(study)
        folder.mkdir(exist_ok=True)
        io.write_atomic(folder / f"{_hash(instance)}.dcm", data)

    def studies(self) -> list[Path]:
        return sorted(path for path in (self.root / "incoming").iterdir() if path.is_dir())

    def quiet_s(self, study: Path) -> float:
        """Seconds since something of this study arrived."""
        # An arrival renames a file into the folder, which dates the folder; the files may be moving.
        return time.time() - study.stat().st_mtime

    def cases(self, study: Path) -> list[Case]:
        """The fusions of a study that are neither sent, waiting, nor failed."""
        from mmif_trt.console.cases import headers_below

        found, _ = pair(collect(headers_below(str(study))))
        return [case for case in found if self.state(self.name(case)) == "new"]

    def name(self, case: Case) -> str:
        """Of the case and of what it is made of: a series that grew is another case."""
        return f"{case.name}_{_hash(''.join(Path(path).name for path in (*case.a, *case.b)))[:8]}"

    def state(self, name: str) -> str:
        for folder, state in (("sent", "sent"), ("failed", "failed")):
            if (self.root / folder / name).exists():
                return state
        return "waiting" if (self.root / "outgoing" / f"{name}.dcm").exists() else "new"

    def waiting(self) -> list[Path]:
        return sorted((self.root / "outgoing").glob("*.dcm"))

    def queue(self, name: str, data: bytes) -> None:
        io.write_atomic(self.root / "outgoing" / f"{name}.dcm", data)

    def mark_sent(self, path: Path) -> None:
        io.write_atomic(self.root / "sent" / path.stem, b"")
        path.unlink()

    def mark_failed(self, name: str, reason: str) -> None:
        io.write_atomic(self.root / "failed" / name, reason.encode())

    def forget(self, keep_s: float) -> int:
        """Removes the sources of studies that have been quiet for keep_s; returns how many."""
        count = 0
        for study in self.studies():
            if self.quiet_s(study) > keep_s:
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


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]
