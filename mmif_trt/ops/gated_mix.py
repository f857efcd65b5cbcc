"""LAGN's gate between its branches as one operation on the CPU; the truth is `reference.gated_mix`.

The kernel is csrc/cpu/gated_mix*; what forward saves for backward stands in csrc/gated_mix.h. On CUDA there
is no kernel: the model keeps PyTorch's operations there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmif_trt.ops import has_block_kernel, kernels_available, reference


def gated_mix(local: Tensor, glob: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """s local + (1 - s) glob with s = sigmoid(weight [local, glob] + bias), for each pixel and channel.

    local, glob: [B, C, H, W], any strides and sizes; one dtype of float32, float16, bfloat16 (sums in
    float32) or float64. weight: [C, 2 C, 1, 1]; bias: [C]: in that dtype, or float32 beside a half, rounded
    to it as autocast would and with gradients in float32. C is a multiple of 16 where the kernel is to run.
    Under autocast both maps are cast to its dtype.

    Returns [B, C, H, W]; from the kernel, channels last. Gradients to all four, the same bits in every run.
    Without a kernel, or on another device, the reference runs: the same numbers.
    Raises RuntimeError for shapes or dtypes outside the above. No derivative of second order.
    """
    if torch.is_autocast_enabled(local.device.type):
        dtype = torch.get_autocast_dtype(local.device.type)
        local, glob = local.to(dtype), glob.to(dtype)
    if not has_block_kernel(local, local.shape[1], local.shape[1]):
        return reference.gated_mix(local, glob, weight, bias)
    out: Tensor = torch.ops.mmif_trt.gated_mix(local, glob, weight, bias)[0]
    return out


def _fake(local: Tensor, glob: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    B, C, H, W = local.shape
    return local.new_empty(B, H, W, C).permute(0, 3, 1, 2), local.new_empty(B, H, W, C)


def _fake_bwd(
    d_y: Tensor, local: Tensor, glob: Tensor, weight: Tensor, bias: Tensor, _: Tensor
) -> tuple[Tensor, ...]:
    B, C, H, W = local.shape
    maps = [x.new_empty(B, H, W, C).permute(0, 3, 1, 2) for x in (local, glob)]
    return *maps, weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, output[1])


def _backward(ctx: Any, d_y: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if d_y is None:
        return (None,) * 4
    gradients: tuple[Tensor, ...] = torch.ops.mmif_trt.gated_mix_bwd(d_y, *ctx.saved_tensors)
    return gradients


if kernels_available("cpu"):
    torch.library.register_fake("mmif_trt::gated_mix", _fake)
    torch.library.register_fake("mmif_trt::gated_mix_bwd", _fake_bwd)
    torch.library.register_autograd("mmif_trt::gated_mix", _backward, setup_context=_save)
