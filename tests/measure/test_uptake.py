"""Colour spaces against scikit-image; palettes recovered from pictures of a known one."""

from __future__ import annotations

import numpy as np
import pytest
import scenery

from mmif_trt.measure import colourspace
from mmif_trt.measure.fidelity import rank_correlation
from mmif_trt.measure.uptake import Palette, foreground, recover, top_of
from mmif_trt.stages import palettes


def test_cielab_is_that_of_scikit_image() -> None:
    color = pytest.importorskip("skimage.color")
    rgb = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    wanted = color.rgb2lab(rgb / 255)
    assert np.abs(colourspace.lab(rgb) - wanted).max() < 2e-3
    assert np.abs(colourspace.lab(rgb.astype(np.float64)) - colourspace.lab(rgb)).max() < 1e-9
    assert np.abs(colourspace.lightness(rgb) - wanted[..., 0]).max() < 2e-3
    grey = rgb[..., 0]
    assert (
        np.abs(colourspace.lightness(grey) - colourspace.lab(colourspace.as_rgb(grey))[..., 0]).max() < 2e-3
    )


def test_oklab_of_the_colours_its_author_gives() -> None:
    rgb = np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)
    wanted = [[1, 0, 0], [0, 0, 0], [0.62796, 0.22486, 0.12585], [0.45201, -0.03246, -0.31153]]
    assert np.abs(colourspace.oklab(rgb) - wanted).max() < 1e-4


PALETTES = {"rainbow": scenery.ramp_palette, "falling": scenery.falling_palette} | {
    name: lambda name=name: palettes.table(name).astype(np.float64) * 255
    for name in ("HOT_IRON", "PET", "HOT_METAL_BLUE")
}


@pytest.mark.parametrize("name", PALETTES)
def test_a_known_palette_is_recovered_in_order(name: str) -> None:
    known = PALETTES[name]()
    picture = scenery.tracer(known)
    found = recover(picture)
    assert found is not None and (found.rgb[0] == 0).all()
    place, true = found.place(picture), scenery.uptake()
    inside = true > 0
    assert rank_correlation(place[inside], true[inside]) > 0.998
    assert np.abs(found.colour(place) - picture)[inside].mean() < 4  # levels


def test_luma_would_not_have_found_the_hottest_fifth() -> None:
    picture, true = scenery.tracer(scenery.falling_palette()), scenery.uptake()
    inside = true > 0
    hottest = top_of(true, inside)
    found = recover(picture)
    assert found is not None
    place = found.place(picture)
    top = top_of(place, foreground(picture, place))
    luma = picture @ np.array([0.299, 0.587, 0.114])
    assert (top & hottest).sum() > 0.97 * hottest.sum()
    assert (top_of(luma, inside) & hottest).sum() < 0.3 * hottest.sum()


def test_parts_of_a_palette_far_apart_are_bridged_and_noise_is_not() -> None:
    picture = np.zeros((40, 40, 3), np.uint8)
    picture[:20] = (60, 0, 0)
    picture[20:] = (120, 0, 0)  # a gap of 60 levels, as steps of a palette of few colours
    picture[5, 5] = (0, 255, 255)  # one pixel is no colour of the palette
    found = recover(picture)
    assert found is not None
    assert (
        found.place(np.array([[120, 0, 0]], np.uint8))[0] > found.place(np.array([[60, 0, 0]], np.uint8))[0]
    )
    assert found.rgb[:, 1:].max() < 1


def test_too_few_colours_give_no_palette() -> None:
    assert recover(np.zeros((64, 64, 3), np.uint8)) is None
    assert recover(np.full((64, 64), 8, np.uint8)) is None
    grey = recover(np.tile(np.arange(256, dtype=np.uint8), (4, 1)))
    assert grey is not None and rank_correlation(grey.rgb[:, 0], np.arange(256.0)) > 0.999


def test_place_and_colour_are_each_others_inverse_and_stay_in_bounds() -> None:
    palette = Palette(scenery.ramp_palette())
    places = np.linspace(0, 1, 256)
    back = palette.place(palette.colour(places))
    assert np.abs(back - places).max() < 2 / 255
    assert (palette.colour(np.array([-1.0, 2.0])) == palette.rgb[[0, -1]]).all()
