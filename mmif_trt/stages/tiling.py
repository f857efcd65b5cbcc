"""Any size through a network that needs multiples of 32: padding and, for large images, overlapping tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cv2
import numpy as np

MULTIPLE_PX = 32  # one attention window: stride * window of LAGNConfig
TILE_PX = 1024  # largest side that runs whole
HALO_PX = 96  # three windows; the effect of a tile's border fades out within it

Network = Callable[[np.ndarray, np.ndarray], np.ndarray]


def padded(x: np.ndarray) -> np.ndarray:
    """[H, W] or [C, H, W] -> sides rounded up to multiples of MULTIPLE_PX by reflection at the bottom and
    right."""
    down, right = (-side % MULTIPLE_PX for side in x.shape[-2:])
    if not down and not right:
        return x
    if x.ndim == 3:
        return np.stack([padded(plane) for plane in x])
    # Like np.pad's "reflect", but faster; OpenCV needs contiguous rows.
    return cv2.copyMakeBorder(np.ascontiguousarray(x), 0, down, 0, right, cv2.BORDER_REFLECT_101)


def spans(length: int) -> Iterator[tuple[int, int, int]]:
    """(start, keep_from, keep_to) of the tiles along a side; the kept parts cover it exactly once.

    Starts are multiples of MULTIPLE_PX, so that a tile's windows are the windows of the whole image.
    """
    tile = min(length, TILE_PX)
    kept = 0
    while kept < length:
        start = min(max(0, kept - HALO_PX), length - tile)
        end = length if start + tile == length else start + tile - HALO_PX
        yield start, kept, end
        kept = end


def run(network: Network, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """network over a [H, W] and b [2, H, W] (`colour.planes`) float32 of any size -> [H, W] float32; uses the
    memory of one tile and the images."""
    height, width = a.shape
    a, b = padded(a), padded(b)
    if max(a.shape) <= TILE_PX:
        return network(a, b)[:height, :width]
    fused = np.empty_like(a)
    tile_height, tile_width = (min(side, TILE_PX) for side in a.shape)
    for top, y0, y1 in spans(a.shape[0]):
        for left, x0, x1 in spans(a.shape[1]):
            window = (slice(top, top + tile_height), slice(left, left + tile_width))
            tile = network(a[window], b[(..., *window)])
            fused[y0:y1, x0:x1] = tile[y0 - top : y1 - top, x0 - left : x1 - left]
    return fused[:height, :width]
