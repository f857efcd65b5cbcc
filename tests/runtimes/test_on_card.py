"""Fuser on arrays that lie on the card: pixels to pixels, and nothing of them goes through the host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_card import FakeCard, OnCard, fused
from fake_engine import install, usable_modules

from mmif_trt import Fuser, InputError
from mmif_trt.models.pixels import Form


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeCard]:
    made = install(monkeypatch, tmp_path / "cache")
    usable_modules(monkeypatch)
    yield made


def read(card: FakeCard, array: Any) -> np.ndarray:
    seen = array.__cuda_array_interface__
    return card.array(seen["data"][0], seen["shape"], np.dtype(seen["typestr"]).name)


def pictures(dtype: str, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    values = [rng.random(shape) for shape in shapes]
    return [(255 * x).astype(dtype) if dtype == "uint8" else x.astype(dtype) for x in values]


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("shapes", [((40, 48), (40, 48)), ((3, 40, 48), (3, 40, 48, 3))])
def test_nothing_goes_through_the_host(
    card: FakeCard, dtype: str, shapes: tuple[tuple[int, ...], ...]
) -> None:
    a, b = pictures(dtype, *shapes)
    fuser = Fuser(runtime="tensorrt")
    result = fuser(OnCard(card, a), OnCard(card, b))
    ranges = 2 if dtype == "float32" else 0  # two pairs of numbers, not pixels
    assert card.calls.count("upload") == ranges and "download" not in card.calls
    assert result.__cuda_array_interface__["shape"] == b.shape
    batch_a, batch_b = (x if len(x.shape) > 2 and x.shape[0] == 3 else x[None] for x in (a, b))
    form = Form(dtype, "rgb-last" if b.shape[-1] == 3 else "grey")
    given = {"a": batch_a[:, None], "b": batch_b if form.layout != "grey" else batch_b[:, None]}
    if form.ranges:  # of float32: 0 to 1
        given |= dict.fromkeys(("range_a", "range_b"), np.array([0, 1], np.float32))
    true = fused(form, given)
    np.testing.assert_allclose(
        read(card, result).reshape(true.shape), true, rtol=1e-6 * ranges, atol=1e-6 * ranges
    )


def test_value_ranges_reach_the_engine(card: FakeCard) -> None:
    a, b = pictures("float32", (40, 48), (40, 48))
    fuser = Fuser(runtime="tensorrt")
    wide = read(card, fuser(OnCard(card, 100 * a), OnCard(card, 100 * b), value_range=(0.0, 100.0)))
    unit = read(card, fuser(OnCard(card, a), OnCard(card, b)))
    np.testing.assert_allclose(wide, 100 * unit, rtol=1e-5)
    with pytest.raises(InputError, match=r"value_range_a \(5.0, 1.0\); expected \(black, white\)"):
        fuser(OnCard(card, a), OnCard(card, b), value_range=(5.0, 1.0))


def test_what_does_not_fit_is_refused(card: FakeCard) -> None:
    a, b = pictures("uint8", (40, 48), (40, 48))
    fuser = Fuser(runtime="tensorrt")
    with pytest.raises(InputError, match="a is uint8 and b float32 on the card"):
        fuser(OnCard(card, a), OnCard(card, b.astype("float32")))
    with pytest.raises(InputError, match="a has shape .40, 48, 3., in colour; expected a grey MRI"):
        fuser(OnCard(card, np.repeat(a[..., None], 3, 2)), OnCard(card, b))
    with pytest.raises(InputError, match="OnCard; expected a NumPy array"):
        fuser(OnCard(card, a), b)
    np.testing.assert_array_equal(fuser(a, b).shape, a.shape)


def test_a_result_may_go_to_the_host(card: FakeCard) -> None:
    """Of any size in turn, into the caller's own array, and while the parts of host calls are timed."""
    runtime: Any = Fuser(runtime="tensorrt").runtime
    engine, kept = runtime._engine(Form("uint8", "grey")), []
    engine.time_parts()
    for shape in ((40, 48), (16, 16), (3, 80, 96), (40, 48)):
        a, b = pictures("uint8", shape, shape)
        result = runtime.fuse_on_card(OnCard(card, a), OnCard(card, b), None, (0, 255), to_host=True)
        stays = runtime.fuse_on_card(OnCard(card, a), OnCard(card, b), None, None)
        assert isinstance(result, np.ndarray) and result.dtype == np.uint8
        kept.append((result, read(card, stays)))
    assert card.calls.count("download") == 4 and "upload" not in card.calls
    for result, true in kept:
        np.testing.assert_array_equal(result, true)
    a, b = pictures("uint8", (40, 48), (40, 48))
    np.testing.assert_array_equal(engine(a, b), kept[0][0])
    assert len(engine.parts_ms) == 3
