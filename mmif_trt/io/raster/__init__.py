"""PNG, TIFF, JPEG and JPEG 2000 between bytes and pixels: the complete picture or an InputError.

OpenCV alone returns a cropped PNG, a JPEG with a grey lower half or a TIFF without its alpha, with at most a
line on stderr. So png.py, tiff.py and jpeg.py first check what their format allows: announced size, kind of
pixels, lengths, checksums. No check finds bits that flipped inside the data of a JPEG, TIFF or JPEG 2000,
which carry no checksum. Colour profiles and gamma are ignored on purpose: pixels stay as stored.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import cv2
import numpy as np
import PIL.Image

from mmif_trt.image import DTYPE_RANGE, Image, InputError
from mmif_trt.io.raster import jpeg, png, tiff
from mmif_trt.io.raster.headers import Checked, Label

# The content decides, not the suffix: a JPEG named .png is a JPEG.
READERS: dict[str, tuple[tuple[bytes, ...], Callable[[bytes], Checked]]] = {
    "PNG": ((png.SIGNATURE,), png.check),
    "TIFF": (tiff.SIGNATURES, tiff.check),
    "JPEG": ((jpeg.JPEG_SIGNATURE,), jpeg.check_jpeg),
    "JPEG 2000": ((jpeg.JP2_SIGNATURE, jpeg.J2K_SIGNATURE), jpeg.check_jp2),
}

# Image.label in each format's own place for it.
LABELLED: dict[str, Callable[[bytes, Label], bytes]] = {
    ".png": png.labelled,
    ".tiff": tiff.labelled,
    ".jpg": jpeg.labelled,
    ".jp2": jpeg.labelled_jp2,
}


def decode(data: bytes, name: str) -> Image:
    """data: the bytes of a complete file. Raises InputError that starts with `name`."""
    kind, proven = check(data, name)
    try:
        pixels = _pixels(proven, kind)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    return Image(pixels, source=name)


def check(data: bytes, name: str) -> tuple[str, Checked]:
    """The kind of a complete file, and what can be checked before decoding. Errors as in `decode`."""
    kind = next((kind for kind, (signatures, _) in READERS.items() if data.startswith(signatures)), None)
    if kind is None:
        received = f"begins with {data[:8]!r}" if data else "an empty file"
        raise InputError(f"{name}: {received}; expected {', '.join(READERS)} files")
    try:
        return kind, READERS[kind][1](data)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    except (struct.error, zlib.error, IndexError, ArithmeticError):
        raise InputError(f"{name}: truncated or damaged {kind}; expected a complete file") from None


def _pixels(checked: Checked, kind: str) -> np.ndarray:
    """[H, W] or [H, W, 3] RGB; alpha is dropped if it is opaque everywhere. Raises InputError if it is not,
    and if the decoder returns nothing or something other than announced."""
    # OpenCV continues after an error in the compressed data of a TIFF, if it is 8-bit; Pillow stops.
    decoder = _pillow if kind == "TIFF" and checked.dtype == np.uint8 else _opencv
    pixels = decoder(checked.stream)
    if pixels is None or pixels.dtype != checked.dtype or (*pixels.shape, 1)[:3] != checked.shape:
        raise InputError(f"damaged {kind}: its pixels cannot be decoded; expected a complete file")
    if checked.palette is not None and checked.alpha is not None:
        return _from_palette(pixels // checked.step, checked.palette, checked.alpha)
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        _check_opaque(pixels[..., 3] == DTYPE_RANGE[pixels.dtype.name][1])
        pixels = np.ascontiguousarray(pixels[..., 0] if checked.grey_alpha else pixels[..., :3])
    if checked.key is not None:
        _check_opaque((pixels.reshape(*pixels.shape[:2], -1) != checked.key).any(axis=2))
    return pixels


def _opencv(stream: bytes) -> np.ndarray | None:
    """[H, W], RGB or RGBA as stored, or None."""
    try:
        pixels = cv2.imdecode(np.frombuffer(stream, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if pixels is None or pixels.ndim == 2:
        return pixels
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)


def _pillow(stream: bytes) -> np.ndarray | None:
    """[H, W], RGB or RGBA of an 8-bit TIFF, or None."""
    try:
        with PIL.Image.open(io.BytesIO(stream), formats=("TIFF",)) as picture:
            picture.load()  # here, where its error is caught
            return np.array(picture)
    except (OSError, SyntaxError, ValueError):
        return None


def _from_palette(index: np.ndarray, table: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """RGB, or grey if the whole palette is grey: not only its used entries, so that an empty slice of a
    colour-mapped series stays colour. index: [H, W] uint8, table: [n, 3] uint8, alpha: [256] uint8."""
    if index.max() >= len(table):
        raise InputError(f"PNG palette of {len(table)} entries and a pixel of index {index.max()}; damaged")
    _check_opaque(alpha[index] == 255)
    return np.ascontiguousarray(table[:, 0])[index] if (table == table[:, :1]).all() else table[index]


def _check_opaque(opaque: np.ndarray) -> None:
    if not opaque.all():
        raise InputError("transparent pixels; expected no alpha, or opaque alpha: flatten it first")


def encode(image: Image, suffix: str, *parameters: int) -> bytes:
    """The bytes of one file in OpenCV's format `suffix`. The caller checks the dtype and names the file."""
    data = image.data
    pixels = np.ascontiguousarray(data, dtype=data.dtype.newbyteorder("="))
    if image.is_colour:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    done, stream = cv2.imencode(suffix, pixels, parameters)
    if not done:
        raise InputError(f"OpenCV could not encode {image!r}; expected another format")
    return LABELLED[suffix](stream.tobytes(), image.label) if image.label else stream.tobytes()


def encode_png(image: Image) -> bytes:
    """Lossless. The fastest level and one filter (up): 0.4 to 1.5 ms at 256 x 256, within about 10 % of the
    size with level 6 and all filters, which takes 2 to 6 ms. Run lengths suffice for grey; the few hues of a
    colour map need real matches."""
    strategy = cv2.IMWRITE_PNG_STRATEGY_DEFAULT if image.is_colour else cv2.IMWRITE_PNG_STRATEGY_RLE
    row_filter = (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP)
    return encode(
        image, ".png", cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, strategy, *row_filter
    )


def encode_tiff(image: Image) -> bytes:
    """Lossless: LZW, which every reader supports, on differences along the row for integers."""
    floating = image.data.dtype == np.float32
    predictor = cv2.IMWRITE_TIFF_PREDICTOR_NONE if floating else cv2.IMWRITE_TIFF_PREDICTOR_HORIZONTAL
    lzw = (cv2.IMWRITE_TIFF_COMPRESSION, cv2.IMWRITE_TIFF_COMPRESSION_LZW)
    return encode(image, ".tiff", *lzw, cv2.IMWRITE_TIFF_PREDICTOR, predictor)


def encode_jpeg(image: Image) -> bytes:
    """Lossy: quality 95, chroma at full resolution (4:4:4)."""
    full_chroma = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
    return encode(image, ".jpg", cv2.IMWRITE_JPEG_QUALITY, 95, *full_chroma)


def encode_jp2(image: Image) -> bytes:
    """Lossless: 1000 (1:1) keeps every bit; OpenCV's default is a lossy 4:1. InputError below 32 px."""
    if min(image.size) < 32:  # OpenCV halves five times
        size = f"{image.size[0]} x {image.size[1]} px"
        raise InputError(f"{size}; expected 32 px per side or more for JPEG 2000: write PNG or TIFF")
    return encode(image, ".jp2", cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000)


def encode_j2k(image: Image) -> bytes:
    """Lossless, the bare codestream: OpenCV only writes it inside a JP2 file."""
    return jpeg.bare_codestream(encode_jp2(image))
