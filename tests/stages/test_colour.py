"""Colour: luma exact, hue kept, never outside RGB; and the measure of hue itself against published values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image as PillowImage
from skimage.color import deltaE_ciede2000, rgb2lab

from mmif_trt.image import InputError
from mmif_trt.measure import colourspace, hue
from mmif_trt.stages import colour

BT601 = np.array([0.299, 0.587, 0.114])  # written out again: a wrong table must not agree with itself
UNIT = st.floats(0, 1, width=32)
CORNERS = np.stack(np.meshgrid(*[[0, 1]] * 3), -1).reshape(-1, 3).astype(np.float32)


def pixels(last: tuple[int, ...]) -> st.SearchStrategy[np.ndarray]:
    return arrays.arrays(np.float32, (5, 7, *last), elements=UNIT)


def chroma_plane(rgb: np.ndarray) -> np.ndarray:
    """(Cb, Cr) of BT.601, [..., 2] float64, from the standard's own formula."""
    rgb = rgb.astype(np.float64)
    y = rgb @ BT601
    return np.stack([(rgb[..., 2] - y) / 1.772, (rgb[..., 0] - y) / 1.402], -1)


def slow_recombine(y: float, rgb: np.ndarray) -> np.ndarray:
    """The definition, in double: bisect for the largest s in [0, 1] that keeps one pixel inside."""
    chroma = rgb.astype(np.float64) - float(rgb.astype(np.float64) @ BT601)

    def inside(s: float) -> bool:
        out = y + s * chroma
        return bool((out >= 0).all() and (out <= 1).all())

    if inside(1.0):
        return y + chroma
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) else (low, middle)
    return y + low * chroma


def naive(y: np.ndarray, rgb: np.ndarray) -> np.ndarray:
    """What others do: put y into YCbCr, convert to RGB, clip each channel."""
    return np.clip(y[..., None] + (rgb - colour.luma(rgb)[..., None]), 0, 1)


# --- luma and recombination ---


def test_luma_is_bt601_and_grey_passes() -> None:
    assert colour.luma(CORNERS) == pytest.approx(CORNERS @ BT601, abs=1e-7)
    grey = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    assert colour.luma(grey) is grey
    assert np.array_equal(colour.luma(np.repeat(grey[..., None], 3, axis=-1)), grey)
    assert colour.luma(np.zeros((2, 4, 16, 17, 3), np.float64)).shape == (2, 4, 16, 17)


def test_planes_are_the_luma_and_the_room_that_a_colour_needs() -> None:
    rgb = np.random.default_rng(4).random((3, 16, 17, 3), np.float32)
    rgb[0, :8] = rgb[0, :8, :, :1]
    planes = colour.planes(rgb)
    grey, above = planes[:, 0], planes[:, 1]
    assert planes.shape == (3, 2, 16, 17) and planes.dtype == np.float32
    np.testing.assert_array_equal(grey, colour.luma(rgb))
    np.testing.assert_allclose(above, rgb.max(-1) - grey, atol=1e-7)
    assert above.min() >= 0 and not above[0, :8].any(), "0 for grey"
    brightest = (1 - above)[..., None]
    whole = colour.recombine(brightest[..., 0], rgb) - brightest
    np.testing.assert_allclose(whole, rgb - grey[..., None], atol=1e-6, err_msg="up to there nothing fades")
    np.testing.assert_array_equal(colour.planes(grey[0]), [grey[0], np.zeros_like(grey[0])])


@settings(max_examples=300, deadline=None)
@given(pixels(()), pixels((3,)))
def test_in_gamut_same_luma_same_hue(y: np.ndarray, rgb: np.ndarray) -> None:
    out = colour.recombine(y, rgb)
    assert out.dtype == np.float32
    assert out.min() >= 0 and out.max() <= 1
    assert np.abs(out.astype(np.float64) @ BT601 - y).max() < 1e-6
    before, after = chroma_plane(rgb), chroma_plane(out)
    across = before[..., 0] * after[..., 1] - before[..., 1] * after[..., 0]  # |before| |after| sin(angle)
    assert np.abs(across).max() < 3e-7
    assert (before * after).sum(-1).min() > -3e-7  # the same side of grey
    assert (np.hypot(*np.moveaxis(after, -1, 0)) <= np.hypot(*np.moveaxis(before, -1, 0)) + 3e-7).all()


@settings(max_examples=100, deadline=None)
@given(pixels(()), pixels((3,)))
def test_equals_the_slow_truth(y: np.ndarray, rgb: np.ndarray) -> None:
    out = colour.recombine(y, rgb)
    truth = np.array(
        [slow_recombine(float(v), p) for v, p in zip(y.ravel(), rgb.reshape(-1, 3), strict=True)]
    )
    assert np.abs(out.reshape(-1, 3) - truth).max() < 1e-6


@settings(max_examples=100, deadline=None)
@given(pixels((3,)))
def test_own_luma_gives_the_picture_back(rgb: np.ndarray) -> None:
    assert (
        np.abs(colour.recombine(colour.luma(rgb), rgb) - rgb).max() <= 1.2e-7
    )  # two float32 roundings below 1


def test_every_8_bit_picture_comes_back_from_its_own_luma() -> None:
    levels = np.arange(0, 256, 5)  # 52 levels per channel: 0 and 255 among them
    rgb8 = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(52, -1, 3).astype(np.uint8)
    rgb = rgb8.astype(np.float32) / 255
    assert np.array_equal(np.rint(colour.recombine(colour.luma(rgb), rgb) * 255).astype(np.uint8), rgb8)


@settings(max_examples=100, deadline=None)
@given(pixels(()), pixels((3,)))
def test_black_white_and_grey_are_exact(y: np.ndarray, rgb: np.ndarray) -> None:
    assert not colour.recombine(np.zeros_like(y), rgb).any()
    assert (colour.recombine(np.ones_like(y), rgb) == 1).all()
    grey = np.repeat(rgb[..., :1], 3, axis=-1)
    assert np.array_equal(colour.recombine(y, grey), np.repeat(y[..., None], 3, axis=-1))


def test_rounding_to_8_bit_stays_in_the_gamut_and_within_half_a_level() -> None:
    rng = np.random.default_rng(0)
    y, rgb = rng.random((64, 64), np.float32), rng.random((64, 64, 3), np.float32)
    rgb[:8], y[8:12], y[12:16] = np.rint(rgb[:8]), 0, 1  # corners of the cube, black, white
    levels = np.rint(colour.recombine(y, rgb) * 255)
    assert levels.min() >= 0 and levels.max() <= 255
    assert np.abs(colour.luma(levels.astype(np.float32)) - y * 255).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("shape", [(1, 1), (17, 16), (3, 17, 19), (2, 2, 16, 16), (0, 16, 16)])
def test_batches_equal_their_pictures(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    y, rgb = rng.random(shape, np.float32), rng.random((*shape, 3), np.float32)
    whole = colour.recombine(y, rgb)
    assert whole.shape == rgb.shape
    for i in range(shape[0]):
        assert np.array_equal(whole[i : i + 1], colour.recombine(y[i : i + 1], rgb[i : i + 1]))


def test_inputs_survive_and_need_not_be_contiguous() -> None:
    rng = np.random.default_rng(2)
    y, rgb = rng.random((20, 40), np.float32), rng.random((3, 20, 40), np.float32).transpose(1, 2, 0)
    y_before, rgb_before = y.copy(), rgb.copy()
    sliced = colour.recombine(y[::2, 1::2], rgb[::2, 1::2, ::-1])
    assert np.array_equal(sliced, colour.recombine(y[::2, 1::2].copy(), rgb[::2, 1::2, ::-1].copy()))
    assert np.array_equal(y, y_before) and np.array_equal(rgb, rgb_before)


def test_luma_outside_the_range_is_taken_to_its_bound() -> None:
    rgb = np.tile(np.array([0.9, 0.2, 0.1], np.float32), (2, 2, 1))
    assert np.array_equal(
        colour.recombine(np.array([[-0.5, 1.5]] * 2, np.float32), rgb), [[[0] * 3, [1] * 3]] * 2
    )


@pytest.mark.parametrize(
    ("y", "rgb", "names"),
    [
        (np.zeros((16, 16), np.float32), np.zeros((16, 17, 3), np.float32), r"\(16, 16\).*\(16, 17, 3\)"),
        (np.zeros((16, 16), np.float32), np.zeros((16, 16), np.float32), r"\[\.\.\., H, W, 3\]"),
        (np.zeros((16, 16), np.float32), np.zeros((16, 16, 3), np.uint8), "rgb: dtype uint8"),
        (np.zeros((16, 16), np.int64), np.zeros((16, 16, 3), np.float32), "y: dtype int64"),
    ],
)
def test_wrong_input_is_named(y: np.ndarray, rgb: np.ndarray, names: str) -> None:
    with pytest.raises(InputError, match=names) as error:
        colour.recombine(y, rgb)
    assert "\n" not in str(error.value)


# --- the measure of hue ---

# Sharma, Wu and Dalal 2005, table 1: pairs 1, 4, 5, 7, 9, 10, 13, 14, 17, 19, 22, 25, 29, 32, 34.
SHARMA = [
    ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
    ((50.0, -1.3802, -84.2814), (50.0, 0.0, -82.7485), 1.0),
    ((50.0, -1.1848, -84.8006), (50.0, 0.0, -82.7485), 1.0),
    ((50.0, 0.0, 0.0), (50.0, -1.0, 2.0), 2.3669),
    ((50.0, 2.49, -0.001), (50.0, -2.49, 0.0009), 7.1792),
    ((50.0, 2.49, -0.001), (50.0, -2.49, 0.001), 7.1792),
    ((50.0, -0.001, 2.49), (50.0, 0.0009, -2.49), 4.8045),
    ((50.0, -0.001, 2.49), (50.0, 0.001, -2.49), 4.8045),
    ((50.0, 2.5, 0.0), (73.0, 25.0, -18.0), 27.1492),
    ((50.0, 2.5, 0.0), (56.0, -27.0, -3.0), 31.9030),
    ((50.0, 2.5, 0.0), (50.0, 3.2592, 0.335), 1.0),
    ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ((22.7233, 20.0904, -46.6940), (23.0331, 14.9730, -42.5619), 2.0373),
    ((90.9257, -0.5406, -0.9208), (88.6381, -0.8985, -0.7239), 1.5381),
    ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
]


@pytest.mark.parametrize(("lab1", "lab2", "published"), SHARMA)
def test_ciede2000_gives_the_published_differences(lab1: tuple, lab2: tuple, published: float) -> None:
    assert hue.ciede2000(np.array(lab1), np.array(lab2)) == pytest.approx(published, abs=6e-5)
    assert hue.ciede2000(np.array(lab2), np.array(lab1)) == pytest.approx(published, abs=6e-5)


def test_lab_and_ciede2000_agree_with_scikit_image() -> None:
    rng = np.random.default_rng(3)
    one, two = rng.random((4000, 3)), rng.random((4000, 3))
    one[:8], two[8:16] = CORNERS, CORNERS
    lab1, lab2 = rgb2lab(one), rgb2lab(two)
    assert (
        np.abs(colourspace.lab(255 * one) - lab1).max() < 5e-4
    )  # skimage rounds the toe's constants to 4 digits
    assert np.abs(hue.ciede2000(lab1, lab2) - deltaE_ciede2000(lab1, lab2)).max() < 1e-9


def test_oklab_gives_the_published_values() -> None:
    """White is (1, 0, 0) by design; red as CSS Color 4 prints it, oklab(0.62796 0.22486 0.12585)."""
    assert colourspace.oklab(255 * np.ones(3)) == pytest.approx([1, 0, 0], abs=1e-6)
    assert colourspace.oklab(np.array([255.0, 0, 0])) == pytest.approx([0.62796, 0.22486, 0.12585], abs=1e-5)


def hue_error(rgb_out: np.ndarray, rgb_b: np.ndarray) -> dict[str, float]:
    return hue.summarise(hue.hue_differences(rgb_out, rgb_b))


def test_hue_error_factors_lightness_out_and_sees_a_turned_hue() -> None:
    b = np.full((4, 4, 3), (0.6, 0.3, 0.1))
    same = hue_error(b, b)
    assert (
        same["pixels"] == 16 and same["dh_deg_max"] == same["de00_max"] == 0 and same["chroma_kept_mean"] == 1
    )
    lab1, lab2 = rgb2lab(b), rgb2lab(b[..., ::-1])
    lab1[..., 0] = lab2[..., 0] = 50
    turned = hue_error(b[..., ::-1], b)
    assert turned["de00_mean"] == pytest.approx(deltaE_ciede2000(lab1, lab2).mean(), abs=1e-4)
    assert turned["de00_hue_mean"] > 10
    angles = [np.degrees(np.arctan2(lab[0, 0, 2], lab[0, 0, 1])) for lab in (lab1, lab2)]
    assert turned["dh_deg_mean"] == pytest.approx(abs(angles[0] - angles[1]), abs=1e-4)


def test_hue_is_not_judged_on_grey() -> None:
    grey, red = np.full((2, 2, 3), 0.5), np.tile([0.8, 0.1, 0.1], (2, 2, 1))
    assert hue_error(red, grey)["pixels"] == 0 and np.isnan(hue_error(red, grey)["de00_mean"])
    assert hue_error(grey, red)["pixels"] == 4 and hue_error(grey, red)["pixels_dh"] == 0


# --- real pairs ---


@pytest.mark.parametrize("kind", ["pet", "spect"])
def test_real_pairs_have_no_clipped_channel_and_less_hue_error_than_clipping(
    harvard: Path, kind: str
) -> None:
    """F = max(MRI, luma of b), every tenth training pair; judged where clipping works, in 8 bits."""
    folder = harvard / f"mri-{kind}" / "train"
    turned: dict[str, list[np.ndarray]] = {"ours": [], "naive": []}
    for path in sorted((folder / kind).glob("*.png"))[::10]:
        b = np.asarray(PillowImage.open(path).convert("RGB"), np.float32) / 255
        mri = np.asarray(PillowImage.open(folder / "mri" / path.name).convert("L"), np.float32) / 255
        y = np.maximum(mri, colour.luma(b))
        ours, clipped = colour.recombine(y, b), naive(y, b)
        # A clipped channel changes luma, so a luma that holds is the proof that nothing was clipped.
        assert np.abs(colour.luma(ours) - y).max() < 1e-6
        lost = np.abs(colour.luma(clipped) - y) > 0.5 / 255
        for name, out in (("ours", ours), ("naive", clipped)):
            turned[name].append(hue.hue_differences(np.rint(out[lost] * 255) / 255, b[lost])["dh_deg"])
    mine, theirs = (np.concatenate(turned[name]) for name in ("ours", "naive"))
    assert mine.size > 1000
    assert mine.mean() < 0.75 * theirs.mean()
    assert np.percentile(mine, 95) < np.percentile(theirs, 95)
