"""DICOM Spatial Registration (PS3.3 C.20.2): the position of one frame of reference in another, by
pydicom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mmif_trt.image import RAS_LPS, Image, InputError, stored_text
from mmif_trt.io import dicom
from mmif_trt.running import why

SOP_CLASS = "1.2.840.10008.5.1.4.1.1.66.1"


@dataclass(frozen=True)
class Side:
    """How a registration may refer to an image. name: for messages."""

    name: str
    frame: str | None
    instances: tuple[str, ...]
    patient: str


def side_of(image: Image) -> Side:
    uids = tuple(str(header.get("SOPInstanceUID", "")) for header in image.headers)
    patient = stored_text(image.headers[0], "PatientID") if image.headers else ""
    return Side(image.source, image.frame, uids, patient)


def decode(data: bytes, name: str, a: Side, b: Side) -> tuple[np.ndarray, str]:
    """([4, 4] a's RAS+ mm to b's, words that name the instance) of a Spatial Registration file.

    Its items each lead from one frame of reference, or from the images they list, into the frame that the
    instance itself names: a's, then b's backwards (equation C.20.2-3). Rigid, scaled and affine matrices are
    used unchanged. Raises InputError for another SOP class (deformable ones too), another patient, a frame
    that the file does not mention or contradicts itself on, and a matrix that mirrors or flattens space.
    """
    dataset = dicom.parse(data, name, pixels=False)
    try:
        if dataset.get("SOPClassUID") != SOP_CLASS:
            raise InputError(f"{name}: another SOP class; expected a Spatial Registration")
        for side in (a, b):
            theirs = stored_text(dataset, "PatientID")
            if side.patient and theirs and side.patient != theirs:
                raise InputError(f"{name} and {side.name} name different patients; expected the same patient")
        into_a, into_b = (_into_registered(dataset, name, side) for side in (a, b))
        words = f"Spatial Registration {dataset.SOPInstanceUID}"
    except InputError:
        raise
    except Exception as error:  # pydicom raises whatever the bytes lead it to
        raise InputError(f"{name}: damaged DICOM ({why(error)}); expected a complete file") from None
    return RAS_LPS @ np.linalg.inv(into_b) @ into_a @ RAS_LPS, words


def frames(dataset: Any) -> list[str]:
    """The frames of reference that a Spatial Registration ties together; [] for anything else."""
    if dataset.get("SOPClassUID") != SOP_CLASS:
        return []
    items = [dataset, *(dataset.get("RegistrationSequence") or [])]
    return sorted({str(item.get("FrameOfReferenceUID") or "") for item in items} - {""})


def _into_registered(dataset: Any, name: str, side: Side) -> np.ndarray:
    """[4, 4], LPS mm of a side's frame to those of the frame that the instance itself names."""
    found = [_product(item, name) for item in dataset.get("RegistrationSequence") or [] if _is_of(item, side)]
    if not found and side.frame and side.frame == dataset.get("FrameOfReferenceUID"):
        return np.eye(4)
    if not found:
        raise InputError(
            f"{name}: does not mention the frame of reference of {side.name}; expected that of both sources"
        )
    if any(not np.allclose(matrix, found[0], atol=1e-6) for matrix in found):
        raise InputError(f"{name}: several matrices for {side.name}; expected one per frame")
    return found[0]


def _is_of(item: Any, side: Side) -> bool:
    if side.frame and item.get("FrameOfReferenceUID"):
        return str(item.FrameOfReferenceUID) == side.frame
    listed = {str(image.ReferencedSOPInstanceUID) for image in item.get("ReferencedImageSequence") or []}
    return bool(listed) and listed <= set(side.instances)


def _product(item: Any, name: str) -> np.ndarray:
    """The matrices of one item, multiplied in order (equation C.20.2-2)."""
    product = np.eye(4)
    for part in item.MatrixRegistrationSequence[0].MatrixSequence:
        values = np.array([float(x) for x in part.FrameOfReferenceTransformationMatrix])
        if values.shape != (16,) or not np.isfinite(values).all() or (values[12:] != (0, 0, 0, 1)).any():
            raise InputError(
                f"{name}: a matrix that is not a [4, 4] of homogeneous coordinates; expected one"
            )
        product = product @ values.reshape(4, 4)
    stretch = np.linalg.svd(product[:3, :3], compute_uv=False)
    if np.linalg.det(product[:3, :3]) <= 0 or stretch.min() < 0.5 or stretch.max() > 2:
        raise InputError(f"{name}: a matrix that mirrors, or stretches by over 2; expected a registration")
    return product
