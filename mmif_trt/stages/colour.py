"""Colour: extract luma, and put a fused luma back under the chroma of b, inside RGB and without a hue shift.

All computation is on the gamma-coded RGB that image files hold. Luma is BT.601; a pixel's chroma is the
rest, rgb - luma, a vector in the plane of zero luma. The angle in that plane is the hue (the Cb, Cr
angle), its length the chroma.
"""

from __future__ import annotations

import numpy as np

from mmif_trt.image import InputError

LUMA_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R BT.601, R G B
_TINY = np.float32(1e-12)  # keeps grey pixels out of 0/0; far below one float32 step of any visible chroma


def luma(rgb: np.ndarray) -> np.ndarray:
    """BT.601 luma: float32 [..., H, W] of float RGB [..., H, W, 3]; grey [..., H, W] comes back as float32.

    Any range, usually [0, 1]. A last axis of 3 is read as RGB: no image of this package is 3 px wide.
    Raises InputError for integers, whose range the caller has to state first.
    """
    rgb = _as_float32(rgb, "rgb")
    if rgb.ndim < 2 or rgb.shape[-1] != 3:
        return rgb
    return _luma(rgb[..., 0], rgb[..., 1], rgb[..., 2])


def _luma(red: np.ndarray, green: np.ndarray, blue: np.ndarray) -> np.ndarray:
    # G + wR (R - G) + wB (B - G) instead of the plain sum: exact where R = G = B, so that grey stays grey.
    return green + np.float32(LUMA_WEIGHTS[0]) * (red - green) + np.float32(LUMA_WEIGHTS[2]) * (blue - green)


def planes(unit: np.ndarray) -> np.ndarray:
    """What the network reads of the other source, grey [..., H, W] or RGB [..., H, W, 3] in [0, 1]: float32
    [..., 2, H, W], its luma, and how far its brightest channel lies above that, 0 for grey.

    The second says how saturated a pixel is: up to a luma of 1 less it, `recombine` keeps the whole chroma.
    """
    unit = _as_float32(unit, "unit")
    if unit.ndim < 2 or unit.shape[-1] != 3:
        return np.stack([unit, np.zeros_like(unit)], -3)
    _, grey, above = _split(unit)
    return np.stack([grey, np.maximum(above, 0)], -3)


def _split(rgb: np.ndarray) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """The three channels, the luma, and how far the brightest channel lies above it."""
    # Each in one piece: numpy is several times slower with an innermost axis of 3.
    red, green, blue = channels = [np.ascontiguousarray(rgb[..., i]) for i in range(3)]
    grey = _luma(red, green, blue)
    return channels, grey, np.maximum(np.maximum(red, green), blue) - grey


def recombine(y: np.ndarray, rgb: np.ndarray) -> np.ndarray:
    """Luma y under the chroma of rgb: float32 [..., H, W, 3] in [0, 1].

    y: [..., H, W] in [0, 1] (values outside are clipped: no colour has such a luma).
    rgb: [..., H, W, 3] in [0, 1].

        out = y + s (rgb - luma(rgb)),   s = min(1, (1 - y) / (max - luma), y / (luma - min))

    with max and min over the pixel's channels: the largest s in [0, 1] that keeps out within [0, 1]. One s
    for three channels keeps the luma (the chroma vector has none) and the Cb, Cr angle; clipping each channel
    keeps neither. y = 0 gives exactly 0, y = 1 exactly 1, grey gives grey, y = luma(rgb) gives rgb to
    rounding.

    Chroma is kept, not saturation. Measured on PET and SPECT (benchmarks/colour.py): scaling chroma by
    y / luma where y is darker turns the hot spots of SPECT brown and costs a tenth of its chroma for 0.1
    degree of hue; scaling it up where y is brighter lifts the near-black noise of PET to pure blue.

    Raises InputError for shapes that do not match and for integers.
    """
    y, rgb = _as_float32(y, "y"), _as_float32(rgb, "rgb")
    if rgb.ndim < 2 or rgb.shape[-1] != 3 or y.shape != rgb.shape[:-1]:
        raise InputError(
            f"recombine: y {y.shape} with rgb {rgb.shape}; expected [..., H, W] with [..., H, W, 3]"
        )
    y = np.clip(y, 0, 1)
    (red, green, blue), grey, above = _split(rgb)
    below = grey - np.minimum(np.minimum(red, green), blue)
    share = np.minimum((1 - y) / np.maximum(above, _TINY), y / np.maximum(below, _TINY))
    np.minimum(share, 1, out=share)
    out = np.empty_like(rgb, order="C")
    for i, channel in enumerate((red, green, blue)):
        channel = channel - grey
        channel *= share
        channel += y
        # In exact arithmetic there is nothing to clip; in float32 the product may end one rounding step
        # outside.
        out[..., i] = np.clip(channel, 0, 1, out=channel)
    return out


def _as_float32(array: np.ndarray, name: str) -> np.ndarray:
    array = np.asarray(array)
    if array.dtype.kind != "f":
        raise InputError(f"{name}: dtype {array.dtype}; expected floating point in [0, 1]")
    return array.astype(np.float32, copy=False)
