"""PNG: the checks before decoding. Every checksum, and exactly the announced rows. ISO/IEC 15948."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np

from mmif_trt.image import InputError
from mmif_trt.io.raster.headers import Checked, Label, check_exif, check_size

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Colour type: samples per pixel. Grey, RGB, palette, grey and alpha, RGB and alpha.
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def check(data: bytes) -> Checked:
    """Raises InputError, struct.error or zlib.error for a PNG that is damaged or of an unsupported kind.

    The stream made here has only size, kind and pixels: no profile, gamma or tag can change the decoder's
    result or make it write to stderr. Its rows are stored, not compressed, because they are inflated here. A
    palette index is decoded as a grey level.
    """
    chunks = _chunks(data)
    first, header = next(chunks)
    width, height, bits, colour, compression, filtering, interlace = struct.unpack_from(">IIBBBBB", header)
    check_size(height, width)
    if first != b"IHDR" or bits not in DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        raise InputError("damaged PNG header; expected the colour types and depths of the PNG standard")
    rest: dict[bytes, list[memoryview]] = {}
    for kind, body in chunks:
        rest.setdefault(kind, []).append(body)
    critical = [kind for kind in rest if not kind[0] & 32 and kind not in (b"PLTE", b"IDAT", b"IEND")]
    if critical:  # a capital first letter: the picture cannot be interpreted without this chunk
        raise InputError(f"PNG chunk {critical[0]!r}; expected the chunks of the PNG standard, one header")
    if b"acTL" in rest:
        raise InputError("an animated PNG; expected one picture per file")
    if b"eXIf" in rest:
        check_exif(bytes(rest[b"eXIf"][0]))
    rows = _rows(b"".join(rest.get(b"IDAT", [])), height, width, bits * SAMPLES[colour], bool(interlace))
    ihdr = struct.pack(">IIBBBBB", width, height, bits, 0 if colour == 3 else colour, 0, 0, interlace)
    idat = _chunk(b"IDAT", zlib.compress(rows, 0))
    stream = SIGNATURE + _chunk(b"IHDR", ihdr) + idat + _chunk(b"IEND", b"")
    shape = (height, width, 4 if colour == 4 else SAMPLES[colour])
    dtype = np.uint16 if bits == 16 else np.uint8
    transparent = bytes(rest[b"tRNS"][0]) if b"tRNS" in rest else b""
    step = 255 // (2**bits - 1) if bits < 8 else 1  # the decoder scales 1, 2 and 4 bits to 0..255
    if colour == 3:
        palette, alpha = _palette(b"".join(rest.get(b"PLTE", [])), transparent)
        return Checked(stream, shape, dtype, palette=palette, alpha=alpha, step=step)
    key = None
    if transparent and colour in (0, 2):
        key = tuple(v * step for v in struct.unpack_from(f">{SAMPLES[colour]}H", transparent))
    return Checked(stream, shape, dtype, key=key, grey_alpha=colour == 4)


def labelled(data: bytes, label: Label) -> bytes:
    """A PNG with one tEXt chunk per pair, between header and pixels, where readers find it first."""
    texts = [_chunk(b"tEXt", f"{keyword}\0{text}".encode("latin-1")) for keyword, text in label]
    at = len(SIGNATURE) + 25  # IHDR
    return b"".join([data[:at], *texts, data[at:]])


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """(kind, body) of each chunk up to IEND, checksums verified."""
    view, at, kind = memoryview(data), len(SIGNATURE), b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if struct.unpack_from(">I", data, end)[0] != zlib.crc32(view[at + 4 : end]):
            raise InputError(f"wrong checksum in the PNG chunk {kind!r}; expected an undamaged file")
        yield kind, view[at + 8 : end]
        at = end + 4


def _rows(packed: bytes, height: int, width: int, pixel_bits: int, interlaced: bool) -> bytes:
    """The inflated rows, each with its filter byte: exactly what the header announces; never inflates a
    bomb."""
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    parts = [
        ((height - y + dy - 1) // dy, 1 + ((width - x + dx - 1) // dx * pixel_bits + 7) // 8)
        for x, y, dx, dy in passes
    ]
    announced = sum(count * size for count, size in parts)
    inflater = zlib.decompressobj()
    rows = inflater.decompress(packed, announced + 1)
    if len(rows) != announced or not inflater.eof:
        received = "more" if len(rows) > announced else "less"
        raise InputError(
            f"PNG header announces {height} x {width} px, its data {received}; expected a complete file"
        )
    at = 0
    for count, size in parts:
        if max(rows[at : at + count * size : size]) > 4:
            raise InputError("damaged PNG rows (unknown filter); expected a complete file")
        at += count * size
    return rows


def _palette(entries: bytes, transparent: bytes) -> tuple[np.ndarray, np.ndarray]:
    """PLTE as [n, 3] uint8, and the alpha of each of 256 indices, uint8."""
    if len(entries) % 3 or not 3 <= len(entries) <= 768:
        raise InputError(f"PNG palette of {len(entries)} bytes; expected 1 to 256 RGB entries")
    table = np.frombuffer(entries, np.uint8).reshape(-1, 3)
    alpha = np.full(256, 255, np.uint8)
    alpha[: len(transparent)] = np.frombuffer(transparent[:256], np.uint8)
    return table, alpha
