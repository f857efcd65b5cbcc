"""Voxels as text for a page: quantised, split into planes of bytes that compress, deflated, base64."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

LEVEL = 6  # of deflate; 9 takes five times as long for one per cent less


@dataclass(frozen=True)
class Packed:
    """planes: base64 of deflated bytes. kind "grey": value = slope * code + inter, codes of one plane (uint8)
    or two (low bytes, high bytes). kind "rgb": green, red - green and blue - green, each modulo 256."""

    kind: str
    planes: tuple[str, ...]
    slope: float = 1.0
    inter: float = 0.0

    @property
    def size(self) -> int:
        """Bytes in the page."""
        return sum(len(plane) for plane in self.planes)


def grey(values: np.ndarray, levels: int) -> Packed:
    """values: [...] finite, any real dtype, C order. levels: at most this many (2..65536), evenly from the
    lowest value to the highest; whole numbers with fewer stay exact. A value is off by slope / 2 at most."""
    low, high = float(values.min()), float(values.max())
    if np.issubdtype(values.dtype, np.integer) or is_whole(values):
        slope = max(1.0, float(np.ceil((high - low) / (levels - 1))))
    else:
        slope = (high - low) / (levels - 1) or 1.0
    codes = np.rint((values.astype(np.float64) - low) / slope).astype("<u2")
    few = codes.max() < 256
    planes = [codes.astype(np.uint8)] if few else [codes & 255, codes >> 8]
    return Packed("grey", _texts(plane.astype(np.uint8) for plane in planes), slope, low)


def is_whole(values: np.ndarray) -> bool:
    """Whole numbers in a float array, as a rescaled CT in HU has them."""
    return bool((values == np.rint(values)).all())


def rgb(pixels: np.ndarray) -> Packed:
    """pixels: [..., 3] uint8. Lossless; where the picture is grey two of the planes are zero."""
    red, green, blue = (pixels[..., channel] for channel in range(3))
    return Packed("rgb", _texts((green, red - green, blue - green)))


def _texts(planes: Iterable[np.ndarray]) -> tuple[str, ...]:
    return tuple(base64.b64encode(zlib.compress(plane.tobytes(), LEVEL)).decode() for plane in planes)
