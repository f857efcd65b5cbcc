"""DICOM frames to a volume: their order and affine by geometry alone, and their pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mmif_trt.image import MAX_SIDE_PX, MAX_VOXELS, RAS_LPS, InputError
from mmif_trt.io.dicom import codestream

TOLERANCE_MM = 0.1
# pydicom gives RGB for all of the last four; what is not here it would give unconverted.
PHOTOMETRIC = (
    "MONOCHROME1",
    "MONOCHROME2",
    "PALETTE COLOR",
    "RGB",
    "YBR_FULL",
    "YBR_FULL_422",
    "YBR_ICT",
    "YBR_RCT",
)
UNCONVERTED = ("YBR_PARTIAL_420", "YBR_PARTIAL_422", "HSV", "ARGB", "CMYK", "XYB")


@dataclass(frozen=True)
class Plane:
    """One frame. position, axes: Image Position and Orientation (Patient), LPS mm; step: (row, column) mm."""

    dataset: Any
    frame: int
    position: np.ndarray
    axes: np.ndarray
    step: tuple[float, float]
    slope: float
    intercept: float
    window: tuple[float, float] | None


def stack(planes: list[Plane]) -> tuple[list[int], np.ndarray, tuple[str, ...]]:
    """(order of the planes along their normal, [4, 4] affine of (slice, row, column) to RAS+ mm, notes).

    A steady shift across the normal (gantry tilt) stays in the affine as a shear. Raises InputError for
    mixed orientations, sizes or spacings, planes at one place, gaps, and axes that are not orthonormal.
    """
    first = planes[0]
    axes = first.axes
    row, column = axes[:3], axes[3:]
    lengths = [abs(row @ row - 1), abs(column @ column - 1), abs(row @ column)]
    if not max(lengths) < 1e-2 or not min(first.step) > 0:
        raise InputError(
            "ImageOrientationPatient or PixelSpacing of no right-angled grid; accepted is a real one"
        )
    if any(np.abs(plane.axes - axes).max() > 1e-3 for plane in planes):
        raise InputError("mixed orientations (a localizer?); accepted is one stack of parallel slices")
    if any(np.abs(np.subtract(plane.step, first.step)).max() > 1e-3 for plane in planes):
        raise InputError("mixed pixel spacings; accepted is one grid")
    sizes = {(int(plane.dataset.Rows), int(plane.dataset.Columns)) for plane in planes}
    if len(sizes) > 1:
        raise InputError(f"slices of {len(sizes)} sizes; accepted is one grid")
    normal = np.cross(row, column)
    along = np.array([plane.position @ normal for plane in planes])
    order = np.argsort(along, kind="stable")
    step, notes = _slice_step(planes, along, order, normal)
    affine = np.eye(4)
    for axis, direction in enumerate((step, column * first.step[0], row * first.step[1])):
        affine[:3, axis] = RAS_LPS[:3, :3] @ direction
    affine[:3, 3] = RAS_LPS[:3, :3] @ planes[order[0]].position
    return [int(i) for i in order], affine, notes


def _slice_step(
    planes: list[Plane], along: np.ndarray, order: np.ndarray, normal: np.ndarray
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The vector from slice to slice, LPS mm."""
    if len(planes) == 1:
        dataset = planes[0].dataset
        measures = (dataset.get("SharedFunctionalGroupsSequence") or [dataset])[0]
        measures = (measures.get("PixelMeasuresSequence") or [dataset])[0]
        thickness = measures.get("SpacingBetweenSlices") or measures.get("SliceThickness")
        if not thickness or not float(thickness) > 0:
            raise InputError("one slice without a thickness; accepted is a slice with SliceThickness")
        return normal * float(thickness), ("one slice: its pitch is its thickness",)
    gaps = np.diff(along[order])
    pitch = float(np.median(gaps))
    if gaps.min() < TOLERANCE_MM / 10:
        raise InputError(
            f"{int((gaps < TOLERANCE_MM / 10).sum()) + 1} slices at one place; accepted is one volume"
        )
    if np.abs(gaps - pitch).max() > max(TOLERANCE_MM, 0.02 * pitch):
        worst = float(gaps[np.abs(gaps - pitch).argmax()])
        raise InputError(
            f"missing slices: {worst:.2f} mm where the pitch is {pitch:.2f} mm; accepted is a whole series"
        )
    places = np.array([planes[i].position for i in order])
    step = (places[-1] - places[0]) / (len(places) - 1)
    straight = places[0] + np.arange(len(places))[:, None] * step
    if np.abs(places - straight).max() > max(TOLERANCE_MM, 0.02 * pitch) * 2:
        raise InputError("slices that do not lie on one line; accepted is a straight stack")
    tilt = float(np.degrees(np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1, 1))))
    return step, ((f"gantry tilt of {tilt:.1f} degrees, kept as a shear",) if tilt > 0.1 else ())


def volume(planes: list[Plane], factor: float) -> np.ndarray:
    """[S, H, W] float32 (uint8, uint16 where nothing is to be rescaled), or [S, H, W, 3] uint8."""
    voxels = sum(int(plane.dataset.Rows) * int(plane.dataset.Columns) for plane in planes)
    if voxels > MAX_VOXELS:
        raise InputError(f"a series of {voxels} voxels; accepted are {MAX_VOXELS}")
    plain = all((plane.slope * factor, plane.intercept) == (1.0, 0.0) for plane in planes)
    cache: dict[int, np.ndarray] = {}
    out: np.ndarray | None = None
    for i, plane in enumerate(planes):
        key = id(plane.dataset)
        if key not in cache:
            cache = {key: frames(plane.dataset)}
        stored = cache[key][plane.frame]
        if stored.ndim == 3 or plain and stored.dtype in (np.uint8, np.uint16):
            values = stored
        else:
            values = (stored * np.float64(plane.slope) + plane.intercept) * factor
            values = values.astype(np.float32)
        if out is None:
            out = np.empty((len(planes), *values.shape), values.dtype)
        if values.shape != out.shape[1:] or values.dtype != out.dtype:
            raise InputError("slices of several kinds of pixels; accepted is one kind")
        out[i] = values
    assert out is not None
    return out


def announced(dataset: Any) -> tuple[int, int, int]:
    """(frames, rows, columns) of an instance. Raises InputError, before anything is allocated, where they are
    none or more than a volume may have."""
    count = int(dataset.get("NumberOfFrames", 1) or 1)
    rows, columns = int(dataset.get("Rows", 0) or 0), int(dataset.get("Columns", 0) or 0)
    bits = int(dataset.get("BitsAllocated", 0) or 0) * int(dataset.get("SamplesPerPixel", 1) or 1)
    fits = 0 < rows <= MAX_SIDE_PX and 0 < columns <= MAX_SIDE_PX and 0 < count * rows * columns <= MAX_VOXELS
    if not fits:
        raise InputError(
            f"{dataset.filename}: announces {count} x {rows} x {columns}; accepted are {MAX_VOXELS} voxels"
        )
    if not 0 < bits <= 64:
        raise InputError(f"{dataset.filename}: announces {bits} bits a pixel; accepted are 64 at most")
    return count, rows, columns


def frames(dataset: Any) -> np.ndarray:
    """[F, H, W] or [F, H, W, 3] stored values of an instance, decompressed; colour as RGB uint8.

    Raises InputError, without a value of the header, where the pixels are cut off or cannot be decoded.
    """
    from pydicom.pixels import apply_color_lut, pixel_array

    shape = announced(dataset)
    colour = int(dataset.get("SamplesPerPixel", 1) or 1) > 1
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    if photometric not in PHOTOMETRIC:
        came = photometric if photometric in UNCONVERTED else "missing or unknown"  # no free text of a header
        raise InputError(
            f"{dataset.filename}: Photometric Interpretation {came}; accepted are {', '.join(PHOTOMETRIC)}"
        )
    try:
        if colour and int(dataset.BitsAllocated) != 8:
            raise InputError(f"{dataset.filename}: colour of {dataset.BitsAllocated} bits; accepted are 8")
        if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
            codestream.check(dataset, *shape)
        pixels = pixel_array(dataset, decoding_plugin=_codec(dataset))  # YBR comes back as RGB
        if photometric == "PALETTE COLOR":
            pixels, colour = _eight_bits(apply_color_lut(pixels, dataset), str(dataset.filename)), True
    except InputError:
        raise
    except Exception as error:  # every codec raises what it likes
        kind = type(error).__name__
        raise InputError(
            f"{dataset.filename}: pixels cut off or damaged ({kind}); accepted is a whole file"
        ) from None
    if pixels.ndim == (3 if colour else 2):
        pixels = pixels[None]
    if pixels.shape[:3] != shape:
        raise InputError(
            f"{dataset.filename}: {pixels.shape[:3]} pixels, {shape} announced; accepted is a whole file"
        )
    return pixels


def _codec(dataset: Any) -> str:
    """Which of pydicom's plugins decodes; "" leaves it to pydicom. Not gdcm: damaged pixels abort the process
    in it (found by tests/test_fuzz_volumes.py)."""
    from pydicom.pixels import get_decoder

    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return ""
    return next((name for name in get_decoder(syntax).available_plugins if name != "gdcm"), "")


def _eight_bits(rgb: np.ndarray, name: str) -> np.ndarray:
    """Palettes of 16 bits to 8, by their high byte (PS3.3 C.7.6.3.1.6)."""
    if rgb.dtype == np.uint8:
        return rgb
    if 0 < rgb.max() < 256:  # an old writer's trap: 8-bit entries under a descriptor of 16 would be black
        raise InputError(f"{name}: a palette of 16 bits with entries under 256; accepted are 16-bit entries")
    return (rgb >> 8).astype(np.uint8)
