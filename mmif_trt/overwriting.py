"""The guard before anything is written: no output is a source, shared, or a file that is not ours."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from mmif_trt.files import kind_of_entry, open_regular
from mmif_trt.image import InputError

MARKS = (b"mmif_trt", b"mmif-trt")  # a text that this package wrote names it near its start
MARK_BYTES = 4096


def check(
    inputs: Iterable[str | os.PathLike[str]],
    outputs: Iterable[str | os.PathLike[str]],
    may_replace: Callable[[str], bool] = lambda path: True,
) -> None:
    """Raises InputError for an output that is an input under any name (links count: files are compared by
    device and inode), for two outputs that are one file, and for an existing one that may_replace refuses.

    inputs: files, or folders, which stand for all files below them.
    """
    named = [os.fspath(path) for path in outputs]
    places: dict[str, str] = {}
    for path in named:
        place = os.path.realpath(path)
        if place in places:
            raise InputError(f"{path}: is also the output {places[place]}; expected different files")
        places[place] = path
    existing = {(s.st_dev, s.st_ino): path for path in named if (s := _stat(path)) is not None}
    for source in _files(inputs) if existing else ():
        found = _stat(source)
        if found is not None and (own := existing.get((found.st_dev, found.st_ino))):
            raise InputError(f"{own}: is the same file as the input {source}; expected a different output")
    for path in existing.values():
        if (kind := kind_of_entry(os.stat(path).st_mode)) and kind != "a folder":
            raise InputError(f"{path}: {kind}; expected a file name")
        if not may_replace(path):
            raise InputError(
                f"{path}: exists, and no record of this program claims it; expected a new name, or move it"
            )


def _files(inputs: Iterable[str | os.PathLike[str]]) -> Iterable[str]:
    for path in (os.fspath(x) for x in inputs):
        yield path
        if os.path.isdir(path):
            for folder, _, names in os.walk(path):
                yield from (os.path.join(folder, name) for name in names)


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except (OSError, ValueError):
        return None


def is_ours(path: str, header: bytes = b"") -> bool:
    """Whether this package wrote a text: it says so, starts with `header` (of a table), or is empty."""
    try:
        with open_regular(path) as file:
            head = file.read(MARK_BYTES)
    except (InputError, OSError):
        return False
    return not head or any(mark in head for mark in MARKS) or bool(header) and head.startswith(header)
