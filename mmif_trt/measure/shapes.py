"""Shapes of planted lesions: more than discs, at sizes that a reader must search for."""

from __future__ import annotations

import cv2
import numpy as np
from numpy import ndarray

WINDOW_PX = 29  # what the reader sees, with room for every shape
REACH_PX = WINDOW_PX // 2
RADIUS_PX = (3.0, 8.0)  # of a lesion's extent; at 1 mm per pixel, 6 to 16 mm across
SHAPES = ("ellipse", "blob", "rim", "crescent", "foci")
_FINE = 4  # samples per pixel and axis
_EDGE_PX = 0.7  # partial volume: no lesion ends between two pixels


def footprint(shape: str, radius_px: float, rng: np.random.Generator) -> ndarray:
    """[29, 29] in [0, 1], largest 1: the share of the lesion in each pixel; centred, with soft edges.

    ellipse: axes up to 1 : 1.8, any angle. blob: a closed contour of random harmonics. rim: a ring, like an
    abscess or an enhancing tumour. crescent: one disc minus another, like blood along a surface. foci: three
    to five spots, like microbleeds, calcifications or plaques. radius_px: of the whole, 3 to 8.
    """
    fine = (np.arange(WINDOW_PX * _FINE) + 0.5) / _FINE - WINDOW_PX / 2
    angle = rng.uniform(0, 2 * np.pi)
    x, y = np.meshgrid(fine, fine)
    x, y = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    inside = _INSIDE[shape](x, y, radius_px, rng).astype(np.float64)
    whole = inside.reshape(WINDOW_PX, _FINE, WINDOW_PX, _FINE).mean(axis=(1, 3))
    soft = cv2.GaussianBlur(whole, (0, 0), _EDGE_PX, borderType=cv2.BORDER_CONSTANT)
    found: ndarray = soft / soft.max()
    found[found < 0.02] = 0
    return found


def _ellipse(x: ndarray, y: ndarray, radius: float, rng: np.random.Generator) -> ndarray:
    stretch = rng.uniform(1, 1.8) ** 0.5
    inside: ndarray = np.hypot(x / stretch, y * stretch) <= radius
    return inside


def _blob(x: ndarray, y: ndarray, radius: float, rng: np.random.Generator) -> ndarray:
    angle = np.arctan2(y, x)
    contour = np.ones_like(x)
    for harmonic in range(2, 6):
        contour += rng.normal(0, 0.28 / harmonic**0.5) * np.cos(harmonic * angle + rng.uniform(0, 2 * np.pi))
    inside: ndarray = np.hypot(x, y) <= radius * np.clip(contour, 0.4, 1.5)
    return inside


def _rim(x: ndarray, y: ndarray, radius: float, rng: np.random.Generator) -> ndarray:
    outer = max(radius, 4.0)
    away = np.hypot(x, y * rng.uniform(1, 1.4))
    inside: ndarray = (away <= outer) & (away >= outer - rng.uniform(1.5, 2.5))
    return inside


def _crescent(x: ndarray, y: ndarray, radius: float, rng: np.random.Generator) -> ndarray:
    outer = max(radius, 4.0) * 1.2
    inside: ndarray = (np.hypot(x, y) <= outer) & (np.hypot(x - outer * rng.uniform(0.45, 0.7), y) > outer)
    return inside


def _foci(x: ndarray, y: ndarray, radius: float, rng: np.random.Generator) -> ndarray:
    inside = np.zeros(x.shape, bool)
    count = int(rng.integers(3, 6))
    for spot in range(count):
        angle = 2 * np.pi * (spot + rng.uniform(-0.3, 0.3)) / count
        away = max(radius, 4.0) * rng.uniform(0.6, 1)
        size = rng.uniform(1.1, 2.0)
        inside |= np.hypot(x - away * np.cos(angle), y - away * np.sin(angle)) <= size
    return inside


_INSIDE = {"ellipse": _ellipse, "blob": _blob, "rim": _rim, "crescent": _crescent, "foci": _foci}
