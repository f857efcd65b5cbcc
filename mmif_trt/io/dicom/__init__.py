"""DICOM series to a volume: a folder, a zip, single files, enhanced multi-frame and NM, by pydicom.

No message of this file quotes a value of the patient: what came is told by numbers, types and geometry.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmif_trt import privacy
from mmif_trt.files import open_regular
from mmif_trt.image import Image, InputError
from mmif_trt.io.dicom import values as dicom_values
from mmif_trt.io.dicom.stack import Plane, announced, frames, stack, volume

privacy.patient_values_off()
MAX_FILES = 20_000
MAX_BYTES = 2 << 30  # of a series, and of what a zip or a deflated file unpacks to
MAX_INFLATED_BYTES = 256 << 20  # pydicom takes about twice this
DEFLATED = "1.2.840.10008.1.2.1.99"
ONE_OF = (
    ("patients", "PatientID"),
    ("frames of reference", "FrameOfReferenceUID"),
    ("modalities", "Modality"),
    ("series", "SeriesInstanceUID"),
)
NM = "1.2.840.10008.5.1.4.1.1.20"


def is_dicom(data: bytes) -> bool:
    return data[128:132] == b"DICM"


def decode(data: bytes, name: str) -> Image:
    """One DICOM file: a slice, a multi-frame volume, or a picture without geometry."""
    return series([parse(data, name)], name)


def decode_zip(data: bytes, name: str) -> Image:
    """A zip of the DICOM files of one series."""
    return series([parse(part, f"{name}:{inner}") for inner, part in _unzip(data, name)], name)


def _unzip(data: bytes, name: str) -> Iterator[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            size = sum(entry.file_size for entry in entries)
            if len(entries) > MAX_FILES or size > MAX_BYTES:
                came = f"a zip of {len(entries)} files and {size} bytes"
                raise InputError(f"{name}: {came}; accepted are {MAX_FILES} and {MAX_BYTES} at most")
            for entry in entries:
                with archive.open(entry) as file:
                    part = file.read(entry.file_size + 1)
                if is_dicom(part):
                    yield entry.filename, part
    except InputError:
        raise
    except Exception:  # zipfile raises whatever the bytes lead it to
        raise InputError(f"{name}: a damaged or encrypted zip; accepted is a whole, plain one") from None


def read_folder(folder: str) -> Image:
    """The one image series that lies in a folder and below."""
    found = [parse(data, path) for path, data in dicom_files(folder)]
    if not found:
        raise InputError(f"{folder}: a folder without DICOM files; accepted is one with a series")
    return series(found, folder)


def dicom_files(folder: str) -> Iterator[tuple[str, bytes]]:
    """(path, bytes) of every DICOM file in a folder and below, in order of name; others are passed over."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file() and not path.is_symlink())
    if len(paths) > MAX_FILES:
        raise InputError(f"{folder}: {len(paths)} files; accepted are {MAX_FILES} at most")
    total = 0
    for path in paths:
        with open_regular(path) as file:
            start = file.read(132)
            if not is_dicom(start) or path.name == "DICOMDIR":
                continue
            total += os.fstat(file.fileno()).st_size
            if total > MAX_BYTES:
                raise InputError(
                    f"{folder}: over {MAX_BYTES} bytes of DICOM; accepted is one series at most so large"
                )
            yield str(path), start + file.read()


def transfer_syntax(data: bytes, name: str) -> tuple[str, int]:
    """(Transfer Syntax UID, where the dataset begins), from the file meta information (PS3.10, 7.1)."""
    at, uid = 132, ""
    try:
        while data[at : at + 2] == b"\x02\x00":
            element, vr = struct.unpack_from("<H2s", data, at + 2)
            long = vr in (b"OB", b"OW", b"UN", b"UT", b"SQ")
            length = struct.unpack_from("<I" if long else "<H", data, at + (8 if long else 6))[0]
            start = at + (12 if long else 8)
            if element == 0x10:
                uid = data[start : start + length].rstrip(b"\0 ").decode("ascii")
            at = start + length
    except (struct.error, UnicodeDecodeError):
        uid = ""
    if not uid:
        raise InputError(f"{name}: DICOM without a transfer syntax; accepted is a whole file")
    return uid, at


def parse(data: bytes, name: str, *, pixels: bool = True) -> Any:
    """A pydicom dataset of a file, its `filename` set to `name`. A deflated bomb is refused unopened."""
    if not is_dicom(data):
        raise InputError(f"{name}: no DICOM file (DICM at byte 128); accepted is PS3.10")
    uid, at = transfer_syntax(data, name)
    if uid == DEFLATED:
        stream = zlib.decompressobj(-15)
        try:
            size = len(stream.decompress(data[at:], MAX_INFLATED_BYTES))
        except zlib.error:
            raise InputError(f"{name}: damaged deflated DICOM; accepted is a whole file") from None
        if not stream.eof and size >= MAX_INFLATED_BYTES:
            raise InputError(f"{name}: inflates to over {MAX_INFLATED_BYTES} bytes; accepted is less")
    import pydicom

    try:
        dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=not pixels)
        dataset.filename = name
        return dataset
    except Exception as error:  # pydicom raises whatever the bytes lead it to
        raise InputError(
            f"{name}: damaged DICOM ({type(error).__name__}); accepted is a whole file"
        ) from None


def series(datasets: list[Any], name: str) -> Image:
    """One series of datasets to an Image; slices sorted by position. Raises InputError, see stack."""
    try:
        return _series(datasets, name)
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(name) else f"{name}: {text}") from None
    except MemoryError:
        raise InputError(f"{name}: too large for the memory here; accepted is a smaller series") from None
    except Exception as error:
        raise InputError(
            f"{name}: damaged DICOM ({type(error).__name__}); accepted is a valid series"
        ) from None


def _series(datasets: list[Any], name: str) -> Image:
    for label, keyword in ONE_OF:
        count = len({str(dataset.get(keyword, "")) for dataset in datasets})
        if count > 1:
            raise InputError(f"{len(datasets)} DICOM files of {count} {label}; accepted is one series")
    if missing := [dataset for dataset in datasets if "PixelData" not in dataset]:
        raise InputError(f"{missing[0].filename}: no pixel data (cut off?); accepted are images")
    if len({str(dataset.get("SOPInstanceUID", id(dataset))) for dataset in datasets}) < len(datasets):
        raise InputError("an instance that lies there twice; accepted is each slice once")
    first = datasets[0]
    photometric = str(first.get("PhotometricInterpretation", ""))
    if len(datasets) == 1 and not _has_geometry(first):
        if photometric == "MONOCHROME1":
            raise InputError("MONOCHROME1 (low is bright) in a picture; accepted is MONOCHROME2")
        return Image(frames(first)[0], modality=None, source=name, headers=(_without_pixels(first),))
    planes = [plane for dataset in datasets for plane in _planes(dataset)]
    order, affine, notes = stack(planes)
    units, factor, unit_notes = dicom_values.units(datasets)
    modality = dicom_values.MODALITY.get(str(first.get("Modality")))
    if photometric == "MONOCHROME1" and units is None:
        raise InputError("MONOCHROME1 (low is bright) in arbitrary units; accepted is MONOCHROME2")
    data = volume([planes[i] for i in order], factor)
    windows = [plane.window for plane in planes if plane.window is not None]
    # One window for all slices: what any slice shows, stays visible, and slices stay comparable.
    limits = (min(w[0] for w in windows), max(w[1] for w in windows)) if windows and units is None else None
    headers = [planes[i].dataset for i in order] if len(datasets) > 1 else [first]
    return Image(
        data,
        (0.0, 255.0) if data.ndim == 4 else limits,
        modality,
        affine=affine,
        source=name,
        units=units,
        frame=str(first.get("FrameOfReferenceUID", "")) or None,
        headers=tuple(_without_pixels(dataset) for dataset in headers),
        notes=(*notes, *unit_notes),
    )


def _without_pixels(dataset: Any) -> Any:
    dataset.pop("PixelData", None)
    dataset._pixel_array = None  # pydicom's cache
    return dataset


def _has_geometry(dataset: Any) -> bool:
    kept = ("ImagePositionPatient", "PerFrameFunctionalGroupsSequence", "DetectorInformationSequence")
    return any(dataset.get(keyword) for keyword in kept)


def _planes(dataset: Any) -> Iterator[Plane]:
    """The frames of an instance with their geometry. Raises InputError where a frame has none."""
    count = announced(dataset)[0]
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if groups and len(groups) != count:
        raise InputError(
            f"{dataset.filename}: {count} frames, {len(groups)} functional groups; accepted are as many"
        )
    detector = (dataset.get("DetectorInformationSequence") or [None])[0]
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
    for frame in range(count):
        places = [
            part
            for part in (groups[frame] if groups else None, shared, detector, dataset)
            if part is not None
        ]
        look = _Look(places, str(dataset.filename))
        axes = look.numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6)
        position = look.numbers("PlanePositionSequence", "ImagePositionPatient", 3)
        if count > 1 and not groups:
            position = position + _nm_slice(dataset, frame) * _nm_step(dataset, axes)
        step = look.numbers("PixelMeasuresSequence", "PixelSpacing", 2)
        scale = [
            look.get("PixelValueTransformationSequence", key) for key in ("RescaleSlope", "RescaleIntercept")
        ]
        slope, intercept = (
            default if x is None else float(x) for x, default in zip(scale, (1.0, 0.0), strict=True)
        )
        if not np.isfinite([slope, intercept]).all() or slope == 0:
            raise InputError(
                f"{dataset.filename}: rescale slope {slope}, intercept {intercept}; accepted is a slope not 0"
            )
        window = dicom_values.window(look.place("FrameVOILUTSequence", "WindowCenter") or dataset)
        yield Plane(dataset, frame, position, axes, (step[0], step[1]), slope, intercept, window)


def _nm_step(dataset: Any, axes: np.ndarray) -> np.ndarray:
    """From slice to slice of a reconstructed NM volume (PS3.3 C.8.4.15): along the normal, sign kept."""
    kind = list(dataset.get("ImageType", []))
    if str(dataset.get("SOPClassUID")) != NM or "RECON TOMO" not in kind:
        raise InputError(
            f"{dataset.filename}: frames without functional groups; accepted as NM is RECON TOMO"
        )
    spacing = dataset.get("SpacingBetweenSlices")
    if spacing is None:
        raise InputError(f"{dataset.filename}: no Spacing Between Slices; accepted is a volume with geometry")
    return np.cross(axes[:3], axes[3:]) * float(spacing)


def _nm_slice(dataset: Any, frame: int) -> int:
    """Which slice, from 0, a frame is: by the Slice Vector (PS3.3 C.8.4.8); without one, in their order."""
    vector = dataset.get("SliceVector")
    if vector is None:
        return frame
    numbers = [int(x) for x in (vector if isinstance(vector, Sequence) else [vector])]
    if sorted(numbers) != list(range(1, int(dataset.NumberOfFrames) + 1)):
        raise InputError(
            f"{dataset.filename}: a Slice Vector that does not name each slice once; accepted is one volume"
        )
    return numbers[frame] - 1


class _Look:
    """A value of a frame: in its functional groups, the shared ones, the detector's, or the dataset."""

    def __init__(self, places: list[Any], name: str) -> None:
        self.places, self.name = places, name

    def place(self, sequence: str, keyword: str) -> Any:
        for place in self.places:
            inner = (place.get(sequence) or [place])[0]
            if inner.get(keyword) not in (None, ""):
                return inner
        return None

    def get(self, sequence: str, keyword: str) -> Any:
        found = self.place(sequence, keyword)
        return None if found is None else found.get(keyword)

    def numbers(self, sequence: str, keyword: str, count: int) -> np.ndarray:
        try:
            numbers = np.array([float(x) for x in self.get(sequence, keyword)])
        except (TypeError, ValueError):
            numbers = np.array([])
        if numbers.shape != (count,) or not np.isfinite(numbers).all():
            raise InputError(
                f"{self.name}: {keyword} is missing or no {count} numbers; accepted is a slice with geometry"
            )
        return numbers
