"""Planes to a grid: order and affine from geometry alone, also for a head CT in blocks of two pitches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmif_trt.image import RAS_LPS, InputError
from mmif_trt.io.dicom.planes import Plane

TOLERANCE_MM = 0.1  # half a slice where these are thinner
RIGHT_ANGLE = 1e-2  # how far the cosine of one may be from 0, as some writers round
THIN = 2.0  # slices further apart than this many thicknesses miss most of the body
FINEST = 8  # a grid for uneven slices divides their smallest gap by at most this
MAX_GROWTH = 8  # and has at most this many times their number


@dataclass(frozen=True)
class Stack:
    """order: of the planes along their normal. affine: [4, 4] (slice, row, column) to RAS+ mm.
    between: [S] the position of each grid slice, counted in ordered planes, if those are unevenly spaced;
    otherwise None."""

    order: list[int]
    affine: np.ndarray
    notes: tuple[str, ...]
    between: np.ndarray | None = None

    def resampled(self, data: np.ndarray) -> np.ndarray:
        """[S, ...] on the grid: linear interpolation between the two slices around each place."""
        if self.between is None:
            return data
        low = np.clip(np.floor(self.between).astype(int), 0, len(data) - 2)
        share = (self.between - low).astype(np.float32).reshape(-1, *[1] * (data.ndim - 1))
        mixed = np.empty((len(low), *data.shape[1:]), np.float32)
        for out, i, x in zip(mixed, low, share, strict=True):
            out[...] = data[i] * (1 - x) + data[i + 1] * x
        return np.rint(mixed).astype(data.dtype) if data.ndim == 4 else mixed


def stack(planes: list[Plane]) -> Stack:
    """Planes on one grid at distinct positions (see several.choose) to a volume.

    A steady shift across the normal (gantry tilt) stays in the affine as a shear. Two or more blocks of
    different pitch, and a pitch that drifts, are resampled to one even grid (Stack.between). Raises
    InputError for gaps, and for axes that are not orthonormal.
    """
    first = planes[0]
    row, column = first.axes[:3], first.axes[3:]
    lengths = [abs(row @ row - 1), abs(column @ column - 1), abs(row @ column)]
    if not max(lengths) < RIGHT_ANGLE or not min(first.step_mm) > 0:
        raise InputError(
            "ImageOrientationPatient or PixelSpacing is not of a right-angled grid; expected one that is"
        )
    if any(np.abs(plane.axes - first.axes).max() > 1e-3 for plane in planes):
        raise InputError("mixed orientations (a localizer?); expected one stack of parallel slices")
    if any(np.abs(np.subtract(plane.step_mm, first.step_mm)).max() > 1e-3 for plane in planes):
        raise InputError("mixed pixel spacings; expected one grid")
    normal = np.cross(row, column)
    along = np.array([plane.position @ normal for plane in planes])
    order = np.argsort(along, kind="stable")
    inside = [planes[i] for i in order]
    if len(planes) == 1:
        step, notes = _one_slice(first, normal)
        between = None
    else:
        step, notes, between = _steps(inside, along[order], normal)
    affine = np.eye(4)
    for axis, direction in enumerate((step, column * first.step_mm[0], row * first.step_mm[1])):
        affine[:3, axis] = RAS_LPS[:3, :3] @ direction
    affine[:3, 3] = RAS_LPS[:3, :3] @ inside[0].position
    return Stack([int(i) for i in order], affine, notes, between)


def _one_slice(plane: Plane, normal: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """A single slice covers its thickness; the spacing between slices does not tell it."""
    if plane.thickness_mm is not None:
        return normal * plane.thickness_mm, (f"one slice of {plane.thickness_mm:g} mm",)
    if plane.between_mm is None:
        raise InputError("one slice without a thickness; expected a slice with SliceThickness")
    note = f"one slice without a thickness: taken as {plane.between_mm:g} mm, its Spacing Between Slices"
    return normal * plane.between_mm, (note,)


def _steps(
    planes: list[Plane], along: np.ndarray, normal: np.ndarray
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray | None]:
    """(the vector from slice to slice LPS mm, notes, Stack.between) of ordered planes."""
    gaps = np.diff(along)
    pitch = float(np.median(gaps))
    tolerance = max(min(TOLERANCE_MM, pitch / 2), 0.02 * pitch) + 1e-6  # 0.1 mm itself too, despite rounding
    places = np.array([plane.position for plane in planes])
    line = (places[-1] - places[0]) / (along[-1] - along[0])  # of 1 mm along the normal
    if np.abs(places - (places[0] + (along - along[0])[:, None] * line)).max() > 2 * tolerance:
        raise InputError("slices that are not on one line; expected a straight stack")
    notes = list[str]()
    tilt = float(np.degrees(np.arccos(np.clip(line @ normal / np.linalg.norm(line), -1, 1))))
    if tilt > 0.1:
        notes.append(f"gantry tilt of {tilt:.1f} degrees, kept as a shear")
    notes += _thinned(planes, pitch)
    mean = float(along[-1] - along[0]) / len(gaps)
    # By place, not by gap: gaps of 1.0 and then 1.1 mm add up, those of places rounded to 0.1 mm do not.
    off = np.abs(along - along[0] - mean * np.arange(len(along))).max()
    if off <= max(min(TOLERANCE_MM, mean / 2), 0.05 * mean) and np.abs(gaps - mean).max() < mean / 2:
        return line * mean, tuple(notes), None
    runs = _blocks(gaps, min(tolerance, pitch / 4))
    if runs is None or _numbers_missing(planes, gaps):
        worst = float(gaps[np.abs(gaps - pitch).argmax()])
        raise InputError(
            f"missing slices: {worst:.2f} mm where the pitch is {pitch:.2f} mm; expected a complete series"
        )
    even, between = _even(along) if len(runs) > 1 else (mean, _between(along, mean))
    words = ", then ".join(f"{count + 1} slices {mm:.4g} mm apart" for mm, count in runs)
    if len(runs) == 1:
        words = f"slices {gaps.min():.4g} to {gaps.max():.4g} mm apart"
    return (
        line * even,
        (*notes, f"{words}: resampled to an even {even:.4g} mm by each slice's place"),
        between,
    )


def _thinned(planes: list[Plane], pitch: float) -> list[str]:
    thickness = max((plane.thickness_mm or np.inf for plane in planes), default=np.inf)
    if pitch < THIN * thickness:
        return []
    return [f"slices of {thickness:g} mm lie {pitch:.4g} mm apart: what is between them is interpolated"]


def _blocks(gaps: np.ndarray, tolerance: float) -> list[tuple[float, int]] | None:
    """(pitch, gaps) of every block; None if a gap stands alone, as after a missing slice.

    Between two blocks one gap may differ from both pitches, if it is no longer than the longer one.
    """
    runs: list[list[float]] = []
    for gap in gaps:
        if runs and abs(gap - runs[-1][0]) <= tolerance:
            runs[-1].append(float(gap))
        else:
            runs.append([float(gap)])
    whole = []
    for i, run in enumerate(runs):
        if len(run) > 1:
            whole.append((float(np.mean(run)), len(run)))
            continue
        beside = [x[0] for x in (runs[i - 1 : i] + runs[i + 1 : i + 2]) if len(x) > 1]
        between_blocks = len(beside) == 2 and abs(beside[0] - beside[1]) > tolerance
        if not between_blocks or run[0] > max(beside) + tolerance:
            return None
    pitches = [mm for mm, _ in whole]
    return whole if pitches in (sorted(pitches), sorted(pitches, reverse=True)) else None


def _numbers_missing(planes: list[Plane], gaps: np.ndarray) -> bool:
    """Whether Instance Numbers that count the slices skip some where the gaps are wide."""
    try:
        numbers = np.array([int(plane.dataset.InstanceNumber) for plane in planes])
    except (AttributeError, TypeError, ValueError):
        return False
    steps = np.abs(np.diff(numbers))
    usual = int(np.median(steps))
    return usual == 1 and bool((steps[gaps > gaps.min() * 1.5] > 1).any())


def _even(along: np.ndarray) -> tuple[float, np.ndarray]:
    """(pitch of the coarsest even grid that meets every slice, otherwise the finest allowed;
    Stack.between)."""
    length, smallest = float(along[-1] - along[0]), float(np.diff(along).min())
    for parts in range(1, FINEST + 1):
        steps = round(length / (smallest / parts))
        even = length / steps
        on_grid = (along - along[0]) / even
        if steps > MAX_GROWTH * len(along):
            break
        best = even
        if np.abs(on_grid - np.rint(on_grid)).max() * even <= TOLERANCE_MM:
            break
    return best, _between(along, best)


def _between(along: np.ndarray, even: float) -> np.ndarray:
    """Stack.between of a grid of `even` mm over all slices."""
    steps = round(float(along[-1] - along[0]) / even)
    return np.interp(along[0] + np.arange(steps + 1) * even, along, np.arange(len(along)))
