"""A training whose network runs as CUDA graphs is the same training; without a card it says what it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
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


class Replay(torch.autograd.Function):
    """A graph's call: its backward pass reads what the last replay left in the graph's memory."""

    @staticmethod
    def forward(ctx: Any, graph: Any, weight: Tensor, a: Tensor) -> Tensor:  # type: ignore[override]
        ctx.graph, graph.memory = graph, a.clone()
        return weight * a

    @staticmethod
    def backward(ctx: Any, d_fused: Tensor) -> tuple[None, Tensor, None]:  # type: ignore[override]
        return None, (d_fused * ctx.graph.memory).sum(), None


class Graph(torch.nn.Module):
    def __init__(self, network: Any, _: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.weight = network.model.weight

    def forward(self, a: Tensor, _: Tensor) -> Tensor:
        fused: Tensor = Replay.apply(self, self.weight, a)
        return fused


def test_the_same_shape_twice_before_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """As --flat takes it with batches of two: one graph would forget the activations of the first. Later
    steps capture nothing."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    made: list[Graph] = []
    monkeypatch.setattr(
        torch.cuda, "make_graphed_callables", lambda *given: made.append(Graph(*given)) or made[-1]
    )
    model: Any = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.tensor(2.0))
    captured = CapturedForward()
    for _ in range(3):
        model.weight.grad = None
        a, b = torch.rand(2, 2, 1, 4, 4)
        (captured(model, a, a, "fp32").sum() + 3 * captured(model, b, b, "fp32").sum()).backward()
        torch.testing.assert_close(model.weight.grad, a.sum() + 3 * b.sum())
        captured(model, a, a, "fp32")  # nobody uses it: its graph must not stay taken
    assert len(made) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "model", [LAGNConfig(), LAGNConfig(stride=8, window=4, activation="hardswish")], ids=str
)
def test_cuda_graphs_train_as_single_kernels_do(model: LAGNConfig, precision: str, tmp_path: Path) -> None:
    """Two graphs (the rounding loss takes fewer crops in the other precision), five steps, one of them after
    the weights have moved: the losses agree to what the order of sums leaves open."""
    sets = [
        coloured.read_colours(tmp_path, "train", pairs)
        for pairs in data.read_sets(write_sets(tmp_path, "{split}{i}_slice"), "train")
    ]
    config = fusion.FusionConfig(
        steps=5,
        batch_size=4,
        crop_px=32,
        warmup_steps=1,
        precision=precision,
        model=model,
        loss=LossWeights(rounding=0.5),
    )
    losses = []
    for run in (fusion.forward, CapturedForward()):
        state = fusion.new_state(config)
        objective = fusion.objective(state.model, config, fusion.batches_of(config, sets), run)  # type: ignore[arg-type]
        losses.append([loop.train_step(state, config, objective)[0] for _ in range(config.steps)])
    assert losses[0][0] != losses[0][-1]
    assert losses[1] == pytest.approx(losses[0], rel=2e-3 if precision == "bf16" else 1e-4)
