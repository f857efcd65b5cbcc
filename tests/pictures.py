"""Synthetic pictures, the files others make of them, and what raster.decode must make of those."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest
import tifffile

from mmif_trt.image import InputError
from mmif_trt.io import raster
from mmif_trt.io.raster import png

SIZE_TEXT = "expected 16 to 4096 px per side"


def picture(dtype: str = "uint8", colour: bool = False, height: int = 40, width: int = 53) -> np.ndarray:
    """A ramp with noise on it: all bits in use, and enough structure that encoders compress it."""
    rng = np.random.default_rng(height * width)
    shape = (height, width, 3) if colour else (height, width)
    ramp = np.linspace(0, 1, height * width).reshape(height, width)
    ramp = np.dstack([ramp, ramp[::-1], ramp[:, ::-1]]) if colour else ramp
    unit = 0.9 * ramp + 0.1 * rng.random(shape)
    return unit.astype(np.float32) if dtype == "float32" else (unit * np.iinfo(dtype).max).astype(dtype)


GREY, RGB, GREY16, RGB16 = picture(), picture(colour=True), picture("uint16"), picture("uint16", True)


def by_pillow(pixels: np.ndarray, kind: str, mode: str | None = None, **options: Any) -> bytes:
    stream, source = io.BytesIO(), PIL.Image.fromarray(pixels)
    (source.convert(mode) if mode else source).save(stream, kind, **options)
    return stream.getvalue()


def by_opencv(pixels: np.ndarray, suffix: str, *parameters: int) -> bytes:
    swapped = pixels if pixels.ndim == 2 else pixels[..., ::-1]
    return cv2.imencode(suffix, swapped, parameters)[1].tobytes()


def by_tifffile(pixels: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    photometric = "minisblack" if pixels.ndim == 2 else "rgb"
    tifffile.imwrite(stream, pixels, **({"photometric": photometric} | options))
    return stream.getvalue()


def png_file(
    width: int, height: int, bits: int, colour: int, rows: bytes, *extra: tuple[bytes, bytes], adam7: int = 0
) -> bytes:
    """A PNG by hand. rows: as inflated, filter bytes in; extra: (kind, body) of chunks before the data."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, adam7)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    packed = [struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks]
    return png.SIGNATURE + b"".join(packed)


def rows_of(pixels: np.ndarray, bits: int = 8) -> bytes:
    """Unfiltered PNG rows of [H, W] or [H, W, C] samples."""
    packed = []
    for row in pixels.reshape(len(pixels), -1):
        binary = (row[:, None] >> np.arange(bits - 1, -1, -1)) & 1
        packed.append(b"\0" + np.packbits(binary.astype(np.uint8)).tobytes())
    return b"".join(packed)


def refused(data: bytes, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        raster.decode(data, "some/x.png")
    message = str(caught.value)
    assert message.startswith("some/x.png: ") and "\n" not in message and len(message) < 240, message
    assert all(word in message for word in words), message


def same(data: bytes, expected: np.ndarray) -> None:
    image = raster.decode(data, "x")
    assert image.data.dtype == expected.dtype and image.data.shape == expected.shape
    assert image.data.flags.c_contiguous and image.data.flags.writeable
    np.testing.assert_array_equal(image.data, expected)
