"""Uptake by the palette's inverse: the position on its palette of each colour of a colour-mapped picture.

Luma is not uptake: in one clinical PET palette (yellow is light, red is dark) the two are uncorrelated in the
upper half. A colour-mapped picture reveals its own palette: its colours lie along a curve from black.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from mmif_trt.measure.colourspace import as_rgb, oklab

ENTRIES = 256
BIN_LEVELS = 6
NEIGHBOURS = 6
DARK_MAX = 8  # levels: pixels up to here are background, not a colour of the palette
MIN_PIXELS = 50
MIN_SHARE = 2e-4  # of the coloured pixels: a rarer colour is noise
BRIDGE_MAX = 90.0  # levels: a group of colours farther from the rest is not on the curve
FOREGROUND_MIN = 0.08  # of the palette
TOP_PERCENTILE = 80
READ_LIGHTNESS = 0.3  # of a fused picture's colour: its lightness is as much the MRI's as the palette's


@dataclass(frozen=True, eq=False)
class Palette:
    """rgb: [256, 3] float64 on 0..255, from no uptake to most. Only the order of positions is meaningful."""

    rgb: np.ndarray

    def place(self, picture: np.ndarray, lightness: float = 1.0) -> np.ndarray:
        """[...] in [0, 1]: the entry nearest in Oklab to each colour of [..., 3] on 0..255.

        lightness: weight of Oklab's L in both. Of equals, the first.
        """
        weights = np.array([lightness, 1.0, 1.0])
        entries = oklab(self.rgb) * weights
        colours, back = _distinct(picture.reshape(-1, 3))
        wanted = oklab(colours) * weights
        nearest = np.empty(len(wanted), np.int64)
        for start in range(0, len(wanted), 8192):
            part = wanted[start : start + 8192]
            nearest[start : start + 8192] = _squared(part, entries).argmin(axis=1)
        return (nearest / (ENTRIES - 1))[back].reshape(picture.shape[:-1])

    def read(self, fused: np.ndarray) -> np.ndarray:
        """The position that a reader sees in a fused picture: like `place`, with lightness times 0.3."""
        return self.place(fused, READ_LIGHTNESS)

    def colour(self, place: np.ndarray) -> np.ndarray:
        """[..., 3] float64 on 0..255 of positions [...], clipped to [0, 1]; linear between entries."""
        at = np.clip(place, 0, 1) * (ENTRIES - 1)
        low = np.minimum(at.astype(np.int64), ENTRIES - 2)
        part = (at - low)[..., None]
        return self.rgb[low] * (1 - part) + self.rgb[low + 1] * part


def _distinct(colours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(colours without repeats, index of each pixel's): background alone is half of most pictures."""
    if colours.dtype != np.uint8:
        return colours, np.arange(len(colours))
    code = colours.astype(np.int64) @ np.array([65536, 256, 1])
    _, first, back = np.unique(code, return_index=True, return_inverse=True)
    return colours[first], back.reshape(-1)


def _squared(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[N, M] squared distances of [N, C] to [M, C]."""
    return np.maximum((x * x).sum(1)[:, None] - 2 * (x @ y.T) + (y * y).sum(1), 0)


def recover(*pictures: np.ndarray) -> Palette | None:
    """The palette that pictures [H, W, 3] (or grey [H, W]) on 0..255 share; None under 50 coloured pixels.

    Mean colours of bins of 6 levels; each joined to its 6 nearest, weighted by the squared distance (many
    short steps along the curve beat one short cut); geodesics from black; the arc length along that tree
    orders the colours; a Gaussian along it smooths them to a curve, laid out evenly by its length.
    """
    pixels = np.concatenate([as_rgb(p).reshape(-1, 3) for p in pictures]).astype(np.float64)
    pixels = pixels[pixels.max(axis=1) > DARK_MAX]
    if len(pixels) < MIN_PIXELS:
        return None
    colours, counts = _bins(pixels)
    arc = _arc_lengths(colours)
    reached = np.isfinite(arc)
    if reached.sum() < 2:
        return None
    return Palette(_curve(colours[reached], counts[reached], arc[reached]))


def coloured(picture: np.ndarray) -> np.ndarray:
    """bool [H, W]: brighter than background in any channel."""
    return as_rgb(picture).max(axis=2) > DARK_MAX


def foreground(picture: np.ndarray, place: np.ndarray) -> np.ndarray:
    """bool [H, W]: pixels with uptake: max(R, G, B) above 8 and place above .08."""
    return coloured(picture) & (place > FOREGROUND_MIN)


def top_of(place: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """bool [H, W]: the upper fifth of place among the pixels inside; none if none is inside."""
    if not inside.any():
        return inside
    top: np.ndarray = inside & (place >= np.percentile(place[inside], TOP_PERCENTILE))
    return top


def _bins(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean colours [N, 3] of the bins that hold enough pixels, black first, and their pixel counts [N]."""
    key = (pixels // BIN_LEVELS).astype(np.int64) @ np.array([10000, 100, 1])
    _, back, counts = np.unique(key, return_inverse=True, return_counts=True)
    back = back.reshape(-1)
    means = np.stack([np.bincount(back, pixels[:, i]) for i in range(3)], axis=1) / counts[:, None]
    enough = counts >= max(2, len(pixels) * MIN_SHARE)
    return np.vstack([np.zeros(3), means[enough]]), np.concatenate([[1], counts[enough]])


def _arc_lengths(colours: np.ndarray) -> np.ndarray:
    """Length [N] in levels of each colour's geodesic from the first; infinite if no bridge leads there.

    Dijkstra. When a group has no edge to the rest, the shortest bridge to it joins the graph.
    """
    count = len(colours)
    squared = _squared(colours, colours).astype(np.float32)
    np.fill_diagonal(squared, np.inf)
    edges: list[set[int]] = [set() for _ in range(count)]
    nearest = np.argsort(squared, axis=1, kind="stable")[:, : min(NEIGHBOURS, count - 1)]
    for i, row in enumerate(nearest.tolist()):
        for j in row:
            edges[i].add(j)
            edges[j].add(i)
    cost, arc, parent = np.full(count, np.inf), np.full(count, np.inf), np.zeros(count, np.int64)
    bridge, bridge_from = np.full(count, np.inf, np.float32), np.zeros(count, np.int64)
    queue: list[tuple[float, int]] = [(0.0, 0)]
    cost[0] = 0
    done = np.zeros(count, bool)
    while True:
        while queue:
            _, i = heapq.heappop(queue)
            if done[i]:
                continue
            done[i] = True
            arc[i] = arc[parent[i]] + np.linalg.norm(colours[i] - colours[parent[i]]) if i else 0.0
            shorter = squared[i] < bridge
            bridge[shorter], bridge_from[shorter] = squared[i][shorter], i
            for j in sorted(edges[i]):
                through = cost[i] + float(squared[i, j])
                if not done[j] and through < cost[j]:
                    cost[j], parent[j] = through, i
                    heapq.heappush(queue, (through, j))
        if done.all():
            return arc
        j = int(np.where(done, np.inf, bridge).argmin())
        if bridge[j] > BRIDGE_MAX**2:
            return arc
        i = int(bridge_from[j])
        cost[j], parent[j] = cost[i] + float(squared[i, j]), i
        heapq.heappush(queue, (float(cost[j]), j))


def _curve(colours: np.ndarray, counts: np.ndarray, arc: np.ndarray) -> np.ndarray:
    """[256, 3]: the colours, smoothed along their arc and laid out evenly by the length of the result."""
    steps = min(64, max(8, int(arc.max() / 8)))
    grid, at = np.linspace(0, 1, steps), arc / arc.max()
    kernel = np.exp(-0.5 * ((grid[:, None] - at) * steps / 0.6) ** 2) * np.sqrt(counts)
    total = kernel.sum(axis=1)
    curve = (kernel @ colours) / np.maximum(total, 1e-12)[:, None]
    seen = total > 1e-3 * np.median(total)
    seen[0], curve[0] = True, 0
    curve = curve[seen]
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    even = np.linspace(0, length[-1], ENTRIES)
    return np.stack([np.interp(even, length, curve[:, i]) for i in range(3)], axis=1)
