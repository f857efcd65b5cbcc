"""io.raster.png: every kind of PNG, and every kind of damage to one."""

from __future__ import annotations

import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from pictures import GREY, GREY16, RGB, RGB16, by_pillow, png_file, refused, rows_of, same

from mmif_trt.io.raster import png


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_png_with_few_bits(bits: int) -> None:
    index = (GREY >> (8 - bits)).astype(np.uint8)
    rows, size = rows_of(index, bits), (GREY.shape[1], GREY.shape[0])
    same(png_file(*size, bits, 0, rows), index * (255 // (2**bits - 1)))
    colours = np.random.default_rng(0).integers(0, 256, (2**bits, 3), dtype=np.uint8)
    greys = np.repeat(colours[:, :1], 3, axis=1)
    same(png_file(*size, bits, 3, rows, (b"PLTE", colours.tobytes())), colours[index])
    same(png_file(*size, bits, 3, rows, (b"PLTE", greys.tobytes())), greys[index][..., 0])
    refused(png_file(*size, bits, 3, rows, (b"PLTE", colours[:-1].tobytes())), "palette")
    opaque, clear = (b"tRNS", b"\xff" * 2**bits), (b"tRNS", b"\xff" * (2**bits - 1) + b"\x7f")
    same(png_file(*size, bits, 3, rows, (b"PLTE", colours.tobytes()), opaque), colours[index])
    refused(png_file(*size, bits, 3, rows, (b"PLTE", colours.tobytes()), clear), "transparent")
    refused(png_file(*size, bits, 0, rows, (b"tRNS", struct.pack(">H", int(index.max())))), "transparent")


def test_interlaced_png() -> None:
    for pixels, colour in ((GREY, 0), (RGB, 2)):
        passes = (rows_of(pixels[y::dy, x::dx]) for x, y, dx, dy in png.ADAM7)
        same(png_file(pixels.shape[1], pixels.shape[0], 8, colour, b"".join(passes), adam7=1), pixels)


@pytest.mark.parametrize("pixels", [GREY, RGB, GREY16, RGB16], ids=["grey8", "rgb8", "grey16", "rgb16"])
def test_alpha_is_dropped_only_where_opaque(pixels: np.ndarray) -> None:
    top, bits = np.iinfo(pixels.dtype).max, 8 * pixels.itemsize
    size = (pixels.shape[1], pixels.shape[0])
    alpha = np.full((*pixels.shape[:2], 1), top, pixels.dtype)
    clear = alpha.copy()
    clear[20, 30] -= 1
    samples = pixels.reshape(*pixels.shape[:2], -1)
    colour = 4 if pixels.ndim == 2 else 6
    same(png_file(*size, bits, colour, rows_of(np.dstack([samples, alpha]), bits)), pixels)
    refused(png_file(*size, bits, colour, rows_of(np.dstack([samples, clear]), bits)), "transparent")
    key = struct.pack(f">{samples.shape[2]}H", *samples[7, 9])
    refused(png_file(*size, bits, colour - 4, rows_of(samples, bits), (b"tRNS", key)), "transparent")
    absent = struct.pack(f">{samples.shape[2]}H", *[top] * samples.shape[2])
    same(png_file(*size, bits, colour - 4, rows_of(samples, bits), (b"tRNS", absent)), pixels)


def test_every_flipped_bit_of_a_png_is_noticed() -> None:
    data = by_pillow(RGB, "PNG")
    for at in range(0, len(data), 7):
        refused(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])


def test_lying_png() -> None:
    for width, height, words in [(53, 39, "more"), (53, 41, "less"), (52, 40, "more"), (54, 40, "less")]:
        refused(png_file(width, height, 8, 0, rows_of(GREY)), f"announces {height} x {width} px", words)
    refused(png_file(53, 40, 16, 0, rows_of(GREY)), "less")
    refused(png_file(53, 40, 8, 0, b"\x09" + rows_of(GREY)[1:]), "filter")
    refused(png_file(53, 40, 8, 0, rows_of(GREY), (b"IHDR", b"")), "IHDR")


def test_a_bomb_is_not_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 kB that inflate to 100 MB, under a header of 16 x 16 px: the decoder asks for 272 bytes and one
    more."""
    data, asked = png_file(16, 16, 8, 0, bytes(10**8)), []

    class Inflater:
        def __init__(self) -> None:
            self.real = zlib.decompressobj()

        def decompress(self, packed: bytes, most: int) -> bytes:
            asked.append(most)
            return self.real.decompress(packed, most)

    monkeypatch.setattr(png, "zlib", SimpleNamespace(decompressobj=Inflater, crc32=zlib.crc32))
    refused(data, "16 x 16 px", "more")
    assert asked == [16 * 17 + 1]
