"""Pixels of any type to [0, 1] by their stated value range, and back; never by an image's own extremes."""

from __future__ import annotations

import numpy as np

from mmif_trt.image import DTYPE_RANGE, Image, InputError

# Black and white of volumes whose values have a physical unit: our own choice, the same for every patient.
# CT: from below fat to compact bone, so that brain stays above black; PET: FDG's usual display, cortex below
# white. MRI has no unit: its limits come from the header's window, the caller, or percentiles on request.
LIMITS = {("ct", "HU"): (-100.0, 900.0), ("pet", "SUVbw"): (0.0, 10.0)}


def to_unit(image: Image) -> np.ndarray:
    """The pixels as float32, black 0 and white 1; values outside the value range saturate, as on a
    display.

    Every 8-bit and 16-bit level maps to a distinct value. Raises InputError, see refuse_other_scale.
    """
    assert image.value_range is not None
    refuse_other_scale(image)
    return unit(image.data, image.value_range)


def refuse_other_scale(image: Image) -> None:
    """Raises InputError for a float picture on 0 to 1, the default, whose pixels are on another scale (0 to
    255, z-scores): beyond -1 or 2. Less is overshoot, and saturates."""
    if image.data.dtype.kind != "f" or image.value_range != DTYPE_RANGE["float32"] or image.is_volume:
        return
    low, high = float(image.data.min()), float(image.data.max())
    if low < -1 or high > 2:
        raise InputError(
            f"{image.source}: float pixels from {low:g} to {high:g}; expected 0 to 1, or their black and "
            "white stated (value_range, --value-range; with eval and report --range-mri and its kin)"
        )


def unit(values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """`values` of any shape as float32 in [0, 1]; limits: the values of black and white."""
    low, high = limits
    out = (values.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return np.clip(out, 0, 1, out=out)


def from_unit(unit: np.ndarray, dtype: np.dtype, value_range: tuple[float, float]) -> np.ndarray:
    """The inverse of `to_unit`: float32 in [0, 1] to `dtype`, rounded to nearest for integers."""
    low, high = value_range
    values = unit * np.float32(high - low) + np.float32(low)
    if dtype == np.float32:
        return np.asarray(values, np.float32)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)


def checked_percentiles(percentiles: tuple[float, float], side: str) -> tuple[float, float]:
    """(low, high) as numbers. side: "a" or "b", for the message. Raises InputError, also for fractions: with
    white at 0.99 percent nearly every voxel would be white."""
    try:
        low, high = (float(value) for value in percentiles)
    except (TypeError, ValueError):
        low = high = 0.0
    if not (0 <= low < high <= 100 and high > 1):
        shown = " ".join(f"{value}" for value in percentiles) if np.iterable(percentiles) else percentiles
        raise InputError(
            f"--percentiles-{side} (percentiles_{side}): {shown}; expected two numbers, 0 <= low < high "
            "<= 100, high over 1, such as 1 99.5"
        )
    return low, high


def volume_limits(
    image: Image, percentiles: tuple[float, float] | None, side: str = "a"
) -> tuple[tuple[float, float], str]:
    """(black, white) of a volume, once for all its slices, and their origin as text.

    percentiles: (low, high), 0..100, of all voxels, if the caller asks; otherwise the stated range
    (argument, DICOM window, NIfTI cal_min, cal_max), otherwise LIMITS. side: "a" or "b", for the message.
    Raises InputError where nothing is known.
    """
    if percentiles is not None:
        low, high = checked_percentiles(percentiles, side)
        black, white = (float(x) for x in np.percentile(image.data, (low, high)))
        if not black < white:
            raise InputError(
                f"{image.source}: its percentiles {low:g} and {high:g} are equal; expected two that differ"
            )
        return (black, white), f"percentiles {low:g} and {high:g} of the volume"
    if image.value_range is not None:
        return image.value_range, "stated by the caller or the header"
    known = LIMITS.get((image.modality or "", image.units or ""))
    if known is not None:
        return known, f"fixed for {image.modality} in {image.units}"
    why = "".join(f" ({note})" for note in image.notes)
    kind = f"{image.modality or 'unknown modality'} in {image.units or 'unknown units'}"
    raise InputError(
        f"{image.source}: {kind}{why} has no fixed black and white; state them: "
        f"--value-range-{side} LOW HIGH (Python: value_range_{side}=(LOW, HIGH); manifest: low_{side}, "
        f"high_{side}), or --percentiles-{side} 1 99.5 (Python: percentiles_{side}=(1, 99.5)) of the volume"
    )


def as_rgb8(image: Image) -> np.ndarray:
    """[H, W, 3] uint8 for a screen: black and white by the image's stated value range."""
    shown = from_unit(to_unit(image), np.dtype(np.uint8), (0, 255))
    return shown if shown.ndim == 3 else np.repeat(shown[..., None], 3, axis=2)
