"""The contact sheet: its bar is as long as it says, and its letters can be read on any ground."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest

from mmif_trt.clinical import preview
from mmif_trt.image import Image


def drawn(side_mm: float, grey: int) -> np.ndarray:
    """[H, W, 3] the sheet of a volume of one flat slice, 64 px per side."""
    pitch = side_mm / 64
    affine = np.array([[0, 0, -pitch, 0], [0, -pitch, 0, 0], [5, 0, 0, 0], [0, 0, 0, 1]], np.float64)
    data = preview.sheet(Image(np.full((1, 64, 64), grey, np.uint8), affine=affine), "")
    return np.asarray(PIL.Image.open(io.BytesIO(data)))


@pytest.mark.parametrize(("side_mm", "bar_mm"), [(240.0, 50), (90.0, 20), (30.0, 10), (1.5, 1)])
def test_the_bar_has_its_length_and_stays_in_its_tile(side_mm: float, bar_mm: int) -> None:
    sheet = drawn(side_mm, 0)
    columns = np.flatnonzero((sheet[preview.TITLE_PX :] == preview.BAR).all(axis=2).any(axis=0))
    assert np.ptp(columns) == pytest.approx(bar_mm * preview.TILE_PX / side_mm, abs=1.5)
    assert columns.max() < preview.TILE_PX


def test_letters_can_be_read_on_white() -> None:
    tile = drawn(200.0, 255)[preview.TITLE_PX :, : preview.TILE_PX].astype(int)
    middle = preview.TILE_PX // 2
    for place in (tile[:20, middle - 10 : middle + 20], tile[middle - 10 : middle + 20, :18]):
        assert (place.sum(axis=2) < 200).sum() > 20, "an outline"
