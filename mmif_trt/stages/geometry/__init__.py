"""One grid for two volumes: b onto a's by their headers, by a transform that the caller states, or by a rigid
registration with a report."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from mmif_trt.image import RAS_LPS, Image, InputError, stored_text
from mmif_trt.stages.geometry import rigid

REGISTRATIONS = ("header", "rigid", "none")
_TIES = "a DICOM Spatial Registration, or --registration rigid (Python: registration='rigid')"
MIN_SIDE = 4  # voxels, for ITK's Gaussian
WARN_MM = 3.0  # of repeatability, in a head
HEAD_MM, SMALL_MM = 150.0, 75.0  # sides of a volume, on average: of a head's; less is a small animal's
UNSURE = "rigid registration is not trustworthy"


@dataclass(frozen=True)
class Stated:
    """A transform that is known already. matrix: [4, 4] a's RAS+ mm to the place in b's header, RAS+ mm; by:
    who stated it, as text."""

    matrix: np.ndarray
    by: str = "matrix"

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, np.float64)
        usable = matrix.shape == (4, 4) and np.isfinite(matrix).all() and (matrix[3] == (0, 0, 0, 1)).all()
        if not usable or np.linalg.det(matrix[:3, :3]) < 0.1:
            raise InputError(
                f"registration: a {matrix.shape} array; expected a [4, 4] of RAS+ mm that neither mirrors "
                "nor flattens"
            )
        object.__setattr__(self, "matrix", matrix)


@dataclass(frozen=True)
class Report:
    """What was done to b. registration: of REGISTRATIONS, or who stated it. matrix: [4, 4] a's RAS+ mm to the
    place in b's header, RAS+ mm (identity: header).

    shift_mm: how far the centre of a's grid moves; rotation_deg: about the axis of rotation.
    mutual_information: before and after, Mattes; lower is better, as in ITK. repeatability_mm: the largest
    distance within a's grid between two registrations from different starts and samples: neither the error
    nor a bound of it (both may find the same wrong place; see docs/how-it-works.md), but one above WARN_MM,
    less in a small animal, means that the result cannot be trusted. None where nothing was measured, or where
    the second registration found no end.
    """

    registration: str
    matrix: list[list[float]]
    shift_mm: float = 0.0
    rotation_deg: float = 0.0
    mutual_information: tuple[float, float] | None = None
    repeatability_mm: float | None = None
    inside: float = 1.0  # share of a's grid that b covers

    def entry(self) -> dict[str, Any]:
        return asdict(self)


def align(
    a: Image,
    b: Image,
    registration: str | Stated = "header",
    *,
    assume_aligned: bool = False,
    black: float = np.inf,
) -> tuple[Image, Report]:
    """b on a's grid, and how it got there. Outside b the value is b's lowest, or `black` where that is lower:
    what is shown there is a alone.

    "header": by the two affines; refused where both name a frame of reference and these differ. "rigid":
    six parameters on top of the headers, by mutual information. "none": voxel for voxel, only with
    assume_aligned=True and equal shapes. Stated: by its matrix, whatever the frames. Raises InputError.
    """
    if not isinstance(registration, Stated) and registration not in REGISTRATIONS:
        raise InputError(
            f"registration {registration!r}; expected {', '.join(REGISTRATIONS)}, the file of a DICOM "
            "Spatial Registration, or (Python) a [4, 4] array"
        )
    if registration == "none":
        if not assume_aligned:
            raise InputError(
                "registration 'none' does not say where b lies; expected --assume-aligned (Python: "
                "assume_aligned=True) with it"
            )
        if a.data.shape[:3] != b.data.shape[:3]:
            raise InputError(
                f"{a.source} has {a.data.shape[:3]} voxels and {b.source} {b.data.shape[:3]}; "
                "expected one grid, or a registration"
            )
        return replace(b, affine=a.affine), Report("none", np.eye(4).tolist())
    _same_patient(a, b)
    _has_place(a, b)
    if isinstance(registration, Stated):
        matrix = registration.matrix
        shift, angle = _moved(a, matrix)
        report = Report(registration.by, _rounded(matrix), shift, angle)
    elif registration == "header":
        if a.frame and b.frame and a.frame != b.frame:
            raise InputError(
                f"{a.source} and {b.source} have different frames of reference: their coordinates "
                f"are unrelated; expected one frame, {_TIES}"
            )
        b = replace(b, notes=(*b.notes, *_one_space(a, b)))
        matrix, report = np.eye(4), Report("header", np.eye(4).tolist())
    else:
        matrix, report = register_rigid(a, b)
        b = replace(b, notes=(*b.notes, *_doubts(report, WARN_MM / _magnified(a, b))))
    moved, inside = resample(a, b, matrix, black)
    if not inside:
        raise InputError(f"{b.source} does not overlap {a.source} anywhere; expected the same body region")
    return moved, replace(report, inside=round(inside, 4))


def doubts(notes: Iterable[object]) -> list[str]:
    """Those of b's notes that say that its rigid registration is in doubt."""
    return [note for note in notes if isinstance(note, str) and note.startswith(UNSURE)]


def _doubts(report: Report, most_mm: float) -> tuple[str, ...]:
    """A note where the two runs of a rigid registration ended further apart, or the second nowhere."""
    apart_mm = report.repeatability_mm
    if apart_mm is not None and apart_mm <= most_mm:
        return ()
    ended = "found no place where the volumes overlap"
    if apart_mm is not None:
        ended = f"ended {apart_mm:.2g} mm away (expected up to {most_mm:.2g} mm)"
    return (
        f"{UNSURE}: a second run, from another start, {ended}; compare the edges in --view, or name a DICOM "
        "Spatial Registration",
    )


def _has_place(a: Image, b: Image) -> None:
    """Raises InputError where a file does not say where its volume lies."""
    for image in (a, b):
        if image.space == "none":
            raise InputError(
                f"{image.source}: without geometry (NIfTI: sform and qform code 0); expected one with it, or "
                "--registration none --assume-aligned (Python: registration='none', assume_aligned=True)"
            )


def _one_space(a: Image, b: Image) -> tuple[str, ...]:
    """A note where the headers leave open whether both lie in one space. Raises InputError where they say
    that they do not: a scanner's millimetres and a template's have nothing in common."""
    nameless = [image.source for image in (a, b) if image.headers and not image.frame]
    spaces = ["scanner" if image.headers or image.frame else image.space for image in (a, b)]
    if None in spaces or spaces[0] == spaces[1]:
        words = f"no Frame of Reference UID in {' and '.join(nameless)}: assumed to be that of both"
        return (words,) if nameless else ()
    if set(spaces) == {"scanner", "aligned"}:
        other = a if spaces[0] == "aligned" else b
        return (
            f"{other.source} is 'aligned' (code 2) to a file that it does not name: assumed to be the other",
        )
    raise InputError(
        f"{a.source} lies in {spaces[0]} space and {b.source} in {spaces[1]} space (sform, qform code): "
        f"their coordinates are unrelated; expected one space, {_TIES}"
    )


def _same_patient(a: Image, b: Image) -> None:
    """Raises InputError where both headers name a patient, and not the same one; no name in the message."""
    for keyword in ("PatientID", "IssuerOfPatientID"):
        ours, theirs = (stored_text(x.headers[0], keyword) if x.headers else "" for x in (a, b))
        if ours and theirs and ours != theirs:
            raise InputError(f"{a.source} and {b.source} name different patients; expected the same patient")


def resample(a: Image, b: Image, matrix: np.ndarray, black: float = np.inf) -> tuple[Image, float]:
    """b [S, H, W] (or RGB) on a's grid, linear, and the share of that grid that b covers. What b does not
    cover takes its lowest value, or `black` where that is lower (a CT may hold no air).

    matrix: RAS+ mm of a to RAS+ mm of b. Works on voxel indices, so left-handed, oblique and sheared
    grids need no case of their own.
    """
    import SimpleITK as sitk

    assert a.affine is not None and b.affine is not None
    to_b = np.linalg.inv(b.affine) @ matrix @ a.affine  # (slice, row, column) of a to that of b
    to_b = to_b[[2, 1, 0, 3]][:, [2, 1, 0, 3]]  # ITK counts (column, row, slice)
    shape = a.data.shape[:3]
    if shape == b.data.shape[:3] and np.allclose(to_b, np.eye(4), atol=1e-4):
        return replace(b, affine=a.affine), 1.0
    transform = sitk.AffineTransform(to_b[:3, :3].ravel().tolist(), to_b[:3, 3].tolist())
    lowest = min(float(b.value_range[0]) if b.value_range else float(b.data.min()), black)
    channels = np.moveaxis(b.data, -1, 0) if b.is_colour else b.data[None]
    moved = [_resample(channel, shape, transform, 0.0 if b.is_colour else lowest) for channel in channels]
    covered = float(_resample(np.ones(b.data.shape[:3], np.float32), shape, transform, 0.0).mean())
    data = np.rint(np.stack(moved, axis=-1)).astype(b.data.dtype) if b.is_colour else moved[0]
    # The stated range stays, so black and white keep their meaning; integers became float32 on the way.
    return replace(b, data=data, affine=a.affine), covered


def _resample(data: np.ndarray, shape: tuple[int, ...], transform: Any, outside: float) -> np.ndarray:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(data, np.float32))
    kind = sitk.sitkLinear
    filled = sitk.Resample(
        image,
        shape[::-1],
        transform,
        kind,
        (0.0, 0.0, 0.0),
        (1.0, 1.0, 1.0),
        np.eye(3).ravel().tolist(),
        outside,
    )
    array: np.ndarray = sitk.GetArrayFromImage(filled)
    return array


def register_rigid(a: Image, b: Image) -> tuple[np.ndarray, Report]:
    """[4, 4] RAS+ mm of a to RAS+ mm of b that aligns them, and the report.

    Mattes mutual information on half of the voxels or more, drawn at random, at three resolutions,
    gradient descent over an Euler transform about the centre of a; starts from the headers if these overlap,
    otherwise from the centres. Run again from another start; the first is the result (see Report). Volumes of
    a small animal are registered as if they were as large as a head. Raises InputError for fewer than
    MIN_SIDE voxels along an axis, for a volume of one value, and where the first run finds no overlap.
    """
    for image in (a, b):
        if min(image.data.shape[:3]) < MIN_SIDE:
            size = " x ".join(map(str, image.data.shape[:3]))
            raise InputError(
                f"{image.source}: {size} voxels; expected {MIN_SIDE} along each axis for rigid registration"
            )
        if image.data.min() == image.data.max():
            raise InputError(f"{image.source}: all voxels are equal; expected a picture to register")
    times = _magnified(a, b)
    larger = np.diag([times, times, times, 1.0])
    fixed, moving = (_itk(replace(x, affine=larger @ np.asarray(x.affine))) for x in (a, b))

    def found(run: tuple[int, float, float]) -> tuple[np.ndarray, float, float]:
        matrix, before, after = rigid.descend(fixed, moving, *run)
        return np.linalg.inv(larger) @ matrix @ larger, before, after

    try:
        matrix, before, after = found(rigid.RUNS[0])
    except InputError as error:
        raise InputError(f"{b.source} on {a.source}: {error}") from None
    repeat = None
    with contextlib.suppress(InputError):
        between = corners(a) @ (matrix - found(rigid.RUNS[1])[0]).T
        repeat = round(float(np.linalg.norm(between[:, :3], axis=1).max()), 3)
    shift, angle = _moved(a, matrix)
    return matrix, Report("rigid", _rounded(matrix), shift, angle, (before, after), repeat)


def _magnified(a: Image, b: Image) -> float:
    """How many times as large both are registered: the lengths of rigid.py are made for a head, and with them
    a mouse's is gone after the first smoothing. 1 unless even the larger one is small."""
    volumes = [abs(np.linalg.det(np.asarray(x.affine)[:3, :3])) * np.prod(x.data.shape[:3]) for x in (a, b)]
    side_mm = float(max(volumes)) ** (1 / 3)
    return HEAD_MM / side_mm if side_mm < SMALL_MM else 1.0


def corners(image: Image) -> np.ndarray:
    """[8, 4] RAS+ mm of the grid's corners."""
    assert image.affine is not None
    index = np.array([[s, r, c, 1] for s in (0, 1) for r in (0, 1) for c in (0, 1)], np.float64)
    index[:, :3] *= np.array(image.data.shape[:3]) - 1
    return np.asarray(index @ image.affine.T)


def _moved(a: Image, matrix: np.ndarray) -> tuple[float, float]:
    """How far the centre of a's grid moves, mm, and the angle of the nearest rotation, degrees."""
    middle = corners(a).mean(axis=0)
    shift = float(np.linalg.norm((matrix @ middle - middle)[:3]))
    left, _, right = np.linalg.svd(matrix[:3, :3])
    angle = float(np.degrees(np.arccos(np.clip((np.trace(left @ right) - 1) / 2, -1, 1))))
    return round(shift, 3), round(angle, 3)


def _rounded(matrix: np.ndarray) -> list[list[float]]:
    return [[round(float(x), 6) for x in row] for row in matrix]


def _itk(image: Image) -> Any:
    """A SimpleITK volume, luma of colour, in LPS mm; a sheared grid is resampled to a right-angled one."""
    import SimpleITK as sitk

    assert image.affine is not None
    data = image.data.astype(np.float32)
    data = data.mean(axis=-1) if image.is_colour else data
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
    axes = image.affine[:3, :3] / spacing
    if np.abs(axes.T @ axes - np.eye(3)).max() > 1e-4:
        upright = image.affine.copy()
        upright[:3, 0] = np.cross(axes[:, 1], axes[:, 2]) * spacing[0]
        upright[:3, 0] *= np.sign(upright[:3, 0] @ image.affine[:3, 0])
        grid = Image(data, image.value_range, affine=upright, source=image.source)
        return _itk(resample(grid, Image(data, image.value_range, affine=image.affine), np.eye(4))[0])
    volume = sitk.GetImageFromArray(np.ascontiguousarray(data))
    lps = (RAS_LPS @ image.affine)[:, [2, 1, 0, 3]]
    volume.SetSpacing([float(x) for x in spacing[::-1]])
    volume.SetDirection((lps[:3, :3] / spacing[::-1]).ravel().tolist())
    volume.SetOrigin(lps[:3, 3].tolist())
    return volume
