"""Shifted-window attention as one operation; the reference is `reference.window_attention`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmif_trt.ops import KERNEL_DEVICES, has_kernel, reference
from mmif_trt.ops.second_order import refuse


def window_attention(qkv: Tensor, bias_table: Tensor, window: int, shift: int) -> Tensor:
    """Attention within shifted windows, with relative position bias: what LAGN's global branch does.

    qkv: [B, H, W, 3, heads, D] packed projections, any strides, D 16 or 32; float32, float16, bfloat16 (sums
    in float32) or float64. Any H and W: windows at a border just hold fewer tokens.
    bias_table: [(2 window - 1)^2, heads], at least float32 (a half is widened), Swin's numbering.
    window: 1 to 8 tokens per side. shift: 0 to window - 1.

    Returns [B, H, W, heads, D] in the type of qkv. Neither a rolled or partitioned map nor a score leaves the
    kernel; backward recomputes the softmax from the saved log-sum-exp, with the same bits in every run.
    Where there is no kernel (float64 on CUDA), the reference runs: the same numbers, slowly.
    Raises RuntimeError for a shape, type, window or shift outside the above. No second derivative from the
    kernel: within `plain_operations` there is one.

    The scheme is from Liu et al. (Swin, ICCV 2021), the recomputation from Dao et al. (FlashAttention,
    NeurIPS 2022).
    """
    if bias_table.dtype in (torch.float16, torch.bfloat16):
        bias_table = bias_table.float()
    if not has_kernel(qkv):
        return reference.window_attention(qkv, bias_table.to(qkv.dtype), window, shift)
    out: Tensor = torch.ops.mmif_trt.window_attention(qkv, bias_table, window, shift)[0]
    return out


def _fake(qkv: Tensor, bias_table: Tensor, window: int, shift: int) -> tuple[Tensor, Tensor]:
    B, H, W, _, heads, D = qkv.shape
    wide = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    return qkv.new_empty(B, H, W, heads, D), qkv.new_empty(B, heads, H, W, dtype=wide)


def _fake_backward(
    d_out: Tensor, qkv: Tensor, bias_table: Tensor, out: Tensor, lse: Tensor, window: int, shift: int
) -> tuple[Tensor, Tensor]:
    return qkv.new_empty(qkv.shape), bias_table.new_empty(bias_table.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, bias_table, ctx.window, ctx.shift = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(qkv, bias_table, out, lse)


def _backward(ctx: Any, d_out: Tensor, d_lse: Tensor) -> tuple[Tensor, Tensor, None, None]:
    d_qkv, d_bias = torch.ops.mmif_trt.window_attention_bwd(d_out, *ctx.saved_tensors, ctx.window, ctx.shift)
    return d_qkv, d_bias, None, None


if "cpu" in KERNEL_DEVICES:  # a build that has CUDA kernels has the CPU's as well
    torch.library.register_fake("mmif_trt::window_attention", _fake)
    torch.library.register_fake("mmif_trt::window_attention_bwd", _fake_backward)
    torch.library.register_autograd("mmif_trt::window_attention", _backward, setup_context=_keep)
    refuse("window_attention")
