"""What pairing needs from one DICOM file, read in the child process: who, which series, where."""

from __future__ import annotations

from typing import Any

# As text, one value each.
KEYS = (
    "PatientID",
    "IssuerOfPatientID",
    "StudyInstanceUID",
    "FrameOfReferenceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "SequenceName",
    "Modality",
    "SOPInstanceUID",
    "ImageType",
    "ContentDate",
    "ContentTime",
)
TIED = "TiedFrames"  # beside KEYS: the frames that a Spatial Registration ties together
PLACES = "Places"  # of every image of the file: its grid and position, see _places
NO_IMAGE = "NoImage"  # what the instance is, if not an image to fuse
WHY = "Why"  # what is wrong with its geometry, as text
CONTRAST = "Contrast"  # whether a contrast agent is named


def keys_of(path: str) -> tuple[str, dict[str, Any]] | None:
    """(path, its keys); None if the file cannot be read."""
    try:
        return path, _keys(path)
    except Exception:  # pydicom may raise anything on bad bytes, MemoryError too
        return None


def _keys(path: str) -> dict[str, Any]:
    from mmif_trt.io import dicom
    from mmif_trt.io.dicom import objects, registration

    dataset = dicom.header(path)
    values = {key: dataset.get(key) for key in KEYS}
    keys: dict[str, Any] = {
        key: _texts(value) if key == "ImageType" and value else str(value)
        for key, value in values.items()
        if value is not None
    }
    if tied := registration.frames(dataset):
        keys[TIED] = tied
    elif kind := objects.no_image(dataset, header_only=True):
        keys[NO_IMAGE] = kind
    elif _is_colour_mri(dataset):
        keys[NO_IMAGE] = "MRI in colour"  # a map or a report, which fusing would refuse
    else:
        keys |= _places(dataset)
        keys[CONTRAST] = bool(dataset.get("ContrastBolusAgent") or dataset.get("ContrastBolusAgentSequence"))
    return keys


def _is_colour_mri(dataset: Any) -> bool:
    from mmif_trt.io.dicom.values import MODALITY

    photometric = str(dataset.get("PhotometricInterpretation") or "MONOCHROME2")
    return MODALITY.get(str(dataset.get("Modality"))) == "mri" and not photometric.startswith("MONOCHROME")


def _texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(x) for x in value]


def _places(dataset: Any) -> dict[str, Any]:
    """PLACES: [rows, columns, step row mm, step column mm, 6 axes, 3 position] of each image; or WHY not."""
    from mmif_trt.image import InputError
    from mmif_trt.io.dicom.planes import has_geometry, planes

    if not has_geometry(dataset):
        return {PLACES: [], WHY: "no geometry (no Image Position (Patient))"}
    try:
        found = list(planes(dataset))
    except InputError as error:
        return {PLACES: [], WHY: str(error).removeprefix(f"{dataset.filename}: ")}
    return {
        PLACES: [
            [*plane.size, *plane.step_mm, *(round(float(x), 4) for x in (*plane.axes, *plane.position))]
            for plane in found
        ]
    }
