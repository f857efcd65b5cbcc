"""sRGB on 0..255 to CIELAB and Oklab, in float64 and by the formula: OpenCV's tables depend on the CPU.

CIELAB: ISO 11664-4, D65, 2 degrees; the sRGB primaries of IEC 61966-2-1, as scikit-image has them.
Oklab: B. Ottosson, https://bottosson.github.io/posts/oklab (2020).
"""

from __future__ import annotations

import numpy as np

XYZ_OF_RGB = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
)
WHITE_D65 = np.array([0.95047, 1.0, 1.08883])
LMS_OF_RGB = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
OKLAB_OF_LMS = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
_EPSILON = 216 / 24389  # of CIELAB: below this a line replaces the cube root


def as_rgb(picture: np.ndarray) -> np.ndarray:
    """[H, W, 3] of grey [H, W], each channel the same; RGB unchanged."""
    return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)


def _linear_of(coded: np.ndarray) -> np.ndarray:
    return np.where(coded <= 0.04045, coded / 12.92, ((np.maximum(coded, 0) + 0.055) / 1.055) ** 2.4)


_LINEAR_OF_BYTE = _linear_of(np.arange(256) / 255)


def linear(rgb: np.ndarray) -> np.ndarray:
    """Linear light in [0, 1] of sRGB values on 0..255, any shape; uint8 by table."""
    return _LINEAR_OF_BYTE[rgb] if rgb.dtype == np.uint8 else _linear_of(rgb / 255.0)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB [..., 3] of sRGB [..., 3] on 0..255: L* 0..100, a*, b* about -128..127; grey has a* = b* = 0
    within 0.01."""
    xyz = linear(rgb) @ (XYZ_OF_RGB / WHITE_D65[:, None]).T
    f = np.where(xyz > _EPSILON, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def lightness(picture: np.ndarray) -> np.ndarray:
    """L* [H, W] of grey [H, W] or RGB [H, W, 3] on 0..255."""
    light = linear(picture)
    y = light if picture.ndim == 2 else light @ XYZ_OF_RGB[1]
    return 116 * np.where(y > _EPSILON, np.cbrt(y), (24389 / 27 * y + 16) / 116) - 16


def oklab(rgb: np.ndarray) -> np.ndarray:
    """Oklab [..., 3] of sRGB [..., 3] on 0..255: L in [0, 1], a and b about -0.4..0.4."""
    return np.cbrt(linear(rgb) @ LMS_OF_RGB.T) @ OKLAB_OF_LMS.T
