"""LAGN's local block as one operation on the CPU; the reference is `reference.local_block`.

The kernel is csrc/cpu/local_block*; csrc/local_block.h says what forward saves for backward. On CUDA there is
no kernel: the model keeps PyTorch's convolutions there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmif_trt.ops import cpu_block, has_block_kernel, reference


def local_block(
    x: Tensor,
    depthwise: Tensor,
    depthwise_bias: Tensor,
    expand: Tensor,
    expand_bias: Tensor,
    reduce: Tensor,
    reduce_bias: Tensor,
    *,
    activation: str = "gelu",
) -> Tensor:
    """x + reduce(activation(expand(depthwise(x)))): 3x3 depthwise with a border of 0, two pointwise layers.

    x: [B, C, H, W], any strides and sizes; float32, float16, bfloat16 (sums in float32) or float64.
    depthwise: [C, 1, 3, 3]; expand: [E, C, 1, 1]; reduce: [C, E, 1, 1]; biases [C], [E], [C]: in x's dtype,
    or float32 beside a half, rounded to it as autocast would and with gradients in float32.
    activation: "gelu", the exact one, or "hardswish", u clamp(u + 3, 0, 6) / 6.
    The kernel needs C and E to be multiples of 16. Under autocast x is cast to its dtype.

    Returns [B, C, H, W] in x's dtype; from the kernel, channels last. Gradients to all seven, the same bits
    in every run. Without a kernel, or on another device, the reference runs: the same numbers.
    Raises RuntimeError for shapes or dtypes outside the above, ValueError for another activation. No second
    derivative.
    """
    if activation not in reference.ACTIVATIONS:
        known = ", ".join(reference.ACTIVATIONS)
        raise ValueError(f"local_block: activation is {activation!r}; expected: {known}")
    weights = (depthwise, depthwise_bias, expand, expand_bias, reduce, reduce_bias)
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    if not has_block_kernel(x, x.shape[1], len(expand)):
        return reference.local_block(x, *weights, activation)
    out: Tensor = torch.ops.mmif_trt.local_block(x, *weights, activation)[0]
    return out


def _fake(
    x: Tensor, depthwise: Tensor, depthwise_bias: Tensor, expand: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    B, C, H, W = x.shape
    return x.new_empty(B, H, W, C).permute(0, 3, 1, 2), x.new_empty(B, H, W, expand.shape[0])


def _fake_bwd(d_y: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    B, C, H, W = x.shape
    return x.new_empty(B, H, W, C).permute(0, 3, 1, 2), *(w.new_empty(w.shape) for w in rest[:6])


cpu_block.register("local_block", _fake, _fake_bwd)
