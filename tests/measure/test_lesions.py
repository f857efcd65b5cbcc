"""Planted lesions: what stands where, and shares whose answer is known: copies, halves, reversals, an erased
lesion.
"""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
import scenery

from mmif_trt.image import InputError
from mmif_trt.measure.lesions import Kept, judge, read, summarise
from mmif_trt.measure.planting import APART_PX, LEAST, MOST, Planted, kinds_for, plant
from mmif_trt.measure.reader import MARGIN_PX, Background, window
from mmif_trt.measure.shapes import SHAPES, WINDOW_PX, footprint


@pytest.fixture(scope="module")
def with_ct() -> list[Planted]:
    return plant([(f"case{i}", scenery.mri(i), scenery.ct(i)) for i in range(2)], "ct", per_kind=6)


@pytest.fixture(scope="module")
def with_pet() -> list[Planted]:
    palette = scenery.ramp_palette()
    return plant(
        [(f"case{i}", scenery.mri(i), scenery.tracer(palette, i)) for i in range(2)], "pet", per_kind=6
    )


def rgb(a: np.ndarray) -> np.ndarray:
    return np.repeat(a[..., None], 3, axis=2)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_whole_in_its_window(shape: str) -> None:
    for seed in range(20):
        for radius_px in (3, 8):
            mask = footprint(shape, radius_px, np.random.default_rng(seed))
            assert mask.shape == (WINDOW_PX, WINDOW_PX) and mask.max() == 1 and mask.min() == 0
            edge = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
            assert edge.max() == 0, "cut off"
            assert 3 < mask.sum() < 400


def test_shapes_differ() -> None:
    ring = footprint("rim", 8, np.random.default_rng(0))
    assert ring[WINDOW_PX // 2, WINDOW_PX // 2] == 0
    disc = footprint("ellipse", 8, np.random.default_rng(0))
    assert disc[WINDOW_PX // 2, WINDOW_PX // 2] == pytest.approx(1, abs=0.01)


def test_every_kind_finds_its_places(with_ct: list[Planted], with_pet: list[Planted]) -> None:
    for planted, modality in ((with_ct, "ct"), (with_pet, "pet")):
        lesions = [lesion for one in planted for lesion in one.lesions]
        for kind in kinds_for(modality):
            assert sum(lesion.kind == kind.name for lesion in lesions) == 6, kind.name
        assert all(LEAST <= lesion.d_source <= MOST for lesion in lesions)
        assert np.median([lesion.d_source for lesion in lesions]) == pytest.approx(4, abs=0.15)
        assert len({lesion.shape for lesion in lesions}) >= 4


def test_lesions_stand_apart_and_change_only_their_source(with_ct: list[Planted]) -> None:
    for one in with_ct:
        for number, (a, b) in enumerate(one.scenes):
            here = [lesion for lesion in one.lesions if lesion.scene == number]
            allowed = {"a": np.zeros(a.shape, bool), "b": np.zeros(a.shape, bool)}
            sources = {kind.name: kind.source for kind in kinds_for("ct")}
            for lesion in here:
                assert min(lesion.centre) >= MARGIN_PX
                window(allowed[sources[lesion.kind]], lesion.centre)[:] = True
                others = [np.subtract(x.centre, lesion.centre) for x in here if x is not lesion]
                assert all(np.hypot(*way) >= APART_PX for way in others)
            assert ((a != one.a) <= allowed["a"]).all() and ((b != one.b) <= allowed["b"]).all()


def test_signs_and_regions(with_ct: list[Planted]) -> None:
    for one in with_ct:
        for lesion in one.lesions:
            kind = next(k for k in kinds_for("ct") if k.name == lesion.kind)
            side = "ab".index(kind.source)
            before = window((one.a, one.b)[side], lesion.centre).astype(int)
            change = window(one.scenes[lesion.scene][side], lesion.centre) - before
            assert (change * kind.sign >= 0).all() and (change != 0).any()
            if kind.region == "soft":
                assert 20 < one.b[lesion.centre] < 170


def test_same_seed_same_lesions_another_seed_others(with_ct: list[Planted]) -> None:
    pairs = [("case0", with_ct[0].a, with_ct[0].b)]
    first, again, other = (plant(pairs, "ct", per_kind=2, seed=seed)[0] for seed in (0, 0, 1))
    assert [astuple(x) for x in first.lesions] == [astuple(x) for x in again.lesions]
    assert all((x[0] == y[0]).all() for x, y in zip(first.scenes, again.scenes, strict=True))
    assert [x.centre for x in first.lesions] != [x.centre for x in other.lesions]


def test_of_more_places_a_lesion_takes_one_where_it_is_fainter() -> None:
    pairs = [(f"case{i}", scenery.mri(i), scenery.ct(i)) for i in range(2)]
    anywhere, faint = (
        {(x.kind, x.shape, x.radius_px): x.contrast / x.d_source for one in planted for x in one.lesions}
        for planted in (plant(pairs, "ct", per_kind=6, places=n) for n in (1, 5))
    )
    both = anywhere.keys() & faint.keys()  # the same shape and size, at another place
    assert len(both) > 10
    assert all(faint[x] <= anywhere[x] + 1e-9 for x in both)
    assert any(faint[x] < anywhere[x] for x in both)


def shares(kept: list[Kept], start: str) -> list[float]:
    found = [one.share for one in kept if one.kind.startswith(start)]
    assert found
    return found


def test_extremes(with_ct: list[Planted], with_pet: list[Planted]) -> None:
    copy_a = judge(lambda a, b: a, with_ct)
    assert set(shares(copy_a, "CT")) == {0.0} and min(shares(copy_a, "MRI")) == pytest.approx(1)
    copy_b = judge(lambda a, b: b, with_pet)
    assert set(shares(copy_b, "MRI")) == {0.0} and min(shares(copy_b, "tracer")) == pytest.approx(1)
    assert summarise(copy_b).false_uptake == 0 and summarise(copy_b).lost == 0.5
    assert min(shares(judge(lambda a, b: rgb(a), with_pet), "MRI")) == pytest.approx(1)


def test_more_contrast_is_more_kept_and_a_reversal_keeps_nothing(with_ct: list[Planted]) -> None:
    def at_gain(gain: float) -> float:
        one = with_ct[0]
        with_it = [(np.rint(one.a + gain * (a.astype(float) - one.a))).clip(0, 255) for a, _ in one.scenes]
        kept = read(one, one.a, [x.astype(np.uint8) for x in with_it])
        return float(np.mean(shares(kept, "MRI")))

    found = [at_gain(gain) for gain in (-1.0, 0.0, 0.25, 0.5, 1.0)]
    assert found == sorted(found) and found[0] == found[1] == 0 and found[-1] == 1
    # By the formula: the anatomy and the internal noise stay, the signal is halved.
    assert found[3] == pytest.approx(0.5, abs=0.04)


def test_one_erased_lesion_is_found(with_pet: list[Planted]) -> None:
    """The planted bug: a fusion that is right but for one spot."""
    one = with_pet[0]
    erased = next(i for i, x in enumerate(one.lesions) if x.kind == "tracer cold")
    scenes = [b.copy() for _, b in one.scenes]
    lesion = one.lesions[erased]
    window(scenes[lesion.scene], lesion.centre)[:] = window(one.b, lesion.centre)
    kept = read(one, one.b, scenes)
    lost = [i for i, x in enumerate(kept) if x.kind.startswith("tracer") and x.share < 0.25]
    assert lost == [erased]


def test_internal_noise_hides_what_an_eye_would_not_notice() -> None:
    flat = np.full((64, 64), 100, np.uint8)
    faint = flat.copy()
    faint[30:33, 30:33] += 1
    assert 0 < Background(flat, (31, 31)).detectability(window(faint, (31, 31))) < 1
    assert Background(flat, (31, 31)).detectability(window(flat, (31, 31))) == 0


def test_false_uptake_is_what_mri_lesions_do_to_the_colours(with_pet: list[Planted]) -> None:
    def painted(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The MRI's level as the place on the palette: each of its lesions looks like uptake."""
        return np.uint8(np.rint(scenery.ramp_palette()[a]))

    assert summarise(judge(painted, with_pet)).false_uptake > 0.03
    half = summarise(judge(lambda a, b: np.uint8((rgb(a).astype(int) + b) // 2), with_pet))
    assert 0 < half.false_uptake < 0.03


def test_summary_counts_each_kind_alike() -> None:
    def one(kind: str, share: float) -> Kept:
        return Kept("p", kind, "blob", 5.0, 4.0, 4.0 * share, share, float("nan"))

    found = summarise([one("x", 1.0), one("x", 0.5), one("x", 0.0), one("y", 0.2)])
    assert found.count == {"x": 3, "y": 1}
    assert found.mean == pytest.approx(0.35) and found.worst == pytest.approx(0.2)
    assert found.lost == pytest.approx((1 / 3 + 1) / 2)


def test_bad_pictures_are_refused(with_ct: list[Planted]) -> None:
    with pytest.raises(InputError, match="x: a float64"):
        plant([("x", np.zeros((64, 64)), np.zeros((64, 64), np.uint8))], "ct")
    with pytest.raises(InputError, match="case0: fused uint8 .*; expected uint8"):
        judge(lambda a, b: a[:-1], with_ct)
    black = np.zeros((64, 64), np.uint8)
    for modality in ("ct", "pet"):
        assert plant([("black", black, black)], modality)[0].lesions == []
        assert plant([("small", black[:20, :20], black[:20, :20])], modality)[0].lesions == []
