"""Unusual DICOM files: data sets without a PS3.10 preamble, and gzipped files."""

from __future__ import annotations

import struct
import zlib

from mmif_trt.image import InputError

GZIP = b"\x1f\x8b"
MAX_UNPACKED_BYTES = 2 << 30
_IMPLICIT, _EXPLICIT, _BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
_LONG = {b"OB", b"OW", b"UN", b"UT", b"SQ", b"OF", b"OD", b"UC", b"UR"}
_FIRST_GROUPS = (0x0002, 0x0008)
_MOST = 1024  # bytes of an element at the start; none there is longer


def is_packed(start: bytes) -> bool:
    return start[:2] == GZIP


def first_bytes(packed: bytes) -> bytes:
    """The first bytes inside a gzipped file; b"" if it is not one."""
    try:
        return zlib.decompressobj(wbits=31).decompress(packed, 4096)
    except zlib.error:
        return b""


def unpacked(data: bytes, name: str) -> bytes:
    """A gzipped file unpacked, also of several members (RFC 1952, 2.2); others unchanged."""
    if not is_packed(data):
        return data
    out, rest = bytearray(), data
    try:
        while rest[:2] == GZIP:
            stream = zlib.decompressobj(wbits=31)
            out += stream.decompress(rest, MAX_UNPACKED_BYTES + 1 - len(out))
            if len(out) > MAX_UNPACKED_BYTES:
                raise InputError(f"{name}: unpacks to over {MAX_UNPACKED_BYTES} bytes; expected less")
            if not stream.eof:
                raise InputError(f"{name}: a truncated gzipped file; expected a complete one")
            rest = stream.unused_data
    except zlib.error:
        raise InputError(f"{name}: a damaged gzipped file; expected an intact one") from None
    return bytes(out)


def is_bare(start: bytes) -> bool:
    """Whether bytes start as a data set: two elements in order, the first of group 0002 or 0008."""
    return _syntax(start) != ""


def with_preamble(data: bytes) -> bytes:
    """A bare data set as a PS3.10 file, in the syntax of its first elements; a PS3.10 file unchanged."""
    if data[128:132] == b"DICM":
        return data
    head = bytes(128) + b"DICM"
    if data[:2] == b"\x02\x00":  # only the preamble is missing
        return head + data
    uid = _syntax(data).encode()
    uid += b"\0" * (len(uid) % 2)
    return head + struct.pack("<HH2sH", 2, 0x10, b"UI", len(uid)) + uid + data


def _syntax(start: bytes) -> str:
    """The transfer syntax of the first two elements, or ""."""
    for uid, order in ((_EXPLICIT, "<"), (_IMPLICIT, "<"), (_BIG, ">")):
        at, tags = 0, list[tuple[int, int]]()
        try:
            for _ in range(2):
                group, element = struct.unpack_from(f"{order}HH", start, at)
                tags.append((group, element))
                if uid == _IMPLICIT:
                    (length,), at = struct.unpack_from("<I", start, at + 4), at + 8
                else:
                    vr = start[at + 4 : at + 6]
                    if not (vr.isalpha() and vr.isupper()):
                        raise ValueError
                    kind, skip = ("I", 8) if vr in _LONG else ("H", 6)
                    (length,), at = struct.unpack_from(order + kind, start, at + skip), at + skip + 2
                    at += 2 * (vr in _LONG)
                if length > _MOST or length % 2:
                    raise ValueError
                at += length
        except (struct.error, ValueError):
            continue
        first, second = tags
        if first[0] in _FIRST_GROUPS and first < second and second[0] <= 0x0010:
            return uid
    return ""
