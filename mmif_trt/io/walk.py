"""The files of a folder and below, links followed: the one walk of `fuse` and `batch`."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from mmif_trt.image import InputError

SHOWN = 3


@dataclass
class Walk:
    """files: in order of name. lost: what may have been a file of a series and cannot be read ("PATH: why").
    passed: what is none (pipes, devices, links that lead round in a circle, a file met before)."""

    files: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)

    def refuse_lost(self, root: str) -> None:
        """Raises InputError where a file cannot be read: without it a volume would be shorter in silence."""
        if self.lost:
            raise InputError(
                f"{root}: {len(self.lost)} files cannot be read: {shown(self.lost)}; expected all files of "
                "the folder (fetch what the links stand for, as by `datalad get` or `git annex get`)"
            )


def shown(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def walk(root: str) -> Walk:
    """Every regular file once, whatever links lead to it. Nothing is opened: a pipe would never answer."""
    found, seen = Walk(), set[tuple[int, int]]()
    for path, status in _entries(root, found, seen):
        key = (status.st_dev, status.st_ino)
        if not stat.S_ISREG(status.st_mode):
            found.passed.append(f"{path}: {_kind(status.st_mode)}")
        elif key in seen:
            found.passed.append(f"{path}: another name of a file that was read")
        else:
            seen.add(key)
            found.files.append(path)
    found.files.sort()
    return found


def _entries(folder: str, found: Walk, seen: set[tuple[int, int]]) -> Iterator[tuple[str, os.stat_result]]:
    waiting = [folder]
    while waiting:
        at = waiting.pop(0)
        try:
            here = os.stat(at)
            if (here.st_dev, here.st_ino) in seen:
                found.passed.append(f"{at}: a link to a folder that was read")
                continue
            seen.add((here.st_dev, here.st_ino))
            names = sorted(os.listdir(at))
        except OSError as error:
            found.lost.append(f"{at}: {error.strerror}")
            continue
        folders = []
        for name in names:
            path = os.path.join(at, name)
            try:
                status = os.stat(path)
            except OSError as error:
                (found.passed if _leads_to_itself(path) else found.lost).append(
                    f"{path}: {_why(path, error)}"
                )
                continue
            if stat.S_ISDIR(status.st_mode):
                folders.append(path)
            else:
                yield path, status
        waiting = folders + waiting


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
