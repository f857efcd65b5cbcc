"""make train-all, read and not run: networks of the released shape, each stage from one before it."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from mmif_trt import weights
from mmif_trt.train import fusion

REPO = Path(__file__).resolve().parents[2]
CHECKPOINT = "/checkpoint.safetensors"


def would_start(*more: str) -> list[list[str]]:
    """Module and arguments of each training that make would start."""
    make = [
        "make",
        "--dry-run",
        "--always-make",
        "--directory",
        str(REPO),
        "train-all",
        "DATA=data",
        "RUNS=r",
    ]
    printed = subprocess.run([*make, *more], capture_output=True, text=True, check=True).stdout
    lines = [
        shlex.split(line) for line in printed.replace("\\\n", " ").splitlines() if "mmif_trt.train." in line
    ]
    return [words[words.index("-m") + 1 :] for words in lines]


@pytest.fixture(scope="module")
def started() -> list[list[str]]:
    return would_start()


@pytest.mark.parametrize("name", weights.NAMES)
def test_the_networks_have_the_released_shape(started: list[list[str]], name: str) -> None:
    by_out = {words[words.index("--out") + 1]: words for _, *words in started}
    words = by_out[f"r/{name}"]
    if "--steps" not in words:  # a mean: of one of its parts
        words = by_out[words[-1].partition("=")[2].removesuffix(CHECKPOINT)]
    config = fusion.configured(fusion.options(fusion.FusionConfig()).parse_args(words))
    assert config.model.as_dict() == weights.manifest()["models"][name]["config"]


def test_every_stage_begins_at_one_before_it(started: list[list[str]]) -> None:
    made: set[str] = set()
    for _, *words in started:
        needed = {word.rpartition("=")[2] for word in words if word.endswith(CHECKPOINT)}
        assert needed <= made, words
        made.add(words[words.index("--out") + 1] + CHECKPOINT)


@pytest.mark.parametrize("cases", [(), ("ct:a", "pet:b")])
def test_other_data_have_other_cases_to_measure_on(cases: tuple[str, ...]) -> None:
    """Those of the release ended it in step 4, after the hours of three steps."""
    fusions = [
        words
        for module, *words in would_start(f"HOLD_OUT={' '.join(cases)}")
        if module == "mmif_trt.train.fusion"
    ]
    for words in fusions:
        given = fusion.options(fusion.FusionConfig()).parse_args(words)
        assert fusion.configured(given).hold_out == cases
    assert len(fusions) == 12
