"""Durable marks of the attempts to fuse a case: whose fault a death in one was.

    <case>.<attempt>.open   under way. If it stays, worker and node ended together: lack of memory in their
                            container, a power cut, a kill of both
    <case>.<attempt>.left   the node ended alone, and the worker was well: hardly the fault of the case
    <case>.<attempt>.died   the worker ended on it, or took too long

The worker makes the mark, so that no time before its work is blamed on a case. If the node goes away, the
worker notices (its input closes) and says that it was well. Each file holds the name of the study.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from mmif_trt.files import read_regular, sync_folder, write_atomic
from mmif_trt.image import InputError

OPEN, LEFT, DIED = "open", "left", "died"
# How many of a kind set a case aside. A kill from outside should not, so it takes many where the worker was
# well.
MOST = {DIED: 2, OPEN: 4, LEFT: 12}


class Tries:
    """folder: of the marks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def next(self, case: str) -> Path:
        """A name for the mark of a new attempt."""
        return (self.folder / f"{case}.{secrets.token_hex(8)}.{OPEN}").absolute()

    def count(self, case: str) -> dict[str, int]:
        """How many attempts ended in each way."""
        return {how: len(list(self.folder.glob(f"{case}.*.{how}"))) for how in MOST}

    def is_spent(self, case: str) -> bool:
        """Whether the case is to be set aside."""
        return any(count >= MOST[how] for how, count in self.count(case).items())

    def studies(self) -> set[str]:
        """The studies with such a case: others go first."""
        found = set()
        for mark in self.folder.iterdir():
            with contextlib.suppress(OSError, InputError, UnicodeDecodeError):
                found.add(read_regular(mark).decode())
        return found

    def died(self, case: str, study: str, attempt: Path) -> None:
        """The worker ended on it, also if that was before it made the mark."""
        write_atomic(attempt.with_suffix(f".{DIED}"), study.encode())
        attempt.unlink(missing_ok=True)

    def forget(self, case: str) -> None:
        for mark in self.folder.glob(f"{case}.*"):
            mark.unlink(missing_ok=True)


def begin(attempt: Path, study: str) -> None:
    """In the worker, before its work. Raises OutputError."""
    write_atomic(attempt, study.encode())


def node_left(attempt: Path) -> None:
    """In the worker, when the node is gone: at work or just finished, it was well."""
    with contextlib.suppress(OSError):
        os.replace(attempt, attempt.with_suffix(f".{LEFT}"))
        sync_folder(attempt.parent)
