"""Which process on which machine wrote something, and whether it still runs.

On a shared file system a process number alone proves nothing: another machine or container, or the same one
after a restart, has a process with that number too.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

LEASE_S = 3600.0  # how long files of another machine's process count as in use


@dataclass(frozen=True)
class Place:
    """A place with its own process numbers. host: its name; boot: which start of the machine; space: the
    process number space, one per container."""

    host: str
    boot: str
    space: str

    @property
    def tag(self) -> str:
        """8 hex digits, for names of files."""
        return hashlib.sha256(f"{self.host}\0{self.boot}\0{self.space}".encode()).hexdigest()[:8]


@lru_cache(maxsize=1)
def here() -> Place:
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux
        space = ""
    return Place(socket.gethostname(), _text("/proc/sys/kernel/random/boot_id"), space)


@dataclass(frozen=True)
class Process:
    """began: its start by the machine's own count, because numbers are reused; "" if unknown."""

    place: Place
    number: int
    began: str

    def entry(self) -> dict[str, Any]:
        return asdict(self)


def this() -> Process:
    return Process(here(), os.getpid(), _began(os.getpid()))


def of(entry: Any) -> Process | None:
    """The process of `Process.entry`; None if the text is something else."""
    try:
        place = entry["place"]
        where = Place(str(place["host"]), str(place["boot"]), str(place["space"]))
        return Process(where, int(entry["number"]), str(entry["began"]))
    except (KeyError, TypeError, ValueError):
        return None


def runs(process: Process, since: float) -> bool:
    """Whether it may still run. since: time.time() of its last sign of life, the only evidence for a process
    of another machine."""
    ours = here()
    if process.place == ours:
        began = _began(process.number)
        return is_running(process.number) and (not began or not process.began or began == process.began)
    if (process.place.host, process.place.space) == (ours.host, ours.space):
        return False  # the machine has restarted since
    return time.time() - since < LEASE_S


def is_running(number: int) -> bool:
    """For a process of this place. A zombie counts as ended."""
    if os.name != "posix":
        return True  # os.kill(number, 0) would end the process there; the age of its files decides
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    fields = _text(f"/proc/{number}/stat").rpartition(") ")[2].split()
    return fields[:1] != ["Z"]


def _began(number: int) -> str:
    """Clock ticks from the machine's start to that of the process (proc(5), stat, field 22)."""
    fields = _text(f"/proc/{number}/stat").rpartition(") ")[2].split()
    return fields[19] if len(fields) > 19 else ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""
