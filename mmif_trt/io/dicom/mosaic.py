"""Siemens mosaics: the slices of a volume as the tiles of one 2-D picture, unpacked by the CSA header.

Tiles run row by row from the top left, in a grid of ceil(sqrt(n)) per side. Image Position is that of a slice
as large as the whole mosaic, around the centre of the first tile (the same rule as in nibabel and dcm2niix).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from mmif_trt.image import InputError

_NUMBER = (0x0019, "SIEMENS MR HEADER", 0x0A)  # Number Of Images In Mosaic, US


def is_mosaic(dataset: Any) -> bool:
    kind = dataset.get("ImageType") or []
    return "MOSAIC" in ([kind] if isinstance(kind, str) else list(kind)) or _count(dataset, None) > 1


def tiles(
    dataset: Any, position: np.ndarray, axes: np.ndarray, step_mm: tuple[float, float]
) -> Iterator[tuple[np.ndarray, tuple[slice, slice]]]:
    """(position LPS mm, (rows, columns) in the frame) of every slice. position, axes, step_mm: the mosaic's.

    Raises InputError if the header does not say how many tiles there are, or in which direction they run.
    """
    csa = _csa(dataset)
    count = _count(dataset, csa)
    normal = _tag(csa, "SliceNormalVector")
    spacing = dataset.get("SpacingBetweenSlices") or (_tag(csa, "SpacingBetweenSlices") or [None])[0]
    absent = [
        words
        for words, found in (
            ("the number of its tiles", count > 0),
            ("the normal of its slices", len(normal) == 3),
            ("Spacing Between Slices", bool(spacing) and float(spacing or 0) > 0),
        )
        if not found
    ]
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    grid = math.ceil(math.sqrt(count)) if count else 1
    if absent or rows % grid or columns % grid:
        why = (
            f"without {' and '.join(absent)} (CSA header)"
            if absent
            else f"of {rows} x {columns} px, no grid of {grid} x {grid} tiles"
        )
        raise InputError(
            f"{dataset.filename}: a Siemens mosaic {why}; expected one with its CSA header, one image per "
            "slice, or an enhanced multi-frame (dcm2niix may convert it)"
        )
    height, width = rows // grid, columns // grid
    row, column = axes[:3], axes[3:]
    across = np.cross(row, column)
    across = across * np.sign(across @ np.array([float(x) for x in normal]))
    first = position + row * step_mm[1] * (columns - width) / 2 + column * step_mm[0] * (rows - height) / 2
    for k in range(count):
        top, left = height * (k // grid), width * (k % grid)
        yield first + k * across * float(spacing), (slice(top, top + height), slice(left, left + width))


def _csa(dataset: Any) -> dict[str, Any] | None:
    # nibabel warns that its DICOM readers are experimental at first import; our own tests check the rule.
    warnings.filterwarnings("ignore", "The DICOM readers are highly experimental", UserWarning)
    from nibabel.nicom import csareader

    try:
        found: dict[str, Any] | None = csareader.get_csa_header(dataset, "image")
    except Exception:  # its bytes may be arbitrary
        return None
    return found


def _tag(csa: dict[str, Any] | None, name: str) -> list[Any]:
    items = ((csa or {}).get("tags") or {}).get(name, {}).get("items") or []
    return list(items)


def _count(dataset: Any, csa: dict[str, Any] | None) -> int:
    """The number of tiles by the header; 0 if it does not say."""
    group, creator, element = _NUMBER
    try:
        return int(dataset.private_block(group, creator)[element].value)
    except (KeyError, TypeError, ValueError):
        pass
    try:
        return int((_tag(csa, "NumberOfImagesInMosaic") or [0])[0])
    except (TypeError, ValueError):
        return 0
