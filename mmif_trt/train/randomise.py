"""Domain randomisation: a training crop as another scanner, sequence, window or palette might show it.

The fused picture must keep lesions, uptake and colour on scanners never seen, so some of the crops are
changed at random, each source by its own draw (the idea of SynthSeg, Billot et al., Medical Image Analysis
86, 2023, on real pairs). Black stays black throughout. Images are [H, W] or [H, W, 3] float32 in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy import ndarray

from mmif_trt.stages import palettes

KNOTS = 5  # of a tone curve
CURVE_SPREAD = 0.55  # of the knots' log steps
DIM_MIN = 0.3
SEQUENCE = 0.2  # share of the MRI curves that may turn back, as from T1 to T2
NOISE_MAX, BLUR_MAX_PX = 8 / 255, 1.0
SHIFT_MAX_PX, TURN_MAX_DEGREES = 1.5, 1.5
ANCHORS = (3, 6)  # colours of a drawn palette beside black
PAINTED = 0.8  # share of the crops of PET and SPECT with another palette
KNOWN_PALETTE = 0.5  # share of the palettes taken from DICOM's
GREY_PALETTE = 0.08  # share of the palettes without a colour
ARCHIVE_PALETTE = 0.2  # share of the palettes taken from another case, as SPECT in the colours of PET


@dataclass(frozen=True, eq=False)
class Crop:
    """a: [H, W]. rgb: [H, W, 3] of the other source. PET and SPECT: uptake [H, W] and its palette [256, 3],
    which gives rgb up to noise. generated: what the diffusion model expects a and the luma of rgb to be.
    strong: the uptake from which on a pixel is of the strongest fifth of the whole slice. repainted: whether
    the palette is another one than the archive's, or the crop of no patient.
    """

    a: ndarray
    rgb: ndarray
    uptake: ndarray | None
    palette: ndarray | None
    generated: tuple[ndarray, ndarray] | None
    strong: float = 2.0
    repainted: bool = False


def randomised(crop: Crop, rng: np.random.Generator, archive: Sequence[ndarray] = ()) -> Crop:
    """The crop with a new tone, palette or window, noise, blur and a small misregistration, each with its own
    chance. Expected images are changed likewise; after a new palette they are unknown and are dropped.
    archive: the palettes [256, 3] of the cases, which are among those that a crop may get."""
    if rng.random() < 0.3:
        crop = misregistered(crop, rng)
    if rng.random() < 0.6:
        crop = with_mri_curve(crop, tone_curve(rng, rng.random() < SEQUENCE))
    if crop.uptake is None:
        if rng.random() < 0.6:
            crop = with_ct_curve(crop, tone_curve(rng, False))
    elif rng.random() < PAINTED:
        crop = with_palette(crop, new_palette(rng, archive), tone_curve(rng, False))
    if rng.random() < 0.25:
        gain = rng.uniform(DIM_MIN, 1.0, 2).astype(np.float32)
        crop = dimmed(crop, float(gain[0]), float(gain[1]))
    if rng.random() < 0.3:
        crop = replace(crop, a=blurred(crop.a, rng.uniform(0.3, BLUR_MAX_PX)))
    if rng.random() < 0.3:
        crop = replace(crop, a=noisy(crop.a, rng.uniform(0, NOISE_MAX), rng))
    if crop.uptake is None and rng.random() < 0.3:
        grey = noisy(crop.rgb[..., 0], rng.uniform(0, NOISE_MAX), rng)
        crop = replace(crop, rgb=np.repeat(grey[..., None], 3, 2))
    return crop


def tone_curve(rng: np.random.Generator, turning: bool) -> ndarray:
    """[256] float32 in [0, 1], 0 at 0: a smooth random curve, rising, or turning back where asked."""
    steps = np.exp(rng.normal(0, CURVE_SPREAD, KNOTS))
    knots = np.concatenate([[0], np.cumsum(steps) / steps.sum()])
    if turning:
        knots[2:] = rng.uniform(0.15, 1.0, KNOTS - 1)
    at = np.linspace(0, KNOTS, 256)
    curve = np.interp(at, np.arange(KNOTS + 1), knots)
    curve = cv2.GaussianBlur(curve[:, None], (1, 31), 8, borderType=cv2.BORDER_REPLICATE)[:, 0]
    curve[:8] *= np.linspace(0, 1, 8)
    return np.clip(curve * rng.uniform(0.8, 1.1) / max(curve.max(), 0.5), 0, 1).astype(np.float32)


def through(curve: ndarray, x: ndarray) -> ndarray:
    """x [...] in [0, 1] through a table [256] or [256, C], linear between its entries."""
    at = np.clip(x, 0, 1) * 255
    low = np.minimum(at.astype(np.int32), 254)
    part = (at - low).astype(np.float32)
    if curve.ndim == 2:
        part = part[..., None]
    out: ndarray = curve[low] * (1 - part) + curve[low + 1] * part
    return out


def with_mri_curve(crop: Crop, curve: ndarray) -> Crop:
    generated = crop.generated and (through(curve, crop.generated[0]), crop.generated[1])
    return replace(crop, a=through(curve, crop.a), generated=generated)


def with_ct_curve(crop: Crop, curve: ndarray) -> Crop:
    """A CT's soft tissue by the curve; bone keeps its white, as in any window of the head."""
    level = np.arange(256, dtype=np.float32) / 255
    bone = np.clip((level - 0.6) / 0.2, 0, 1)
    curve = (1 - bone) * curve + bone * level
    generated = crop.generated and (crop.generated[0], through(curve, crop.generated[1]))
    return replace(crop, rgb=through(curve, crop.rgb), generated=generated)


def new_palette(rng: np.random.Generator, archive: Sequence[ndarray] = ()) -> ndarray:
    """[256, 3] from black: one of the archive's, if there are any, a smooth one of DICOM's, grey, or random
    colours joined by a smooth curve."""
    if archive and rng.random() < ARCHIVE_PALETTE:
        return archive[int(rng.integers(len(archive)))]
    kind = rng.random()
    if kind < GREY_PALETTE:
        return np.repeat(np.linspace(0, 1, 256, dtype=np.float32)[:, None], 3, 1)
    if kind < GREY_PALETTE + KNOWN_PALETTE:
        names = [name for name in palettes.PALETTES if "STEP" not in name]
        return palettes.table(names[int(rng.integers(len(names)))])
    count = int(rng.integers(ANCHORS[0], ANCHORS[1] + 1))
    anchors = rng.random((count, 3))
    # Saturated: one channel up, one down, like palettes that distinguish uptake.
    anchors[np.arange(count), rng.integers(3, size=count)] = rng.uniform(0.7, 1.0, count)
    anchors[np.arange(count), rng.integers(3, size=count)] *= rng.uniform(0.0, 0.6, count)
    anchors = np.concatenate([np.zeros((1, 3)), anchors])
    anchors[1] *= rng.uniform(0.3, 1.0)
    at = np.linspace(0, count, 256)
    curve = np.stack([np.interp(at, np.arange(count + 1), anchors[:, i]) for i in range(3)], 1)
    curve = np.asarray(cv2.GaussianBlur(curve, (1, 41), 10, borderType=cv2.BORDER_REPLICATE))
    curve = curve - curve[:1] * (1 - np.linspace(0, 1, 256)[:, None]) ** 8
    return np.clip(curve, 0, 1).astype(np.float32)


def with_palette(crop: Crop, palette: ndarray, curve: ndarray) -> Crop:
    """The same uptake through a tone curve and another palette; noise off the old palette goes with it."""
    assert crop.uptake is not None
    uptake = through(curve, crop.uptake)
    strong = 2.0 if crop.strong > 1 else float(through(curve, np.array(crop.strong, np.float32)))
    rgb = through(palette, uptake)
    return replace(
        crop, uptake=uptake, palette=palette, rgb=rgb, generated=None, strong=strong, repainted=True
    )


def dimmed(crop: Crop, gain_a: float, gain_b: float) -> Crop:
    generated = crop.generated and (gain_a * crop.generated[0], gain_b * crop.generated[1])
    palette = None if crop.palette is None else gain_b * crop.palette
    return replace(crop, a=gain_a * crop.a, rgb=gain_b * crop.rgb, palette=palette, generated=generated)


def blurred(x: ndarray, sigma_px: float) -> ndarray:
    """A Gaussian blur inside the foreground; black stays black."""
    out: ndarray = cv2.GaussianBlur(x, (0, 0), sigma_px, borderType=cv2.BORDER_REPLICATE) * (x > 0)
    return out


def noisy(x: ndarray, sigma: float, rng: np.random.Generator) -> ndarray:
    noise = rng.standard_normal(x.shape, np.float32) * np.float32(sigma)
    out: ndarray = np.clip(x + noise, 0, 1) * (x > 0)
    return out


def misregistered(crop: Crop, rng: np.random.Generator) -> Crop:
    """The other source shifted and turned by a little against the MRI."""
    height, width = crop.a.shape
    angle = float(rng.uniform(-TURN_MAX_DEGREES, TURN_MAX_DEGREES))
    move = np.asarray(cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1.0), np.float64)
    move[:, 2] = move[:, 2] + rng.uniform(-SHIFT_MAX_PX, SHIFT_MAX_PX, 2)

    def moved(x: ndarray) -> ndarray:
        out: ndarray = cv2.warpAffine(
            x, move, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        return out

    generated = crop.generated and (crop.generated[0], moved(crop.generated[1]))
    if crop.uptake is None or crop.palette is None:
        return replace(crop, rgb=moved(crop.rgb), generated=generated)
    uptake = moved(crop.uptake)  # a colour between two of a palette need not be in it
    return replace(crop, uptake=uptake, rgb=through(crop.palette, uptake), generated=generated)
