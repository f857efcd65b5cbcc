"""train: the terms that keep lesions, uptake and colour, the lesions planted for them, and other scanners."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from training_data import write_sets

from mmif_trt.image import InputError
from mmif_trt.measure import colourspace, fidelity, reader, uptake
from mmif_trt.stages import colour
from mmif_trt.train import coloured, data, fusion, lesions, randomise, synthetic
from mmif_trt.train import fidelity_losses as terms
from mmif_trt.train.randomise import Crop

SIDE = 64


def smooth(seed: int, channels: int = 1, side: int = SIDE) -> np.ndarray:
    """[side, side] or [side, side, channels] float32 in [0, 1] with structure of a few pixels."""
    rng = np.random.default_rng(seed)
    x = np.stack([cv2.GaussianBlur(rng.random((side, side)), (0, 0), 2) for _ in range(channels)], -1)
    x = ((x - x.min()) / np.ptp(x)).astype(np.float32)
    return x[..., 0] if channels == 1 else x


def tensor(x: np.ndarray) -> torch.Tensor:
    """[1, C, H, W] of [H, W] or [H, W, C]."""
    return torch.from_numpy(np.atleast_3d(x).transpose(2, 0, 1).copy())[None]


def tracer_crop(seed: int) -> Crop:
    """A crop of a tracer in a palette of its own, a black border on one side."""
    rng = np.random.default_rng(seed)
    place = smooth(seed)
    place[:, :8] = 0
    palette = randomise.new_palette(rng)
    a = smooth(seed + 1)
    a[:8] = 0
    rgb = randomise.through(palette, place)
    strong = coloured.strongest(np.rint(255 * rgb), np.rint(255 * place))
    return Crop(a, rgb, place, palette, None, strong)


def ct_crop(seed: int) -> Crop:
    b = 0.2 + 0.3 * smooth(seed)
    b[:, :6] = 1.0
    return Crop(smooth(seed + 1), np.repeat(b[..., None], 3, 2), None, None, (smooth(seed + 2), b))


# Terms


def test_colour_is_put_back_as_the_package_does() -> None:
    rgb = np.concatenate([smooth(1, 3), np.zeros((8, SIDE, 3)), np.ones((8, SIDE, 3))]).astype(np.float32)
    for y in (
        smooth(2, side=80)[:, :SIDE],
        np.zeros((80, SIDE), np.float32),
        np.ones((80, SIDE), np.float32),
    ):
        ours = terms.recombined(tensor(y), tensor(rgb))[0].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(ours, colour.recombine(y, rgb), atol=2e-6)


def test_lightness_is_that_of_the_measure() -> None:
    rgb = np.concatenate([smooth(3, 3), 0.02 * smooth(4, 3)])
    ours = 100 * terms.lightness(tensor(rgb))[0, 0].numpy()
    np.testing.assert_allclose(ours, colourspace.lightness(255 * rgb.astype(np.float64)), atol=0.02)
    all_three = terms.lab(tensor(rgb))[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(all_three, colourspace.lab(255 * rgb.astype(np.float64)), atol=0.05)


def test_the_terms_are_what_the_measures_judge() -> None:
    """Each loss is 1 minus its measure, or falls and rises with it, on the measure's own masks."""
    crop, y = tracer_crop(5), 0.2 + 0.6 * smooth(7)
    fused = colour.recombine(y, crop.rgb)
    rgb, a, place = tensor(crop.rgb), tensor(crop.a), tensor(crop.uptake)  # type: ignore[arg-type]
    assert crop.palette is not None
    judged = fidelity.uptake_fidelity(
        255 * crop.a, 255 * crop.rgb, 255 * fused, uptake.Palette(255 * crop.palette.astype(np.float64))
    )
    foreground, top = terms.uptake_masks(rgb, place, torch.tensor([crop.strong]))
    nothing = torch.zeros_like(top)
    detail = terms.detail_under_uptake_loss(tensor(fused), a, top)
    assert 1 - detail.item() == pytest.approx(judged["detail_top"], abs=0.03)
    assert terms.detail_under_uptake_loss(a.expand(-1, 3, -1, -1), a, foreground).item() < 1e-3
    paler = colour.recombine(0.3 * colour.luma(crop.rgb) + 0.65, crop.rgb)
    judged = fidelity.uptake_fidelity(
        255 * crop.a, 255 * crop.rgb, 255 * paler, uptake.Palette(255 * crop.palette.astype(np.float64))
    )
    assert judged["colour_top"] < 0.97, "a case that says something"
    kept = terms.colour_loss(tensor(paler), rgb, nothing, top)
    assert 1 - kept.item() == pytest.approx(judged["colour_top"], abs=0.02)
    assert terms.colour_loss(rgb, rgb, foreground, top).item() < 1e-4
    slight = 0.95 * tensor(colour.luma(crop.rgb)) + 0.05 * rgb
    washed = terms.colour_loss(torch.ones_like(rgb), rgb, foreground, foreground).item()
    assert washed > 1.5
    assert 1 < terms.colour_loss(slight, rgb, foreground, foreground).item() < 1.65
    outside = terms.colour_loss(torch.ones_like(rgb), rgb, foreground, nothing).item()
    less = washed - (1 - terms.COLOUR_ENOUGH)
    assert outside == pytest.approx(less / (1 + 0.2 * terms.COLOUR_TOP), rel=0.01)
    a_little = 0.15 * tensor(colour.luma(crop.rgb)) + 0.85 * rgb
    assert terms.colour_loss(a_little, rgb, foreground, nothing).item() < 0.02, "enough outside the top"
    assert terms.colour_loss(a_little, rgb, foreground, foreground).item() > 0.05

    b, f = 0.1 + 0.4 * smooth(8), 0.5 * smooth(9) + 0.4 * smooth(10)
    mri = smooth(9)
    soft = terms.soft_tissue_loss(tensor(f), tensor(mri), tensor(b))
    assert 1 - soft.item() == pytest.approx(
        fidelity.ct_fidelity(255 * mri, 255 * b, 255 * f)["soft"], abs=0.05
    )
    b[:9] = 0.9
    lifted = terms.bone_loss(tensor(b + 0.05), tensor(b))
    assert lifted.item() == pytest.approx(0.05, abs=1e-6)


def test_a_dark_red_lit_up_to_pink_costs_and_a_darker_one_less() -> None:
    red = torch.zeros(1, 3, SIDE, SIDE)
    red[:, 0] = 0.5
    place, strong = torch.full((1, 1, SIDE, SIDE), 0.4), torch.tensor([0.8])

    def lost(level: float) -> float:
        shown = terms.recombined(torch.full_like(place, level), red)
        return terms.saturation_loss(shown, red, place, strong).item()

    assert terms.saturation_loss(red, red, place, strong).item() == 0
    assert lost(0.8) > lost(0.6) > lost(0.4) == 0
    assert lost(0.8) == pytest.approx(terms.VIVID_ENOUGH, abs=0.25), "nearly grey"
    assert terms.saturation_loss(red * 0, red * 0, place, strong).item() == 0, "no tracer"


def test_loss_gain_and_reversal_cost_alike() -> None:
    x = tensor(smooth(11) - 0.5)
    for gain in (0.5, 2.0):
        assert terms.similarity(gain * x, x).item() == pytest.approx(2 * gain / (1 + gain**2), abs=1e-4)
    assert terms.similarity(-x, x).item() == pytest.approx(-1, abs=1e-4)


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_gradients_stay_finite_on_flat_pictures(level: float) -> None:
    y = torch.full((2, 1, SIDE, SIDE), level, requires_grad=True)
    rgb, a = tensor(smooth(12, 3)).repeat(2, 1, 1, 1), torch.full((2, 1, SIDE, SIDE), level)
    rgb[0] = 0
    place = terms.luma(rgb)
    shown = terms.recombined(y, rgb)
    found = terms.tracer_terms(y, shown, a, place, rgb, place, torch.tensor([0.5, 2.0]))
    total = sum(found.values(), terms.likeness_loss(y, a, place))
    total = total + terms.saturation_loss(shown, rgb, place, torch.tensor([0.5, 2.0]))
    total = total + terms.soft_tissue_loss(y, a, place) + terms.bone_loss(y, place)
    site = lesions.Site(0, 30, 30, "a")
    total.sum().backward(retain_graph=True)
    lesions.lesion_loss(shown, a, rgb, [site])[0].sum().backward()
    assert total.isfinite().all() and y.grad is not None and y.grad.isfinite().all()


def test_the_gradients_are_right_in_double() -> None:
    rgb, a = tensor(smooth(13, 3, 32)).double(), tensor(smooth(14, side=32)).double()
    place = terms.luma(rgb)
    strong = torch.tensor([0.6]).double()

    def loss(y: torch.Tensor) -> torch.Tensor:
        found = terms.tracer_terms(y, terms.recombined(y, rgb), a, place, rgb, place, strong)
        return found["colour"] + found["uptake_detail"] + terms.likeness_loss(y, a, place)

    y = (0.2 + 0.6 * tensor(smooth(15, side=32)).double()).requires_grad_()
    assert torch.autograd.gradcheck(loss, (y,), eps=1e-7, atol=1e-5, nondet_tol=0, fast_mode=True)


def test_where_no_tracer_is_the_brighter_source_is_right() -> None:
    a, b = tensor(smooth(42)), 0.02 * tensor(smooth(43))
    foreground = torch.zeros_like(a)
    foreground[..., :20] = 1
    f = torch.maximum(a, b) + 0.5 * foreground
    assert terms.outside_loss(f, a, b, foreground).item() == 0
    assert terms.outside_loss(f + b, a, b, foreground).item() > 0.001
    assert terms.outside_loss(a + 1, a, b, torch.ones_like(a)).item() == 0, "uptake all over"


def test_likeness_sees_a_grain_of_one_level_in_flat_bone() -> None:
    mri, bone = tensor(smooth(40)), torch.ones(1, 1, SIDE, SIDE)
    exact = terms.likeness_loss(bone, mri, bone).item()
    grain = bone - (2 / 255) * mri
    assert terms.likeness_loss(grain, mri, bone).item() > exact + 0.03
    ours = terms.likeness_loss(mri, mri, tensor(smooth(41))).item()
    assert 0.3 < ours < 0.6, "like one source, unlike the other"


# Lesions


@pytest.mark.parametrize("make", [tracer_crop, ct_crop])
def test_a_lesion_is_in_one_source_and_nowhere_else(make: object) -> None:
    found = 0
    for seed in range(8):
        crop = make(100 + 7 * seed)  # type: ignore[operator]
        twin, sites = lesions.planted(crop, np.random.default_rng(seed), 0)
        changed = {"a": np.abs(twin.a - crop.a), "b": np.abs(twin.rgb - crop.rgb).max(2)}
        reach = {source: np.zeros((SIDE, SIDE), bool) for source in "ab"}
        for site in sites:
            window = (slice(site.y - 14, site.y + 15), slice(site.x - 14, site.x + 15))
            reach[site.source][window] = True
            assert changed[site.source][window].max() > 0.005
            found += 1
        assert all((changed[source][~reach[source]] < 0.05).all() for source in "ab")
        assert twin.a.min() >= 0 and twin.a.max() <= 1 and twin.rgb.min() >= 0 and twin.rgb.max() <= 1
        if crop.uptake is not None:  # colour and uptake tell one story
            again = randomise.through(crop.palette, twin.uptake)
            np.testing.assert_allclose(again, twin.rgb, atol=1e-4)
    assert found >= 8


def test_the_loss_wants_the_lesion_as_its_source_shows_it() -> None:
    a = tensor(smooth(20, side=80)).repeat(2, 1, 1, 1)
    rgb = tensor(smooth(21, 3, 80)).repeat(2, 1, 1, 1)
    spot = torch.from_numpy(0.3 * lesions.shape(np.random.default_rng(0)))
    a[1, 0, 10:39, 10:39] += spot
    rgb[1, :, 40:69, 40:69] += spot * torch.tensor([1.0, 0, -1])[:, None, None]
    of_a, of_b = lesions.Site(0, 24, 24, "a"), lesions.Site(0, 54, 54, "b")
    grey = a.expand(-1, 3, -1, -1)
    assert lesions.lesion_loss(grey, a, rgb, [of_a])[0].item() < 1e-3
    assert lesions.lesion_loss(rgb, a, rgb, [of_b])[0].item() < 1e-3
    lost, _ = lesions.lesion_loss(torch.zeros_like(rgb), a, rgb, [of_a, of_b])
    assert lost.tolist() == pytest.approx([1.5 + lesions.AT_RISK] * 2, abs=1e-2)
    assert lesions.lesion_loss(1 - grey, a, rgb, [of_a])[0].item() > 2.5, "reversed"
    half = grey[:1] + 0.5 * (grey - grey[:1])
    assert 0.1 < lesions.lesion_loss(half, a, rgb, [of_a])[0].item() < 1
    twice = grey[:1] + 2 * (grey - grey[:1])
    costs = [lesions.lesion_loss(twice, a, rgb, [of_a], torch.tensor([g]))[0].item() for g in (1.0, 1.5, 2.0)]
    assert costs[0] > 0.05 and costs[0] > costs[1] > costs[2] and costs[2] == pytest.approx(0, abs=2e-3)


def test_lesions_that_the_source_just_shows_count_most() -> None:
    a = tensor(0.4 + 0.1 * smooth(60, side=80)).repeat(6, 1, 1, 1)
    spot = torch.from_numpy(lesions.shape(np.random.default_rng(0)))
    for index, contrast in enumerate((0.003, 0.05, 0.5)):
        a[3 + index, 0, 26:55, 26:55] += contrast * spot
    grey = a.expand(-1, 3, -1, -1)
    _, counts = lesions.lesion_loss(grey, a, grey, [lesions.Site(i, 40, 40, "a") for i in range(3)])
    assert counts.mean().item() == pytest.approx(1)
    assert counts[1] > 3 * counts[0] and counts[1] > 3 * counts[2]


def test_a_lesion_that_the_other_modality_explains_counts_less() -> None:
    a, b = (tensor(smooth(seed, side=80)).repeat(4, 1, 1, 1) for seed in (50, 51))
    a[2:, 0, 20:29, 20:29] = 1
    generated = (a.clone(), b.clone())
    generated[0][2, 0, 20:29, 20:29] = 0
    sites = [lesions.Site(0, 24, 24, "a"), lesions.Site(1, 24, 24, "a"), lesions.Site(0, 24, 24, "b")]
    counts = lesions.surprise_of(sites, a, b, generated, torch.ones(4, dtype=torch.bool), 4.0)
    assert counts.mean().item() == pytest.approx(1) and counts[0] > 3 * counts[1]
    assert counts[1] == counts[2], "both as expected"
    unknown = lesions.surprise_of(sites, a, b, generated, torch.zeros(4, dtype=torch.bool), 4.0)
    assert unknown.tolist() == [1, 1, 1]


def test_the_reader_is_that_of_the_measure() -> None:
    without = smooth(30, 3, 96)
    with_it = without.copy()
    with_it[26:55, 38:67] += 0.2 * lesions.shape(np.random.default_rng(1))[..., None] * [1, -1, 0.5]
    with_it = np.clip(with_it, 0, 1)
    without, with_it = (np.rint(255 * x).astype(np.uint8) for x in (without, with_it))
    judged = reader.Background(without, (40, 52)).detectability(reader.window(with_it, (40, 52)))
    site = [lesions.Site(0, 40, 52, "a")]
    ours = lesions.detectability(
        *(
            lesions.Windows(site, torch.device("cpu"))(tensor(x.astype(np.float32) / 255), reach)
            for x, reach in ((without, reader.MARGIN_PX), (with_it, reader.REACH_PX))
        )
    )
    assert ours.item() == pytest.approx(judged, rel=1e-3)


# Other scanners


def test_black_stays_black_and_colour_stays_on_its_palette() -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        crop = tracer_crop(seed) if seed % 2 else ct_crop(seed)
        crop = replace(crop, a=np.where(np.arange(SIDE)[:, None] < 8, 0, crop.a).astype(np.float32))
        other = randomise.randomised(crop, rng)
        assert (other.a[:8] == 0).all(), "noise or a curve lit the background"
        assert other.a.min() >= 0 and other.a.max() <= 1 and other.rgb.min() >= 0 and other.rgb.max() <= 1
        assert other.a.dtype == other.rgb.dtype == np.float32
        if other.uptake is not None and other.palette is not None:
            again = randomise.through(other.palette, other.uptake)
            np.testing.assert_allclose(again, other.rgb, atol=2e-3)


def test_only_another_palette_makes_a_crop_repainted() -> None:
    rng = np.random.default_rng(3)
    crop = tracer_crop(1)
    assert not randomise.dimmed(randomise.misregistered(crop, rng), 0.5, 0.5).repainted
    painted = randomise.with_palette(crop, randomise.new_palette(rng), randomise.tone_curve(rng, False))
    assert painted.repainted and not np.array_equal(painted.palette, crop.palette)


def test_palettes_and_curves_begin_at_black() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        assert np.abs(randomise.new_palette(rng)[0]).max() < 0.02
        curve = randomise.tone_curve(rng, turning=False)
        assert curve[0] == 0 and (np.diff(curve) >= -1e-6).all() and curve.max() > 0.5


def test_a_crop_may_get_the_palette_of_another_case() -> None:
    archive = [np.linspace(0, k, 768, dtype=np.float32).reshape(256, 3) for k in (0.4, 0.9)]
    drawn = [randomise.new_palette(np.random.default_rng(seed), archive) for seed in range(60)]
    of_archive = [any(one is other for other in archive) for one in drawn]
    assert 4 <= sum(of_archive) <= 24 and all(any(one is x for one in drawn) for x in archive)


# Crops of no patient


@pytest.mark.parametrize("modality", data.SETS)
def test_a_drawn_crop_is_a_pair_like_any_other(modality: str) -> None:
    for seed in range(12):
        one = synthetic.crop(np.random.default_rng(seed), modality, SIDE)
        again = synthetic.crop(np.random.default_rng(seed), modality, SIDE)
        assert one.a.shape == (SIDE, SIDE) and one.rgb.shape == (SIDE, SIDE, 3)
        assert one.a.dtype == one.rgb.dtype == np.float32 and np.array_equal(one.rgb, again.rgb)
        assert one.a.min() >= 0 and one.a.max() <= 1 and one.rgb.min() >= 0 and one.rgb.max() <= 1
        assert one.repainted and one.generated is None
        assert (one.uptake is None) == (modality == "ct")
        if one.uptake is not None and one.palette is not None:
            np.testing.assert_allclose(randomise.through(one.palette, one.uptake), one.rgb, atol=1e-6)
            lit = one.uptake > 0
            assert not lit.any() or (one.uptake[lit] >= one.strong).mean() == pytest.approx(0.2, abs=0.05)


def test_a_head_has_all_its_tissues_and_air_is_black() -> None:
    labels = [synthetic.tissue(np.random.default_rng(seed), SIDE) for seed in range(20)]
    assert set(np.unique(labels)) == set(range(8))
    rng = np.random.default_rng(0)
    for one in labels:
        shown = synthetic.shown(one, rng, synthetic.MRI[3], 1.0)
        assert (shown[one == synthetic.AIR] == 0).all() and (shown[one != synthetic.AIR] > 0).all()


def test_a_batch_draws_the_share_of_crops_that_is_asked_for(sets: list[coloured.ColouredPairs]) -> None:
    def known(share: float) -> int:
        mixture = coloured.Mixture(0, 30, SIDE, 0.0, planted=False, synthetic=share)
        return int((~coloured.batch(sets, mixture, 1).repainted).sum())

    assert known(0.0) == 30 and known(1.0) == 0 and 5 <= known(0.5) <= 25


# Pairs in colour


@pytest.fixture
def sets(tmp_path: Path) -> list[coloured.ColouredPairs]:
    root = write_sets(tmp_path / "data", "case0{i}_slice{split}")
    return [coloured.read_colours(root, "train", pairs) for pairs in data.read_sets(root, "train")]


def test_a_batch_holds_each_crop_without_and_with_its_lesions(sets: list[coloured.ColouredPairs]) -> None:
    one, again = (coloured.batch(sets, coloured.Mixture(3, 6, SIDE, 0.5, True), 5) for _ in range(2))
    assert torch.equal(one.a, again.a) and torch.equal(one.rgb, again.rgb) and one.sites == again.sites
    assert len(one.a) == 12 and one.modalities == one.modalities[:6] * 2
    assert not torch.equal(coloured.batch(sets, coloured.Mixture(3, 6, SIDE, 0.5, True), 6).a, one.a)
    assert torch.allclose(terms.luma(one.rgb), one.b, atol=1e-5)
    alone = coloured.batch(sets, coloured.Mixture(3, 6, SIDE, 0.5, False), 5)
    assert len(alone.a) == 6 and not alone.sites


def test_the_network_is_given_the_planes_of_the_colours(sets: list[coloured.ColouredPairs]) -> None:
    one = coloured.batch(sets, coloured.Mixture(3, 6, SIDE, 0.5, True), 5)
    assert torch.equal(one.planes[:, :1], one.b)
    most = one.rgb.amax(1, keepdim=True)
    assert torch.allclose(one.planes[:, 1:], most - one.b, atol=1e-6)
    tracers = [i for i, modality in enumerate(one.modalities) if modality != "ct"]
    assert one.planes[tracers, 1].max() > 0.05
    assert not one.planes[[i for i in range(12) if i not in tracers], 1].any()


def test_flat_pairs_are_flat_in_grey_and_in_colour() -> None:
    levels = []
    for step in range(40):
        a, b = coloured.flat(1, step)
        side = (32, 96)[step % 2]
        assert a.shape == (2, 1, side, side) and b.shape == (2, 2, side, side)
        assert all(torch.equal(x, x[..., :1, :1].expand_as(x)) for x in (a, b))
        assert not b[0, 1].any() and (b[1, 1] > 0).all()
        levels.append((float(a[0, 0, 0, 0]), float(b[0, 0, 0, 0])))
    same = sum(x == pytest.approx(y, abs=1e-6) for x, y in levels)
    assert 3 < same < 25 and np.std([x for x, _ in levels]) > 0.2


def test_an_uneven_result_of_flat_sources_costs() -> None:
    a, b = coloured.flat(1, 0)
    most = torch.maximum(a, b[:, :1])
    assert terms.uneven_loss(most, a, b).tolist() == pytest.approx([0, 0], abs=1e-6)
    grey, colour = terms.uneven_loss(0.8 * most, a, b).tolist()
    assert grey == pytest.approx(0.2 * float(most[0].mean()), rel=1e-4) and colour == pytest.approx(
        0, abs=1e-6
    )
    assert (terms.uneven_loss(1.1 * most, a, b) > 0.05 * most.mean((1, 2, 3))).all(), "brighter than both"
    uneven = most + 0.1 * torch.linspace(-1, 1, most.shape[-1])
    assert (terms.uneven_loss(uneven, a, b) > 0.02).all()


def test_the_strongest_fifth_is_that_of_the_slice(sets: list[coloured.ColouredPairs]) -> None:
    whole = sets[1]
    assert whole.strong is not None and whole.uptake is not None and whole.rgb is not None
    for place, rgb, strong in zip(whole.uptake, whole.rgb, whole.strong, strict=True):
        inside = uptake.foreground(rgb, place / np.float32(255))
        assert (place[inside] >= 255 * strong - 0.5).mean() == pytest.approx(0.2, abs=0.05)
    seen = {
        float(coloured.batch([whole], coloured.Mixture(0, 1, SIDE, 0.0, False), step).strong)
        for step in range(6)
    }
    assert seen <= set(np.float32(whole.strong).tolist())
    crop = tracer_crop(3)
    curve = randomise.tone_curve(np.random.default_rng(0), turning=False)
    other = randomise.with_palette(crop, randomise.new_palette(np.random.default_rng(1)), curve)
    assert crop.uptake is not None and other.uptake is not None
    unequal = (other.uptake >= other.strong) != (crop.uptake >= crop.strong)
    assert unequal.mean() < 0.01 < (crop.uptake >= crop.strong).mean(), "the curve took the limit along"


def test_the_sets_take_the_turns_that_are_asked_for(sets: list[coloured.ColouredPairs]) -> None:
    turns = fusion.in_turn(sets, ("ct", "pet", "ct", "spect"))
    assert coloured.batch(turns, coloured.Mixture(0, 4, SIDE, 0.0, False), 3).modalities == [
        "ct",
        "pet",
        "ct",
        "spect",
    ]
    assert fusion.in_turn(sets, ()) == sets
    for wrong in (("ct", "pet"), ("ct", "pet", "spect", "mri")):
        with pytest.raises(InputError, match=r"--turns: ct pet.*expected each of ct, pet, spect"):
            fusion.in_turn(sets, wrong)


def test_cases_are_held_out_by_name(sets: list[coloured.ColouredPairs]) -> None:
    plain = [one.pairs for one in sets]
    left = coloured.without(plain, ["pet:case00"])
    assert [p.names for p in left] == [plain[0].names, plain[1].names[1:], plain[2].names]
    np.testing.assert_array_equal(left[1].a, plain[1].a[1:])
    np.testing.assert_array_equal(left[1].b, plain[1].b[1:])
    with pytest.raises(InputError, match="pet:case99"):
        coloured.without(plain, ["pet:case99"])
    with pytest.raises(InputError, match="no case of pet is left"):
        coloured.without(plain, ["pet:case00", "pet:case01"])
