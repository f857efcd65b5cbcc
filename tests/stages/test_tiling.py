"""tiling: any size through a network that wants multiples of 32, and no seam where tiles meet."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import maximum_filter  # type: ignore

from mmif_trt import Fuser, sample
from mmif_trt.stages import normalise, tiling

REACH_PX = 80  # of the max filter below; within the halo


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).random(shape, dtype=np.float32)


def pointwise(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Exact in any tile; refuses what LAGN would refuse."""
    assert a.shape == b.shape and a.dtype == b.dtype == np.float32
    assert all(side % tiling.MULTIPLE_PX == 0 and side <= tiling.TILE_PX for side in a.shape)
    return a - 2 * b


def far(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Looks REACH_PX around itself: exact in a tile only if the halo is that wide."""
    return maximum_filter(np.maximum(a, b), 2 * REACH_PX + 1)


def windowed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Knows its place in the window: exact in a tile only if tiles start at windows."""
    phase = noise(32, 32)
    return a * np.tile(phase, (a.shape[0] // 32, a.shape[1] // 32)) + b


@pytest.mark.parametrize("size", [(16, 16), (17, 100), (32, 32), (33, 31), (255, 257), (64, 96), (16, 4096)])
def test_padded_reflects_at_the_far_sides(size: tuple[int, int]) -> None:
    x = noise(*size)
    y = tiling.padded(x)
    assert y.shape == tuple(-(-side // 32) * 32 for side in size)
    np.testing.assert_array_equal(y[: size[0], : size[1]], x)
    if y.shape[0] > size[0]:
        np.testing.assert_array_equal(y[size[0], : size[1]], x[-2])
    if y.shape[1] > size[1]:
        np.testing.assert_array_equal(y[: size[0], size[1]], x[:, -2])


@settings(deadline=None)
@given(st.integers(1, 128).map(lambda n: 32 * n), st.sampled_from([256, 288, 512, 1024]))
def test_spans_cover_a_side_once(length: int, tile: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling, "TILE_PX", tile)
        parts = list(tiling.spans(length))
    covered = 0
    for start, begin, end in parts:
        assert begin == covered and end > begin, "no gap, no overlap, no empty part"
        assert start % tiling.MULTIPLE_PX == 0 and start >= 0
        assert start + min(tile, length) <= length
        assert start <= begin and end <= start + tile
        assert start == 0 or begin - start >= tiling.HALO_PX, "halo before"
        assert end == length or start + tile - end >= tiling.HALO_PX, "halo after"
        covered = end
    assert covered == length


@pytest.mark.parametrize("size", [(16, 16), (17, 100), (33, 300), (255, 257), (300, 513), (16, 700)])
@pytest.mark.parametrize("tile", [256, 1024])
def test_any_size_comes_back_exactly(
    size: tuple[int, int], tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiling, "TILE_PX", tile)
    a, b = noise(*size), noise(*size)[::-1, ::-1]
    np.testing.assert_array_equal(tiling.run(pointwise, a, b), a - 2 * b)


@pytest.mark.parametrize("network", [far, windowed])
def test_tiles_equal_the_whole_for_a_network_of_bounded_reach(
    network: tiling.Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = noise(500, 333) ** 64, noise(333, 500).T ** 64  # few bright pixels, each seen from far
    whole = tiling.run(network, a, b)
    monkeypatch.setattr(tiling, "TILE_PX", 256)
    np.testing.assert_array_equal(tiling.run(network, a, b), whole)


def test_both_planes_are_padded_and_cut_into_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_planes(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        assert b.shape == (2, *a.shape) and max(a.shape) <= tiling.TILE_PX and not a.shape[0] % 32
        fused: np.ndarray = a - 2 * b[0] + 3 * b[1]
        return fused

    a, b = noise(300, 333), np.stack([noise(300, 333)[::-1], noise(300, 333)[:, ::-1]])
    monkeypatch.setattr(tiling, "TILE_PX", 256)
    np.testing.assert_array_equal(tiling.run(of_planes, a, b), a - 2 * b[0] + 3 * b[1])
    padded = tiling.padded(b)
    assert padded.shape == (2, 320, 352)
    np.testing.assert_array_equal(padded[1], tiling.padded(b[1]))


def test_tiled_equals_whole_through_the_real_network(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = (normalise.to_unit(image) for image in sample("mri-ct"))
    a, b = (np.clip(cv2.resize(x, (800, 640), interpolation=cv2.INTER_CUBIC), 0, 1) for x in pair)
    infer, sizes = Fuser(threads=1).runtime.infer, []
    whole = tiling.run(infer, a, b)

    def watched(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        sizes.append(x.shape)
        return infer(x, y)

    monkeypatch.setattr(tiling, "TILE_PX", 320)
    tiled = tiling.run(watched, a, b)
    assert len(sizes) > 4 and set(sizes) == {(320, 320)}, "one size, so one graph, and bounded memory"
    error = np.mean((tiled.astype(np.float64) - whole) ** 2)
    assert whole.std() > 0.05 and -10 * np.log10(error + 1e-20) > 50
