"""How large a DICOM instance says that it is, before anything is allocated for it."""

from __future__ import annotations

from typing import Any

from mmif_trt.image import MAX_SIDE_PX, MAX_VOXELS, InputError


def announced(dataset: Any) -> tuple[int, int, int]:
    """(frames, rows, columns) of an instance. Raises InputError, before allocating anything, if they are
    missing or exceed the limit of a volume."""
    count = int(dataset.get("NumberOfFrames", 1) or 1)
    rows, columns = int(dataset.get("Rows", 0) or 0), int(dataset.get("Columns", 0) or 0)
    bits = int(dataset.get("BitsAllocated", 0) or 0) * int(dataset.get("SamplesPerPixel", 1) or 1)
    if not (rows or columns):
        raise InputError(f"{dataset.filename}: pixel data without Rows and Columns; expected an image")
    fits = 0 < rows <= MAX_SIDE_PX and 0 < columns <= MAX_SIDE_PX and 0 < count * rows * columns <= MAX_VOXELS
    if not fits:
        raise InputError(
            f"{dataset.filename}: announces {count} x {rows} x {columns}; "
            f"expected at most {MAX_SIDE_PX} px per side and {MAX_VOXELS} voxels"
        )
    if not 0 < bits <= 64:
        raise InputError(f"{dataset.filename}: announces {bits} bits per pixel; expected at most 64")
    return count, rows, columns
