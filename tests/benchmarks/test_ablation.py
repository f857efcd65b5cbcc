"""The evidence pages agree with their committed rows, and parallel processes lose no row."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import REPO

from mmif_trt.measure.metrics import ALL


@pytest.fixture
def ablation(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("torch", reason="trainings need torch")
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    return __import__("ablation")


def row(variant: str, seed: int, value: float) -> dict[str, Any]:
    metrics = {key: value for key in ALL}
    sets = {"mri-ct": {"whole": metrics, "foreground": {"EN": value}}}
    return {"variant": variant, "seed": seed, "steps": 10, "commit": "c0ffee", "kernels": "CPU", "sets": sets}


def test_the_page_shows_the_committed_runs(ablation: ModuleType) -> None:
    assert ablation.PAGE.read_text() == ablation.page(ablation.load())


def test_the_main_contrast_has_three_seeds(ablation: ModuleType) -> None:
    rows = ablation.load()["rows"]
    assert {row["variant"] for row in rows} == set(ablation.VARIANTS)
    for variant in (ablation.PLAIN, "both"):
        assert len({row["seed"] for row in rows if row["variant"] == variant}) >= 3
    assert not any("dirty" in row["commit"] for row in rows)
    assert len({(row["variant"], row["seed"], row["steps"]) for row in rows}) == len(rows)


def test_differences_are_taken_within_a_seed(ablation: ModuleType) -> None:
    """Seeds differ by far more than variants: a difference of means over unequal seeds would show that."""
    rows = [
        row(ablation.PLAIN, 0, 1.0),
        row(ablation.PLAIN, 1, 9.0),
        row("both", 0, 1.5),
        row("both", 2, 70.0),
    ]
    *_, last = ablation.differences(rows, "mri-ct")
    assert last.startswith("| both | 1 | +0.500 (+0.500 to +0.500) |")
    one = row("without diffusion, local branch only", 0, 5.0)
    assert len(ablation.differences([*rows, one], "mri-ct")) == 3  # a branch is another question


def add(results: Path, seed: int) -> None:
    import ablation

    ablation.RESULTS = results
    ablation.add(row("both", seed, 1.0))


def test_rows_of_several_processes_are_kept(
    ablation: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "ablation.json"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=add, args=(results, seed)) for seed in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    monkeypatch.setattr(ablation, "RESULTS", results)
    assert {row["seed"] for row in ablation.load()["rows"]} == set(range(8))
