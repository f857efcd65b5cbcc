"""Pairs drawn from random maps of tissue: heads that no patient has, as any scanner might show them.

A map of labels is drawn first, skin to ventricles, then each picture from it with levels of its own (the idea
of SynthSeg, Billot et al., Medical Image Analysis 86, 2023). The shapes and levels are our own design and
rough: they are to teach no anatomy, but that any tissue may have any level in an MRI, and any palette any
uptake. Images are [H, W] or [H, W, 3] float32 in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy import ndarray

from mmif_trt.train.fidelity_losses import TOP_UPTAKE
from mmif_trt.train.randomise import Crop, new_palette, noisy, through

AIR, SCALP, SKULL, FLUID, GREY, WHITE, NUCLEUS, VESSEL = range(8)
RADIUS_PX = (78.0, 112.0)  # of the head, each axis
OFF_CENTRE = 0.65  # of a radius, at most: where the crop lies in the head
FOLD_PX, FOLD_DEPTH = (7.0, 16.0), (0.10, 0.24)  # of the cortex
BLUR_MRI_PX, BLUR_CT_PX = (0.4, 1.0), (0.4, 0.9)
BLUR_PX = {"pet": (1.5, 3.5), "spect": (2.5, 6.0)}  # what the tracer's scanner resolves
NOISE_MOST, TEXTURE_MOST, TEXTURE_PX = 6 / 255, 0.06, (2.0, 7.0)
FAINT_UPTAKE = 0.03  # below it a tracer's picture is black

# Levels by label, least and most. MRI: T1, T2, FLAIR, or nothing known.
MRI = (
    ((0, 0), (0.5, 0.95), (0.02, 0.12), (0.05, 0.2), (0.35, 0.55), (0.6, 0.85), (0.4, 0.65), (0.1, 0.9)),
    ((0, 0), (0.3, 0.7), (0.02, 0.1), (0.75, 1.0), (0.4, 0.65), (0.2, 0.42), (0.25, 0.5), (0.02, 0.2)),
    ((0, 0), (0.3, 0.7), (0.02, 0.12), (0.02, 0.15), (0.5, 0.75), (0.35, 0.55), (0.4, 0.65), (0.05, 0.3)),
    ((0, 0), *[(0.04, 0.95)] * 7),
)
CT = ((0, 0), (0.05, 0.35), (0.85, 1.0), (0.1, 0.3), (0.38, 0.6), (0.32, 0.52), (0.38, 0.6), (0.4, 0.75))
UPTAKE = ((0, 0), (0, 0.25), (0, 0.12), (0, 0.12), (0.6, 1.0), (0.15, 0.5), (0.6, 1.0), (0.05, 0.6))


def crop(rng: np.random.Generator, modality: str, side: int, archive: Sequence[ndarray] = ()) -> Crop:
    """A square crop of `side` px out of a random head. modality: "ct", "pet" or "spect". archive: palettes
    [256, 3] that a tracer may have, besides those of `randomise.new_palette`."""
    labels = tissue(rng, side)
    a = shown(labels, rng, MRI[int(rng.integers(len(MRI)))], rng.uniform(*BLUR_MRI_PX))
    texture = 1 + rng.uniform(0, TEXTURE_MOST) * _waves(rng, side, rng.uniform(*TEXTURE_PX))
    a = noisy(np.clip(a * texture * _field(rng, side, 0.15), 0, 1), rng.uniform(0, NOISE_MOST), rng)
    if modality == "ct":
        grey = shown(labels, rng, CT, rng.uniform(*BLUR_CT_PX))
        grey = noisy(grey, rng.uniform(0, NOISE_MOST), rng)
        return Crop(a, np.repeat(grey[..., None], 3, 2), None, None, None, repainted=True)
    uptake = shown(labels, rng, UPTAKE, rng.uniform(*BLUR_PX[modality])) * _field(rng, side, 0.3)
    uptake = cv2.GaussianBlur(noisy(np.clip(uptake, 0, 1), 4 * NOISE_MOST * rng.random(), rng), (0, 0), 1.0)
    uptake = np.where(uptake > FAINT_UPTAKE, uptake / max(float(uptake.max()), 0.5), 0).astype(np.float32)
    palette = new_palette(rng, archive)
    inside = uptake[uptake > 0]
    strong = float(np.quantile(inside, TOP_UPTAKE)) if len(inside) else 2.0
    return Crop(a, through(palette, uptake), uptake, palette, None, strong, repainted=True)


def tissue(rng: np.random.Generator, side: int) -> ndarray:
    """[side, side] of labels: nested shells of a head, a folded cortex, fluid in its folds and in ventricles,
    nuclei and vessels."""
    radius = rng.uniform(*RADIUS_PX, 2)
    centre = side / 2 + rng.uniform(-OFF_CENTRE, OFF_CENTRE, 2) * radius
    y, x = np.mgrid[:side, :side].astype(np.float32)
    depth = np.hypot((y - centre[0]) / radius[0], (x - centre[1]) / radius[1]).astype(np.float32)
    depth += 0.03 * _waves(rng, side, 40.0)
    scalp, skull = 1 - rng.uniform(0.02, 0.08), 1 - rng.uniform(0.1, 0.2)
    brain = skull - rng.uniform(0.0, 0.04)
    folds = _waves(rng, side, rng.uniform(*FOLD_PX))
    below = brain - depth + rng.uniform(*FOLD_DEPTH) * folds  # of the cortex, positive in white matter
    labels = np.full((side, side), WHITE)
    labels[below < rng.uniform(0.12, 0.24)] = GREY
    labels[below < rng.uniform(0.0, 0.06)] = FLUID
    middle = depth < rng.uniform(0.3, 0.5)
    labels[middle & (_waves(rng, side, 18.0) > rng.uniform(0.9, 1.6))] = NUCLEUS
    labels[middle & (_waves(rng, side, 22.0) > rng.uniform(0.9, 1.8))] = FLUID
    labels[(np.abs(_waves(rng, side, 25.0)) < 0.03) & (_waves(rng, side, 30.0) > 1)] = VESSEL
    labels[depth > brain] = FLUID
    labels[depth > skull] = SKULL
    marrow = (depth > skull + 0.03) & (depth < scalp - 0.03) & (_waves(rng, side, 10.0) > rng.uniform(0.3, 2))
    labels[marrow] = GREY
    labels[depth > scalp] = SCALP
    labels[depth > 1] = AIR
    return labels


def shown(
    labels: ndarray, rng: np.random.Generator, levels: Sequence[tuple[float, float]], blur_px: float
) -> ndarray:
    """A picture of the labels, each with a level drawn from its span; air stays black."""
    drawn = np.array([rng.uniform(*span) for span in levels], np.float32)
    out: ndarray = cv2.GaussianBlur(drawn[labels], (0, 0), blur_px, borderType=cv2.BORDER_REPLICATE)
    return out * (labels != AIR)


def _field(rng: np.random.Generator, side: int, most: float) -> ndarray:
    """Slow changes of brightness [side, side], around 1."""
    return np.exp(rng.uniform(0, most) * _waves(rng, side, 45.0)).astype(np.float32)


def _waves(rng: np.random.Generator, side: int, scale_px: float) -> ndarray:
    """Smooth noise [side, side] of standard deviation 1 or so, a feature about scale_px wide."""
    points = int(side / scale_px) + 4
    coarse = rng.standard_normal((points, points), np.float32)
    shift = rng.uniform(0, scale_px, 2)
    reach = (points - 3) * scale_px  # the outer points only hold the curve
    fine = cv2.resize(coarse, (int(points * scale_px),) * 2, interpolation=cv2.INTER_CUBIC)
    assert reach >= side
    top, left = (int(scale_px + part) for part in shift)
    return 1.3 * fine[top : top + side, left : left + side]
