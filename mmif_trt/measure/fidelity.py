"""What a reader needs from a fused picture, measured where it matters: bone, soft tissue, uptake, colour.

Everywhere a is the MRI [H, W], b the other source, f the fused picture, 8 bit as a viewer shows them. With
CT b and f count as luma [H, W]; with PET and SPECT b is RGB [H, W, 3] in a palette, f RGB or grey.
A measure over nothing (no bone, no uptake, no colour) is nan: there was nothing to preserve.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy import ndarray

from mmif_trt.image import InputError
from mmif_trt.measure.colourspace import as_rgb, lightness, oklab
from mmif_trt.measure.uptake import Palette, foreground, recover, top_of

CT = ("bone_edge", "bone_error", "soft", "soft_gain")
UPTAKE = ("detail_top", "detail_all", "readback", "colour_top", "washed_top")
LOWER_IS_BETTER = ("bone_error", "washed_top")
NEITHER = ("soft_gain",)  # 1 is right

BONE_MIN = 200
SOFT_MIN, SOFT_MAX, SOFT_MRI_MIN, SOFT_STEEP = 20, 170, 10, 6
HIGH_PASS_PX = 2.5
CHROMA_MIN = 0.04  # Oklab: below it b has no hue to keep
WASHED = 0.5  # of b's chroma: a pixel with less is washed out
NAN = float("nan")


def names_for(modality: str) -> tuple[str, ...]:
    """The measures of "ct", "pet" or "spect"."""
    return CT if modality == "ct" else UPTAKE


def fidelity(
    a: ndarray, b: ndarray, f: ndarray, modality: str, palette: Palette | None = None
) -> dict[str, float]:
    """The measures of `names_for(modality)`. palette: b's where it is known; None recovers it from b."""
    _check(a, b, f)
    if modality == "ct":
        return ct_fidelity(luma(a), luma(b), luma(f))
    return uptake_fidelity(luma(a), as_rgb(b), as_rgb(f), palette)


def ct_fidelity(a: ndarray, b: ndarray, f: ndarray) -> dict[str, float]:
    """a, b, f: [H, W] on 0..255.

    bone_edge: agreement of the gradients of f and b within 2 px of bone (b >= 200), 0..1.
    bone_error: mean |f - b| over bone, in levels; lower is better.
    soft: agreement of the gradients of f and a in soft tissue (20 < b < 170, 2 px from its border; a > 10;
    b smooth, |grad of b after a Gaussian of 1 px| < 6), 0..1. soft_gain: the gain of f over a there, 1 is
    right.
    """
    a, b, f = (np.asarray(x, np.float64) for x in (a, b, f))
    bone = b >= BONE_MIN
    g_a, g_b, g_f = (np.stack([*np.gradient(x)]) for x in (a, b, f))
    edge = cv2.dilate(bone.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    soft = soft_tissue(a, b)
    soft &= np.hypot(*np.gradient(cv2.GaussianBlur(b, (0, 0), 1.0))) < SOFT_STEEP
    power = float((g_a[:, soft] ** 2).sum())
    return {
        "bone_edge": agreement(g_f[:, edge], g_b[:, edge]),
        "bone_error": float(np.abs(f - b)[bone].mean()) if bone.any() else NAN,
        "soft": agreement(g_f[:, soft], g_a[:, soft]),
        "soft_gain": float((g_f[:, soft] * g_a[:, soft]).sum()) / power if power > 0 else NAN,
    }


def soft_tissue(a: ndarray, b: ndarray) -> ndarray:
    """bool [H, W]: 20 < b < 170 at least 2 px deep, where the MRI shows something (a > 10)."""
    between = ((b > SOFT_MIN) & (b < SOFT_MAX)).astype(np.uint8)
    inside: ndarray = (cv2.erode(between, np.ones((5, 5), np.uint8), borderValue=0) > 0) & (a > SOFT_MRI_MIN)
    return inside


def uptake_fidelity(a: ndarray, b: ndarray, f: ndarray, palette: Palette | None = None) -> dict[str, float]:
    """a: [H, W]; b, f: [H, W, 3], on 0..255.

    detail_top, detail_all: agreement of the high-passed L* of f with that of a (less a Gaussian of 2.5 px),
    over the top fifth of the uptake and over its foreground, 0..1. readback: rank correlation over the
    foreground of uptake and its reading from f's colour. colour_top: share of b's chroma that f keeps, along
    b's hue, over the top fifth where b has colour; excess counts as loss, 1 is right. washed_top: share of
    those pixels that keep less than half; lower is better.
    """
    palette = recover(b) if palette is None else palette
    if palette is None:
        return dict.fromkeys(UPTAKE, NAN)
    place = palette.place(b)
    inside = foreground(b, place)
    top = top_of(place, inside)
    detail_a, detail_f = (_high_pass(lightness(x)) for x in (a, f))
    share, weight = _chroma_shares(b[top], f[top])
    kept = np.where(share > 0, np.minimum(share, 1 / np.maximum(share, 1e-12)), 0)
    return {
        "detail_top": agreement(detail_f[top], detail_a[top]),
        "detail_all": agreement(detail_f[inside], detail_a[inside]),
        "readback": rank_correlation(place[inside], palette.read(f[inside])),
        "colour_top": float((weight * kept).sum() / weight.sum()) if len(share) else NAN,
        "washed_top": float((share < WASHED).mean()) if len(share) else NAN,
    }


def agreement(x: ndarray, y: ndarray) -> float:
    """G = max(0, 2 sum(x y) / (sum(x^2) + sum(y^2))) of zero-mean signals: 1 where they are equal.

    Loss, amplification and reversal are all penalised: a copy at gain g scores 2 g / (1 + g^2). nan if both
    are 0.
    """
    power = float((x * x).sum() + (y * y).sum())
    return max(0.0, 2 * float((x * y).sum()) / power) if power > 0 else NAN


def rank_correlation(x: ndarray, y: ndarray) -> float:
    """Spearman's rho of [N] and [N], ties at their mean rank; 0 if one is flat, nan for fewer than 2
    values."""
    if len(x) < 2:
        return NAN
    ranks = [_ranks(v) for v in (x, y)]
    x, y = (r - r.mean() for r in ranks)
    norm = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / norm) if norm > 0 else 0.0


def _ranks(values: ndarray) -> ndarray:
    _, back, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank: ndarray = (last - (counts - 1) / 2)[back.reshape(-1)]
    return mean_rank


def luma(picture: ndarray) -> ndarray:
    """float64 [H, W]: grey unchanged; for RGB, the BT.601 luma of scores.luma_8_bit."""
    if picture.ndim == 2:
        return picture.astype(np.float64)
    return picture.astype(np.float64) @ np.array([9797, 19234, 3737]) / 32768


def _high_pass(x: ndarray) -> ndarray:
    blurred: ndarray = cv2.GaussianBlur(x, (0, 0), HIGH_PASS_PX, borderType=cv2.BORDER_REFLECT)
    return x - blurred


def _chroma_shares(b: ndarray, f: ndarray) -> tuple[ndarray, ndarray]:
    """(p, w) of the pixels [N, 3] where b has colour: the share of b's chroma w in f, along b's hue."""
    ab_b, ab_f = oklab(b)[:, 1:], oklab(f)[:, 1:]
    weight = np.hypot(ab_b[:, 0], ab_b[:, 1])
    hue = weight > CHROMA_MIN
    ab_b, ab_f, weight = ab_b[hue], ab_f[hue], weight[hue]
    return (ab_f * ab_b).sum(1) / weight**2, weight


def _check(a: ndarray, b: ndarray, f: ndarray) -> None:
    for name, picture in (("a", a), ("b", b), ("f", f)):
        if not (picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] == 3)):
            raise InputError(f"fidelity: {name} has shape {picture.shape}; expected [H, W] or [H, W, 3]")
        if picture.shape[:2] != a.shape[:2]:
            raise InputError(
                f"fidelity: {name} is {picture.shape[:2]} px, a {a.shape[:2]}; expected one size"
            )
        if picture.dtype != np.uint8 and not np.isfinite(picture).all():
            raise InputError(f"fidelity: {name} has NaN or infinite pixels; expected values on 0 to 255")
