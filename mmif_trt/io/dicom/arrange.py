"""From the datasets of a series to the slices of one volume in order: all that headers decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmif_trt.image import InputError, stored_text
from mmif_trt.io.dicom import objects, several, values
from mmif_trt.io.dicom.planes import Plane, planes
from mmif_trt.io.dicom.stack import Stack, stack
from mmif_trt.io.walk import shown
from mmif_trt.io.which import Which

ONE_OF = (
    ("patients", "PatientID"),
    ("frames of reference", "FrameOfReferenceUID"),
    ("modalities", "Modality"),
    ("series", "SeriesInstanceUID"),
)


@dataclass(frozen=True)
class Arranged:
    """One volume before its pixels. planes: in the order of `stacked`. factor: of the stored values to
    `units`."""

    planes: list[Plane]
    stacked: Stack
    units: str | None
    factor: float
    notes: tuple[str, ...]
    unit_notes: tuple[str, ...]


def volume(datasets: list[Any], which: Which) -> Arranged:
    """datasets: of one series, each once. Raises InputError."""
    chosen, several_notes = several.choose([x for dataset in datasets for x in planes(dataset)], which.volume)
    stacked = stack(chosen)
    ordered = [chosen[i] for i in stacked.order]
    kinds = {plane.unit for plane in ordered}
    if values.NOT_RESCALED in kinds and len(kinds) > 1:
        without = sum(plane.unit == values.NOT_RESCALED for plane in ordered)
        received = f"{without} of {len(ordered)} slices without Rescale Slope or Intercept"
        raise InputError(f"{received}; expected all slices with them")
    if len(kinds) > 1:
        raise InputError(f"slices of {len(kinds)} Rescale Types; expected one unit")
    photometric = str(datasets[0].get("PhotometricInterpretation", ""))
    units, factor, unit_notes = None, 1.0, tuple[str, ...]()
    if photometric.startswith("MONOCHROME"):
        units, factor, unit_notes = values.units(datasets, kinds.pop())
    if photometric == "MONOCHROME1" and units is None:
        raise InputError("MONOCHROME1 (low is bright) in arbitrary units; expected MONOCHROME2")
    return Arranged(ordered, stacked, units, factor, (*several_notes, *stacked.notes), unit_notes)


def _one_series(datasets: list[Any]) -> None:
    """Raises InputError if the files are of several series, which it lists, or of several patients."""
    for label, keyword in ONE_OF:
        count = len({stored_text(dataset, keyword) for dataset in datasets})
        if count > 1:
            received = f"{len(datasets)} DICOM files of {count} {label}"
            if label == "patients" or len({stored_text(x, "SeriesInstanceUID") for x in datasets}) == 1:
                raise InputError(f"{received}; expected one series")
            raise InputError(
                f"{received}: {objects.series_words(datasets)}; expected one series: choose by --series-a or "
                "--series-b UID, NUMBER or DESCRIPTION (Python: read(path, series=...); manifest: series_a, "
                "series_b)"
            )


def each_once(datasets: list[Any]) -> tuple[list[Any], tuple[str, ...]]:
    """(the instances of one series, a note on copies). Raises InputError if there are several series, if one
    has no pixels, or if two of one UID differ in them."""
    _one_series(datasets)
    if missing := [dataset for dataset in datasets if "PixelData" not in dataset]:
        what = "no pixel data (truncated?)" if "Rows" in missing[0] else "no Rows and no pixel data, no image"
        raise InputError(f"{missing[0].filename}: {what}; expected images")
    kept: dict[str, Any] = {}
    copies = []
    for dataset in datasets:
        uid = str(dataset.get("SOPInstanceUID") or id(dataset))
        other = kept.setdefault(uid, dataset)
        if other is dataset:
            continue
        if other.PixelData != dataset.PixelData:
            raise InputError(
                f"{other.filename} and {dataset.filename}: the same instance twice, with different pixels; "
                "expected each slice once"
            )
        copies.append(str(dataset.filename))
    notes = (f"duplicate instances, ignored: {shown(copies)}",) if copies else ()
    return list(kept.values()), notes
