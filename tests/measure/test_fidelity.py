"""Each fidelity measure on pictures whose answer is known: copies, gains, reversals, washed colour."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import scenery

from mmif_trt.image import InputError
from mmif_trt.measure.fidelity import (
    CT,
    UPTAKE,
    agreement,
    ct_fidelity,
    fidelity,
    names_for,
    rank_correlation,
    uptake_fidelity,
)
from mmif_trt.measure.uptake import Palette, recover
from mmif_trt.stages.colour import recombine


def test_agreement_punishes_loss_gain_and_reversal_alike() -> None:
    x = np.random.default_rng(0).normal(size=500)
    assert agreement(x, x) == pytest.approx(1)
    for gain in (0.25, 0.5, 2.0, 4.0):
        assert agreement(gain * x, x) == pytest.approx(2 * gain / (1 + gain**2))
    assert agreement(-x, x) == 0
    assert math.isnan(agreement(0 * x, 0 * x))


def test_rank_correlation_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(1)
    x = rng.integers(0, 9, 300).astype(float)
    y = x + rng.integers(0, 9, 300)
    assert rank_correlation(x, y) == pytest.approx(float(stats.spearmanr(x, y)[0]))
    assert rank_correlation(x, np.ones(300)) == 0 and math.isnan(rank_correlation(x[:1], y[:1]))


def test_extremes_with_ct() -> None:
    a, b = scenery.mri(), scenery.ct()
    copy_a, copy_b = (fidelity(a, b, f, "ct") for f in (a, b))
    assert tuple(copy_a) == CT == names_for("ct")
    assert copy_a["soft"] == pytest.approx(1) and copy_a["soft_gain"] == pytest.approx(1)
    assert copy_a["bone_edge"] < 0.1 and copy_a["bone_error"] > 100
    assert copy_b["bone_edge"] == pytest.approx(1) and copy_b["bone_error"] == 0 and copy_b["soft"] < 0.2


@pytest.mark.parametrize("gain", [0.5, 1.5, -1.0])
def test_soft_tissue_at_a_known_gain(gain: float) -> None:
    a, b = scenery.mri().astype(float), scenery.ct().astype(float)
    found = ct_fidelity(a, b, gain * (a - 110) + 110)
    assert found["soft_gain"] == pytest.approx(gain)
    assert found["soft"] == pytest.approx(max(0, 2 * gain / (1 + gain**2)))


def test_bone_is_measured_only_on_bone() -> None:
    a, b = scenery.mri(), scenery.ct()
    off = b.copy()
    off[b >= 200] -= 7
    assert ct_fidelity(a, b, off)["bone_error"] == pytest.approx(7)
    off = b.copy()
    off[(b > 20) & (b < 170)] += 50
    assert ct_fidelity(a, b, off)["bone_error"] == 0
    assert math.isnan(ct_fidelity(a, np.minimum(b, 120), b)["bone_error"])


def test_extremes_with_a_tracer() -> None:
    a, b = scenery.mri(), scenery.tracer(scenery.ramp_palette())
    copy_a, copy_b = (fidelity(a, b, f, "pet") for f in (a, b))
    assert tuple(copy_a) == UPTAKE == names_for("spect")
    assert copy_a["detail_top"] == pytest.approx(1) and copy_a["detail_all"] == pytest.approx(1)
    assert abs(copy_a["colour_top"]) < 0.01 and copy_a["washed_top"] == 1
    assert copy_b["detail_top"] < 0.2 and copy_b["colour_top"] == pytest.approx(1)
    assert copy_b["washed_top"] == 0 and copy_b["readback"] > 0.99


def test_a_known_share_washed_out() -> None:
    a, b = scenery.mri(), scenery.tracer(scenery.falling_palette())
    grey = np.repeat(np.uint8(b.mean(axis=2))[..., None], 3, axis=2)
    rows = np.arange(b.shape[0])[:, None, None] % 4 == 0  # every fourth line of the picture
    found = uptake_fidelity(a, b, np.where(rows, grey, b))
    assert found["washed_top"] == pytest.approx(0.25, abs=0.03)
    assert found["colour_top"] == pytest.approx(0.75, abs=0.03)


def test_readback_falls_as_the_colours_fade_and_turns_with_them() -> None:
    a, b = scenery.mri(), scenery.tracer(scenery.ramp_palette())
    known = Palette(scenery.ramp_palette())
    fades = [np.rint((1 - w) * b + w * a[..., None]) for w in (0, 0.5, 0.9, 1)]
    values = [uptake_fidelity(a, b, f, known)["readback"] for f in fades]
    assert values == sorted(values, reverse=True) and values[0] > 0.99 and values[-1] < 0.5
    turned = scenery.ramp_palette()[
        np.rint((scenery.uptake() > 0) * (1.1 - scenery.uptake()) * 255).astype(int)
    ]
    assert uptake_fidelity(a, b, turned, known)["readback"] < -0.9


def test_readback_looks_at_the_colour_more_than_at_its_lightness() -> None:
    a, b = scenery.mri(), scenery.tracer(scenery.ramp_palette())
    other = cv2.GaussianBlur(np.random.default_rng(5).uniform(0, 255, a.shape), (0, 0), 6.0)
    other = np.float32((other - other.min()) / np.ptp(other))
    lit = np.uint8(np.rint(recombine(other, np.float32(b) / 255) * 255))
    known = Palette(scenery.ramp_palette())
    inside = scenery.uptake() > 0.1
    found = rank_correlation(known.place(b)[inside], known.read(lit)[inside])
    plain = rank_correlation(known.place(b)[inside], known.place(lit)[inside])
    assert found > plain + 0.05


def test_nothing_to_keep_is_nan_and_bad_shapes_are_refused() -> None:
    black = np.zeros((64, 64), np.uint8)
    assert all(math.isnan(v) for v in fidelity(black, black, black, "pet").values())
    assert all(math.isnan(v) for v in fidelity(black, black, black, "ct").values())
    with pytest.raises(InputError, match=r"f is \(64, 32\) px"):
        fidelity(black, black, black[:, :32], "ct")
    with pytest.raises(InputError, match="f has shape"):
        fidelity(black, black, black[0], "ct")


def test_the_recovered_palette_serves_as_well_as_the_known_one() -> None:
    a, b = scenery.mri(), scenery.tracer(scenery.ramp_palette())
    half = np.uint8(np.rint((a[..., None].astype(float) + b) / 2))
    known, found = (uptake_fidelity(a, b, half, p) for p in (Palette(scenery.ramp_palette()), recover(b)))
    for name in UPTAKE:
        assert found[name] == pytest.approx(known[name], abs=0.03), name
