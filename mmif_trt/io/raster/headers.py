"""Checks on the bytes of a raster file before OpenCV sees them: the parts that all formats share."""

from __future__ import annotations

from dataclasses import dataclass
from struct import calcsize, error, unpack_from

import numpy as np

from mmif_trt.image import MAX_SIDE_PX, MIN_SIDE_PX, InputError

Label = tuple[tuple[str, str], ...]  # (keyword, text) in ASCII, see Image.label


@dataclass(frozen=True)
class Checked:
    """One picture whose announced size, kind and length are checked, ready for the decoder.

    stream: the bytes to decode.
    shape, dtype: (height, width, channels) and uint8, uint16 or float32: what the decoder must return.
    palette: [n, 3] uint8 RGB, and alpha: [256] uint8, or None; the decoded grey level / step is the index.
    key: the grey level or RGB value that stands for "transparent", or None.
    grey_alpha: the decoder returns grey with alpha as four channels.
    """

    stream: bytes
    shape: tuple[int, int, int]
    dtype: type[np.generic]
    palette: np.ndarray | None = None
    alpha: np.ndarray | None = None
    step: int = 1
    key: tuple[int, ...] | None = None
    grey_alpha: bool = False


def lines(label: Label) -> bytes:
    """A label for formats that have one comment."""
    return "\n".join(f"{keyword}: {text}" for keyword, text in label).encode("ascii")


def check_size(height: int, width: int) -> None:
    """Called before a pixel is decoded: a header may announce 100,000 x 100,000."""
    if min(height, width) < MIN_SIDE_PX or max(height, width) > MAX_SIDE_PX:
        raise InputError(f"{height} x {width} px; expected {MIN_SIDE_PX} to {MAX_SIDE_PX} px per side")


def check_orientation(orientation: int) -> None:
    """Turning may swap left and right, and viewers would disagree with unturned pixels: do neither
    silently."""
    if 2 <= orientation <= 8:
        raise InputError(
            f"orientation tag {orientation}; expected 1 (upright): save it turned, without the tag"
        )


def check_exif(exif: bytes) -> None:
    """exif: a TIFF structure. An unreadable one is no reason to refuse the pixels."""
    try:
        orientation = tiff_tags(exif)[0].get(274, (1,))[0]
    except (error, KeyError):
        return
    check_orientation(orientation)


def tiff_tags(data: bytes) -> tuple[dict[int, tuple[int, ...]], int]:
    """Whole-number tags of the first page, and the offset of the next page (0: none). TIFF 6.0, section 2.

    Raises KeyError for an unknown byte order, struct.error if an offset points outside the bytes.
    """
    order = {b"II": "<", b"MM": ">"}[data[:2]]
    page = unpack_from(order + "I", data, 4)[0]
    entries = unpack_from(order + "H", data, page)[0]
    tags: dict[int, tuple[int, ...]] = {}
    for at in range(page + 2, page + 2 + 12 * entries, 12):
        tag, kind, count = unpack_from(order + "HHI", data, at)
        code = {1: "B", 3: "H", 4: "I"}.get(kind)
        if code and count:
            size = count * calcsize("=" + code)
            start = at + 8 if size <= 4 else unpack_from(order + "I", data, at + 8)[0]
            tags[tag] = unpack_from(f"{order}{count}{code}", data, start)
    return tags, unpack_from(order + "I", data, page + 2 + 12 * entries)[0]
