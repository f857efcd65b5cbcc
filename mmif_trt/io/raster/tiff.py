"""TIFF: the checks before decoding. One page, pixels that decoders return exactly, all data in the file."""

from __future__ import annotations

import struct
import zlib

import numpy as np

from mmif_trt.image import MAX_SIDE_PX, InputError
from mmif_trt.io.raster.headers import Checked, Label, check_orientation, check_size, lines, tiff_tags

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
DTYPES: dict[tuple[int, int], type[np.generic]] = {  # (bits, sample format)
    (8, 1): np.uint8,
    (16, 1): np.uint16,
    (32, 3): np.float32,
}
# OpenCV inverts "white is zero" in 8 bits but not in 16, and drops the alpha of grey: both are refused.
PHOTOMETRIC = {
    0: "white is zero",
    1: "grey",
    2: "RGB",
    3: "palette",
    4: "mask",
    5: "CMYK",
    6: "YCbCr",
    8: "Lab",
}
RULES = {  # tag: (name, value where the tag is absent, expected values, the same in words); TIFF 6.0
    259: ("compression", 1, (1, 5, 8, 32773, 32946), "1 none, 5 LZW, 8 deflate, 32773 PackBits"),
    266: ("fill order", 1, (1,), "1"),
    284: ("planar configuration", 1, (1,), "1 (samples of a pixel together)"),
    317: ("predictor", 1, (1, 2, 3), "1, 2, 3"),
}
SIZES = (256, 257, 273, 278, 279, 322, 323, 324, 325)  # tags that may need 32 bits; the others are 16
KEPT = {*SIZES, *RULES, 258, 262, 277, 338, 339}  # what the decoder needs
DESCRIPTION, SOFTWARE = 270, 305
Tags = dict[int, tuple[int, ...]]


def check(data: bytes) -> Checked:
    """Raises InputError, struct.error or zlib.error for an incomplete TIFF or one of an unsupported kind."""
    if data[2:4] in (b"+\0", b"\0+"):
        raise InputError("a BigTIFF; expected classic TIFF")
    tags, next_page = tiff_tags(data)
    height, width = tags.get(257, (0,))[0], tags.get(256, (0,))[0]
    check_size(height, width)
    if next_page:
        raise InputError("a TIFF of several pages; expected one picture per file")
    for number, (what, absent, expected, words) in RULES.items():
        received = tags.get(number, (absent,))[0]
        if received not in expected:
            raise InputError(f"TIFF {what} {received}; expected {words}")
    photometric, samples = tags.get(262, (-1,))[0], tags.get(277, (1,))[0]
    if (photometric, samples) not in ((1, 1), (2, 3), (2, 4)):
        kind = f"TIFF {PHOTOMETRIC.get(photometric, photometric)}, {samples} samples per pixel"
        raise InputError(f"{kind}; expected grey (1 sample), RGB (3), RGB with opaque alpha (4)")
    depths, formats = set(tags.get(258, (1,))), set(tags.get(339, (1,)))
    dtype = DTYPES.get((max(depths), max(formats))) if len(depths) == len(formats) == 1 else None
    if dtype is None:
        kind = f"TIFF of {sorted(depths)} bits, sample format {sorted(formats)}"
        raise InputError(f"{kind}; expected 8 or 16 bits unsigned (1), 32 bits floating point (3)")
    check_orientation(tags.get(274, (1,))[0])
    _check_parts(data, tags, height, width, samples * np.dtype(dtype).itemsize)
    if samples == 4:
        tags[338] = (2,)  # declare plain alpha, whatever it was: only opaque alpha is accepted
    return Checked(_plain(data, tags), (height, width, samples), dtype)


def _check_parts(data: bytes, tags: Tags, height: int, width: int, pixel_bytes: int) -> None:
    """Every strip or tile that the size needs is listed, inside the file and, where that is known, full."""
    if 322 in tags:
        across, down = tags[322][0], tags.get(323, (0,))[0]
        if not (16 <= across <= MAX_SIDE_PX and 16 <= down <= MAX_SIDE_PX):
            raise InputError(f"TIFF tiles of {down} x {across} px; expected 16 to {MAX_SIDE_PX} px per side")
        offsets, counts = tags.get(324, ()), tags.get(325, ())
        needed = [down * across * pixel_bytes] * (-(-height // down) * -(-width // across))
    else:
        offsets, counts = tags.get(273, ()), tags.get(279, ())
        rows = max(1, min(height, tags.get(278, (height,))[0]))
        needed = [min(rows, height - top) * width * pixel_bytes for top in range(0, height, rows)]
    compression = tags.get(259, (1,))[0]
    whole = len(offsets) == len(counts) == len(needed)
    for offset, count, need in zip(offsets, counts, needed, strict=False):
        whole = whole and 0 < count <= len(data) - offset
        if whole and compression != 5:  # the length of LZW is known only after decoding: libtiff checks it
            most = need if compression == 32773 else needed[0]  # a last strip may be padded to full height
            whole = need <= _unpacked_size(data[offset : offset + count], compression, most) <= most
    if not whole:
        raise InputError("truncated or damaged TIFF (pixel data missing); expected a complete file")


def _unpacked_size(part: bytes, compression: int, most: int) -> int:
    """Bytes in a strip or tile, counted up to one more than `most`.

    Raises zlib.error for a wrong checksum, of which libtiff only warns.
    """
    if compression == 1:
        return min(len(part), most)  # padding is harmless
    if compression in (8, 32946):
        inflater = zlib.decompressobj()
        size = len(inflater.decompress(part, most + 1))
        return size if inflater.eof else most + 1
    at = size = 0
    while at < len(part) and size < most:
        run = part[at]  # up to 127: run + 1 literal bytes follow; from 129: one byte, 257 - run times
        at += run + 2 if run < 128 else 2 if run > 128 else 1
        size += run + 1 if run < 128 else 257 - run if run > 128 else 0
    return size if at <= len(part) else 0


def labelled(data: bytes, label: Label) -> bytes:
    """A little-endian TIFF of one page with Software (305) and Image Description (270): its page of tags is
    rewritten at the end, because there is no room in place (TIFF 6.0, section 2)."""
    page = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, page)[0]
    entries = [data[at : at + 12] for at in range(page + 2, page + 2 + 12 * count, 12)]
    software = dict(label).get("Software", "").encode("ascii")
    rest = b"\0" * (len(data) % 2)
    for tag, text in ((SOFTWARE, software), (DESCRIPTION, lines(label))):
        entries.append(struct.pack("<HHII", tag, 2, len(text) + 1, len(data) + len(rest)))
        rest += text + b"\0" * (2 - len(text) % 2)
    entries.sort(key=lambda entry: struct.unpack_from("<H", entry))
    table = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"".join((data[:4], struct.pack("<I", len(data) + len(rest)), data[8:], rest, table))


def _plain(data: bytes, tags: Tags) -> bytes:
    """The same file with a page of only the tags that matter: a decoder would warn about others."""
    order = "<" if data.startswith(b"II") else ">"
    kept = sorted((number, values) for number, values in tags.items() if number in KEPT)
    page = len(data) + len(data) % 2
    entries, arrays = [], b""
    for number, values in kept:
        kind, code = (4, "I") if number in SIZES else (3, "H")
        packed = struct.pack(f"{order}{len(values)}{code}", *values)
        if len(packed) > 4:
            offset = page + 2 + 12 * len(kept) + 4 + len(arrays)
            packed, arrays = struct.pack(order + "I", offset), arrays + packed + b"\0" * (len(packed) % 4)
        entries.append(struct.pack(order + "HHI", number, kind, len(values)) + packed.ljust(4, b"\0"))
    table = struct.pack(order + "H", len(kept)) + b"".join(entries) + b"\0\0\0\0"
    return b"".join(
        (data[:4], struct.pack(order + "I", page), data[8:], b"\0" * (len(data) % 2), table, arrays)
    )
