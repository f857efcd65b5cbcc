"""Fusions without a network, as pictures: what every viewer offers, and what a method must beat."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy import ndarray

from mmif_trt.measure.colourspace import as_rgb
from mmif_trt.stages import colour

Fuse = Callable[[ndarray, ndarray], ndarray]  # a uint8 [H, W], b uint8 [H, W] or [H, W, 3] -> as b


def overlay(opacity: float) -> Fuse:
    """b over a at an opacity in 0..1, each channel of the coded RGB, as viewers blend; grey with a grey b."""

    def blended(a: ndarray, b: ndarray) -> ndarray:
        below = a if b.ndim == 2 else as_rgb(a)
        return np.rint((1 - opacity) * below + opacity * b.astype(np.float64)).astype(np.uint8)

    return blended


def maximum(a: ndarray, b: ndarray) -> ndarray:
    """The larger luma of each pixel, under the chroma of b as far as RGB holds it."""
    if b.ndim == 2:
        return np.maximum(a, b)
    unit = b.astype(np.float32) / np.float32(255)
    luma = np.maximum(a.astype(np.float32) / np.float32(255), colour.luma(unit))
    return np.rint(colour.recombine(luma, unit) * 255).astype(np.uint8)


# "average" is the 50 % overlay: of the lumas too, to rounding.
PICTURES: dict[str, Fuse] = {"average": overlay(0.5), "overlay70": overlay(0.7), "max": maximum}
