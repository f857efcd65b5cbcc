"""The distance of one picture's hue from another's: CIELAB and OKLab hue angle, CIEDE2000 without lightness.

A measure, not a stage: nothing between input and output imports it. RGB is sRGB in [0, 1], white D65.
"""

from __future__ import annotations

import numpy as np

from mmif_trt.measure.colourspace import lab, oklab

MIN_CHROMA = 5.0  # C*ab below which hue is not measured: for 8-bit colours its angle there is mostly rounding


def ciede2000(lab1: np.ndarray, lab2: np.ndarray) -> np.ndarray:
    """CIEDE2000 colour difference of CIELAB [..., 3], kL = kC = kH = 1; [...] float64.

    G. Sharma, W. Wu, E. N. Dalal 2005, "The CIEDE2000 color-difference formula: implementation notes,
    supplementary test data, and mathematical observations", Color Research and Application 30(1):21-30.
    """
    lightness, chroma, hue, rotation = _ciede2000_terms(lab1, lab2)
    return np.sqrt(np.maximum(lightness**2 + chroma**2 + hue**2 + rotation * chroma * hue, 0))


def _ciede2000_terms(
    lab1: np.ndarray, lab2: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """dL'/SL, dC'/SC, dH'/SH and RT, numbered as the equations of Sharma 2005."""
    l1, a1, b1 = np.moveaxis(np.asarray(lab1, np.float64), -1, 0)
    l2, a2, b2 = np.moveaxis(np.asarray(lab2, np.float64), -1, 0)
    mean_c7 = ((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2) ** 7  # (2), (3)
    stretch = 1.5 - 0.5 * np.sqrt(mean_c7 / (mean_c7 + 25.0**7))  # 1 + G, (4), (5)
    c1, c2 = np.hypot(stretch * a1, b1), np.hypot(stretch * a2, b2)  # (6)
    h1 = np.degrees(np.arctan2(b1, stretch * a1)) % 360  # (7); 0 where both are 0, as arctan2(0, 0) is 0
    h2 = np.degrees(np.arctan2(b2, stretch * a2)) % 360
    coloured = c1 * c2 > 0
    dh = np.where(coloured, _turn(h2 - h1), 0)  # (10)
    d_hue = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(dh / 2))  # (11)
    mean_l, mean_c = (l1 + l2) / 2, (c1 + c2) / 2  # (12), (13)
    far = np.abs(h1 - h2) > 180
    mean_h = (h1 + h2) / 2 + np.where(far, np.where(h1 + h2 < 360, 180, -180), 0)
    mean_h = np.where(coloured, mean_h, h1 + h2)  # (14)
    t = (  # (15)
        1
        - 0.17 * np.cos(np.radians(mean_h - 30))
        + 0.24 * np.cos(np.radians(2 * mean_h))
        + 0.32 * np.cos(np.radians(3 * mean_h + 6))
        - 0.20 * np.cos(np.radians(4 * mean_h - 63))
    )
    theta = 30 * np.exp(-(((mean_h - 275) / 25) ** 2))  # (16)
    r_c = 2 * np.sqrt(mean_c**7 / (mean_c**7 + 25.0**7))  # (17)
    s_l = 1 + 0.015 * (mean_l - 50) ** 2 / np.sqrt(20 + (mean_l - 50) ** 2)  # (18)
    s_c, s_h = 1 + 0.045 * mean_c, 1 + 0.015 * mean_c * t  # (19), (20)
    return (l2 - l1) / s_l, (c2 - c1) / s_c, d_hue / s_h, -np.sin(np.radians(2 * theta)) * r_c  # (21), (22)


def hue_differences(rgb_out: np.ndarray, rgb_b: np.ndarray) -> dict[str, np.ndarray]:
    """Per-pixel differences of two RGB pictures [..., 3] in [0, 1]; each result a flat float64 array, >= 0.

    Over the pixels where b has a chroma C*ab of at least MIN_CHROMA (a set that b alone decides):
      de00      CIEDE2000 with lightness factored out: both L* taken as equal, which leaves chroma and hue
      de00_hue  only its hue term, |dH' / SH|: the hue shift at the visible chroma
      chroma_kept  C*ab of the result over that of b
    Over those of them where the result has that chroma too (nearer to grey an angle means nothing):
      dh_deg    CIELAB hue angle, degrees, 0 to 180
      dh_oklab_deg  the same in OKLab: CIELAB is curved in the blues, which PET palettes use a lot
    """
    rgb_out, rgb_b = (
        np.asarray(rgb_out, np.float64).reshape(-1, 3),
        np.asarray(rgb_b, np.float64).reshape(-1, 3),
    )
    lab_b = lab(255 * rgb_b)
    judged = np.hypot(lab_b[:, 1], lab_b[:, 2]) >= MIN_CHROMA
    rgb_out, rgb_b, lab_b = rgb_out[judged], rgb_b[judged], lab_b[judged]
    lab_out = lab(255 * rgb_out)
    chroma_out, chroma_b = (np.hypot(x[:, 1], x[:, 2]) for x in (lab_out, lab_b))
    coloured = chroma_out >= MIN_CHROMA
    dh = _angle_between(lab_out[coloured], lab_b[coloured])
    dh_oklab = _angle_between(oklab(255 * rgb_out[coloured]), oklab(255 * rgb_b[coloured]))
    # Lightness enters CIEDE2000 only through its own term, so omitting that is the same as equal L*.
    _, chroma, hue, rotation = _ciede2000_terms(lab_b, lab_out)
    de00 = np.sqrt(np.maximum(chroma**2 + hue**2 + rotation * chroma * hue, 0))
    return {
        "de00": de00,
        "de00_hue": np.abs(hue),
        "chroma_kept": chroma_out / chroma_b,
        "dh_deg": dh,
        "dh_oklab_deg": dh_oklab,
    }


def summarise(differences: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean, 95th percentile, maximum of each array of hue_differences, and pixel counts; NaN for no pixel."""
    figures: dict[str, float] = {"pixels": differences["de00"].size, "pixels_dh": differences["dh_deg"].size}
    for name, values in differences.items():
        some = values if values.size else np.array([np.nan])
        figures[f"{name}_mean"] = float(some.mean())
        figures[f"{name}_p95"] = float(np.percentile(some, 95))
        figures[f"{name}_max"] = float(some.max())
    return figures


def _turn(degrees: np.ndarray) -> np.ndarray:
    """An angle difference wrapped to -180..180."""
    return degrees - 360 * np.round(degrees / 360)


def _angle_between(lab1: np.ndarray, lab2: np.ndarray) -> np.ndarray:
    """Unsigned hue angle between two [N, 3] of (lightness, a, b), degrees, 0 to 180."""
    h1, h2 = np.arctan2(lab1[:, 2], lab1[:, 1]), np.arctan2(lab2[:, 2], lab2[:, 1])
    return np.abs(_turn(np.degrees(h1 - h2)))
