"""Pixels of any type to [0, 1] by their stated value range, and back. No stretch to an image's own extremes,
ever."""

from __future__ import annotations

import numpy as np

from mmif_trt.image import Image


def to_unit(image: Image) -> np.ndarray:
    """The pixels as float32, black 0 and white 1; what lies outside the value range saturates, as a display
    would.

    Every level of 8 and 16 bits maps to a value of its own.
    """
    assert image.value_range is not None
    low, high = image.value_range
    unit = (image.data.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return np.clip(unit, 0, 1, out=unit)


def from_unit(unit: np.ndarray, dtype: np.dtype, value_range: tuple[float, float]) -> np.ndarray:
    """The inverse of `to_unit`: float32 in [0, 1] to `dtype`, rounded to nearest for integers."""
    low, high = value_range
    values = unit * np.float32(high - low) + np.float32(low)
    if dtype == np.float32:
        return np.asarray(values, np.float32)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)
