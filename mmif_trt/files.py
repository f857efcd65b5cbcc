"""Files on the disk: written whole or not at all, folders proven to take files, leftovers of killed runs."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import tempfile
import time
from pathlib import Path

from mmif_trt.image import InputError

# A file being written is ".<pid>-<random>" and this, beside its target; one that stays was left by a kill.
TMP_SUFFIX = ".mmif-tmp"
_STARTED = time.time()


class OutputError(InputError, OSError):
    """A file could not be written; nothing of it is left behind. The cause is in __cause__."""


def name_of(path: str | os.PathLike[str]) -> str:
    if not isinstance(path, str | os.PathLike) or not os.fspath(path) or "\0" in os.fsdecode(path):
        raise InputError(f"path: {path!r}; expected a str or os.PathLike that names a file")
    return os.fsdecode(path)


def write_atomic(
    path: str | os.PathLike[str], data: bytes, *more: bytes | memoryview, durable: bool = True
) -> None:
    """The whole of `data` (and `more`, after it) under `path`, or what was there before: also after a kill.

    durable: also after a power cut, for then the bytes reach the disk (fsync) before the name does. A second
    run over a folder skips finished names: none may stand for an empty file. It waits, at no cost of the CPU:
    0.3 ms a file on an idle machine, 8 ms with all its cores busy. A link is followed; the folder must exist.
    Raises OutputError and leaves no temporary file.
    """
    name = name_of(path)
    target = os.path.realpath(name)
    temporary = os.path.join(os.path.dirname(target), f".{os.getpid()}-{secrets.token_hex(8)}{TMP_SUFFIX}")
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
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                os.unlink(temporary)
            raise
    except OutputError:
        raise
    except OSError as error:
        expected = "expected a file name in an existing, writable folder with room"
        raise OutputError(f"{name}: cannot be written ({error.strerror}); {expected}") from error


def disk_is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def prove_writable(folder: Path) -> None:
    """Makes the folder where it is missing. Raises InputError where it takes no files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Permission bits say little: root, read-only mounts, network shares. This file never has a name.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        expected = "expected a folder that can be made and takes files"
        raise InputError(f"{folder}: cannot write there ({error.strerror}); {expected}") from error


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files of `write_atomic` whose process is gone; those of other runs at work there stay.

    Containers hand out the same process number again: one of ours, older than we are, is left over.
    """
    for entry in os.scandir(folder):
        pid = entry.name[1:].split("-", 1)[0]
        if entry.name.startswith(".") and entry.name.endswith(TMP_SUFFIX) and pid.isdecimal():
            with contextlib.suppress(OSError):  # another run may be clearing up as well
                written = entry.stat().st_mtime
                if int(pid) == os.getpid():
                    left = written < _STARTED
                else:
                    left = written < time.time() - 3600 or not _is_running(int(pid))
                if left:
                    os.unlink(entry)


def _is_running(pid: int) -> bool:
    if os.name != "posix":
        return True  # os.kill(pid, 0) would end the process there; old files go by their age
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
