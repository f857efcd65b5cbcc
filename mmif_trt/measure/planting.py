"""Lesions planted in one source of real pairs.

Kinds. In the MRI, bright and dark: in soft tissue and beside bone (with CT), under uptake (with PET and
SPECT). In the CT, bright (bleed, calcium) and dark (oedema) in soft tissue. In the tracer, hot and cold. Each
lesion has its own shape, size and place; its contrast is set so that the source alone gives the reader d' =
4: certainly seen there, missed if the fusion weakens it. One picture holds several, too far apart to touch.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy import ndarray

from mmif_trt.image import InputError
from mmif_trt.measure.colourspace import as_rgb
from mmif_trt.measure.fidelity import BONE_MIN, SOFT_MAX, SOFT_MRI_MIN, luma, soft_tissue
from mmif_trt.measure.reader import MARGIN_PX, Background, Centre, window
from mmif_trt.measure.shapes import RADIUS_PX, REACH_PX, SHAPES, footprint
from mmif_trt.measure.uptake import Palette, foreground, recover, top_of

TARGET, LEAST, MOST = 4.0, 2.5, 6.0  # d' in the source
APART_PX = 40  # between centres in one picture: neither is in the other's window
BESIDE_PX = 3.0  # between a lesion's edge and the bone beside it
PER_KIND = 150
PER_PAIR = 12  # of a kind: more would reuse places
PLACES = 5  # tried for one lesion; the one where the least contrast suffices wins, so lesions are faint
MOST_LEVELS, MOST_PLACES = 64.0, 0.3  # of contrast: a lesion that needs more is lost in its surroundings
_STEPS = 6  # of the calibration


@dataclass(frozen=True)
class Kind:
    """source: "a" or "b"; sign: +1 brighter or hotter; region: a key of `_regions`; fits: the least share of
    a lesion's footprint inside it."""

    name: str
    source: str
    sign: int
    region: str
    fits: float = 0.9


WITH_CT = (
    Kind("MRI bright in soft tissue", "a", +1, "soft"),
    Kind("MRI dark in soft tissue", "a", -1, "soft"),
    Kind("MRI bright beside bone", "a", +1, "beside"),
    Kind("MRI dark beside bone", "a", -1, "beside"),
    Kind("CT bright", "b", +1, "soft"),
    Kind("CT dark", "b", -1, "soft"),
)
WITH_TRACER = (
    Kind("MRI bright under uptake", "a", +1, "top", 0.5),
    Kind("MRI dark under uptake", "a", -1, "top", 0.5),
    Kind("tracer hot", "b", +1, "uptake"),
    Kind("tracer cold", "b", -1, "uptake"),
)


def kinds_for(modality: str) -> tuple[Kind, ...]:
    """The kinds that are planted beside "ct", "pet" or "spect"."""
    return WITH_CT if modality == "ct" else WITH_TRACER


@dataclass(frozen=True)
class Lesion:
    """scene: the number of its picture among the pair's. d_source: d' in the source alone."""

    kind: str
    scene: int
    centre: Centre
    shape: str
    radius_px: float
    contrast: float  # peak, in levels; for a tracer in palette positions
    d_source: float


@dataclass(eq=False)
class Planted:
    """One pair, and its pictures with lesions. a: uint8 [H, W]; b: uint8 [H, W] or [H, W, 3]."""

    name: str
    modality: str
    a: ndarray
    b: ndarray
    palette: Palette | None = None
    scenes: list[tuple[ndarray, ndarray]] = field(default_factory=list)
    lesions: list[Lesion] = field(default_factory=list)


Pair = tuple[str, ndarray, ndarray]  # name, a, b


def plant(
    pairs: Iterable[Pair], modality: str, *, per_kind: int = PER_KIND, seed: int = 0, places: int = PLACES
) -> list[Planted]:
    """Lesions of every kind, spread over the pairs, per_kind of each or as many as find a place.

    pairs: (name, a uint8 [H, W], b uint8 [H, W] or [H, W, 3] RGB) of about 256 px per side: lesions and
    window are in pixels. places: tried for each lesion; the one where the least contrast gives d' = 4 is
    taken, so with 1 it is anywhere in its region. The same pairs, seed and places give the same lesions. A
    pair's lesions depend on its name and picture, their number on the number of pairs. Raises InputError for
    other types or sizes.
    """
    planted = [Planted(name, modality, *_checked(name, a, b)) for name, a, b in pairs]
    kinds = kinds_for(modality)
    regions = {}
    for one in planted:
        one.palette = None if modality == "ct" else recover(one.b)
        regions[one.name] = _regions(one)
    counts = dict.fromkeys(kinds, 0)
    order = np.random.default_rng(seed).permutation(len(planted))  # neighbouring slices are alike
    for turn in range(PER_PAIR):
        for one in (planted[i] for i in order):
            for kind in kinds:
                if counts[kind] >= per_kind:
                    continue
                # A name that is not UTF-8 keeps its bytes.
                key = zlib.crc32(f"{one.name}/{kind.name}/{turn}".encode(errors="surrogateescape"))
                rng = np.random.default_rng([seed, key])
                counts[kind] += _plant_one(one, kind, regions[one.name], places, rng)
    return planted


def _checked(name: str, a: ndarray, b: ndarray) -> tuple[ndarray, ndarray]:
    if a.dtype != np.uint8 or b.dtype != np.uint8 or a.ndim != 2 or a.shape != b.shape[:2]:
        found = f"a {a.dtype} {a.shape}, b {b.dtype} {b.shape}"
        raise InputError(f"{name}: {found}; expected uint8 a [H, W] and b [H, W] or [H, W, 3]")
    return a, b


def _regions(one: Planted) -> dict[str, ndarray]:
    """Where lesions may be, bool [H, W] by region, and "bone px": the distance to bone."""
    if one.modality == "ct":
        a, b = one.a.astype(np.float64), luma(one.b)
        away = cv2.distanceTransform((b < BONE_MIN).astype(np.uint8), cv2.DIST_L2, 5)
        beside = (b < SOFT_MAX) & (a > SOFT_MRI_MIN) & (away < 2 * REACH_PX)
        return {"soft": soft_tissue(a, b), "beside": beside, "bone px": away}
    empty = np.zeros(one.a.shape, bool)
    if one.palette is None:
        return {"uptake": empty, "top": empty}
    place = one.palette.place(one.b)
    inside = foreground(one.b, place)
    return {"uptake": inside, "top": top_of(place, inside)}


def _plant_one(
    one: Planted, kind: Kind, regions: dict[str, ndarray], places: int, rng: np.random.Generator
) -> bool:
    """Adds a lesion to the pair's first picture that has room, or to a new one; False: no place."""
    shape, radius_px = SHAPES[rng.integers(len(SHAPES))], float(np.exp(rng.uniform(*np.log(RADIUS_PX))))
    mask = footprint(shape, radius_px, rng)
    centres = _centres(regions, kind, radius_px, mask)
    best: tuple[float, float, Centre] | None = None
    for row, column in centres[rng.permutation(len(centres))[:places]].tolist():
        contrast, d_source = _calibrated(one, kind, (row, column), mask)
        if LEAST <= d_source <= MOST and (best is None or contrast / d_source < best[0] / best[1]):
            best = contrast, d_source, (row, column)
    if best is None:
        return False
    contrast, d_source, at = best
    scene = _room(one, at)
    changed = one.scenes[scene]["ab".index(kind.source)]
    window(changed, at)[:] = _with_lesion(one, kind, at, mask, contrast)
    one.lesions.append(Lesion(kind.name, scene, at, shape, round(radius_px, 2), contrast, d_source))
    return True


def _centres(regions: dict[str, ndarray], kind: Kind, radius_px: float, mask: ndarray) -> ndarray:
    """[N, 2] row, column of the centres at which enough of the footprint is in the region."""
    region = regions[kind.region]
    fits = cv2.filter2D(region.astype(np.float64), -1, mask / mask.sum(), borderType=cv2.BORDER_CONSTANT)
    allowed = region & (fits >= kind.fits)
    if kind.region == "beside":
        allowed &= regions["bone px"] <= radius_px + BESIDE_PX
    allowed[:MARGIN_PX] = allowed[-MARGIN_PX:] = allowed[:, :MARGIN_PX] = allowed[:, -MARGIN_PX:] = False
    return np.argwhere(allowed)


def _calibrated(one: Planted, kind: Kind, centre: Centre, mask: ndarray) -> tuple[float, float]:
    """(contrast, d') in the source nearest to TARGET; d' is nearly proportional to contrast."""
    background = Background(one.a if kind.source == "a" else one.b, centre)
    most = MOST_PLACES if one.palette is not None and kind.source == "b" else MOST_LEVELS
    contrast, best = most / 3, (0.0, 0.0)
    for _ in range(_STEPS):
        d_source = background.detectability(_with_lesion(one, kind, centre, mask, contrast))
        if abs(d_source - TARGET) < abs(best[1] - TARGET):
            best = contrast, d_source
        if abs(d_source - TARGET) < 0.1 or (contrast == most and d_source < TARGET):
            break
        contrast = min(most, contrast * float(np.clip(TARGET / max(d_source, 0.1), 0.25, 4)))
    return best


def _with_lesion(one: Planted, kind: Kind, centre: Centre, mask: ndarray, contrast: float) -> ndarray:
    """The source's window with the lesion, uint8. A tracer's lesion moves along the palette; b's deviation
    from its palette stays."""
    change = kind.sign * contrast * mask
    if kind.source == "b" and one.palette is not None:
        before = window(as_rgb(one.b), centre)
        place = one.palette.place(before)
        moved = one.palette.colour(place + change) - one.palette.colour(place)
        after = np.where(mask[..., None] > 0, before + moved, before)
        after = after if one.b.ndim == 3 else after.mean(axis=2)
    else:
        before = window(one.a if kind.source == "a" else one.b, centre)
        after = before + (change if before.ndim == 2 else change[..., None])
    return np.clip(np.rint(after), 0, 255).astype(np.uint8)


def _room(one: Planted, centre: Centre) -> int:
    """The number of the first picture in which centre is far from all others; a new one if necessary."""
    for scene in range(len(one.scenes)):
        others = [lesion.centre for lesion in one.lesions if lesion.scene == scene]
        if all(np.hypot(r - centre[0], c - centre[1]) >= APART_PX for r, c in others):
            return scene
    one.scenes.append((one.a.copy(), one.b.copy()))
    return len(one.scenes) - 1
