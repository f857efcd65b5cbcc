"""io.raster and its tiff and jpeg: bytes to pixels, and what is refused. For PNG see test_png.py."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest
from pictures import (
    GREY,
    GREY16,
    RGB,
    RGB16,
    SIZE_TEXT,
    by_opencv,
    by_pillow,
    by_tifffile,
    picture,
    png_file,
    refused,
    rows_of,
    same,
)

from mmif_trt.image import InputError
from mmif_trt.io import raster
from mmif_trt.io.raster.headers import tiff_tags

# Other people's encoders


@pytest.mark.parametrize("pixels", [GREY, RGB, GREY16, RGB16], ids=["grey8", "rgb8", "grey16", "rgb16"])
def test_other_encoders(pixels: np.ndarray) -> None:
    for suffix in [".png", ".tiff"]:
        same(by_opencv(pixels, suffix), pixels)
    same(by_opencv(pixels, ".jp2", cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000), pixels)
    for packing in (1, 5, 8, 32773):
        same(by_opencv(pixels, ".tiff", cv2.IMWRITE_TIFF_COMPRESSION, packing), pixels)
    for options in ({}, {"byteorder": ">"}, {"tile": (32, 32)}, {"compression": "deflate", "predictor": 2}):
        same(by_tifffile(pixels, **options), pixels)
    same(by_tifffile(pixels, compression="deflate", byteorder=">", tile=(16, 48), predictor=2), pixels)
    if pixels is not RGB16:  # which Pillow does not have
        for kind in ["PNG", "TIFF", "JPEG2000"]:
            same(by_pillow(pixels, kind), pixels)
    if pixels.dtype == np.uint8:  # Pillow writes wrong tiles in 16 bits
        same(by_pillow(pixels, "JPEG2000", no_jp2=True, tile_size=(32, 32)), pixels)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 2}, {"restart_marker_rows": 1}]
)
def test_jpeg_as_pillow_decodes_it(options: dict[str, Any]) -> None:
    for pixels in (GREY, RGB, np.zeros_like(GREY), picture(height=256, width=16)):
        data = by_pillow(pixels, "JPEG", quality=90, **options)
        expected = np.array(PIL.Image.open(io.BytesIO(data)))
        same(data, expected)
        same(data + b"trailing bytes", expected)


def test_float_tiff() -> None:
    for colour in (False, True):
        pixels = picture("float32", colour) * 900 - 100
        for options in ({}, {"byteorder": ">"}, {"compression": "deflate", "tile": (16, 32)}):
            same(by_tifffile(pixels, **options), pixels)
    pixels[3, 4] = np.nan
    refused(by_tifffile(pixels), "NaN")


# Kinds of pixels


@pytest.mark.parametrize("pixels", [RGB, RGB16, picture("float32", True)], ids=["8", "16", "float"])
def test_alpha_of_tiff(pixels: np.ndarray) -> None:
    top = 1 if pixels.dtype == np.float32 else np.iinfo(pixels.dtype).max
    alpha = np.full(pixels.shape[:2], top, pixels.dtype)
    clear = alpha.copy()
    clear[20, 30] = top // 2
    for kind in ("unspecified", "assocalpha", "unassalpha"):
        same(by_tifffile(np.dstack([pixels, alpha]), extrasamples=[kind]), pixels)
        refused(by_tifffile(np.dstack([pixels, clear]), extrasamples=[kind]), "transparent")


def test_small_jpeg2000() -> None:
    same(by_pillow(GREY[:16, :16].copy(), "JPEG2000"), GREY[:16, :16])


def test_jpeg2000_alpha() -> None:
    same(by_pillow(RGB, "JPEG2000", "RGBA"), RGB)
    refused(by_pillow(np.dstack([RGB, GREY]), "JPEG2000"), "transparent")


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_orientation_tags_are_not_ignored(kind: str) -> None:
    exif = PIL.Image.Exif()
    for exif[274] in range(2, 9):
        refused(by_pillow(RGB, kind, exif=exif), f"orientation tag {exif[274]}", "expected 1")
    exif[274] = 1
    assert raster.decode(by_pillow(RGB, kind, exif=exif), "x").is_colour


def test_grey_stored_as_rgb_stays_rgb() -> None:
    same(by_pillow(np.dstack([GREY] * 3), "PNG"), np.dstack([GREY] * 3))


PAGES: dict[str, Any] = {"save_all": True, "append_images": [PIL.Image.fromarray(RGB[::-1].copy())]}
NOT_ACCEPTED: dict[str, tuple[Callable[[], bytes], str]] = {
    "CMYK JPEG": (lambda: by_pillow(RGB, "JPEG", "CMYK"), "CMYK"),
    "CMYK TIFF": (lambda: by_pillow(RGB, "TIFF", "CMYK"), "CMYK"),
    "CMYK JPEG 2000": (lambda: by_pillow(RGB, "JPEG2000", "CMYK"), "colour space 12"),
    "YCbCr JPEG 2000": (lambda: by_pillow(RGB, "JPEG2000", "YCbCr"), "colour space 18"),
    "palette TIFF": (lambda: by_pillow(RGB, "TIFF", "P"), "palette"),
    "1-bit TIFF": (lambda: by_pillow(RGB, "TIFF", "1"), "[1] bits"),
    "grey alpha TIFF": (lambda: by_pillow(RGB, "TIFF", "LA"), "2 samples"),
    "inverted TIFF": (lambda: by_tifffile(GREY, photometric="miniswhite"), "white is zero"),
    "planar TIFF": (lambda: by_tifffile(RGB.transpose(2, 0, 1), planarconfig="separate"), "planar"),
    "BigTIFF": (lambda: by_tifffile(GREY, bigtiff=True), "BigTIFF"),
    "JPEG in TIFF": (lambda: by_pillow(RGB, "TIFF", compression="jpeg"), "compression 7"),
    "signed TIFF": (lambda: by_tifffile(GREY.astype(np.int16)), "sample format [2]"),
    "double TIFF": (lambda: by_tifffile(GREY.astype(np.float64)), "[64] bits"),
    "pages of TIFF": (lambda: by_pillow(RGB, "TIFF", **PAGES), "several pages"),
    "animated PNG": (lambda: by_pillow(RGB, "PNG", **PAGES), "animated"),
    "unknown chunk": (lambda: png_file(53, 40, 8, 0, rows_of(GREY), (b"ABCD", b"?")), "ABCD"),
    "GIF": (lambda: by_pillow(GREY, "GIF"), "expected PNG, TIFF, JPEG, JPEG 2000"),
    "text": (lambda: b"a text file\nnamed .png", "begins with b'a text f'"),
    "nothing": (lambda: b"", "an empty file"),
    "15 px": (lambda: by_pillow(picture(height=15, width=90), "PNG"), "15 x 90 px; " + SIZE_TEXT),
}


@pytest.mark.parametrize("name", NOT_ACCEPTED)
def test_what_is_refused(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    make, words = NOT_ACCEPTED[name]
    refused(make(), words)
    assert capfd.readouterr().err == ""


# Damage


def patched(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data and len(old) == len(new)
    return data.replace(old, new, 1)


WHOLE: dict[str, Callable[[], bytes]] = {
    "PNG": lambda: by_pillow(RGB, "PNG"),
    "PNG 16": lambda: by_opencv(RGB16, ".png"),
    "TIFF": lambda: by_pillow(RGB, "TIFF"),
    "TIFF LZW": lambda: by_opencv(RGB, ".tiff", cv2.IMWRITE_TIFF_COMPRESSION, 5),
    "TIFF tiles": lambda: by_tifffile(RGB16, tile=(16, 16), compression="deflate"),
    "JPEG": lambda: by_pillow(RGB, "JPEG", quality=95),
    "JPEG progressive": lambda: by_pillow(RGB, "JPEG", progressive=True),
    "JPEG 2000": lambda: by_opencv(RGB16, ".jp2"),
    "JPEG 2000 tiles": lambda: by_pillow(RGB, "JPEG2000", tile_size=(16, 16)),
    "codestream": lambda: by_pillow(RGB, "JPEG2000", no_jp2=True),
}


@pytest.mark.parametrize("name", WHOLE)
def test_every_cut_is_noticed(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Each of the first and last 100 bytes and 150 more cuts: an error, or the whole picture."""
    data = WHOLE[name]()
    whole = raster.decode(data, "x").data
    cuts = {*range(100), *range(100, len(data), len(data) // 150), *range(len(data) - 100, len(data))}
    survived = []
    for length in sorted(cuts):
        try:
            image = raster.decode(data[:length], "x")
        except InputError as error:
            assert "\n" not in str(error)
        else:
            survived.append(length)
            np.testing.assert_array_equal(image.data, whole)
    assert len(survived) <= 4 and all(length >= len(data) - 4 for length in survived), (
        survived
    )  # TIFF's padding
    assert capfd.readouterr().err == ""


def test_damage_in_compressed_tiff_is_noticed() -> None:
    for pixels in (GREY, RGB, GREY16, RGB16):  # OpenCV would return the 8-bit ones, partly decoded
        data = by_tifffile(pixels, compression="deflate")
        middle = len(data) // 2
        refused(data[:middle] + bytes(40) + data[middle + 40 :], "damaged TIFF")


@pytest.mark.parametrize("packing", [1, 5, 8, 32773], ids=["none", "LZW", "deflate", "PackBits"])
@pytest.mark.parametrize("pixels", [GREY, RGB, GREY16, RGB16], ids=["grey8", "rgb8", "grey16", "rgb16"])
def test_lying_tiff(pixels: np.ndarray, packing: int) -> None:
    """A strip whose stated size is half, or one byte less than the true one, or more than the file."""
    one_strip = (cv2.IMWRITE_TIFF_COMPRESSION, packing, cv2.IMWRITE_TIFF_ROWSPERSTRIP, 64)
    data = by_opencv(pixels, ".tiff", *one_strip)
    size = tiff_tags(data)[0][279][0]
    old = next(entry for kind in (3, 4) if (entry := struct.pack("<HHII", 279, kind, 1, size)) in data)
    lies = [size // 2, size - 8, len(data) + size] + [size - 2] * (packing == 8)  # of the checksum
    for lie in lies:
        refused(patched(data, old, struct.pack("<HHII", 279, 4, 1, lie)), "TIFF")


def test_jpeg2000_without_one_tile() -> None:
    data = by_pillow(RGB, "JPEG2000", no_jp2=True, tile_size=(32, 32))
    refused(data[: data.rindex(b"\xff\x90")] + b"\xff\xd9", "tiles missing")


def test_lying_jpeg() -> None:
    """More rows announced than there are, an end marker before the last row: libjpeg fills with grey."""
    for pixels in (picture(height=64, width=80), picture(colour=True, height=64, width=80)):
        data = by_pillow(pixels, "JPEG", quality=90, subsampling=0)
        frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
        refused(data[: frame + 5] + struct.pack(">H", 96) + data[frame + 7 :], "JPEG")
        for cut in range(scan + 100, len(data) - 150, 50):
            refused(data[:cut].rstrip(b"\xff") + b"\xff\xd9", "JPEG")
    data = by_pillow(RGB, "JPEG", progressive=True)
    last_scan = data.rindex(b"\xff\xda")
    refused(data[:last_scan] + b"\xff\xd9", "scans missing")


def test_bombs_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def decoder(*_: object, **__: object) -> None:
        raise AssertionError("a decoder was called")

    side = struct.pack(">I", 100_000)
    bombs = [
        png_file(100_000, 100_000, 8, 0, rows_of(GREY)),
        patched(
            by_pillow(GREY, "TIFF"),
            struct.pack("<HHII", 256, 4, 1, 53),
            struct.pack("<HHII", 256, 4, 1, 10**5),
        ),
        patched(
            by_pillow(GREY, "JPEG"), struct.pack(">BHH", 8, 40, 53), struct.pack(">BHH", 8, 65500, 65500)
        ),
        patched(
            by_pillow(GREY, "JPEG2000", no_jp2=True), struct.pack(">HII", 0, 53, 40), bytes(2) + side + side
        ),
    ]
    monkeypatch.setattr(cv2, "imdecode", decoder)
    monkeypatch.setattr(PIL.Image, "open", decoder)
    for data in bombs:
        refused(data, SIZE_TEXT)
