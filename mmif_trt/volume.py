"""Volumes: b onto a's grid, then slice by slice through the network along one plane, limits set once.

This is the order of stages for volumes; fuser.py has that for pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any

import cv2
import numpy as np

from mmif_trt import label, weights
from mmif_trt.image import MIN_SIDE_PX, MODALITIES, Image, InputError
from mmif_trt.stages import colour, geometry, normalise, palettes, tiling

Network = Callable[[np.ndarray, np.ndarray], np.ndarray]
# Axes of a displayed stack, as radiologists see it (left on the right), slices along DICOM's normal.
PLANES = {"axial": "SPL", "coronal": "PIL", "sagittal": "RIP"}
MAX_ASPECT = 1.25  # of a pixel; the network was trained on square pixels


@dataclass(frozen=True)
class Options:
    """How two volumes are fused: the one object that carries the options from command line or Python to
    `fuse`.

    plane: of the slices that the network sees, a key of PLANES; None: the plane nearest to a's own slices.
    palette: for a scalar b, a name or UID of palettes.PALETTES; None: by modality (CT: grey).
    registration: of b to a, a name or a Stated, see geometry.align. assume_aligned: b lies on a's grid
    already (registration "none"). modality_b: where b's header does not say it. value_range_a, value_range_b:
    the values of black and white, in place of the header's; percentiles_a, percentiles_b: the same by
    percentiles of the volume.
    """

    plane: str | None = None
    palette: str | None = None
    registration: Any = "header"
    assume_aligned: bool = False
    modality_b: str | None = None
    percentiles_a: tuple[float, float] | None = None
    percentiles_b: tuple[float, float] | None = None
    value_range_a: tuple[float, float] | None = None
    value_range_b: tuple[float, float] | None = None

    def changed(self) -> list[str]:
        """The names of the fields that are not at their default."""
        values = ((f.name, getattr(self, f.name), f.default) for f in fields(self))
        return [
            name for name, value, default in values if type(value) is not type(default) or value != default
        ]


@dataclass(frozen=True)
class Fused:
    """image: RGB uint8, or grey uint16 where b is CT without a palette; on a's grid. luma: float32 in [0, 1].
    plane: of PLANES. record: limits, palette, registration, notes, as JSON would have it. network: by its
    name."""

    image: Image
    luma: Image
    plane: str
    record: dict[str, Any]
    network: str = weights.DEFAULT


def fuse(
    infer: Network,
    a: Image,
    b: Image,
    options: Options,
    streams: int = 1,
    on_slice: Callable[[int, int], object] = lambda done, slices: None,
    network: str = weights.DEFAULT,
) -> Fused:
    """a: the MRI volume, grey. b: CT, PET or SPECT anywhere in the same space. streams: slices side by side.

    infer: a runtime's, of `network`. on_slice: told how many of how many are done. Raises InputError.
    """
    a = _with_range(a, options.value_range_a, options.percentiles_a, "a")
    b = _with_range(b, options.value_range_b, options.percentiles_b, "b")
    a, b, palette, plane = _check(a, b, options)
    limits_a, how_a = normalise.volume_limits(a, options.percentiles_a)
    limits_b, how_b = normalise.volume_limits(b, options.percentiles_b, "b")  # of b as received: no edges
    moved, report = geometry.align(
        a, b, options.registration, assume_aligned=options.assume_aligned, black=limits_b[0]
    )
    assert a.affine is not None
    a_slices, affine = orient(a.data, a.affine, plane)
    b_slices, _ = orient(moved.data, a.affine, plane)
    height, width = a_slices.shape[1:3]
    if min(height, width) < MIN_SIDE_PX:
        raise InputError(
            f"{a.source}: {plane} slices of {height} x {width} px; expected {MIN_SIDE_PX} px per side"
        )
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[1:]

    def one(index: int) -> tuple[np.ndarray, np.ndarray]:
        unit_a = normalise.unit(a_slices[index], limits_a)
        unit_b = normalise.unit(b_slices[index], limits_b)
        rgb = palettes.apply(unit_b, palette) if palette else unit_b
        y = _slice(infer, unit_a, colour.planes(rgb), (float(spacing[0]), float(spacing[1])))
        if rgb.ndim == 2:
            return y, normalise.from_unit(y, np.dtype(np.uint16), (0, 65535))
        return y, normalise.from_unit(colour.recombine(y, rgb), np.dtype(np.uint8), (0, 255))

    is_rgb = bool(palette) or b.is_colour
    luma = np.empty(a.data.shape, np.float32)
    pixels = np.empty((*a.data.shape, 3) if is_rgb else a.data.shape, np.uint8 if is_rgb else np.uint16)
    luma_view, pixel_view = orient(luma, a.affine, plane)[0], orient(pixels, a.affine, plane)[0]
    with ThreadPoolExecutor(max(1, streams)) as pool:
        for index, (y, out) in enumerate(pool.map(one, range(len(a_slices)))):
            luma_view[index], pixel_view[index] = y, out
            on_slice(index + 1, len(a_slices))
    meaning: dict[str, Any] = {"modality": None, "units": None, "source": f"{a.source} + {b.source}"}
    meaning |= {"sha256": "", "label": label.of(a, b, network)}
    image = replace(a, data=pixels, value_range=(0.0, 255.0 if is_rgb else 65535.0), **meaning)
    record = {
        "plane": plane,
        "palette": {"name": palette, "uid": palettes.uid(palette)} if palette else None,
        "registration": report.entry(),
        "a": _entry(a, limits_a, how_a),
        "b": _entry(replace(b, notes=moved.notes), limits_b, how_b),
    }
    return Fused(image, replace(a, data=luma, value_range=(0.0, 1.0), **meaning), plane, record, network)


def _with_range(
    image: Image, limits: tuple[float, float] | None, percentiles: tuple[float, float] | None, side: str
) -> Image:
    if limits is None:
        return image
    if percentiles is not None:
        both = f"--value-range-{side} and --percentiles-{side} (value_range_{side}, percentiles_{side})"
        raise InputError(f"{both}: both were given; expected one of them")
    return image.with_data(image.data, value_range=limits)


def _check(a: Image, b: Image, options: Options) -> tuple[Image, Image, str | None, str]:
    """a, b with the stated modality, the palette (None: grey) and the plane."""
    for image in (a, b):
        if not image.is_volume:
            raise InputError(
                f"{image.source}: a picture without geometry (DICOM: no Image Position (Patient)); "
                "expected a volume, like the other source"
            )
    if a.is_colour:
        raise InputError(f"{a.source}: a colour volume; expected a grey MRI as the first source")
    if a.modality not in (None, "mri"):
        raise InputError(f"{a.source}: {a.modality}; expected an MRI as the first source (did a and b swap?)")
    if options.modality_b is not None:
        if options.modality_b not in MODALITIES:
            raise InputError(f"modality_b {options.modality_b!r}; expected {', '.join(MODALITIES)}")
        if b.modality not in (None, options.modality_b):
            raise InputError(f"{b.source}: {b.modality} by its header; expected the same modality for b")
        b = replace(b, modality=options.modality_b)
    palette = options.palette
    if b.is_colour:
        if palette:
            raise InputError(f"{b.source}: a colour volume; expected a palette for scalar ones only")
    elif palette is None:
        if b.modality is None:
            raise InputError(
                f"{b.source}: unknown modality; state --modality-b ct, pet or spect (Python and manifest: "
                "modality_b), or a palette"
            )
        palette = palettes.DEFAULT.get(b.modality)
        if b.modality == "mri":
            note = "an MRI as B: fused in grey, since colour means a tracer (--palette colours it)"
            b = replace(b, notes=(*b.notes, note))
    if palette:
        palettes.table(palette)  # refuses an unknown name before work starts
    assert a.affine is not None
    plane = options.plane or nearest_plane(a.affine)
    if plane not in PLANES:
        raise InputError(f"plane {plane!r}; expected {', '.join(PLANES)}")
    return a, b, palette, plane


def nearest_plane(affine: np.ndarray) -> str:
    """The plane whose slice axis is nearest to the first axis of the array."""
    axis = int(np.abs(affine[:3, 0]).argmax())
    return ("sagittal", "coronal", "axial")[axis]


def orient(data: np.ndarray, affine: np.ndarray, plane: str) -> tuple[np.ndarray, np.ndarray]:
    """A view of [S, H, W(, 3)] as slices of `plane` in display order, and its affine."""
    return turned(data, affine, PLANES[plane])


def turned(data: np.ndarray, affine: np.ndarray, sides: str) -> tuple[np.ndarray, np.ndarray]:
    """A view of [S, H, W(, 3)] whose axes point nearest to `sides`, three letters such as "SAR"; its
    affine."""
    from nibabel import orientations

    ours = orientations.io_orientation(affine)
    turn = orientations.ornt_transform(ours, orientations.axcodes2ornt(tuple(sides)))
    view = data
    for axis, (_, flip) in enumerate(turn):
        view = np.flip(view, axis) if flip < 0 else view
    order = [int(axis) for axis in np.argsort(turn[:, 0])] + list(range(3, data.ndim))
    return view.transpose(order), affine @ orientations.inv_ornt_aff(turn, data.shape[:3])


def _slice(infer: Network, a: np.ndarray, b: np.ndarray, spacing_mm: tuple[float, float]) -> np.ndarray:
    """The network on one slice, a [H, W] and b [2, H, W] in [0, 1]; resampled to square pixels and back where
    they are not."""
    if not a.any() and not b.any():
        return np.zeros_like(a)  # black stays black: the network would give the same, slower
    height, width = a.shape
    fine = min(spacing_mm)
    if max(spacing_mm) <= MAX_ASPECT * fine:
        return tiling.run(infer, a, b)
    size = (round(width * spacing_mm[1] / fine), round(height * spacing_mm[0] / fine))
    square = [cv2.resize(x, size, interpolation=cv2.INTER_LINEAR) for x in (a, *b)]
    y = tiling.run(infer, square[0], np.stack(square[1:]))
    return cv2.resize(y, (width, height), interpolation=cv2.INTER_AREA)


def _entry(image: Image, limits: tuple[float, float], how: str) -> dict[str, Any]:
    return {
        "volume": repr(replace(image, source="volume")),
        "modality": image.modality,
        "sha256": image.sha256,
        "limits": list(limits),
        "limits_from": how,
        "notes": list(image.notes),
    }
