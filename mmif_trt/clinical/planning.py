"""Which cases to make: from a manifest, a folder of DICOM studies or a BIDS data set."""

from __future__ import annotations

import csv
import io as text_io
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

from mmif_trt import scratch
from mmif_trt.clinical import bids, staging
from mmif_trt.clinical.case import Case, is_name
from mmif_trt.clinical.choice import words
from mmif_trt.clinical.decoder import HEADERS_AT_ONCE, Decoder
from mmif_trt.clinical.outputs import LUMA
from mmif_trt.clinical.pairing import SHARED, collect, pair, study_of, take_out
from mmif_trt.clinical.spill import Spill
from mmif_trt.files import open_regular
from mmif_trt.image import InputError
from mmif_trt.io import dicom
from mmif_trt.io.walk import Names, Walk, shown, stream
from mmif_trt.io.which import Which
from mmif_trt.running import why
from mmif_trt.storage import Bucket, is_url, join, parent

REQUIRED = ("name", "a", "b")
OF_A_SIDE = ("low", "high", "series", "volume")  # low_a, high_a, ..., volume_b
COLUMNS = (*REQUIRED, "modality_b", "palette", *(f"{what}_{side}" for side in "ab" for what in OF_A_SIDE))


def plan(source: str, secret: bytes, across: bool = False) -> tuple[list[Case], list[str]]:
    """`fill` as two lists: cases, and what is not paired. For few cases."""
    with Spill() as spill:
        fill(spill, source, secret, across)
        return list(spill.cases()), list(spill.left())


def fill(
    spill: Spill, source: str, secret: bytes, across: bool = False, part: tuple[int, int] = (1, 1)
) -> None:
    """Cases of a manifest (.csv), a BIDS data set or a folder of DICOM studies, and what is not paired, into
    `spill`.

    secret: the key of the names (pseudonym.py). across: see pairing.pair. part: (I, N), every N-th of a
    folder's entries, a data set's subjects or a manifest's cases from the I-th on; then no study may span
    several entries. Headers are read in a child process, like pixels. Raises InputError.
    """
    if bids.is_dataset(source):
        spill.bids = source
        for found in bids.cases(source, across, part):
            spill.leave_out(found) if isinstance(found, str) else spill.put(found)
    elif source.lower().endswith(".csv") and not os.path.isdir(source):
        for case in _manifest(source):
            spill.put(case)
        spill.sort(*part)
    elif is_url(source) or os.path.isdir(source):
        if is_url(source) and Bucket(source).holds(bids.DESCRIPTION):
            raise InputError(f"{source}: a BIDS data set in a bucket; expected one in a folder")
        with Decoder() as decoder:
            _paired(spill, source, decoder, secret, across, part)
    else:
        found = "a file" if os.path.exists(source) else "no such file or folder"
        raise InputError(
            f"{source}: {found}; expected a manifest .csv, a folder of DICOM studies, or a BIDS data set"
        )
    if twins := spill.twins(LUMA):
        raise InputError(
            f"{source}: the luma of {twins[0]!r} is also the output of {twins[1]!r}; expected different files"
        )


def _paired(
    spill: Spill, root: str, decoder: Decoder, secret: bytes, across: bool, part: tuple[int, int]
) -> None:
    there = Walk(lost=Names(), passed=Names())
    damaged = Names()
    read = _remote_headers if is_url(root) else _local_headers
    for path, header in read(root, decoder, there, spill, part):
        if header is None:
            damaged.append(path)
        else:
            spill.put_header(study_of(header), path, header)
    others: Counter[str] = Counter()
    shared = spill.shared()
    for study in spill.studies():
        found = collect(study, secret)
        others += found.others
        for one in take_out(found, shared):
            spill.leave_out(f"{words(one)}: {SHARED}")
        cases, left = pair(found, across)
        for case in cases:
            spill.put(case)
        for line in left:
            spill.leave_out(line)
    for kind, count in sorted(others.items()):
        spill.leave_out(f"{count} x {kind}")
    for what, names in (
        ("files that cannot be read", there.lost),
        ("DICOM files with a damaged header", damaged),
        ("ignored", there.passed),
    ):
        if names:
            assert isinstance(names, Names)
            spill.leave_out(f"{names.number} {what}: {shown(names)}")


Headers = Iterator[tuple[str, Any]]  # None in place of an unreadable header


def _local_headers(root: str, decoder: Decoder, there: Walk, spill: Spill, part: tuple[int, int]) -> Headers:
    for paths in _at_once(_dicom_of(stream(root, there, spill, part), there.lost)):
        got = dict(decoder.headers(paths))
        yield from ((path, got.get(path)) for path in paths)


def _remote_headers(root: str, decoder: Decoder, there: Walk, spill: Spill, part: tuple[int, int]) -> Headers:
    """From the first bytes of each object, many at once; from the whole object if they do not suffice."""
    with scratch.folder("headers") as folder:
        for urls in _at_once(staging.objects(root, part)):
            todo, whole = urls, False
            while todo:
                names = staging.heads(todo, folder, whole)
                for url in set(todo) - set(names.values()):
                    there.lost.append(f"{url}: cannot be fetched")
                is_dicom = list(_dicom_of(iter(names), there.lost))
                got = dict(decoder.headers(is_dicom))
                yield from ((names[path], got[path]) for path in is_dicom if path in got)
                todo = [names[path] for path in is_dicom if path not in got]
                if whole:
                    yield from ((url, None) for url in todo)
                    todo = []
                whole = True
                staging.empty(folder)


def _at_once(paths: Iterator[str]) -> Iterator[list[str]]:
    waiting = []
    for path in paths:
        waiting.append(path)
        if len(waiting) == HEADERS_AT_ONCE:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _dicom_of(files: Iterator[str], lost: list[str]) -> Iterator[str]:
    """The DICOM files, by their first bytes; those that cannot be opened go into `lost`, with the reason."""

    for path in files:
        try:
            if dicom.begins_as_dicom(path):
                yield path
        except (OSError, InputError) as error:
            lost.append(f"{path}: {getattr(error, 'strerror', None) or 'no regular file'}")


def _manifest(path: str) -> Iterator[Case]:
    base = parent(path)
    try:
        with staging.opened(path) if is_url(path) else open_regular(path) as file:
            text = text_io.TextIOWrapper(file, "utf-8-sig", newline="")
            for line, row in enumerate(csv.DictReader(text), 2):
                yield _case_of(row, f"{path}, line {line}", path, base)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read ({why(error)}); expected a CSV in UTF-8") from None


def _case_of(row: dict[str, str], where: str, path: str, base: str) -> Case:
    if None in row or not set(REQUIRED) <= set(row) <= set(COLUMNS):
        raise InputError(
            f"{path}: columns {list(row)}; expected {', '.join(COLUMNS)}, with commas between; the first "
            "three are required"
        )
    name = row["name"] or ""
    if not is_name(name) or not (row["a"] and row["b"]):
        raise InputError(f"{where}: name {name!r}; expected a file name, and paths in a and b")
    own: dict[str, Any] = {key: row[key] for key in ("modality_b", "palette") if row.get(key)}
    for side in "ab":
        texts = [row.get(f"{end}_{side}") or "" for end in ("low", "high")]
        if any(texts):
            try:
                own[f"value_range_{side}"] = (float(texts[0]), float(texts[1]))
            except ValueError:
                raise InputError(f"{where}: range {texts}; expected two numbers") from None
    a, b = (_which_of(row, side, where) for side in "ab")
    return Case(name, (join(base, row["a"]),), (join(base, row["b"]),), own, which_a=a, which_b=b)


def _which_of(row: dict[str, str], side: str, where: str) -> Which:
    series, volume = (row.get(f"{what}_{side}") or "" for what in ("series", "volume"))
    if volume and not (volume.isdecimal() and int(volume)):
        raise InputError(f"{where}: volume_{side} {volume!r}; expected a number from 1")
    return Which(series, int(volume) if volume else None)
