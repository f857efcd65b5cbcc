"""Registers an operation of CPU_OPS with torch: each saves its inputs and one map for backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmif_trt.ops import KERNEL_DEVICES
from mmif_trt.ops.second_order import refuse


def register(name: str, fake: Callable[..., Any], fake_bwd: Callable[..., Any]) -> None:
    """mmif_trt::NAME(*tensors, *options) -> (y, saved); NAME_bwd(d_y, *tensors, saved, *options)
    for the gradient of each tensor. Does nothing where there is no kernel."""
    if "cpu" not in KERNEL_DEVICES:
        return

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        ctx.options = inputs[len(tensors) :]
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, output[1])

    def backward(ctx: Any, d_y: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if d_y is None:
            return (None,) * (len(ctx.saved_tensors) - 1 + len(ctx.options))
        run_bwd = getattr(torch.ops.mmif_trt, f"{name}_bwd")
        return *run_bwd(d_y, *ctx.saved_tensors, *ctx.options), *(None for _ in ctx.options)

    torch.library.register_fake(f"mmif_trt::{name}", fake)
    torch.library.register_fake(f"mmif_trt::{name}_bwd", fake_bwd)
    torch.library.register_autograd(f"mmif_trt::{name}", backward, setup_context=save)
    refuse(name)
