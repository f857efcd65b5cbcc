"""The second half of LAGN's global block as one CPU operation; the reference is `reference.mlp_block`.

The kernel is csrc/cpu/mlp_block*; csrc/mlp_block.h says what forward saves for backward. On CUDA there is no
kernel: the model keeps PyTorch's layers there.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mmif_trt.ops import cpu_block, has_block_kernel, reference


def mlp_block(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    expand: Tensor,
    expand_bias: Tensor,
    reduce: Tensor,
    reduce_bias: Tensor,
    *,
    eps: float = 1e-5,
) -> Tensor:
    """x + reduce(gelu(expand(norm(x)))): a layer norm over the channels, then two linear layers.

    x: [..., C], any strides; float32, float16, bfloat16 (sums in float32) or float64.
    norm_weight, norm_bias: [C]; expand: [E, C]; reduce: [C, E]; biases [E], [C]: in x's dtype, or float32
    beside a half: the layers' are then rounded to it as autocast would, and gradients come in float32.
    The kernel needs C and E to be multiples of 16. Under autocast x is cast to its dtype.

    Returns x's shape and dtype. Gradients to all seven, the same bits in every run. Without a kernel, or on
    another device, the reference runs: the same numbers.
    Raises RuntimeError for shapes or dtypes outside the above. No second derivative.
    """
    weights = (norm_weight, norm_bias, expand, expand_bias, reduce, reduce_bias)
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    if not has_block_kernel(x, x.shape[-1], len(expand)):
        return reference.mlp_block(x, *weights, eps)
    out: Tensor = torch.ops.mmif_trt.mlp_block(x, *weights, eps)[0]
    return out


def _fake(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, expand: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    # Not shape.numel(), which makes a number of a dynamic size.
    return x.new_empty(x.shape), x.new_empty(math.prod(x.shape[:-1]), expand.shape[0])


def _fake_bwd(d_y: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return x.new_empty(x.shape), *(w.new_empty(w.shape) for w in rest[:6])


cpu_block.register("mlp_block", _fake, _fake_bwd)
