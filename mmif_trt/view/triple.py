"""Two sources and their fusion on one grid, with what a page says about them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmif_trt.image import Image, InputError
from mmif_trt.stages import geometry, normalise, palettes
from mmif_trt.volume import Options, turned

Limits = tuple[float, float]  # values of black and white
AXES = "SAR"  # of [S, H, W]: in the page x runs to the right, y to the front, z upwards
FOREGROUND = 0.1  # of the way from black to white
HALF = 0.5  # of the smaller foreground: below this a registration is in doubt
MAX_VOXELS = 40_000_000  # that a page shows; larger volumes are thinned
ORDINALS = {2: "second", 3: "third"}
SHOWN_PERCENTILES = (1.0, 99.5)  # of a window if none is stated: for display only, never for results


@dataclass(frozen=True)
class Triple:
    """a, b, fused: one grid; volumes with axes AXES, pictures with rows upwards. before: b as its header has
    it, if a registration moved it. limits_a, limits_b: black and white. palette: [256, 3] uint8 of b, or
    None. overlap: shared part of the smaller foreground. record: of the fusion, {} if unknown. notes: what
    the page must say. reduced: what was left out of large volumes, in words, or ""."""

    a: Image
    b: Image
    fused: Image
    before: Image | None
    limits_a: Limits
    limits_b: Limits
    palette: np.ndarray | None
    palette_name: str
    overlap: float
    record: dict[str, Any]
    notes: tuple[str, ...]
    reduced: str = ""

    @property
    def in_doubt(self) -> str:
        """The warning if the foregrounds overlap by less than a half, or ""."""
        if self.overlap >= HALF:
            return ""
        return (
            f"the foregrounds of A and B share {self.overlap:.0%} of the smaller one; expected at least "
            f"{HALF:.0%}: check the registration by the checkerboard and the edges"
        )


def of_volumes(
    a: Image, b: Image, fused: Image, record: dict[str, Any] | None = None, options: Options | None = None
) -> Triple:
    """record: what `fuse` wrote of this fusion (volume.Fused.record, or the JSON of --report): the page shows
    B where it was fused. Without one, options.registration places B. Raises InputError for volumes that
    do not overlap."""
    options, record = options or Options(), record or {}
    if b.modality is None and (known := options.modality_b or record.get("b", {}).get("modality")):
        b = replace(b, modality=str(known))
    notes: list[str] = []
    moved, matrix, how = _placed(a, b, record, options)
    before = None
    if not np.allclose(matrix, np.eye(4), atol=1e-6):
        before = _or_none(a, b)
    if not record:
        record = {"registration": how.entry()}
        notes.append("No record of the fusion was given (--report): registration and limits are the page's.")
    limits_a, note_a = limits_of(a, options.value_range_a, options.percentiles_a, record.get("a"), "A")
    limits_b, note_b = limits_of(b, options.value_range_b, options.percentiles_b, record.get("b"), "B")
    is_aligned = record["registration"]["registration"] == "none"
    shared = overlap(a, moved, limits_a, limits_b, None if is_aligned else b)
    name = _palette_name(b, record, options)
    fused, note = _on_grid(a, fused)
    notes += [text for text in (note, note_a, note_b, _unstated(b)) if text]
    a, moved, fused = (_turned(image) for image in (a, moved, fused))
    before = before and _turned(before)
    reduced = ""
    if (step := _thinning(a)) > 1:
        whole = _sides(a)
        a, moved, fused = (_thinned(image, step) for image in (a, moved, fused))
        before = before and _thinned(before, step)
        reduced = (
            f"the page shows every {ORDINALS.get(step, f'{step}th')} voxel along each axis, {_sides(a)} of "
            f"{whole}: more than {MAX_VOXELS / 1e6:g} million are too many for a page; measure in the files"
        )
    return Triple(
        a,
        moved,
        fused,
        before,
        limits_a,
        limits_b,
        np.rint(palettes.table(name) * 255).astype(np.uint8) if name else None,
        name,
        shared,
        record,
        tuple(notes),
        reduced,
    )


def of_pictures(a: Image, b: Image, fused: Image, palette: np.ndarray | None = None) -> Triple:
    """palette: [256, 3] of a coloured b, black first, see measure.uptake.recover. Raises InputError for
    sizes that differ."""
    for image in (b, fused):
        if image.size != a.size:
            raise InputError(
                f"{image.source}: {image.size[0]} x {image.size[1]} px; expected {a.size[0]} x {a.size[1]}, "
                f"as {a.source}"
            )
    a, b, fused = (image.with_data(image.data[::-1]) for image in (a, b, fused))  # rows upwards
    assert a.value_range is not None and b.value_range is not None
    table = None if palette is None else np.rint(palette).astype(np.uint8)
    shared = overlap(a, b, a.value_range, b.value_range)
    name = "recovered from B" if table is not None else ""
    notes = tuple(filter(None, [_unstated(b)]))
    return Triple(a, b, fused, None, a.value_range, b.value_range, table, name, shared, {}, notes)


def _unstated(b: Image) -> str:
    """How to state what B is, or ""."""
    if b.modality is not None:
        return ""
    return (
        "B's file does not say what it is; mmif-trt view A B FUSED --modality-b ct (or pet, or spect) states "
        "it, and a scalar PET or SPECT then gets its palette."
    )


def _placed(
    a: Image, b: Image, record: dict[str, Any], options: Options
) -> tuple[Image, np.ndarray, geometry.Report]:
    """(b on a's grid, the transform, its report): by the record if there is one."""
    if known := record.get("registration"):
        if known["registration"] == "none":
            moved, report = geometry.align(a, b, "none", assume_aligned=True)
        else:
            stated = geometry.Stated(np.array(known["matrix"]), str(known["registration"]))
            moved, report = geometry.align(a, b, stated)
    else:
        moved, report = geometry.align(a, b, options.registration, assume_aligned=options.assume_aligned)
    return moved, np.array(report.matrix), report


def _or_none(a: Image, b: Image) -> Image | None:
    """b by its header alone; None if that does not overlap a."""
    moved, inside = geometry.resample(a, b, np.eye(4))
    return moved if inside else None


def limits_of(
    image: Image,
    stated: Limits | None,
    percentiles: Limits | None,
    entry: dict[str, Any] | None,
    side: str,
) -> tuple[Limits, str]:
    """Black and white of a window, and a note if they are this page's own choice. entry: of the record."""
    if stated:
        return stated, ""
    if entry and entry.get("limits") is not None and percentiles is None:
        low, high = entry["limits"]
        return (float(low), float(high)), ""
    try:
        return normalise.volume_limits(image, percentiles, side.lower())[0], ""
    except InputError:
        if percentiles is not None:
            raise
    low, high = (float(x) for x in np.percentile(image.data, SHOWN_PERCENTILES))
    if not low < high:
        low, high = float(image.data.min()), float(image.data.max()) + 1.0
    return (low, high), (
        f"No black and white is known for {side}: its window starts at the {SHOWN_PERCENTILES[0]:g} and "
        f"{SHOWN_PERCENTILES[1]:g} percentiles of the volume."
    )


def _palette_name(b: Image, record: dict[str, Any], options: Options) -> str:
    if b.is_colour:
        return ""
    if "palette" in record:
        return str(record["palette"]["name"]) if record["palette"] else ""
    return options.palette or palettes.DEFAULT.get(options.modality_b or b.modality or "", "")


def _on_grid(a: Image, fused: Image) -> tuple[Image, str]:
    """The fused volume on a's grid, whatever the order of its axes, and a note if that needed resampling."""
    assert a.affine is not None
    if not fused.is_volume:
        raise InputError(f"{fused.source}: a picture; expected the fused volume, because A and B are volumes")
    shown = replace(fused, value_range=_range_of(fused))
    turned_a, turned_f = _turned(a), _turned(shown)
    assert turned_a.affine is not None and turned_f.affine is not None
    if turned_a.data.shape[:3] == turned_f.data.shape[:3] and np.allclose(
        turned_a.affine, turned_f.affine, atol=0.01
    ):
        return turned_f, ""
    moved, inside = geometry.resample(a, shown, np.eye(4))
    if inside < HALF:
        raise InputError(
            f"{fused.source}: covers {inside:.0%} of {a.source}; expected the fusion of A, on its grid"
        )
    data = moved.data if moved.is_colour else moved.data.astype(np.float32)
    return moved.with_data(data), "The fused volume is on a different grid than A: it is shown resampled."


def _range_of(image: Image) -> Limits:
    """Black and white of a fused volume: as stated, otherwise of its type."""
    if image.value_range is not None and not image.is_colour:
        return image.value_range
    if image.data.dtype == np.uint8:
        return 0.0, 255.0
    if image.data.dtype == np.uint16:
        return 0.0, 65535.0
    top = float(image.data.max())
    return (0.0, 1.0) if top <= 1 else (0.0, 255.0 if top <= 255 else 65535.0)


def _turned(image: Image) -> Image:
    assert image.affine is not None
    data, affine = turned(image.data, image.affine, AXES)
    return image.with_data(data, affine=affine)


def _sides(image: Image) -> str:
    return " x ".join(map(str, image.data.shape[:3][::-1]))


def _thinning(image: Image) -> int:
    step = 1
    while np.prod([-(-side // step) for side in image.data.shape[:3]]) > MAX_VOXELS:
        step += 1
    return step


def _thinned(image: Image, step: int) -> Image:
    assert image.affine is not None
    return image.with_data(
        image.data[::step, ::step, ::step], affine=image.affine @ np.diag([step, step, step, 1.0])
    )


def overlap(a: Image, b: Image, limits_a: Limits, limits_b: Limits, whole: Image | None = None) -> float:
    """The part of the smaller foreground inside the other, by volume; 1 if either is empty.

    b: on a's grid, which may cut it off; whole: b in its own grid, whose foreground counts in full.
    Foreground: over a tenth of the way from black to white.
    """
    mask_a, mask_b = _foreground(a, limits_a), _foreground(b, limits_b)
    sizes = [float(mask_a.sum()), float(mask_b.sum())]
    if whole is not None and whole.affine is not None and a.affine is not None:
        voxel = np.linalg.det(whole.affine[:3, :3]) / np.linalg.det(a.affine[:3, :3])
        sizes[1] = float(_foreground(whole, limits_b).sum() * abs(voxel))
    smaller = min(sizes)
    return min(1.0, float((mask_a & mask_b).sum()) / smaller) if smaller else 1.0


def _foreground(image: Image, limits: Limits) -> np.ndarray:
    low, high = (image.value_range or (0.0, 255.0)) if image.is_colour else limits
    grey = image.data.max(axis=-1) if image.is_colour else image.data
    found: np.ndarray = grey > low + FOREGROUND * (high - low)
    return found
