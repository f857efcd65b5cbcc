"""Which of several series of a study is meant, with the reason that the plan shows."""

from __future__ import annotations

import re

import numpy as np

from mmif_trt.clinical.series import Series
from mmif_trt.image import InputError
from mmif_trt.io.dicom.planes import Look, Plane
from mmif_trt.io.dicom.several import same_place_mm
from mmif_trt.io.dicom.stack import stack

# Image types and names of series that show something other than anatomy, or only part of it.
OTHER_KINDS = {
    *("P", "PHASE", "PHASE MAP", "ADC", "FA", "TRACEW", "DIFFUSION", "PERFUSION", "CBF", "CBV", "MTT", "TTP"),
    *("FMRI", "SUB", "SUBTRACTION", "MIP", "MNIP", "PROJECTION IMAGE", "VELOCITY", "MAP", "FIELD_MAP"),
}
OTHER_NAMES = re.compile(
    r"(?<![a-z])(adc|fa|dwi|dti|diff|trace|bold|fmri|rest|perf|pwi|dsc|dce|asl|cbf|cbv|mtt|ttp|mip|mnip|tof|"
    r"phase|field ?map|gre_field|b0map|loc|localizer|scout|survey|3[- ]?plane|angio|flow|spectro)(?![a-z])"
)


def is_one_volume(series: Series) -> bool:
    """Whether all images have distinct positions on one grid."""
    return series.images > 1 and not (series.why or _several(series))


def _several(series: Series) -> str:
    """What its images have several of; "" for one image per place of one grid."""
    if not _on_one_grid(series.places):
        return "orientations, sizes or pixel spacings"
    return "images per place" if _places(series) < series.images else ""


def fault(series: Series) -> str:
    """Why reading will refuse the series, as far as its headers tell: "" where they do not."""
    if series.why or not series.images:
        return series.why
    if several := _several(series):
        return f"several {several}: name one volume in a manifest (volume_a, volume_b)"
    if series.images == 1:  # it may state no thickness: not among the keys
        return ""
    try:
        stack([_plane(place) for place in series.places])
    except InputError as error:
        return str(error)
    return ""


def _plane(place: np.ndarray) -> Plane:
    """An image of Series.places as its geometry alone."""
    nowhere = Look([], "")
    return Plane(None, 0, nowhere, place[10:], place[4:10], (float(place[2]), float(place[3])))


def words(series: Series) -> str:
    """What a series is: "mri series 3 't1' (176 slices of 256 x 256, FOLDER)"."""
    title = [series.modality, "series"]
    title += [str(series.number)] if series.number else []
    title += [repr(series.description)] if series.description else []
    grid = f" of {series.size[0]} x {series.size[1]}" if series.size else ""
    places = _places(series)
    count = (
        f"{places} slices{grid}" if places == series.images else f"{series.images} images at {places} places"
    )
    return f"{' '.join(title)} ({count if series.images else f'{len(series.paths)} files'}, {series.folder})"


def best(candidates: list[Series], other: Series) -> tuple[Series, str]:
    """(the MRI for `other`, why it and not the next one). One volume before several; anatomy before maps,
    diffusion, perfusion and function; originals before derived; then by its coverage of `other`, its slices,
    its matrix, a contrast agent; of equals, the first by number."""
    ranked = sorted(candidates, key=lambda one: _rank(one, other))
    first = ranked[0]
    if len(ranked) == 1:
        return first, "the only MRI"
    reasons = [
        name
        for name, mine, next_one in zip(NAMES, _rank(first, other), _rank(ranked[1], other), strict=False)
        if mine != next_one
    ]
    return first, f"before {len(ranked) - 1} other MRI: {reasons[0] if reasons else 'the first by number'}"


def why_not(one: Series, chosen: Series, other: Series) -> str:
    """Why `chosen` and not `one` went with `other`."""
    for name, mine, theirs in zip(NAMES, _rank(chosen, other), _rank(one, other), strict=False):
        if mine != theirs:
            return f"another MRI of its group {MEANT[name]}"
    return "another MRI of its group comes first by number"


MEANT = {
    "one volume": "is one volume",
    "anatomy": "shows anatomy",
    "original": "is an original",
    "coverage": "covers more of the other series",
    "slices": "has more slices",
    "matrix": "has a larger matrix",
    "contrast": "has a contrast agent",
}
NAMES = tuple(MEANT)


def _rank(one: Series, other: Series) -> tuple[float | str, ...]:
    """Smaller is better, in the order of NAMES; then the number and the UID."""
    size = one.size or (0, 0)
    return (
        not is_one_volume(one),
        shows_no_anatomy(one),
        one.is_derived,
        -round(coverage(one, other), 1),
        -_places(one),
        -size[0] * size[1],
        not one.has_contrast,
        one.number,
        one.uid,
    )


def shows_no_anatomy(series: Series) -> bool:
    name = f"{series.description} {series.sequence}".lower().replace("_", " ")
    is_echo_planar = re.match(r"\*?ep[_2f]", series.sequence.lower()) is not None
    return bool(OTHER_KINDS & set(series.kind)) or bool(OTHER_NAMES.search(name)) or is_echo_planar


def coverage(one: Series, other: Series) -> float:
    """Share of `other`'s space inside `one`'s, by their boxes; 0 if either is unknown or if they share no
    frame of reference."""
    if one.frame != other.frame or not (len(one.places) and len(other.places)):
        return 0.0
    steps = (np.arange(6) + 0.5) / 6
    share = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    corner, edges = _box(other)
    points = corner + share @ edges
    corner, edges = _box(one)
    inside = np.linalg.lstsq(edges.T, (points - corner).T, rcond=None)[0]
    return float(((inside >= 0) & (inside <= 1)).all(axis=0).mean())


def _box(series: Series) -> tuple[np.ndarray, np.ndarray]:
    """(corner [3], edges [3, 3] along slices, columns and rows) LPS mm of the series' first grid."""
    rows, columns, step_row, step_column = series.places[0, :4]
    row, column = series.places[0, 4:7], series.places[0, 7:10]
    normal = np.cross(row, column)
    at = series.places[:, 10:] @ normal
    first, last = series.places[at.argmin(), 10:], series.places[at.argmax(), 10:]
    pitch = (at.max() - at.min()) / max(1, _places(series) - 1) or 1.0
    edges = np.stack([last - first + normal * pitch, column * rows * step_row, row * columns * step_column])
    return first - normal * pitch / 2, edges


def _places(series: Series) -> int:
    """The number of distinct positions, over all grids."""
    if not len(series.places):
        return 0
    if not _on_one_grid(series.places):
        return len(np.unique(np.round(series.places[:, 4:], 2), axis=0))
    normal = np.cross(series.places[0, 4:7], series.places[0, 7:10])
    along = np.sort(series.places[:, 10:] @ normal)
    return int(1 + (np.diff(along) >= same_place_mm(float(series.places[0, 2]))).sum())


def _on_one_grid(places: np.ndarray) -> bool:
    return len(places) < 2 or bool(np.ptp(np.round(places[:, :10], 2), axis=0).max() <= 0.0201)
