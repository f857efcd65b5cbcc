"""Inputs of a case from an object store, on this machine only while they are read; heads of files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from mmif_trt.clinical.case import Case
from mmif_trt.image import InputError
from mmif_trt.io.dicom import BEGINNING_BYTES
from mmif_trt.storage import ANSWERING, Bucket, is_url, why

HEADS_AT_ONCE = 128  # of them in memory, each up to BEGINNING_BYTES: most DICOM headers are far shorter
TWINS = {".hdr": ".img", ".img": ".hdr"}


def is_remote(case: Case) -> bool:
    return any(is_url(path) for path in (*case.a, *case.b, case.registration))


def fetched(case: Case, folder: Path) -> tuple[Case, dict[str, str]]:
    """The case with files of `folder` in place of URLs, and local path -> URL for messages. Raises
    InputError."""
    names: dict[str, str] = {}
    a, b = (
        tuple(_local(url, folder / side / f"{number:05}", names) for number, url in enumerate(urls))
        for side, urls in (("a", case.a), ("b", case.b))
    )
    registration = case.registration and _local(case.registration, folder / "r", names)
    return replace(case, a=a, b=b, registration=registration), names


def _local(url: str, folder: Path, names: dict[str, str]) -> str:
    """One object, or all below a prefix, into a new folder, under their own names."""
    if not is_url(url):
        return url
    files, url = Bucket(url).files, url.rstrip("/")
    base = PurePosixPath(url).name
    try:
        if files.isfile(url):
            folder.mkdir(parents=True)
            files.get_file(url, str(folder / base))
            suffix = PurePosixPath(url).suffix.lower()
            if suffix in TWINS and files.isfile(twin := url[: -len(suffix)] + TWINS[suffix]):
                files.get_file(twin, str(folder / PurePosixPath(twin).name))
        else:
            found = files.find(url)
            if not found:
                raise InputError(f"{url}: no such object or prefix; expected what the plan names")
            root = url.removeprefix("s3://")
            for number, key in enumerate(found):
                # Keys may contain any text: none may lead out of the folder.
                parts = [part for part in key.removeprefix(root).split("/") if part not in ("", ".", "..")]
                target = folder / base / Path(*parts) if parts else folder / base / str(number)
                target.parent.mkdir(parents=True, exist_ok=True)
                files.get_file(key, str(target))
    except InputError:
        raise
    except Exception as error:  # botocore has many, and not all are OSError
        raise InputError(f"{url}: cannot be fetched ({why(error)}); {ANSWERING}") from error
    names[str(folder / base)] = url
    return str(folder / base)


def named(message: str, names: dict[str, str]) -> str:
    """A message with the URLs in place of the local names."""
    for path, url in names.items():
        message = message.replace(path, url)
    return message


def empty(folder: Path) -> None:
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            os.unlink(entry.path)


def opened(url: str) -> Any:
    """An object for reading. Raises InputError."""
    try:
        return Bucket(url).files.open(url, "rb")
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{url}: cannot be read ({why(error)}); {ANSWERING}") from error


def objects(root: str, part: tuple[int, int]) -> Iterator[str]:
    """All objects below a prefix, level by level in order of name. part: (I, N): every N-th entry of `root`
    itself, from the I-th on. Raises InputError."""
    files = Bucket(root).files
    waiting = [(root.rstrip("/"), part)]
    while waiting:
        folder, (index, count) = waiting.pop()
        try:
            entries = sorted(files.ls(folder, detail=True), key=lambda entry: str(entry["name"]))
        except Exception as error:  # botocore has many, and not all are OSError
            raise InputError(f"{folder}: cannot be listed ({why(error)}); {ANSWERING}") from error
        mine = entries[index - 1 :: count]
        yield from (f"s3://{entry['name']}" for entry in mine if entry["type"] == "file" and entry["size"])
        below = [(f"s3://{entry['name']}", (1, 1)) for entry in mine if entry["type"] != "file"]
        waiting += reversed(below)


def beginnings(url: str, folder: Path) -> tuple[str, dict[str, str]]:
    """(a local file with the first BEGINNING_BYTES of an object, or a folder with those of all below a
    prefix; local path -> URL for messages). Raises InputError."""
    files, url = Bucket(url).files, url.rstrip("/")
    try:
        is_file = files.isfile(url)
        there = files.find(url, detail=True)
    except Exception as error:  # botocore has many, and not all are OSError
        raise InputError(f"{url}: cannot be listed ({why(error)}); {ANSWERING}") from error
    if not there:
        raise InputError(f"{url}: no such object or prefix; expected what the plan names")
    found = [f"s3://{key}" for key, entry in there.items() if entry["size"]]  # no range of an empty one
    names: dict[str, str] = {}
    for at in range(0, len(found), HEADS_AT_ONCE):
        place = folder / f"{at:08}"
        place.mkdir()
        names |= heads(found[at : at + HEADS_AT_ONCE], place)
    if lost := len(found) - len(names):
        raise InputError(f"{url}: {lost} of {len(found)} objects cannot be fetched; {ANSWERING}")
    local = folder
    if is_file:
        local = folder / PurePosixPath(url).name  # its suffix tells the format
        local.touch()
        for path in names:
            os.replace(path, local)
    return str(local), {**names, str(local): url}


def heads(urls: list[str], folder: Path, whole: bool = False) -> dict[str, str]:
    """local path -> URL, for the first BEGINNING_BYTES of each object; those that cannot be fetched are left
    out."""
    files = Bucket(urls[0]).files
    end = None if whole else BEGINNING_BYTES
    parts = files.cat_ranges(urls, [0] * len(urls), [end] * len(urls), on_error="return")
    names: dict[str, str] = {}
    for number, (url, data) in enumerate(zip(urls, parts, strict=True)):
        if isinstance(data, bytes):
            path = folder / f"{number:05}"
            path.write_bytes(data)
            names[str(path)] = url
    return names
