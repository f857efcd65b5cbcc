"""Where outputs and their records lie: a folder. A name in it is whole or not there."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from mmif_trt.files import TMP_SUFFIX, make_folder, read_regular, sync_folder, temporary_prefix, write_atomic
from mmif_trt.image import InputError


class Folder:
    """Names are relative, with "/" between folders, which are made as they are needed."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

    def where(self, name: str) -> str:
        return str(self.root / name)

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError, another OSError or InputError."""
        return read_regular(self.root / name)

    def holds(self, name: str) -> bool:
        return (self.root / name).exists()

    def write(self, name: str, data: bytes) -> None:
        """Raises OutputError."""
        self.make_room(name)
        write_atomic(self.root / name, data)

    def make_room(self, name: str) -> None:
        """The folder in which `name` is to lie."""
        folder = (self.root / name).parent
        if not folder.is_dir():
            make_folder(folder)

    def create(self, name: str, data: bytes) -> bool:
        """Writes what is not there; False where it is: of several writers at once one gets True."""
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
        """What lies in a folder, in any order; nothing where there is none."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.root / folder) as entries:
            for entry in entries:
                yield f"{folder}/{entry.name}" if folder else entry.name

    def folders(self, folder: str = "") -> Iterator[str]:
        """Those below, at any depth; a folder before what is in it."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.root / folder) as entries:
            inner = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
            for name in inner:
                below = f"{folder}/{name}" if folder else name
                yield below
                yield from self.folders(below)


def folder_of(text: str) -> Folder:
    """Raises InputError."""
    if not text:
        raise InputError("-o: an empty name; expected a folder")
    return Folder(text)
