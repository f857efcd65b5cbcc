"""The files of a folder and below, links followed: the walk of both `fuse` and `batch`."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from mmif_trt.image import InputError

SHOWN = 3


class Seen(Protocol):
    """What a walk needs from a set of (device, inode)."""

    def __contains__(self, key: tuple[int, int]) -> bool: ...

    def add(self, key: tuple[int, int]) -> None: ...


class Names(list[str]):
    """The first names and the count of many, for a message: even of a million, only these are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def append(self, name: str) -> None:
        self.number += 1
        if len(self) < SHOWN:
            super().append(name)


@dataclass
class Walk:
    """files: in order of name. lost: possible files of a series that cannot be read ("PATH: why"). passed:
    others (pipes, devices, circular links, a file already visited)."""

    files: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)

    def refuse_lost(self, root: str) -> None:
        """Raises InputError if a file cannot be read: without it a volume would silently be shorter."""
        if self.lost:
            raise InputError(
                f"{root}: {len(self.lost)} files cannot be read: {shown(self.lost)}; expected all files of "
                "the folder (fetch the targets of the links, as by `datalad get` or `git annex get`)"
            )


def shown(names: list[str]) -> str:
    count = names.number if isinstance(names, Names) else len(names)
    more = f" and {count - SHOWN} more" if count > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def walk(root: str) -> Walk:
    """Every regular file once, whatever links lead to it. Opens nothing: a pipe would block for ever."""
    found = Walk()
    found.files.extend(stream(root, found, set()))
    found.files.sort()
    return found


def stream(root: str, found: Walk, seen: Seen, part: tuple[int, int] = (1, 1)) -> Iterator[str]:
    """The files of `walk` one by one, folder by folder; what is left out goes into `found`. Holds the names
    of one folder per level. part: (I, N): every N-th entry of `root` from the I-th on."""
    for path, status in _entries(root, found, seen, part):
        key = (status.st_dev, status.st_ino)
        if not stat.S_ISREG(status.st_mode):
            found.passed.append(f"{path}: {_kind(status.st_mode)}")
        elif key in seen:
            found.passed.append(f"{path}: another name of a file that was read")
        else:
            seen.add(key)
            yield path


def _entries(
    root: str, found: Walk, seen: Seen, part: tuple[int, int]
) -> Iterator[tuple[str, os.stat_result]]:
    waiting = [(root, iter(_names(root, found, seen)[part[0] - 1 :: part[1]]))]
    while waiting:
        folder, names = waiting[-1]
        name = next(names, None)
        if name is None:
            waiting.pop()
            continue
        path = os.path.join(folder, name)
        try:
            status = os.stat(path)
        except OSError as error:
            (found.passed if _leads_to_itself(path) else found.lost).append(f"{path}: {_why(path, error)}")
            continue
        if stat.S_ISDIR(status.st_mode):
            waiting.append((path, iter(_names(path, found, seen))))
        else:
            yield path, status


def _names(folder: str, found: Walk, seen: Seen) -> list[str]:
    """A folder's entries, in order of name; nothing if it was read before or is unreadable."""
    try:
        here = os.stat(folder)
        if (here.st_dev, here.st_ino) in seen:
            found.passed.append(f"{folder}: a link to a folder that was read")
            return []
        seen.add((here.st_dev, here.st_ino))
        return sorted(os.listdir(folder))
    except OSError as error:
        found.lost.append(f"{folder}: {error.strerror}")
        return []


def _leads_to_itself(path: str) -> bool:
    try:
        return os.path.realpath(path) == os.path.realpath(os.path.dirname(path)) + os.sep + os.path.basename(
            path
        ) and os.path.islink(path)
    except OSError:
        return True


def _why(path: str, error: OSError) -> str:
    if not os.path.islink(path):
        return str(error.strerror)
    return "a link to itself" if _leads_to_itself(path) else f"a link to nothing ({error.strerror})"


def _kind(mode: int) -> str:
    names = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"))
    return next((name for test, name in names if test(mode)), "a device")
