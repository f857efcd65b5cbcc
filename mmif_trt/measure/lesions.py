"""How much of each planted lesion a fusion keeps.

The share of a lesion is its detectability (reader.py) in the fused picture, divided by that in the source
alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from mmif_trt.image import InputError
from mmif_trt.measure.baselines import Fuse
from mmif_trt.measure.colourspace import as_rgb, lightness
from mmif_trt.measure.planting import Kind, Planted, kinds_for
from mmif_trt.measure.reader import Background, Centre, window
from mmif_trt.measure.uptake import Palette

LOST = 0.25  # a share under this


@dataclass(frozen=True)
class Kept:
    """The outcome for one lesion. share: of its detectability, 0..1; 0 if its polarity is reversed.

    false_uptake: an MRI lesion's mean change of the read-back over it, in palette positions; nan for
    others.
    """

    pair: str
    kind: str
    shape: str
    radius_px: float
    d_source: float
    d_fused: float
    share: float
    false_uptake: float


def judge(fuse: Fuse, planted: Sequence[Planted]) -> list[Kept]:
    """Fuses every picture, with and without lesions, and reads each lesion.

    fuse: (a uint8 [H, W], b uint8 [H, W] or [H, W, 3]) -> fused uint8 [H, W] or [H, W, 3].
    """
    kept = []
    for one in planted:
        if one.lesions:
            without = fuse(one.a, one.b)
            kept += read(one, without, [fuse(a, b) for a, b in one.scenes])
    return kept


def read(one: Planted, without: ndarray, scenes: Sequence[ndarray]) -> list[Kept]:
    """without: the pair fused; scenes: its pictures with lesions fused, in order. uint8, grey or RGB."""
    kinds = {kind.name: kind for kind in kinds_for(one.modality)}
    for fused in (without, *scenes):
        if fused.dtype != np.uint8 or fused.shape[:2] != one.a.shape or fused.shape != without.shape:
            what = f"fused {fused.dtype} {fused.shape}"
            raise InputError(f"{one.name}: {what}; expected uint8 of {one.a.shape}, all grey or all RGB")
    found = []
    for lesion in one.lesions:
        kind, fused = kinds[lesion.kind], scenes[lesion.scene]
        d_fused = Background(without, lesion.centre).detectability(window(fused, lesion.centre))
        side = "ab".index(kind.source)
        source, with_it = (one.a, one.b)[side], one.scenes[lesion.scene][side]
        planted = _change(one, kind, lesion.centre, source, with_it)
        seen = _change(one, kind, lesion.centre, without, fused)
        reversed_ = float((planted * seen).sum()) < 0
        share = 0.0 if reversed_ else min(1.0, d_fused / lesion.d_source)
        false_uptake = float("nan")
        if kind.source == "a" and one.palette is not None:
            change = _read_change(one.palette, lesion.centre, without, fused)
            false_uptake = abs(float((np.abs(planted) * change).sum() / np.abs(planted).sum()))
        about = (one.name, lesion.kind, lesion.shape, lesion.radius_px, lesion.d_source)
        found.append(Kept(*about, d_fused, share, false_uptake))
    return found


def _change(one: Planted, kind: Kind, centre: Centre, before: ndarray, after: ndarray) -> ndarray:
    """[29, 29], what the lesion changes: L*, or for a tracer the position on the palette."""
    if kind.source == "b" and one.palette is not None:
        return _read_change(one.palette, centre, before, after)
    return lightness(window(after, centre)) - lightness(window(before, centre))


def _read_change(palette: Palette, centre: Centre, before: ndarray, after: ndarray) -> ndarray:
    return palette.read(as_rgb(window(after, centre))) - palette.read(as_rgb(window(before, centre)))


@dataclass(frozen=True)
class Summary:
    """count, share and lost (share under .25) by kind; mean, worst and lost over kinds, equally weighted."""

    count: dict[str, int]
    share: dict[str, float]
    lost_by_kind: dict[str, float]
    false_uptake: float

    @property
    def mean(self) -> float:
        return sum(self.share.values()) / len(self.share) if self.share else float("nan")

    @property
    def worst(self) -> float:
        return min(self.share.values(), default=float("nan"))

    @property
    def lost(self) -> float:
        return sum(self.lost_by_kind.values()) / len(self.share) if self.share else float("nan")


def summarise(kept: Iterable[Kept]) -> Summary:
    """Kinds in order of appearance; a kind that found no place is absent."""
    by_kind: dict[str, list[Kept]] = {}
    for one in kept:
        by_kind.setdefault(one.kind, []).append(one)
    wrong = [one.false_uptake for group in by_kind.values() for one in group if one.false_uptake >= 0]
    return Summary(
        {kind: len(group) for kind, group in by_kind.items()},
        {kind: sum(x.share for x in group) / len(group) for kind, group in by_kind.items()},
        {kind: sum(x.share < LOST for x in group) / len(group) for kind, group in by_kind.items()},
        sum(wrong) / len(wrong) if wrong else float("nan"),
    )
