"""A synthetic head: MRI, CT and PET as functions of millimetres, with noise, on any grid.

For pictures of the documentation and for timings at clinical sizes. Ellipsoids for scalp, skull, fluid and
brain; folds and matter from smooth noise; nothing here was measured on a person.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np


@dataclass(frozen=True)
class Head:
    """mri: 0..1000, ct: HU, pet: SUV; float32 [S, H, W] on affine, (slice, row, column) to RAS+ mm."""

    mri: np.ndarray
    ct: np.ndarray
    pet: np.ndarray
    affine: np.ndarray


def make(shape: tuple[int, int, int], spacing_mm: float, seed: int = 0) -> Head:
    """shape: slices from the feet up, rows from the front, columns from the patient's right, as in DICOM."""
    rng = np.random.default_rng(seed)
    affine = np.zeros((4, 4))
    affine[:3, :3] = np.array([[0, 0, -1], [0, -1, 0], [1, 0, 0]]) * spacing_mm
    affine[3, 3] = 1.0
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    z, y, x = (
        (np.arange(side, dtype=np.float32) - (side - 1) / 2).reshape(
            [-1 if i == axis else 1 for i in range(3)]
        )
        * np.float32(spacing_mm)
        for axis, side in enumerate(shape)
    )
    folds, coarse = (_smooth(rng, shape, mm / spacing_mm) for mm in (3.0, 9.0))

    def within(rx: float, ry: float, rz: float, cx: float = 0, cy: float = 0, cz: float = 0) -> Any:
        """Signed distance, roughly in mm, from an ellipsoid; negative inside. cy: towards the back."""
        far = np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2)
        return (far - 1) * min(rx, ry, rz)

    scalp, skull = within(76, 95, 84), within(70, 89, 78)
    inner = within(64, 83, 72)
    brain = inner + 3.0 + 2.6 * folds  # the surface is folded
    white = brain + 5.0 + 4.0 * folds + 2.0 * coarse
    ventricle = np.minimum(
        np.minimum(within(7, 26, 11, -11, -4, 8), within(7, 26, 11, 11, -4, 8)), within(3, 14, 8, 0, 6, -8)
    )
    deep = np.minimum(within(9, 14, 10, -20, -2, 0), within(9, 14, 10, 20, -2, 0))
    lesion = within(8, 9, 8, 34, 24, 22)
    tissue = [(scalp, 700, 40, 0.5), (skull, 90, 900, 0.3), (inner, 180, 12, 0.5), (brain, 520, 38, 6.5)]
    tissue += [(white, 760, 30, 2.6), (deep, 560, 40, 7.5), (ventricle, 170, 8, 0.4), (lesion, 430, 22, 9.5)]
    mri, ct, pet = (np.full(shape, value, np.float32) for value in (0, -1000, 0))
    for where, *values in tissue:
        part = where < 0
        for volume, value in zip((mri, ct, pet), values, strict=True):
            volume[part] = value
    mri = np.abs(mri * (1 + 0.05 * coarse) + rng.normal(0, 14, shape)).astype(np.float32)
    ct += rng.normal(0, 6, shape).astype(np.float32)
    pet = _blurred(pet, 5.0 / 2.355 / spacing_mm) * (1 + 0.02 * rng.normal(size=shape)).astype(np.float32)
    return Head(np.rint(mri), np.rint(ct), np.maximum(pet, 0), affine)


def _blurred(volume: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian along all axes; sigma in voxels."""
    flat = np.stack([cv2.GaussianBlur(plane, (0, 0), sigma) for plane in volume])
    depth = np.ascontiguousarray(flat.reshape(len(flat), -1))
    return cv2.GaussianBlur(depth, (0, 0), sigmaX=1e-6, sigmaY=sigma).reshape(volume.shape)


def _smooth(rng: np.random.Generator, shape: tuple[int, int, int], sigma: float) -> np.ndarray:
    """Smooth noise of mean 0 and deviation 1."""
    noise = _blurred(rng.normal(size=shape).astype(np.float32), sigma)
    return (noise - noise.mean()) / noise.std()
