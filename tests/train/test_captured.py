"""A training whose network runs as CUDA graphs is the same training; without a card it says what it needs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_data import write_sets

from mmif_trt.image import InputError
from mmif_trt.models.lagn import LAGNConfig
from mmif_trt.train import coloured, data, fusion, loop
from mmif_trt.train.captured import CapturedForward
from mmif_trt.train.losses import LossWeights


def test_without_a_card_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="--capture: no CUDA device; expected one"):
        fusion.train(fusion.FusionConfig(steps=1), tmp_path, tmp_path / "out", capture=True)
    assert not (tmp_path / "out").exists()


def test_it_is_refused_for_an_activation_whose_graphs_gave_no_numbers(tmp_path: Path) -> None:
    config = fusion.FusionConfig(steps=1, model=LAGNConfig(activation="hardswish"))
    with pytest.raises(InputError, match="--capture with --activation hardswish; expected gelu"):
        fusion.train(config, tmp_path, tmp_path / "out", capture=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cuda_graphs_train_as_single_kernels_do(precision: str, tmp_path: Path) -> None:
    """Two graphs (the rounding loss takes fewer crops in the other precision), five steps, one of them after
    the weights have moved: the losses agree to what the order of sums leaves open."""
    sets = [
        coloured.read_colours(tmp_path, "train", pairs)
        for pairs in data.read_sets(write_sets(tmp_path, "{split}{i}_slice"), "train")
    ]
    config = fusion.FusionConfig(
        steps=5, batch_size=4, crop_px=32, warmup_steps=1, precision=precision, loss=LossWeights(rounding=0.5)
    )
    losses = []
    for run in (fusion.forward, CapturedForward()):
        state = fusion.new_state(config)
        objective = fusion.objective(state.model, config, fusion.batches_of(config, sets), run)  # type: ignore[arg-type]
        losses.append([loop.train_step(state, config, objective)[0] for _ in range(config.steps)])
    assert losses[0][0] != losses[0][-1]
    assert losses[1] == pytest.approx(losses[0], rel=2e-3 if precision == "bf16" else 1e-4)
