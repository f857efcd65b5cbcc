"""Voxels for a page: quantised, split into planes of bytes that compress, deflated."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmif_trt.image import Image
from mmif_trt.stages import normalise

LEVEL = 6  # of deflate; 9 takes five times as long to save one per cent


@dataclass(frozen=True)
class Packed:
    """planes: deflated bytes. kind "grey": value = slope * code + inter, codes of one plane (uint8)
    or two (low bytes, high bytes). kind "rgb": green, red - green and blue - green, each modulo 256."""

    kind: str
    planes: tuple[bytes, ...]
    slope: float = 1.0
    inter: float = 0.0

    @property
    def size(self) -> int:
        """Bytes in a page, as base64."""
        return sum(-(-len(plane) // 3) * 4 for plane in self.planes)


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
    return Packed("grey", _deflated(plane.astype(np.uint8) for plane in planes), slope, low)


def is_whole(values: np.ndarray) -> bool:
    """Whether a float array holds whole numbers only, like a CT rescaled to HU."""
    return bool((values == np.rint(values)).all())


def rgb(pixels: np.ndarray) -> Packed:
    """pixels: [..., 3] uint8. Lossless; for a grey picture two of the planes are zero."""
    red, green, blue = (pixels[..., channel] for channel in range(3))
    return Packed("rgb", _deflated((green, red - green, blue - green)))


def _deflated(planes: Iterable[np.ndarray]) -> tuple[bytes, ...]:
    return tuple(zlib.compress(plane.tobytes(), LEVEL) for plane in planes)


def pack_of(image: Image, levels: int) -> Packed:
    """Colour as 8 bits by its value range, grey with its own values. Raises InputError, see
    normalise.refuse_other_scale."""
    if not image.is_colour:
        return grey(image.data, levels)
    normalise.refuse_other_scale(image)
    pixels = image.data
    if pixels.dtype != np.uint8:
        low_high = image.value_range or (0.0, float(pixels.max()) or 1.0)
        pixels = normalise.from_unit(normalise.unit(pixels, low_high), np.dtype(np.uint8), (0, 255))
    return rgb(pixels)


MAGIC = b"MMIFVOL1"


def to_file(packed: Packed, facts: dict[str, Any]) -> bytes:
    """One volume on its own: MAGIC, the length of a JSON text (uint32, little endian), the text, the planes.
    The text has facts, and kind, slope, inter and the planes' sizes in bytes."""
    sizes = [len(plane) for plane in packed.planes]
    head = {**facts, "kind": packed.kind, "slope": packed.slope, "inter": packed.inter, "sizes": sizes}
    text = json.dumps(head, allow_nan=False).encode()
    return b"".join([MAGIC, struct.pack("<I", len(text)), text, *packed.planes])
