"""Layers of napari to images and back, without Qt.

napari's world has axes in the order of the array, in the units of the layers' scales, and no left or right.
The plugin takes its last three axes for slice, row and column as DICOM has them in axial slices (towards the
head, the back, the patient's left), in mm: where layers lie to each other holds, sides of the patient do not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmif_trt import weights
from mmif_trt.image import DTYPE_RANGE, Image, InputError
from mmif_trt.samples import sample
from mmif_trt.volume import Options

# World (z, y, x) to RAS+ mm.
WORLD = np.array([[0, 0, -1, 0], [0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], np.float64)
BY_MODALITY = "by modality"


def image_of(layer: Any, modality: str | None = None) -> Image:
    """A layer [H, W], [S, H, W] or either with RGB as an Image; black and white by its contrast limits.

    Raises InputError for other shapes, pyramids and values that are not finite.
    """
    if getattr(layer, "multiscale", False):
        raise InputError(
            f"layer {layer.name}: a pyramid of scales; expected one array: add one scale as a layer"
        )
    data, is_rgb = np.asarray(layer.data), bool(getattr(layer, "rgb", False))
    sides = data.ndim - is_rgb
    if sides not in (2, 3):
        raise InputError(
            f"layer {layer.name}: {sides} axes; expected 2 (a picture) or 3 (a volume): add one of the "
            "series as a layer"
        )
    if is_rgb:
        data = np.ascontiguousarray(data[..., :3])  # napari's RGBA without its opacity
    if data.dtype.name not in DTYPE_RANGE:
        data = data.astype(np.float32)
    low, high = (float(x) for x in ((0, 255) if is_rgb else layer.contrast_limits))
    limits = None if is_rgb else (low, high)
    matrix = _matrix(layer, sides)
    if sides == 2:
        pitch = tuple(float(x) for x in np.linalg.norm(matrix[:2, :2], axis=0))
        return Image(data, limits, modality, spacing_mm=pitch, source=layer.name)
    return Image(data, limits, modality, affine=WORLD @ matrix, source=layer.name)


def _matrix(layer: Any, sides: int) -> np.ndarray:
    """[sides + 1, sides + 1] the layer's array index to napari's world."""
    origin = np.asarray(layer.data_to_world((0.0,) * sides))[-sides:]
    matrix = np.eye(sides + 1)
    matrix[:sides, sides] = origin
    for axis, unit in enumerate(np.eye(sides)):
        matrix[:sides, axis] = np.asarray(layer.data_to_world(tuple(unit)))[-sides:] - origin
    return matrix


def fuse_layers(
    mri: Any,
    other: Any,
    modality: str = "pet",
    palette: str = BY_MODALITY,
    registration: str = "header",
    plane: str = "axial",
    fuser: Any = None,
    network: str = weights.DEFAULT,
) -> tuple[np.ndarray, dict[str, Any], str]:
    """The fused layer as napari takes it: (array, what add_image needs, "image").

    modality, palette, registration, plane: as of volume.Options; "header" places the layers as napari shows
    them. Pictures have to be of one size. fuser: a Fuser; None loads one, of `network`. Raises
    InputError.
    """
    if fuser is None:
        from mmif_trt.fuser import Fuser

        fuser = Fuser(network=network)
    a, b = image_of(mri, "mri"), image_of(other, modality)
    made: dict[str, Any] = {
        "name": f"{mri.name} + {other.name}",
        "affine": _matrix(mri, a.data.ndim - a.is_colour),
    }
    if not (a.is_volume or b.is_volume):
        fused, told = fuser.fuse_images(a, b), {}
    else:
        stated = None if palette == BY_MODALITY else palette
        options = Options(plane=plane, palette=stated, registration=registration)
        done = fuser.fuse_volumes(a, b, options)
        fused, told = done.image, done.record
    made |= {"rgb": fused.is_colour, "metadata": {"mmif_trt": told}}
    if not fused.is_colour:
        made["contrast_limits"] = fused.value_range
    return fused.data, made, "image"


def sample_layers() -> list[tuple[np.ndarray, dict[str, Any], str]]:
    """The bundled MRI and simulated PET, for napari's File, Open Sample."""
    a, b = sample("mri-pet")
    return [
        (np.asarray(one), {"name": name, "rgb": one.is_colour}, "image")
        for name, one in (("MRI", a), ("PET (simulated)", b))
    ]
