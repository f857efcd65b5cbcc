"""DICOM series to a volume: a folder, a zip, single files, enhanced multi-frame and NM, by pydicom.

No message of this file quotes a patient value: findings are described by numbers, types and geometry.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from mmif_trt import privacy
from mmif_trt.files import one_sum, open_regular
from mmif_trt.image import Image, InputError
from mmif_trt.io.dicom import arrange, bare, meta, objects
from mmif_trt.io.dicom import values as dicom_values
from mmif_trt.io.dicom.extent import announced
from mmif_trt.io.dicom.meta import refuse_bomb
from mmif_trt.io.dicom.pixels import frames, padded, volume, without_padding
from mmif_trt.io.dicom.planes import Look, has_geometry, meaning
from mmif_trt.io.walk import Walk, shown, walk
from mmif_trt.io.which import ANY, Which
from mmif_trt.running import why

privacy.patient_values_off()
MAX_FILES = 20_000
MAX_BYTES = 2 << 30  # of a series, and of an unpacked zip
HEAD_BYTES = 4096  # enough to tell what a file is
HEADERS_BYTES = (64 << 10, 1 << 20)  # most end before the first, nearly all before the second
BEGINNING_BYTES = 256 << 10  # of an object in a store: a file of this length is the beginning of another


def is_dicom(start: bytes) -> bool:
    """Whether a file starts as DICOM: with a preamble (PS3.10, 7.1), or as a bare data set (old exports)."""
    return start[128:132] == b"DICM" or bare.is_bare(start)


def decode(data: bytes, name: str, which: Which = ANY) -> Image:
    """One DICOM file: a slice, a multi-frame volume, a mosaic, or a picture without geometry."""
    return _chosen([parse(bare.unpacked(data, name), name)], name, which)


def decode_zip(data: bytes, name: str, which: Which = ANY) -> Image:
    """A zip of the DICOM files of one series."""
    found = [parse(part, f"{name}:{inner}") for inner, part in _unzip(data, name)]
    if not found:
        raise InputError(f"{name}: a zip without DICOM files; expected one with a series")
    return _chosen(found, name, which)


def _unzip(data: bytes, name: str) -> Iterator[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            size = sum(entry.file_size for entry in entries)
            if len(entries) > MAX_FILES or size > MAX_BYTES:
                received = f"a zip of {len(entries)} files and {size} bytes"
                raise InputError(f"{name}: {received}; expected at most {MAX_FILES} and {MAX_BYTES}")
            for entry in entries:
                with archive.open(entry) as file:
                    part = file.read(entry.file_size + 1)
                if bare.is_packed(part):
                    part = bare.unpacked(part, f"{name}:{entry.filename}")
                if is_dicom(part):
                    yield entry.filename, part
    except InputError:
        raise
    except Exception:  # zipfile may raise anything on bad bytes
        raise InputError(f"{name}: a damaged or encrypted zip; expected an intact, unencrypted one") from None


def read_folder(folder: str, which: Which = ANY) -> Image:
    """The one image series in a folder and below, links followed; or the chosen one."""
    found, others, sums = [], [], dict[str, str]()
    total, kept = 0, walk(folder)
    kept.refuse_lost(folder)
    for path in kept.files:
        data, sums[path] = content(path)
        if data is None:
            others.append(path)
            continue
        dataset = parse(data, path)
        if which.series and not objects.wanted(dataset, which.series):
            _without_pixels(dataset)
        else:
            total += len(data)
        found.append(dataset)
        if total > MAX_BYTES:
            raise InputError(
                f"{folder}: over {MAX_BYTES} bytes of DICOM; expected one series within that limit"
            )
    if not found:
        or_file = ", or a file in place of the folder: pictures are read one by one" if others else ""
        raise InputError(f"{folder}: a folder without DICOM files; expected one with a series{or_file}")
    notes = [f"ignored: {shown(kept.passed)}"] if kept.passed else []
    notes += [f"ignored {len(others)} files that are not DICOM: {shown(others)}"] if others else []
    image = _chosen(found, folder, which)
    return replace(image, notes=(*image.notes, *notes), sha256=_sum(image, sums))


def read_files(paths: list[str], name: str, which: Which = ANY) -> Image:
    """The series that these DICOM files form. Raises InputError, OSError."""
    parts = {path: content(path) for path in paths}
    image = series([parse(data or b"", path) for path, (data, _) in parts.items()], name, which)
    return replace(image, sha256=_sum(image, {path: digest for path, (_, digest) in parts.items()}))


def _sum(image: Image, sums: dict[str, str]) -> str:
    """SHA-256 of the files that the image was made of."""
    return one_sum(sums[str(dataset.filename)] for dataset in image.headers)


def _chosen(datasets: list[Any], name: str, which: Which) -> Image:
    try:
        chosen, notes = _images(datasets, name, which)
    except InputError:
        raise
    except Exception as error:  # pydicom raises whatever the bytes lead it to
        raise InputError(f"{name}: damaged DICOM ({why(error)}); expected a valid series") from None
    image = series(chosen, name, which)
    return replace(image, notes=(*image.notes, *notes))


def _images(datasets: list[Any], name: str, which: Which) -> tuple[list[Any], tuple[str, ...]]:
    if which.series:
        chosen = [dataset for dataset in datasets if objects.wanted(dataset, which.series)]
        if not chosen:
            there = objects.series_words(datasets)
            raise InputError(f"{name}: no series {which.series!r}; expected one of: {there}")
    else:
        chosen = datasets
    return objects.images(chosen, name)


def begins_as_dicom(path: str) -> bool:
    """Whether a file is DICOM by its first bytes, gzipped too. Raises OSError."""
    with open_regular(path) as file:
        start = file.read(HEAD_BYTES)
    return is_dicom(bare.first_bytes(start) if bare.is_packed(start) else start)


def content(path: str) -> tuple[bytes | None, str]:
    """(the bytes of a DICOM file, gunzipped; None if it is not DICOM, SHA-256 of the file as stored).
    Raises OSError and InputError."""
    with open_regular(path) as file:
        start = file.read(HEAD_BYTES)
        if not is_dicom(bare.first_bytes(start) if bare.is_packed(start) else start):
            return None, ""
        data = start + file.read()
    return bare.unpacked(data, path), hashlib.sha256(data).hexdigest()


class _Beginning(io.BytesIO):
    """The first bytes of a longer file. What lies behind them pydicom would take for absent."""

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if size is not None and len(data) < size:
            raise OSError("behind the bytes that were read")
        return data


def header(path: str) -> Any:
    """The dataset of a file without its pixels. Raises OSError and InputError."""
    for size in HEADERS_BYTES:
        with contextlib.suppress(InputError):
            return _header(path, size)
    return _header(path, -1)  # that of thousands of frames may be longer


def _header(path: str, size: int) -> Any:
    with open_regular(path) as file:
        head = file.read(size)
        if bare.is_packed(head):
            head = bare.unpacked(head + file.read(), path)
        if head[128:132] == b"DICM" and meta.transfer_syntax(head, path)[0] == meta.DEFLATED:
            head += file.read()
    return parse(head, path, pixels=False, is_cut=len(head) in (size, BEGINNING_BYTES))


def foresee(path: str, which: Which = ANY) -> None:
    """Raises InputError where reading this file or folder will, as far as headers tell."""
    kept = walk(path) if os.path.isdir(path) else Walk(files=[path])
    kept.refuse_lost(path)
    found = [header(file) for file in kept.files if not os.path.isdir(path) or begins_as_dicom(file)]
    if not found:
        raise InputError(f"{path}: a folder without DICOM files; expected one with a series")
    for dataset in found:
        if "Rows" in dataset:
            dataset.PixelData = b""  # not read, but probably there
    try:
        chosen, _ = _images(found, path, which)
        datasets, _ = arrange.each_once(chosen)
        if len(datasets) > 1 or has_geometry(datasets[0]):
            arrange.volume(datasets, which)
    except InputError:
        raise
    except Exception as error:  # pydicom raises whatever the bytes lead it to
        raise InputError(f"{path}: damaged DICOM ({why(error)}); expected a valid series") from None


def parse(data: bytes, name: str, *, pixels: bool = True, is_cut: bool = False) -> Any:
    """A pydicom dataset of a file, its `filename` set to `name`. Refuses a deflate bomb unopened. is_cut:
    these are its first bytes, refused unless they hold all that is asked for."""
    if not is_dicom(data) and bare.is_bare(data[1:HEAD_BYTES]):
        raise InputError(f"{name}: a stray byte before a bare data set; expected none (tail -c +2)")
    if not is_dicom(data):
        raise InputError(f"{name}: not a DICOM file (no DICM at byte 128, no bare data set); expected PS3.10")
    data = bare.with_preamble(data)
    refuse_bomb(data, name)
    import pydicom

    try:
        file = (_Beginning if is_cut else io.BytesIO)(data)
        dataset = pydicom.dcmread(file, stop_before_pixels=not pixels)
        dataset.filename = name
        return dataset
    except Exception as error:  # pydicom raises whatever the bytes lead it to
        raise InputError(f"{name}: damaged DICOM ({why(error)}); expected an intact file") from None


def series(datasets: list[Any], name: str, which: Which = ANY) -> Image:
    """One series of datasets to an Image; slices sorted by position. Raises InputError, see stack."""
    try:
        return _series(datasets, name, which)
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(name) else f"{name}: {text}") from None
    except MemoryError:
        raise InputError(f"{name}: too large for this machine's memory; expected a smaller series") from None
    except Exception as error:
        raise InputError(f"{name}: damaged DICOM ({why(error)}); expected a valid series") from None


def _series(datasets: list[Any], name: str, which: Which) -> Image:
    datasets, notes = arrange.each_once(datasets)
    first = datasets[0]
    if len(datasets) == 1 and not has_geometry(first):
        return _picture(first, name)
    found = arrange.volume(datasets, which)
    data, padding_notes = volume(found.planes, found.factor, found.units)
    data = found.stacked.resampled(data)
    windows = [plane.window for plane in found.planes if plane.window is not None]
    # One window for all slices: what any slice shows stays visible, and slices stay comparable.
    one_for_all = windows and found.units is None
    limits = (min(w[0] for w in windows), max(w[1] for w in windows)) if one_for_all else None
    headers = {id(plane.dataset): plane.dataset for plane in found.planes}.values()
    return Image(
        data,
        (0.0, 255.0) if data.ndim == 4 else limits,
        dicom_values.MODALITY.get(str(first.get("Modality"))),
        affine=found.stacked.affine,
        source=name,
        units=found.units,
        frame=str(first.get("FrameOfReferenceUID", "")) or None,
        headers=tuple(_without_pixels(dataset) for dataset in headers),
        notes=(*notes, *found.notes, *padding_notes, *found.unit_notes),
    )


def _picture(dataset: Any, name: str) -> Image:
    """An instance without geometry: one 2-D picture, rescaled, black and white by its window, otherwise by
    its bits. Raises InputError for several frames, whose positions are unknown."""
    count = announced(dataset)[0]
    if count > 1:
        raise InputError(
            f"{count} frames without a position (Image Position (Patient)); expected one frame, or "
            "a multi-frame with the position of each"
        )
    if str(dataset.get("PhotometricInterpretation", "")) == "MONOCHROME1":
        raise InputError("MONOCHROME1 (low is bright) in a picture; expected MONOCHROME2")
    what = meaning(dataset, Look([dataset], name))
    data = frames(dataset)[0]
    mask = padded(data, dataset)
    colour, limits = data.ndim == 3, what["window"]
    if not colour and limits is None and not what["has_table"]:
        bits, signed = int(dataset.get("BitsStored") or 16), int(dataset.get("PixelRepresentation") or 0)
        ends = np.array([-(1 << bits - 1), (1 << bits - 1) - 1] if signed else [0, (1 << bits) - 1])
        low, high = sorted(float(x) for x in ends * what["slope"] + what["intercept"])
        limits = (low, high)
    if not colour and (
        (what["slope"], what["intercept"]) != (1.0, 0.0) or data.dtype not in (np.uint8, np.uint16)
    ):
        data = (data * what["slope"] + what["intercept"]).astype(np.float32)
    units = "HU" if dataset.get("Modality") == "CT" else None
    padding_notes = () if mask is None else without_padding(data[None], {0: mask}, units)
    return Image(
        data,
        None if colour else limits,
        dicom_values.MODALITY.get(str(dataset.get("Modality"))),
        source=name,
        headers=(_without_pixels(dataset),),
        notes=("a picture without geometry (no Image Position (Patient))", *padding_notes),
    )


def _without_pixels(dataset: Any) -> Any:
    dataset.pop("PixelData", None)
    dataset._pixel_array = None  # pydicom's cache
    return dataset
