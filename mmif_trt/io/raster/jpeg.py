"""JPEG and JPEG 2000: the checks before decoding. They have no checksums, but nothing may be missing."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from struct import unpack_from

import numpy as np

from mmif_trt.image import InputError
from mmif_trt.io.raster.headers import Checked, Label, check_exif, check_size, lines

JPEG_SIGNATURE = b"\xff\xd8\xff"
JP2_SIGNATURE, J2K_SIGNATURE = b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"
# Ends a scan: neither a stuffed zero, nor a restart, nor padding.
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
# libjpeg fills what is missing before the end marker with grey, and only warns. Without an end marker it must
# find the last row in the data, or fail. It looks 8 bytes ahead, hence these. This does not find a gap in the
# last one or two blocks or, with several scans, an end marker inside the last one.
LOOKAHEAD = b"\xff\x00" * 8
SRGB, GREY = 16, 17  # enumerated colour spaces, ISO/IEC 15444-1, table I.10


def check_jpeg(data: bytes) -> Checked:
    """Raises InputError, struct.error or IndexError if incomplete or of an unsupported kind (ITU-T T.81)."""
    at, scans, height, width, components = 2, 0, 0, 0, 0
    exact = 0  # coefficients (64 per component) that some scan completes to the last bit
    while (marker := data[at + 1]) != 0xD9:
        if data[at] != 0xFF:
            raise InputError("damaged JPEG (marker missing); expected a complete file")
        if marker == 0xFF:  # padding
            at += 1
            continue
        length = unpack_from(">H", data, at + 2)[0]
        body = data[at + 4 : at + 2 + length]
        at += 2 + length
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            check_exif(body[6:])
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width, components = _frame(marker, body)
        elif marker == 0xDA:
            first, last, bits = unpack_from("3B", body, len(body) - 3)
            exact += body[0] * (last - first + 1) * (bits & 15 == 0)
            scans += 1
            found = MARKER.search(data, at)
            at = found.start() if found else len(data)
    if not components or exact < 64 * components:
        raise InputError("truncated JPEG (scans missing); expected a complete file")
    # With several scans (progressive) libjpeg needs the end marker; the count above shows that all are there.
    stream = data[:at] + (LOOKAHEAD if scans == 1 else b"\xff\xd9")
    return Checked(stream, (height, width, components), np.uint8)


def _frame(marker: int, body: bytes) -> tuple[int, int, int]:
    """(height, width, components) of a start-of-frame segment."""
    bits, height, width, components = unpack_from(">BHHB", body)
    check_size(height, width)
    if components not in (1, 3):
        received = "a CMYK or YCCK JPEG" if components == 4 else f"a JPEG of {components} components"
        raise InputError(f"{received}; expected grey or RGB: convert it first")
    if marker > 0xC2 or bits != 8:
        raise InputError(f"JPEG coding {marker:#x}, {bits} bits; expected baseline or progressive, 8 bits")
    return height, width, components


def check_jp2(data: bytes) -> Checked:
    """A JP2 file or a bare codestream, passed on as a plain JP2 file. Raises InputError or struct.error."""
    start, stop, space = 0, len(data), 0
    if data.startswith(JP2_SIGNATURE):
        boxes = {kind: (at, end) for kind, at, end in reversed(list(_boxes(data, 0, len(data))))}
        if b"jp2h" not in boxes or b"jp2c" not in boxes:
            raise InputError("truncated JPEG 2000 (no picture); expected a complete file")
        space = _colour_space(data, *boxes[b"jp2h"])
        start, stop = boxes[b"jp2c"]
    height, width, components, bits = _codestream(data, start, stop)
    expected = GREY if components == 1 else SRGB
    if space not in (0, expected) or components not in (1, 3, 4):
        what = f"colour space {space}, " if space else ""
        raise InputError(
            f"JPEG 2000 of {what}{components} components; expected grey (17) or sRGB (16), and 1, 3 or 4"
        )
    ihdr = _box(b"ihdr", struct.pack(">IIHBBBB", height, width, components, bits - 1, 7, 0, 0))
    header = _box(b"jp2h", ihdr + _box(b"colr", struct.pack(">BBBI", 1, 0, 0, expected)))
    stream = JP2_SIGNATURE + _box(b"ftyp", b"jp2 \0\0\0\0jp2 ") + header + _box(b"jp2c", data[start:stop])
    return Checked(stream, (height, width, components), np.uint16 if bits == 16 else np.uint8)


def bare_codestream(data: bytes) -> bytes:
    """The codestream of a JP2 file: the content of a .j2k file."""
    return next(data[start:stop] for kind, start, stop in _boxes(data, 0, len(data)) if kind == b"jp2c")


def labelled(data: bytes, label: Label) -> bytes:
    """A JPEG with a comment after its first segment, which must stay first for JFIF (ITU-T T.81, B.2.4.5)."""
    at, text = 4 + unpack_from(">H", data, 4)[0], lines(label)
    return b"".join((data[:at], b"\xff\xfe", struct.pack(">H", 2 + len(text)), text, data[at:]))


def labelled_jp2(data: bytes, label: Label) -> bytes:
    """A JP2 file whose codestream has a Latin-1 comment after SIZ (ISO/IEC 15444-1, A.9.2)."""
    parts, text = [], lines(label)
    for kind, start, stop in _boxes(data, 0, len(data)):
        body = data[start:stop]
        if kind == b"jp2c":
            at = 4 + unpack_from(">H", body, 4)[0]
            comment = struct.pack(">HHH", 0xFF64, 4 + len(text), 1) + text
            body = body[:at] + comment + body[at:]
        parts.append(_box(kind, body))
    return b"".join(parts)


def _box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(body), kind) + body


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, stop) of each box's body; ISO/IEC 15444-1, annex I.4."""
    while at < end:
        length, kind = unpack_from(">I4s", data, at)
        head = 16 if length == 1 else 8
        size = unpack_from(">Q", data, at + 8)[0] if length == 1 else length or end - at
        if not head <= size <= end - at:
            raise InputError("truncated or damaged JPEG 2000 (box); expected a complete file")
        yield kind, at + head, at + size
        at += size


def _colour_space(data: bytes, start: int, stop: int) -> int:
    """The enumerated space, or that of an ICC profile; the profile itself is ignored, as elsewhere."""
    boxes = {kind: (at, end) for kind, at, end in reversed(list(_boxes(data, start, stop)))}
    if b"pclr" in boxes:
        raise InputError("a JPEG 2000 with a palette; expected grey or RGB")
    at = boxes[b"colr"][0] if b"colr" in boxes else stop
    if data[at] == 1:
        return unpack_from(">I", data, at + 3)[0]
    return {b"GRAY": GREY, b"RGB ": SRGB}.get(data[at + 19 : at + 23], -1)


def _codestream(data: bytes, start: int, stop: int) -> tuple[int, int, int, int]:
    """(height, width, components, bits) of a codestream with every tile and its end marker; annex A."""
    soc, siz, right, bottom, left, top, tile_w, tile_h, tile_x, tile_y, components = unpack_from(
        ">HH4x8IH", data, start
    )
    height, width = bottom - top, right - left
    check_size(height, width)
    if (soc, siz) != (0xFF4F, 0xFF51) or components > 4:
        raise InputError(
            f"damaged JPEG 2000 or {components} components; expected grey, RGB, or RGB with alpha"
        )
    kinds = set(struct.iter_unpack("3B", data[start + 42 : start + 42 + 3 * components]))
    if kinds not in ({(7, 1, 1)}, {(15, 1, 1)}):
        received = ", ".join(
            f"{(d & 127) + 1} bits{' signed' * (d >> 7)} at 1:{x} x 1:{y}" for d, x, y in sorted(kinds)
        )
        raise InputError(f"JPEG 2000 of {received}; expected 8 or 16 bits unsigned, no component subsampled")
    at, tiles = start + 2, set()
    while (marker := unpack_from(">H", data, at)[0]) != 0xFF90:
        if marker < 0xFF00 or at >= stop:
            raise InputError("damaged JPEG 2000 (marker missing); expected a complete file")
        at += 2 + unpack_from(">H", data, at + 2)[0]
    while marker == 0xFF90 and at < stop:
        tile, length = unpack_from(">4xHI", data, at)
        tiles.add(tile)
        at = at + length if length else stop - 2
        marker = unpack_from(">H", data, at)[0]
    expected = -(-(right - tile_x) // tile_w) * -(-(bottom - tile_y) // tile_h)
    if marker != 0xFFD9 or at + 2 > stop or len(tiles) != expected:
        raise InputError("truncated JPEG 2000 (tiles missing); expected a complete file")
    return height, width, components, next(iter(kinds))[0] + 1
