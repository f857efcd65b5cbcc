"""Files on the disk: written whole or not at all, folders proven to take files, leftovers of killed runs."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from mmif_trt import processes
from mmif_trt.image import InputError

# A file being written is ".<place>-<pid>-<random>" and this, beside its target; one that stays was left by a
# kill. place: of the process, see processes.py.
TMP_SUFFIX = ".mmif-tmp"
_STARTED = time.time()


def temporary_prefix(number: int | None = None) -> str:
    """How the name of a temporary file of this process begins, or of the process `number` of this machine."""
    return f".{processes.here().tag}-{number or os.getpid()}-"


class OutputError(InputError, OSError):
    """A file could not be written; nothing of it is left behind. The cause is in __cause__."""


def name_of(path: str | os.PathLike[str]) -> str:
    if not isinstance(path, str | os.PathLike) or not os.fspath(path) or "\0" in os.fsdecode(path):
        raise InputError(f"path: {path!r}; expected a str or os.PathLike that names a file")
    return os.fsdecode(path)


def kind_of_entry(mode: int) -> str:
    """What a file's mode says it is, for a message; "" for a regular file."""
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
    """False also where nothing can be said: a link to itself, a disk that fails."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """A regular file for reading; nothing else is ever opened, for a pipe waits for its writer, and a device
    may do whatever it is made for. Links are followed.

    Raises InputError for anything else, OSError where it is not there or cannot be read.
    """
    name = os.fspath(path)
    if kind := kind_of_entry(os.stat(name).st_mode):
        raise InputError(f"{name}: {kind}; expected a regular file")
    descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if kind := kind_of_entry(os.fstat(descriptor).st_mode):  # it was changed since
        os.close(descriptor)
        raise InputError(f"{name}: {kind}; expected a regular file")
    return os.fdopen(descriptor, "rb")


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """The whole of a regular file; see open_regular."""
    with open_regular(path) as file:
        return file.read()


def one_sum(sums: Iterable[str]) -> str:
    """One SHA-256 for files by theirs: that of a single file, of several that of their sorted sums, one per
    line (`sha256sum FILES | cut -c1-64 | sort | sha256sum`)."""
    ordered = sorted(sums)
    if len(ordered) < 2:
        return "".join(ordered)
    return hashlib.sha256("".join(f"{one}\n" for one in ordered).encode()).hexdigest()


def write_atomic(
    path: str | os.PathLike[str], data: bytes, *more: bytes | memoryview, durable: bool = True
) -> None:
    """The whole of `data` (and `more`, after it) under `path`, or what was there before: also after a kill.

    durable: also after a power cut, for then the bytes reach the disk (fsync) before the name does, and the
    name (the folder's entry) before this returns. A second
    run over a folder skips finished names: none may stand for an empty file. It waits, at no cost of the CPU:
    0.3 ms a file on an idle machine, 8 ms with all its cores busy. A link is followed; the folder must exist.
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
            with contextlib.suppress(OSError):  # the first error is the one to tell
                os.unlink(temporary)
            raise
    except OutputError:
        raise
    except OSError as error:
        expected = "expected a file name in an existing, writable folder with room"
        raise OutputError(f"{name}: cannot be written ({error.strerror}); {expected}") from error


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """The entries of a folder to the disk: a power cut then takes no rename, link or mkdir in it back. A file
    system that cannot is passed over."""
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
    """Makes the folder where it is missing. Raises InputError where it takes no files."""
    try:
        make_folder(folder)
        # Permission bits say little: root, read-only mounts, network shares. This file never has a name.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        expected = "expected a folder that can be made and takes files"
        raise InputError(f"{folder}: cannot write there ({error.strerror}); {expected}") from error


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files of `write_atomic` whose process is gone; those of other runs at work there stay.

    Of a process of another machine (a shared file system) the file's age decides. Containers hand out the
    same process number again: one of ours, older than we are, is left over.
    """
    for entry in os.scandir(folder):
        if not (entry.name.startswith(".") and entry.name.endswith(TMP_SUFFIX)):
            continue
        tag, number, *_ = (*entry.name[1:].split("-"), "")
        with contextlib.suppress(OSError):  # another run may be clearing up as well
            written = entry.stat().st_mtime
            left = written < time.time() - processes.LEASE_S
            if tag == processes.here().tag and number.isdecimal():
                if int(number) == os.getpid():
                    left = written < _STARTED
                else:
                    left |= not processes.is_running(int(number))
            if left:
                os.unlink(entry)
