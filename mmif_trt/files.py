"""Files on disk: atomic writes, folders proven to be writable, leftovers of killed runs."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from mmif_trt import processes
from mmif_trt.image import InputError

# A file being written is ".<place>-<pid>-<random>" plus this, beside its target; one that stays was left by a
# killed process. place: of the process, see processes.py.
TMP_SUFFIX = ".mmif-tmp"
_STARTED = time.time()


def temporary_prefix(number: int | None = None) -> str:
    """The start of the names of temporary files of this process, or of process `number` on this machine."""
    return f".{processes.here().tag}-{number or os.getpid()}-"


class OutputError(InputError, OSError):
    """A file could not be written; no part of it is left. The cause is in __cause__."""


def name_of(path: str | os.PathLike[str]) -> str:
    if not isinstance(path, str | os.PathLike):  # by its kind: an array's text is pages of pixels
        kind = "None" if path is None else type(path).__name__
        raise InputError(f"path: {kind}; expected a str or os.PathLike that names a file")
    if not os.fspath(path) or "\0" in os.fsdecode(path):
        raise InputError(f"path: {path!r}; expected a str or os.PathLike that names a file")
    return os.fsdecode(path)


def kind_of_entry(mode: int) -> str:
    """The kind of file by its mode, for a message; "" for a regular file."""
    kinds = {
        stat.S_IFREG: "",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "no regular file")


def is_regular(path: str | os.PathLike[str]) -> bool:
    """False also if it cannot be known: a link to itself, a failing disk."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """A regular file for reading. Nothing else is ever opened: a pipe would wait for its writer, and opening
    a device may have effects. Links are followed.

    Raises InputError for anything else, OSError if it is missing or cannot be read.
    """
    name = os.fspath(path)
    if kind := kind_of_entry(os.stat(name).st_mode):
        raise InputError(f"{name}: {kind}; expected a regular file")
    descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if kind := kind_of_entry(os.fstat(descriptor).st_mode):  # it has changed since
        os.close(descriptor)
        raise InputError(f"{name}: {kind}; expected a regular file")
    return os.fdopen(descriptor, "rb")


def refuse_irregular(path: str | os.PathLike[str], option: str, expected: str = "") -> None:
    """For files that a library opens by name. expected: what a missing one should have been; without it, that
    is left to the library. Raises InputError."""
    if expected and not os.path.exists(path):
        raise InputError(f"{option} {os.fspath(path)}: no such file; expected {expected}")
    try:
        kind = kind_of_entry(os.stat(path).st_mode)
    except OSError:
        return
    if kind:
        raise InputError(f"{option} {os.fspath(path)}: {kind}; expected a regular file")


def sha256_of(path: str | os.PathLike[str]) -> str:
    """In hexadecimal, of a regular file, read block by block."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """The whole of a regular file; see open_regular."""
    with open_regular(path) as file:
        return file.read()


def ends_with(path: str | os.PathLike[str], data: bytes | memoryview) -> bool:
    """Whether it is a regular file that ends in these bytes."""
    try:
        with open_regular(path) as file:
            file.seek(-len(data), os.SEEK_END)
            return bool(file.read() == data)
    except (OSError, InputError):  # shorter, or no file
        return False


def one_sum(sums: Iterable[str]) -> str:
    """One SHA-256 from those of files: that of a single file; for several, that of their sorted sums, one per
    line (`sha256sum FILES | cut -c1-64 | sort | sha256sum`)."""
    ordered = sorted(sums)
    if len(ordered) < 2:
        return "".join(ordered)
    return hashlib.sha256("".join(f"{one}\n" for one in ordered).encode()).hexdigest()


def write_atomic(
    path: str | os.PathLike[str], data: bytes, *more: bytes | memoryview, durable: bool = True
) -> None:
    """All of `data` (then `more`) under `path`, or the previous content: also after a kill.

    durable: also after a power cut: the bytes reach the disk (fsync) before the name, and the name (the
    folder's entry) before this returns. A second run over a folder skips finished names, so none may name an
    empty file. The wait takes no CPU time: 0.3 ms per file on an idle machine, 8 ms with all cores busy. A
    link is followed; the folder must exist.
    Raises OutputError and leaves no temporary file.
    """
    name = name_of(path)
    target = os.path.realpath(name)
    name_aside = f"{temporary_prefix()}{secrets.token_hex(8)}{TMP_SUFFIX}"
    temporary = os.path.join(os.path.dirname(target), name_aside)
    try:
        if os.path.exists(target) and not os.path.isfile(target):  # never replace a folder or a device
            raise OutputError(f"{name}: exists and is no regular file; expected a file name")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with open(descriptor, "wb") as file:
                for part in (data, *more):
                    file.write(part)
                file.flush()
                if durable:
                    os.fsync(descriptor)
            os.replace(temporary, target)
            if durable:
                sync_folder(os.path.dirname(target))
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to report
                os.unlink(temporary)
            raise
    except OutputError:
        raise
    except OSError as error:
        expected = "expected a file name in an existing, writable folder with room"
        raise OutputError(f"{name}: cannot be written ({error.strerror}); {expected}") from error


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Flushes a folder's entries to disk, so that a power cut undoes no rename, link or mkdir in it. Does
    nothing on a file system that cannot."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    except OSError:  # Windows opens no folder
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """mkdir -p, each new entry on the disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)


def disk_is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def prove_writable(folder: Path) -> None:
    """Creates the folder if it is missing. Raises InputError if it is not writable."""
    try:
        make_folder(folder)
        # Permission bits prove little: root, read-only mounts, network shares. This file never has a name.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        expected = "expected a writable folder, or a place where one can be created"
        raise InputError(f"{folder}: cannot write there ({error.strerror}); {expected}") from error


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files of `write_atomic`, and temporary folders, whose process is gone; those of other
    active runs stay.

    For a process of another machine (on a shared file system), the file's age decides. Containers reuse
    process numbers: a file with our number that is older than this process is a leftover.
    """
    for entry in os.scandir(folder):
        if not (entry.name.startswith(".") and entry.name.endswith(TMP_SUFFIX)):
            continue
        tag, number, *_ = (*entry.name[1:].split("-"), "")
        with contextlib.suppress(OSError):  # another run may be cleaning up as well
            written = entry.stat().st_mtime
            left = written < time.time() - processes.LEASE_S
            if tag == processes.here().tag and number.isdecimal():
                if int(number) == os.getpid():
                    left = written < _STARTED
                else:
                    left |= not processes.is_running(int(number))
            if left and entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry, ignore_errors=True)
            elif left:
                os.unlink(entry)
