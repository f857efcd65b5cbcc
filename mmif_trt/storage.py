"""Where plans, outputs and records are: a folder, or s3://BUCKET/PREFIX. Writes are atomic."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmif_trt import running
from mmif_trt.files import (
    TMP_SUFFIX,
    OutputError,
    make_folder,
    prove_writable,
    read_regular,
    remove_leftovers,
    sync_folder,
    temporary_prefix,
    write_atomic,
)
from mmif_trt.image import InputError


class Folder:
    """Names are relative, with "/" between folders, which are created as needed."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

    def where(self, name: str) -> str:
        return str(self.root / name)

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError, another OSError or InputError."""
        return read_regular(self.root / name)

    def read_many(self, names: list[str]) -> Iterator[bytes | None]:
        """Each whole, None for what cannot be read."""
        for name in names:
            try:
                yield self.read(name)
            except (OSError, InputError):
                yield None

    def holds(self, name: str) -> bool:
        return (self.root / name).exists()

    def prove_writable(self) -> None:
        """Raises InputError."""
        prove_writable(self.root)

    def write(self, name: str, data: bytes) -> None:
        """Raises OutputError."""
        self.make_room(name)
        write_atomic(self.root / name, data)

    def make_room(self, name: str) -> None:
        """The folder for `name`, created if missing."""
        folder = (self.root / name).parent
        if not folder.is_dir():
            make_folder(folder)

    def create(self, name: str, data: bytes) -> bool:
        """Writes only if the name is free; False if it exists: of several concurrent writers, one gets
        True."""
        self.make_room(name)
        target = self.root / name
        if target.exists():
            return False
        aside = target.with_name(f"{temporary_prefix()}{secrets.token_hex(8)}{TMP_SUFFIX}")
        write_atomic(aside, data)
        try:
            os.link(aside, target)
        except FileExistsError:
            return False
        except OSError:  # a file system without links: the last of several wins
            os.replace(aside, target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                aside.unlink()
        sync_folder(target.parent)
        return True

    def names(self, folder: str = "") -> Iterator[str]:
        """What a folder contains, in any order; nothing if it does not exist."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.root / folder) as entries:
            for entry in entries:
                yield f"{folder}/{entry.name}" if folder else entry.name

    def folders(self, folder: str = "") -> Iterator[str]:
        """Folders below, at any depth; each before its contents."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.root / folder) as entries:
            inner = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
            for name in inner:
                below = f"{folder}/{name}" if folder else name
                yield below
                yield from self.folders(below)

    def sweep(self) -> None:
        """Deletes half-written files of processes that are gone."""
        if self.root.is_dir():
            for folder in ("", *self.folders()):
                remove_leftovers(self.root / folder)


class Bucket:
    """Like Folder, on an object store that speaks S3. The environment gives address and credentials:
    AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws. It can be pickled.

    What cannot be read raises InputError, or FileNotFoundError if it is not there."""

    def __init__(self, url: str) -> None:
        if not re.match("s3://[^/]", url):
            raise InputError(f"{url}: no bucket; expected s3://BUCKET/PREFIX")
        self.root = url.rstrip("/")

    @property
    def files(self) -> Any:
        """The file system of fsspec, for this process; listings are not cached."""
        return _s3(os.getpid())

    def where(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def read(self, name: str) -> bytes:
        with _as_input_error(self.where(name)):
            data: bytes = self.files.cat_file(self.where(name))
        return data

    def read_many(self, names: list[str]) -> Iterator[bytes | None]:
        """Many requests at once."""
        ends: list[Any] = [None] * len(names)
        urls, starts = [self.where(name) for name in names], [0] * len(names)
        with _as_input_error(self.root):
            found = self.files.cat_ranges(urls, starts, ends, on_error="return") if names else ()
        for data in found:
            yield data if isinstance(data, bytes) else None

    def holds(self, name: str) -> bool:
        with _as_input_error(self.where(name)):
            return bool(self.files.exists(self.where(name)))

    def prove_writable(self) -> None:
        """By an empty object that stays: to delete takes a right of its own. Raises OutputError."""
        self.write(".writable", b"")

    def write(self, name: str, data: bytes) -> None:
        with _as_output_error(self.where(name)):
            self.files.pipe_file(self.where(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """By If-None-Match: of two independent writers, one gets True."""
        try:
            with _as_output_error(self.where(name)):
                self.files.pipe_file(self.where(name), data, mode="create")
        except OutputError as error:
            if not _is_there_already(error.__cause__):
                raise
            return False
        return True

    def put(self, name: str, path: str) -> None:
        """A file of this machine, under a name."""
        with _as_output_error(self.where(name)):
            self.files.put_file(path, self.where(name))

    def remove(self, name: str) -> None:
        with contextlib.suppress(OSError):
            self.files.rm_file(self.where(name))

    def make_room(self, name: str) -> None:
        """An object store has no folders."""

    def names(self, folder: str = "") -> Iterator[str]:
        for entry in self._entries(folder):
            if entry["type"] == "file":
                base = entry["name"].rpartition("/")[2]
                yield f"{folder}/{base}" if folder else base

    def folders(self) -> Iterator[str]:
        yield from sorted(e["name"].rpartition("/")[2] for e in self._entries("") if e["type"] != "file")

    def _entries(self, folder: str) -> list[Any]:
        try:
            with _as_input_error(self.where(folder)):
                found: list[Any] = self.files.ls(self.where(folder), detail=True)
        except FileNotFoundError:
            return []
        return found


Store = Folder | Bucket


def _is_there_already(error: BaseException | None) -> bool:
    """Servers differ in what they report beside the code."""
    while error is not None:
        code = (getattr(error, "response", None) or {}).get("Error", {}).get("Code")
        if isinstance(error, FileExistsError) or code in ("PreconditionFailed", "412"):
            return True
        error = error.__cause__
    return False


WHY = {
    "FileNotFoundError": "no such bucket or object",
    "PermissionError": "access denied",
    "NoCredentialsError": "no credentials",
    "PartialCredentialsError": "half of the credentials",
    "EndpointConnectionError": "no connection",
    "ConnectTimeoutError": "no answer",
    "ParamValidationError": "no valid name",
}
ANSWERING = "expected a bucket that answers: AWS_ENDPOINT_URL and AWS_ACCESS_KEY_ID, or ~/.aws"


def why(error: BaseException) -> str:
    """Why a request to an object store failed. botocore raises many kinds, and not all are OSError."""
    return WHY.get(type(error).__name__) or running.why(error)


@contextmanager
def _as_input_error(where: str) -> Iterator[None]:
    try:
        yield
    except (InputError, FileNotFoundError):
        raise
    except Exception as error:
        raise InputError(f"{where}: cannot be read ({why(error)}); {ANSWERING}") from error


@contextmanager
def _as_output_error(where: str) -> Iterator[None]:
    try:
        yield
    except OutputError:
        raise
    except Exception as error:
        raise OutputError(f"{where}: cannot be written ({why(error)}); {ANSWERING}") from error


@lru_cache(maxsize=1)
def _s3(process: int) -> Any:
    """process: a fork needs its own connections."""
    try:
        import fsspec
        import s3fs  # noqa: F401
    except ImportError:
        raise InputError("s3://: not installed: pip install 'mmif-trt[s3]'") from None
    return fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)


def is_url(text: str) -> bool:
    """Raises InputError for any other kind of URL."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
    if scheme and scheme[1] != "s3":
        raise InputError(f"{text}: {scheme[1]}://; expected a path or s3://BUCKET/PREFIX")
    return bool(scheme)


def join(base: str, name: str) -> str:
    """`name` relative to `base`, a folder or URL; an absolute path or a URL is returned unchanged."""
    if is_url(name) or os.path.isabs(name):
        return name
    return f"{base.rstrip('/')}/{name}" if is_url(base) else str(Path(base) / name)


def parent(name: str) -> str:
    """The folder or URL that contains a file."""
    return name.rpartition("/")[0] if is_url(name) else str(Path(name).parent)


def store_of(text: str) -> Store:
    """Raises InputError."""
    if not text:
        raise InputError("an empty name; expected a folder or s3://BUCKET/PREFIX")
    return Bucket(text) if is_url(text) else Folder(text)
