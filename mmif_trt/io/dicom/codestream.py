"""The size that a compressed frame itself announces, read before a codec allocates it.

Codecs trust the stream, not DICOM's Rows and Columns, and a few bytes can announce 255 components of
65535 x 65535 px.
"""

from __future__ import annotations

import struct
from typing import Any

from mmif_trt.image import InputError

JP2 = b"\0\0\0\x0cjP  \r\n\x87\n"
RLE = "1.2.840.10008.1.2.5"
# SOF markers; DE: of the whole of a hierarchical JPEG, F7: of JPEG-LS.
_FRAME_HEADERS = {*range(0xC0, 0xD0), 0xDE, 0xF7} - {0xC4, 0xC8, 0xCC}
_MAX_RLE_GROWTH = 1.2  # PackBits never makes data longer by more than 1 in 128, and some padding


def check(dataset: Any, count: int, rows: int, columns: int) -> None:
    """Raises InputError if a frame of an encapsulated dataset differs in size from its header."""
    from pydicom.encaps import generate_frames

    samples = int(dataset.get("SamplesPerPixel", 1) or 1)
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    raw = rows * columns * samples * int(dataset.BitsAllocated) // 8
    for frame in generate_frames(dataset.PixelData, number_of_frames=count):
        if syntax == RLE:
            if len(frame) > _MAX_RLE_GROWTH * raw + 1024:
                stream = f"{len(frame)} bytes of RLE for a frame of {raw}"
                raise InputError(f"{dataset.filename}: {stream}; expected a complete, valid file")
            continue
        found = announced(frame)
        if found != (rows, columns, samples):
            stream = "no JPEG" if found is None else "JPEG of {} x {} px in {} channels".format(*found)
            raise InputError(
                f"{dataset.filename}: {stream} in an image of {rows} x {columns} in {samples}; "
                "expected one that matches"
            )


def announced(frame: bytes) -> tuple[int, int, int] | None:
    """(rows, columns, components) of a JPEG, JPEG-LS (T.81 B.2.2, T.87 C.2.2) or JPEG 2000 (T.800 A.5.1)
    stream; None for anything else."""
    try:
        if frame.startswith(JP2):  # a complete JP2 file, as some programs write: take its codestream
            frame = frame[frame.index(b"jp2c") + 4 :]
        if frame[:4] == b"\xff\x4f\xff\x51":
            right, bottom, left, top = struct.unpack_from(">IIII", frame, 8)
            return bottom - top, right - left, int(struct.unpack_from(">H", frame, 40)[0])
        at = 2
        while frame[:2] == b"\xff\xd8" and frame[at] == 0xFF:
            marker = frame[at + 1]
            if marker == 0xFF:  # a fill byte
                at += 1
            elif marker in _FRAME_HEADERS:
                rows, columns, components = struct.unpack_from(">HHB", frame, at + 5)
                return rows, columns, components
            elif 0xD0 <= marker <= 0xD8 or marker == 0x01:  # without a length
                at += 2
            else:
                at += 2 + struct.unpack_from(">H", frame, at + 2)[0]
    except (struct.error, LookupError, ValueError):
        pass
    return None
