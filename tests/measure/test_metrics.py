"""The metrics against the check values, against their definitions written another way, and on nasty input."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from mmif_trt.image import InputError
from mmif_trt.measure import metrics
from mmif_trt.measure.scores import evaluate

# Means over the val pairs of what needs no network, to three decimals, in the order of metrics.ALL.
CHECK_VALUES = {
    ("mri-ct", "average"): "3.731 61.003 16.723 3.950 2.305 0.992 0.833 0.480 0.350 1.347 1.486 0.589 0.642",
    ("mri-ct", "max"): "3.049 92.273 28.109 5.551 2.587 1.549 0.787 0.687 0.563 1.415 1.508 -0.022 0.822",
    ("mri-pet", "average"): "4.571 63.479 17.491 5.475 2.730 0.946 0.866 0.741 0.440 1.286 1.391 0.775 0.908",
    ("mri-pet", "max"): "4.227 86.229 32.066 9.301 3.266 1.432 0.804 0.904 0.764 1.390 1.462 0.103 0.771",
    (
        "mri-spect",
        "average",
    ): "4.971 38.858 8.710 3.016 2.678 0.899 0.877 0.556 0.372 0.883 1.428 0.927 0.824",
    ("mri-spect", "max"): "4.850 52.950 14.621 4.683 3.770 1.424 0.830 0.734 0.654 1.045 1.407 0.553 0.672",
}
PAIRS = {"mri-ct": 20, "mri-pet": 93, "mri-spect": 37}


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def pictures(height: int = 61, width: int = 50, count: int = 3) -> list[np.ndarray]:
    """Smooth structure on a background of exact zeros, whole numbers on 0..255, float64."""
    rng = np.random.default_rng(height * 1000 + width)
    found = []
    for _ in range(count):
        x = gaussian_filter(rng.standard_normal((height, width)), 1.5)
        x = np.rint(np.clip(128 + 400 * x, 0, 255))
        x[: height // 5] = 0
        found.append(x)
    return found


@pytest.mark.parametrize("name", PAIRS)
def test_the_check_values_are_reproduced(harvard: Path, name: str) -> None:
    scores = evaluate(harvard / name / "val", None, baselines=True)
    assert scores.pairs == PAIRS[name]
    for baseline in ("average", "max"):
        wanted = map(float, CHECK_VALUES[name, baseline].split())
        for key, value in zip(metrics.ALL, wanted, strict=True):
            assert abs(scores.means[baseline][key] - value) <= 0.0006, (baseline, key)


@pytest.mark.parametrize("data_range", [2, 255])
@pytest.mark.parametrize("whole", [True, False])
def test_ssim_is_that_of_scikit_image(data_range: float, whole: bool) -> None:
    from skimage.metrics import structural_similarity

    a, b, f = pictures()
    if not whole:  # running sums of fractions are not exact; they must not wander
        f = f * 0.987654321 + 0.1
    wanted = sum(structural_similarity(f, x, data_range=data_range) for x in (a, b))
    assert metrics.ssim(a, b, f, data_range) == pytest.approx(wanted, abs=1e-6)


def vif_by_definition(x: np.ndarray, f: np.ndarray) -> float:
    """The published pixel-domain code, step by step, with full 2-D windows."""
    from scipy.signal import convolve2d

    kept = held = 0.0
    for scale in range(1, 5):
        size = 2 ** (5 - scale) + 1
        r = np.arange(size) - size // 2
        window = np.exp(-(r[:, None] ** 2 + r**2) / (2 * (size / 5) ** 2))
        window /= window.sum()
        if scale > 1:
            x, f = (convolve2d(p, window, mode="valid")[::2, ::2] for p in (x, f))
        mu_x, mu_f, xx, ff, xf = (convolve2d(p, window, mode="valid") for p in (x, f, x * x, f * f, x * f))
        var_x, var_f = np.maximum(xx - mu_x**2, 0), np.maximum(ff - mu_f**2, 0)
        cov = xf - mu_x * mu_f
        g = cov / (var_x + 1e-10)
        sv = var_f - g * cov
        g[var_x < 1e-10] = 0
        sv[var_x < 1e-10] = var_f[var_x < 1e-10]
        var_x[var_x < 1e-10] = 0
        g[var_f < 1e-10] = 0
        sv[var_f < 1e-10] = 0
        sv[g < 0] = var_f[g < 0]
        g[g < 0] = 0
        sv[sv <= 1e-10] = 1e-10
        kept += np.sum(np.log10(1 + g**2 * var_x / (sv + 2)))
        held += np.sum(np.log10(1 + var_x / 2))
    return kept / held


@pytest.mark.parametrize("size", [(61, 90), (90, 77)])
def test_vif_is_that_of_the_published_code(size: tuple[int, int]) -> None:
    a, b, f = pictures(*size)
    if (
        size[0] == 61
    ):  # too small for a whole window at every scale in one direction: the definition has the same end
        a, b, f = (np.pad(x, ((0, 0), (0, 40)), mode="reflect") for x in (a, b, f))
    wanted = vif_by_definition(a, f) + vif_by_definition(b, f)
    assert metrics.vif(a, b, f) == pytest.approx(wanted, abs=1e-6)


def qabf_by_definition(a: np.ndarray, b: np.ndarray, f: np.ndarray) -> float:
    from scipy.signal import convolve2d

    def edges(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sx = convolve2d(x, [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], mode="same")
        sy = convolve2d(x, [[1, 2, 1], [0, 0, 0], [-1, -2, -1]], mode="same")
        angle = np.full(x.shape, np.pi / 2)
        angle[sx != 0] = np.arctan(sy[sx != 0] / sx[sx != 0])
        return np.sqrt(sx**2 + sy**2), angle

    g_f, a_f = edges(f)
    kept = weight = 0.0
    for x in (a, b):
        g_x, a_x = edges(x)
        for (i, j), g in np.ndenumerate(g_x):
            other = g_f[i, j]
            ratio = other if g == other else min(g, other) / max(g, other)
            match = 1 - abs(a_x[i, j] - a_f[i, j]) / (np.pi / 2)
            strength = 0.9994 / (1 + math.exp(-15 * (ratio - 0.5)))
            kept += g * strength * 0.9879 / (1 + math.exp(-22 * (match - 0.8)))
            weight += g
    return kept / weight


def test_qabf_is_its_definition() -> None:
    a, b, f = pictures(33, 28)
    assert metrics.qabf(a, b, f) == pytest.approx(qabf_by_definition(a, b, f), abs=1e-9)


def test_qabf_of_a_perfect_copy_is_near_one_and_never_leaves_its_range() -> None:
    a, b, f = pictures()
    assert metrics.qabf(a, a, a) == pytest.approx(0.9994 * 0.9879 / (1 + math.exp(-22 * 0.2)), abs=1e-5)
    for fused in (f, 255 - a, np.zeros_like(a), np.full_like(a, 77)):
        assert 0 <= metrics.qabf(a, b, fused) < metrics.qabf(a, a, a)


def test_a_ramp_has_the_frequency_and_gradient_of_its_slope() -> None:
    y, x = np.mgrid[:20, :30].astype(np.float64)
    assert metrics.sf(3 * x + 4 * y) == pytest.approx(5)
    assert metrics.ag(3 * x + 4 * y) == pytest.approx(5 / math.sqrt(2))


def test_masked_frequency_takes_no_difference_across_the_edge_of_the_mask() -> None:
    y, x = np.mgrid[:20, :30].astype(np.float64)
    mask = (abs(x - 14) < 8) & (abs(y - 9) < 5)
    assert metrics.sf(np.where(mask, 3 * x + 4 * y, 200), mask) == pytest.approx(5)


def test_entropy_and_deviation_of_known_pictures() -> None:
    levels = np.arange(256.0).reshape(16, 16)
    assert metrics.en(levels) == pytest.approx(8)
    assert metrics.sd(np.where(levels < 128, 10.0, 20.0)) == pytest.approx(5)
    assert metrics.en(np.full((16, 16), 9.0)) == metrics.sd(np.full((16, 16), 9.0)) == 0


def test_mutual_information_is_symmetric_and_in_nats() -> None:
    a, b, f = pictures()
    assert metrics.mi(a, b, f) == pytest.approx(metrics.mi(b, a, f))
    assert metrics.mi(a, a, f) == pytest.approx(metrics.mi(f, f, a))
    assert metrics.mi(f, f, f) == pytest.approx(2 * math.log(2) * metrics.en(f))


def test_mutual_information_is_that_of_the_joint_histogram() -> None:
    a, b, f = pictures()
    wanted = 0.0
    for x in (a, b):
        joint = (
            np.histogram2d(x.ravel(), f.ravel(), bins=256, range=((-0.5, 255.5), (-0.5, 255.5)))[0] / f.size
        )
        apart = np.outer(joint.sum(1), joint.sum(0))
        wanted += float((joint[joint > 0] * np.log(joint[joint > 0] / apart[joint > 0])).sum())
    assert metrics.mi(a, b, f) == pytest.approx(wanted)


def test_copies_score_as_copies() -> None:
    a, b, _ = pictures(100, 90)
    assert metrics.vif(a, a, a) == pytest.approx(2)
    assert metrics.cc(a, a, a) == pytest.approx(1)
    assert metrics.ssim(a, a, a) == pytest.approx(2)
    assert metrics.detail_kept(a, b, a) == pytest.approx(1)
    assert metrics.function_kept(b, b) == pytest.approx(1)
    assert metrics.scd(a, b, a + b) == pytest.approx(2)


def test_detail_and_function_see_what_they_are_for() -> None:
    """Strong uptake over MRI detail: the maximum loses the detail, a copy of the MRI loses the function."""
    a = pictures(64, 64)[0] / 4
    y, x = np.mgrid[:64, :64] - 36
    b = 250 * np.exp(-(x**2 + y**2) / (2 * 15**2))
    assert abs(metrics.detail_kept(a, b, np.maximum(a, b))) < 0.2 < 0.9 < metrics.detail_kept(a, b, b / 4 + a)
    assert metrics.function_kept(b, a) < 0.5 < 0.9 < metrics.function_kept(b, np.maximum(a, b))


ZERO_PAIR = "0 0 0 0 0 0 0 nan nan 2 2 nan nan"
FLAT_FUSED = "0 0 0 0 0 s 0 0 s s s 0 0"  # s: small, but by their definitions not 0


@pytest.mark.parametrize("shape", [(32, 40), (96, 96)])
def test_degenerate_pictures_have_the_documented_values(shape: tuple[int, int]) -> None:
    zero, flat = np.zeros(shape), np.full(shape, 77.3)
    a, b, _ = pictures(*shape)
    wanted = dict(zip(metrics.ALL, ZERO_PAIR.split(), strict=True))
    assert metrics.all_metrics(zero, zero, zero) == pytest.approx(
        {k: float(v) for k, v in wanted.items()}, nan_ok=True
    )
    assert all(math.isnan(v) for v in metrics.foreground_metrics(zero, zero, zero).values())
    found = metrics.all_metrics(a, b, flat)
    for (key, value), text in zip(found.items(), FLAT_FUSED.split(), strict=True):
        assert value < 0.5 if text == "s" else value == pytest.approx(0, abs=1e-3), key
    constant = metrics.all_metrics(flat, flat, flat)
    assert (constant["CC"], constant["EN"], constant["function"]) == (0, 0, 0)
    assert math.isnan(constant["VIF"])


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2), (5, 40), (16, 16), (17, 17), (18, 4000)])
def test_small_pictures_give_a_number_or_nan(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    a, b, f = rng.integers(0, 256, (3, *shape)).astype(np.uint8)
    for values in (metrics.all_metrics(a, b, f), metrics.foreground_metrics(a, b, f)):
        assert not any(math.isinf(v) for v in values.values())
        assert math.isnan(values["VIF"]) == (min(shape) < 17)
        assert math.isnan(values["SSIM2"]) == (min(shape) < 7)


@pytest.mark.parametrize("kind", ["nan", "size", "colour"])
def test_what_is_not_a_pair_of_pictures_is_refused(kind: str) -> None:
    a, b, f = pictures()
    if kind == "nan":
        f[3, 3] = np.nan
    f = {"nan": f, "size": f[:-1], "colour": np.dstack([f, f, f])}[kind]
    with pytest.raises(InputError, match="expected"):
        metrics.all_metrics(a, b, f)


def test_eight_bit_input_is_taken_as_numbers_and_left_alone() -> None:
    a, b, f = pictures()
    bytes_ = [x.astype(np.uint8) for x in (a, b, f)]
    before = [x.copy() for x in bytes_]
    assert metrics.all_metrics(*bytes_) == metrics.all_metrics(a, b, f)
    assert all((x == y).all() for x, y in zip(bytes_, before, strict=True))


def test_a_mask_of_everything_changes_nothing() -> None:
    a, b, f = (x + 3 for x in pictures(100, 90))
    assert metrics.foreground(a, b).all()
    whole = metrics.all_metrics(a, b, f)
    for key, value in metrics.foreground_metrics(a, b, f).items():
        assert value == pytest.approx(whole[key], abs=1e-9), key


def test_more_background_changes_no_foreground_measure() -> None:
    trio = pictures(100, 90)
    a, b, f = (np.pad(x, 32) for x in trio)
    wide = [np.pad(x, 16) for x in (a, b, f)]  # 16 px stay on the grid of all scales of VIF
    found = metrics.foreground_metrics(*wide)
    assert set(metrics.RANKED) <= set(found)
    for key, value in metrics.foreground_metrics(a, b, f).items():
        assert found[key] == pytest.approx(value, rel=1e-6), key
    assert metrics.all_metrics(*wide)["SSIM2"] != pytest.approx(
        metrics.all_metrics(a, b, f)["SSIM2"], rel=1e-2
    )
