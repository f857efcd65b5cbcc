"""The frames of DICOM instances with their geometry and the meaning of their values.

A value is always searched first in the frame's own functional groups, then in the shared ones, the NM
detector's, and last at the top of the data set (PS3.3 C.7.6.16).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmif_trt.image import InputError
from mmif_trt.io.dicom import mosaic
from mmif_trt.io.dicom import values as dicom_values
from mmif_trt.io.dicom.extent import announced

NM = "1.2.840.10008.5.1.4.1.1.20"
_TRANSFORMATION = "PixelValueTransformationSequence"


class Look:
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
                f"{self.name}: {keyword} is missing or not {count} numbers; expected a slice with geometry"
            )
        return numbers

    def number(self, sequence: str, keyword: str) -> float | None:
        """The value if it is a number above 0."""
        try:
            number = float(self.get(sequence, keyword))
        except (TypeError, ValueError):
            return None
        return number if np.isfinite(number) and number > 0 else None


@dataclass(frozen=True)
class Plane:
    """One image: a frame, or the tile of a mosaic. position, axes: Image Position and Orientation (Patient),
    LPS mm; step_mm: (row, column); thickness_mm: Slice Thickness; between_mm: Spacing Between Slices.
    unit: Rescale Type; has_table: the dataset has a Modality LUT Sequence. tile: where in the frame."""

    dataset: Any
    frame: int
    look: Look
    position: np.ndarray
    axes: np.ndarray
    step_mm: tuple[float, float]
    thickness_mm: float | None = None
    between_mm: float | None = None
    slope: float = 1.0
    intercept: float = 0.0
    unit: str = ""
    has_table: bool = False
    window: tuple[float, float] | None = None
    tile: tuple[slice, slice] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(rows, columns)."""
        if self.tile is not None:
            return self.tile[0].stop - self.tile[0].start, self.tile[1].stop - self.tile[1].start
        return int(self.dataset.Rows), int(self.dataset.Columns)


def has_geometry(dataset: Any) -> bool:
    kept = ("ImagePositionPatient", "PerFrameFunctionalGroupsSequence", "DetectorInformationSequence")
    return any(dataset.get(keyword) for keyword in kept)


def planes(dataset: Any) -> Iterator[Plane]:
    """The images of an instance with their geometry. Raises InputError if one has none."""
    count = announced(dataset)[0]
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if groups and len(groups) != count:
        raise InputError(
            f"{dataset.filename}: {count} frames, {len(groups)} functional groups; expected as many"
        )
    detector = (dataset.get("DetectorInformationSequence") or [None])[0]
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
    for frame in range(count):
        own = groups[frame] if groups else None
        look = Look([x for x in (own, shared, detector, dataset) if x is not None], str(dataset.filename))
        plane = _plane(dataset, frame, look)
        if count > 1 and not groups:
            shift = _nm_slice(dataset, frame) * _nm_step(dataset, plane)
            plane = Plane(**{**plane.__dict__, "position": plane.position + shift})
        if mosaic.is_mosaic(dataset):
            for position, tile in mosaic.tiles(dataset, plane.position, plane.axes, plane.step_mm):
                yield Plane(**{**plane.__dict__, "position": position, "tile": tile})
        else:
            yield plane


def _plane(dataset: Any, frame: int, look: Look) -> Plane:
    axes = look.numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6)
    position = look.numbers("PlanePositionSequence", "ImagePositionPatient", 3)
    step = look.numbers("PixelMeasuresSequence", "PixelSpacing", 2)
    return Plane(
        dataset,
        frame,
        look,
        position,
        axes,
        (float(step[0]), float(step[1])),
        look.number("PixelMeasuresSequence", "SliceThickness"),
        look.number("PixelMeasuresSequence", "SpacingBetweenSlices"),
        **meaning(dataset, look),
    )


def meaning(dataset: Any, look: Look) -> dict[str, Any]:
    """slope, intercept, unit, has_table and window of a frame, as Plane has them. Raises InputError."""
    table = (dataset.get("ModalityLUTSequence") or [None])[0]
    window = dicom_values.window(look.place("FrameVOILUTSequence", "WindowCenter") or dataset)
    if table is not None:
        kind = str(table.get("ModalityLUTType") or "US")
        return {"slope": 1.0, "intercept": 0.0, "unit": kind, "has_table": True, "window": window}
    stated = [look.get(_TRANSFORMATION, key) for key in ("RescaleSlope", "RescaleIntercept")]
    slope, intercept = (
        default if x is None else float(x) for x, default in zip(stated, (1.0, 0.0), strict=True)
    )
    if not np.isfinite([slope, intercept]).all() or slope == 0:
        raise InputError(
            f"{dataset.filename}: rescale slope {slope}, intercept {intercept}; expected a nonzero slope"
        )
    kind = str(look.get(_TRANSFORMATION, "RescaleType") or "") or _real_world(look)
    needed = dicom_values.RESCALED_BY.get(str(dataset.get("Modality")), 0)
    if None in stated[:needed]:
        kind = dicom_values.NOT_RESCALED
    return {"slope": slope, "intercept": intercept, "unit": kind, "has_table": False, "window": window}


def _real_world(look: Look) -> str:
    """The unit of a Real World Value Mapping (PS3.3 C.7.6.16.2.11), if no Rescale Type states one."""
    codes = look.get("RealWorldValueMappingSequence", "MeasurementUnitsCodeSequence") or []
    code = str(codes[0].get("CodeValue") or "") if codes else ""
    return "HU" if code == "[hnsf'U]" else code


def _nm_step(dataset: Any, plane: Plane) -> np.ndarray:
    """Step between slices of a reconstructed NM volume (PS3.3 C.8.4.15): along the normal, with its sign."""
    kind = list(dataset.get("ImageType", []))
    count = int(dataset.NumberOfFrames)
    if str(dataset.get("SOPClassUID")) != NM or "RECON TOMO" not in kind:
        raise InputError(
            f"{dataset.filename}: {count} frames without their own positions (no functional groups); "
            "expected an enhanced multi-frame, or NM of type RECON TOMO"
        )
    spacing = dataset.get("SpacingBetweenSlices")
    if spacing is None:
        raise InputError(
            f"{dataset.filename}: {count} frames without Spacing Between Slices; "
            "expected a volume with geometry"
        )
    return np.cross(plane.axes[:3], plane.axes[3:]) * float(spacing)


def _nm_slice(dataset: Any, frame: int) -> int:
    """The slice, from 0, of each frame: by the Slice Vector (PS3.3 C.8.4.8); without one, in file order."""
    vector, count = dataset.get("SliceVector"), int(dataset.NumberOfFrames)
    if vector is None and int(dataset.get("NumberOfSlices") or count) != count:
        raise InputError(
            f"{dataset.filename}: {count} frames of {dataset.NumberOfSlices} slices and no Slice Vector "
            "(several energy windows or times?); expected one volume"
        )
    if vector is None:
        return frame
    numbers = [int(x) for x in (vector if isinstance(vector, Sequence) else [vector])]
    if sorted(numbers) != list(range(1, count + 1)):
        raise InputError(
            f"{dataset.filename}: a Slice Vector that does not name each slice once; expected one volume"
        )
    return numbers[frame] - 1
