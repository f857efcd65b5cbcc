"""LAGN's forward and backward as CUDA graphs, for training on a GPU.

A step on small crops keeps a GPU busy for a few milliseconds and the host for many, because it launches
hundreds of kernels one by one. A graph launches them at once. One is captured per shape and precision in use;
the losses, whose work depends on the batch, are not captured.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from mmif_trt.image import InputError
from mmif_trt.models.lagn import LAGN


class _InPrecision(nn.Module):
    """The network in "bf16" (autocast) or "fp32", float32 out."""

    def __init__(self, model: LAGN, precision: str) -> None:
        super().__init__()
        self.model, self.bf16 = model, precision == "bf16"

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        # Without autocast's cache: a cached cast weight from the capture would never follow the optimiser.
        with torch.autocast("cuda", torch.bfloat16, enabled=self.bf16, cache_enabled=False):
            fused: Tensor = self.model(a, b)
        return fused


class CapturedForward:
    """Called as `fusion.forward` is: (model, a, b, precision) -> the fused image, differentiable in the
    weights. Weights must stay where they are in memory, as an optimiser leaves them."""

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise InputError("--capture: no CUDA device; expected one, or leave the option out")
        self._made: dict[tuple[str, tuple[int, ...]], list[nn.Module]] = defaultdict(list)
        # Graphs whose backward pass may come: until it does, or its node dies with a result nobody used.
        self._awaited: WeakValueDictionary[nn.Module, Any] = WeakValueDictionary()

    def __call__(self, model: LAGN, a: Tensor, b: Tensor, precision: str) -> Tensor:
        if not torch.is_grad_enabled():  # a teacher: no backward pass to capture
            return _InPrecision(model, precision)(a, b)
        # A graph keeps one call's activations. Where a step takes the same shape twice, it needs two graphs.
        made = self._made[precision, tuple(a.shape)]
        graph = next((graph for graph in made if graph not in self._awaited), None) or self._capture(
            model, a, b, precision
        )
        own: Tensor = graph(a, b)  # the graph's buffer: the next replay writes over it
        self._awaited[graph] = own.grad_fn
        fused = own.clone()
        fused.register_hook(lambda _: self._awaited.pop(graph, None) and None)
        return fused

    def _capture(self, model: LAGN, a: Tensor, b: Tensor, precision: str) -> nn.Module:
        example = (torch.zeros_like(a), torch.zeros_like(b))
        graph: nn.Module = torch.cuda.make_graphed_callables(_InPrecision(model, precision), example)  # type: ignore[assignment]
        self._made[precision, tuple(a.shape)].append(graph)
        return graph
