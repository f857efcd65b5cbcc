"""Synthetic pairs with known answers: a head of MRI and CT, a head of MRI and PET in a known palette."""

from __future__ import annotations

import cv2
import numpy as np

SIDE = 160


def ramp_palette() -> np.ndarray:
    """[256, 3] from black through blue, red and yellow to white: its luma is not in order of its colours."""
    stops = np.array([[0, 0, 0], [0, 0, 160], [200, 0, 60], [255, 220, 0], [255, 255, 255]], float)
    at = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(np.linspace(0, 1, 256), at, stops[:, i]) for i in range(3)], axis=1)


def falling_palette() -> np.ndarray:
    """[256, 3] from black to yellow and on to dark red: in the upper half luma falls as uptake rises."""
    stops = np.array([[0, 0, 0], [0, 110, 0], [240, 240, 0], [230, 90, 0], [110, 0, 0]], float)
    at = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(np.linspace(0, 1, 256), at, stops[:, i]) for i in range(3)], axis=1)


def head(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(inside bool [H, W], texture about 0, sd 1, smooth over 2 px)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2 + 0.5
    texture = cv2.GaussianBlur(rng.normal(size=(SIDE, SIDE)), (0, 0), 2.0)
    return np.hypot(x, y * 0.9) < 70, texture / texture.std()


def core(inside: np.ndarray) -> np.ndarray:
    """What the bone, 5 px thick, holds."""
    return cv2.erode(inside.astype(np.uint8), np.ones((11, 11), np.uint8)) > 0


def mri(seed: int = 0) -> np.ndarray:
    """Tissue of about 110; bone shows nothing."""
    inside, texture = head(seed)
    return np.uint8(np.clip(np.where(core(inside), 110 + 12 * texture, 0), 0, 255))


def ct(seed: int = 0) -> np.ndarray:
    """Grey tissue of about 90 in a ring of bone at 255."""
    inside, texture = head(seed + 100)
    return np.uint8(np.clip(np.where(core(inside), 90 + 1.5 * texture, np.where(inside, 255, 0)), 0, 255))


def uptake(seed: int = 0) -> np.ndarray:
    """[H, W] in [0, 1]: smooth hills over the whole palette."""
    inside, _ = head()
    rng = np.random.default_rng(seed + 200)
    hills = cv2.GaussianBlur(rng.normal(size=(SIDE, SIDE)), (0, 0), 10.0)
    low, high = hills[inside].min(), hills[inside].max()
    return np.where(inside, 0.1 + 0.9 * (hills - low) / (high - low), 0)


def tracer(palette: np.ndarray, seed: int = 0) -> np.ndarray:
    return np.uint8(np.rint(palette[np.rint(uptake(seed) * 255).astype(int)]))
