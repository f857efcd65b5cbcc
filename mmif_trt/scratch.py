"""Scratch folders: private to their owner, deleted at the end or, after a kill, at the next start."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmif_trt import processes

PREFIX = "mmif-"


@contextmanager
def folder(what: str, root: Path | None = None) -> Iterator[Path]:
    """A folder of mode 0700 in TMPDIR or `root`; leftovers of this user's processes are deleted first."""
    root = root or Path(tempfile.gettempdir())
    sweep(root)
    name = f"{PREFIX}{what}-{processes.here().tag}-{os.getpid()}-{secrets.token_hex(2)}"
    path = root / name
    path.mkdir(mode=0o700)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def sweep(root: Path) -> None:
    """Deletes folders of processes of this machine that have ended. Other machines' folders are left: whether
    their processes run cannot be known here."""
    with contextlib.suppress(OSError), os.scandir(root) as entries:
        for entry in entries:
            parts = entry.name.removeprefix(PREFIX).split("-")
            if not entry.name.startswith(PREFIX) or len(parts) != 4 or not parts[2].isdecimal():
                continue
            ours = (
                parts[1] == processes.here().tag and entry.stat(follow_symlinks=False).st_uid == os.getuid()
            )
            if ours and entry.is_dir(follow_symlinks=False) and not processes.is_running(int(parts[2])):
                shutil.rmtree(entry.path, ignore_errors=True)
