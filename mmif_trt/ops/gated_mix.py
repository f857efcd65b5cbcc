"""LAGN's gate between its branches as one operation on the CPU; the reference is `reference.gated_mix`.

The kernel is csrc/cpu/gated_mix*; csrc/gated_mix.h says what forward saves for backward. On CUDA there is no
kernel: the model keeps PyTorch's operations there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmif_trt.ops import cpu_block, has_block_kernel, reference


def gated_mix(local: Tensor, glob: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """s local + (1 - s) glob with s = sigmoid(weight [local, glob] + bias), for each pixel and channel.

    local, glob: [B, C, H, W], any strides and sizes; one dtype of float32, float16, bfloat16 (sums in
    float32) or float64. weight: [C, 2 C, 1, 1]; bias: [C]: in that dtype, or float32 beside a half, rounded
    to it as autocast would and with gradients in float32. The kernel needs C to be a multiple of 16.
    Under autocast both maps are cast to its dtype.

    Returns [B, C, H, W]; from the kernel, channels last. Gradients to all four, the same bits in every run.
    Without a kernel, or on another device, the reference runs: the same numbers.
    Raises RuntimeError for shapes or dtypes outside the above. No second derivative.
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


cpu_block.register("gated_mix", _fake, _fake_bwd)
