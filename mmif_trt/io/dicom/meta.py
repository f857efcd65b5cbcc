"""The meta information of a DICOM file (PS3.10, 7.1), read before pydicom opens anything."""

from __future__ import annotations

import struct
import zlib

from mmif_trt.image import InputError

MAX_INFLATED_BYTES = 256 << 20  # pydicom takes about twice this
DEFLATED = "1.2.840.10008.1.2.1.99"


def transfer_syntax(data: bytes, name: str) -> tuple[str, int]:
    """(Transfer Syntax UID, where the dataset begins), from the file meta information (PS3.10, 7.1)."""
    at, uid = 132, ""
    try:
        while data[at : at + 2] == b"\x02\x00":
            element, vr = struct.unpack_from("<H2s", data, at + 2)
            long = vr in (b"OB", b"OW", b"UN", b"UT", b"SQ")
            length = struct.unpack_from("<I" if long else "<H", data, at + (8 if long else 6))[0]
            start = at + (12 if long else 8)
            if element == 0x10:
                uid = data[start : start + length].rstrip(b"\0 ").decode("ascii")
            at = start + length
    except (struct.error, UnicodeDecodeError):
        uid = ""
    if not uid:
        raise InputError(f"{name}: DICOM without a transfer syntax; expected a complete file")
    return uid, at


def refuse_bomb(data: bytes, name: str) -> None:
    """pydicom inflates a deflated data set whole. Raises InputError, also without a transfer syntax."""
    uid, at = transfer_syntax(data, name)
    if uid == DEFLATED:
        stream = zlib.decompressobj(-15)
        try:
            full = len(stream.decompress(data[at:], MAX_INFLATED_BYTES)) >= MAX_INFLATED_BYTES
        except zlib.error:
            raise InputError(f"{name}: damaged deflated DICOM; expected a complete file") from None
        if full and not stream.eof:
            raise InputError(f"{name}: inflates to over {MAX_INFLATED_BYTES} bytes; expected fewer")
