"""The ablation: its page agrees with its rows; its variants differ in one thing and share their batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import REPO
from training_data import write_sets

torch = pytest.importorskip("torch", reason="trainings need torch")


@pytest.fixture
def ablation(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    return __import__("ablation")


def test_the_page_shows_the_committed_runs(ablation: ModuleType) -> None:
    assert ablation.PAGE.read_text() == ablation.page(ablation.load())


def test_every_variant_has_three_seeds_of_one_budget(ablation: ModuleType) -> None:
    rows = ablation.load()["rows"]
    runs = [(row["variant"], row["seed"]) for row in rows]
    assert sorted(runs) == sorted((name, seed) for name in ablation.VARIANTS for seed in (0, 1, 2))
    assert len({(row["steps"], row["batch"], row["commit"], row["trained_on"]) for row in rows}) == 1
    assert "dirty" not in rows[0]["commit"]


def row(variant: str, seed: int, value: float) -> dict[str, Any]:
    return {"variant": variant, "seed": seed, "mri-ct": {"lesions": value, "share": {"CT dark": value}}}


def test_changes_are_taken_within_a_seed(ablation: ModuleType) -> None:
    """Seeds differ by far more than variants: a difference of means over unequal seeds would show that."""
    other = "local branch only"
    rows = [row(ablation.AS_TRAINED, 0, 1.0), row(ablation.AS_TRAINED, 1, 9.0)]
    rows += [row(other, 0, 1.5), row(other, 2, 70.0)]
    head, rule, *lines = ablation.table_of(rows, [("mri-ct", "lesions"), ("mri-ct", "share", "CT dark")])
    assert head == "| | seeds | lesions | CT dark |" and rule.count("---:") == 3
    assert lines[0] == "| as released | 2 | 5.000 (1.000 to 9.000) | 5.000 (1.000 to 9.000) |"
    assert lines[1:] == ["| local branch only | 1 | +0.500 | +0.500 |"]


def test_variants_differ_from_the_recipe_in_what_they_name(ablation: ModuleType) -> None:
    shared = ablation.recipe(seed=3, steps=7)
    assert shared.model.activation == "hardswish" and shared.loss.predictability == 4 and shared.hold_out
    made = {name: change(shared) for name, change in ablation.VARIANTS.items()}
    for name in (ablation.AS_TRAINED, ablation.INFORMED):
        assert made.pop(name) == shared
    assert len(set(map(str, made.values()))) == len(made) and shared not in made.values()
    for config in made.values():
        undone = replace(config, model=shared.model, loss=shared.loss, fidelity=shared.fidelity)
        assert undone == shared, "budget, data and seed are the same"
    assert made["without diffusion"] == replace(shared, loss=replace(shared.loss, predictability=0.0))


def test_runs_of_a_seed_start_alike_and_see_the_same_crops(
    ablation: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_sets(tmp_path, "{split}{i}_slice")
    read = ablation.data.read_sets(root, "train")
    told = [replace(pairs, generated=np.stack([pairs.b, pairs.a])) for pairs in read]
    sets = [ablation.coloured.read_colours(root, "train", pairs) for pairs in told]
    shared = replace(ablation.recipe(0, 2), batch_size=3, crop_px=64, precision="fp32", turns=(), hold_out=())
    names = [ablation.AS_TRAINED, "without the lesion term", ablation.INFORMED]
    plain, blind, informed = ablation.runs_of(names, shared, sets, 0)

    def weights(run: Any) -> dict[str, Any]:
        return {k: v.clone() for k, v in run.state.model.state_dict().items()}

    before = [weights(run) for run in (plain, blind, informed)]
    same = [k for k, v in before[0].items() if torch.equal(v, before[2].get(k, v))]
    assert set(before[0]) - set(same) == {"stem.weight", "stem.bias"}, "the input's own layer"
    assert all(torch.equal(v, before[1][k]) for k, v in before[0].items())
    made = []
    real = ablation.coloured.batch
    monkeypatch.setattr(ablation.coloured, "batch", lambda *args: made.append(args[2]) or real(*args))
    assert list(ablation.steps_of([plain, blind, informed])) == [1, 2]
    assert made == [0, 1], "each batch is made once"
    after = [weights(run) for run in (plain, blind, informed)]
    assert not torch.equal(after[0]["head.weight"], after[1]["head.weight"]), "the lesion term counts"
    # What it is told reaches the network: the same sources with other expectations fuse otherwise.
    x, y, z = torch.rand(3, 1, 1, 64, 64).unbind(0)
    model = informed.state.model.eval()
    with torch.no_grad():
        one, other = (model(torch.cat([x, e], 1), torch.cat([y, y / 4, e], 1)) for e in (x, z))
    assert one.shape == x.shape and not torch.equal(one, other)
    assert bool((one >= (torch.maximum(x, y) - 2 * torch.minimum(x, y)).clamp(0) - 1e-6).all())
