"""The one currency between stages: pixels that carry what they mean. Imports nothing of the package."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

MODALITIES = ("mri", "ct", "pet", "spect")
MIN_SIDE_PX, MAX_SIDE_PX = 16, 4096
# Black and white where the caller states nothing: the whole range of the type, never the image's extremes.
DTYPE_RANGE: dict[str, tuple[float, float]] = {"uint8": (0, 255), "uint16": (0, 65535), "float32": (0, 1)}


class InputError(ValueError):
    """A user's mistake. The message names the file or argument, what came, and what is accepted."""


@dataclass(frozen=True, eq=False)
class Image:
    """One 2-D picture with its meaning.

    data: [H, W] grey or [H, W, 3] RGB; uint8, uint16 or float32; 16 to 4096 px a side; finite.
    value_range: the values of black and white. None: the whole range of the dtype (float32: 0 to 1).
    modality: one of "mri", "ct", "pet", "spect", or None where it is not known.
    spacing_mm: pixel pitch (row, column) in millimetres, or None where it is not known.
    affine: [4, 4] voxel index to patient millimetres (RAS+), or None where it is not known.
    source: where it came from, for messages; a path or an argument's name.

    Raises InputError for another shape, type or size, for NaN or infinity, and for an empty value range.
    """

    data: np.ndarray
    value_range: tuple[float, float] | None = None
    modality: str | None = None
    spacing_mm: tuple[float, ...] | None = None
    affine: np.ndarray | None = None
    source: str = "image"

    def __post_init__(self) -> None:
        data = self.data
        if not isinstance(data, np.ndarray) or data.dtype.name not in DTYPE_RANGE:
            came = f"dtype {data.dtype}" if isinstance(data, np.ndarray) else type(data).__name__
            raise InputError(f"{self.source}: {came}; accepted are arrays of uint8, uint16 and float32")
        if not (data.ndim == 2 or (data.ndim == 3 and data.shape[2] == 3)):
            raise InputError(f"{self.source}: shape {data.shape}; accepted are [H, W] grey and [H, W, 3] RGB")
        height, width = data.shape[:2]
        if not (min(height, width) >= MIN_SIDE_PX and max(height, width) <= MAX_SIDE_PX):
            raise InputError(
                f"{self.source}: {height} x {width} px; accepted are {MIN_SIDE_PX} to {MAX_SIDE_PX} px a side"
            )
        if data.dtype.kind == "f" and not np.isfinite(data).all():
            raise InputError(f"{self.source}: NaN or infinite pixels; accepted are finite values")
        if self.modality is not None and self.modality not in MODALITIES:
            raise InputError(
                f"{self.source}: modality {self.modality!r}; accepted are {', '.join(MODALITIES)}"
            )
        given = DTYPE_RANGE[data.dtype.name] if self.value_range is None else self.value_range
        try:
            low, high = (float(value) for value in given)
        except (TypeError, ValueError):
            low = high = 0.0
        if not (np.isfinite([low, high]).all() and low < high):
            raise InputError(
                f"{self.source}: value range {given}; accepted is a finite (black, white), black < white"
            )
        object.__setattr__(self, "value_range", (low, high))

    @property
    def is_colour(self) -> bool:
        return self.data.ndim == 3

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.data.shape[0], self.data.shape[1]

    def with_data(self, data: np.ndarray, **changes: Any) -> Image:
        """The same meaning over other pixels."""
        return replace(self, data=data, **changes)

    def __repr__(self) -> str:
        height, width = self.size
        assert self.value_range is not None
        low, high = self.value_range
        parts = [
            f"{height} x {width}",
            "RGB" if self.is_colour else "grey",
            self.data.dtype.name,
            f"range {low:g} to {high:g}",
            self.modality or "modality unknown",
            "spacing unknown"
            if self.spacing_mm is None
            else "spacing " + " x ".join(f"{s:g}" for s in self.spacing_mm) + " mm",
        ]
        return f"Image({', '.join(parts)}; {self.source})"
