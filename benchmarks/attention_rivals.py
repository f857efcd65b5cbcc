"""Window attention without the kernel, for bench_ops.py: the same result from plain torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from compiled import compiled
from torch import Tensor

from mmif_trt.models.lagn import relative_position_index, shift_mask
from mmif_trt.ops import has_kernel
from mmif_trt.ops.window_attention import window_attention

WINDOW = 8


def constants(qkv: Tensor, window: int, shift: int) -> tuple[Tensor, Tensor | None]:
    """A model's buffers: the index into the bias table, and the mask of shifted windows."""
    _, H, W, *_ = qkv.shape
    index = relative_position_index(window).flatten().to(qkv.device)
    return index, shift_mask(H, W, window, shift).to(qkv.device, torch.float32) if shift else None


def shifted_windows(
    qkv: Tensor,
    bias_table: Tensor,
    index: Tensor,
    mask: Tensor | None,
    window: int,
    shift: int,
    core: Callable[..., Tensor],
) -> Tensor:
    """The steps without the kernel: roll, cut into windows, attend by `core`, put back, roll back."""
    B, H, W, _, heads, D = qkv.shape
    N = window**2
    bias = bias_table[index].reshape(N, N, heads).permute(2, 0, 1)[None]
    if mask is not None:
        qkv = torch.roll(qkv, (-shift, -shift), (1, 2))
        bias = (bias + mask).repeat(B, 1, 1, 1)
    qkv = qkv.reshape(B, H // window, window, W // window, window, 3, heads, D)
    q, k, v = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(3, -1, heads, N, D).unbind(0)
    out = core(q, k, v, bias.to(q.dtype))
    out = out.reshape(B, H // window, W // window, heads, window, window, D).permute(0, 1, 4, 2, 5, 3, 6)
    out = out.reshape(B, H, W, heads, D)
    return torch.roll(out, (shift, shift), (1, 2)) if shift else out


def softmax_core(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + bias).softmax(-1) @ v


def sdpa_core(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    # Copied for every window: the fused kernels refuse an expanded tensor that requires a gradient.
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.repeat(len(q) // len(bias), 1, 1, 1))


def fused_sdpa_core(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Raises if only the unfused path of SDPA takes these inputs: that is `eager` under another name."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    fused = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
    with sdpa_kernel(fused):
        return sdpa_core(q, k, v, bias)


def flex_core(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    def add_bias(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + bias[b % len(bias), h, i, j]

    return flex_attention(q, k, v, score_mod=add_bias)


def kernel(qkv: Tensor, bias: Tensor, shift: int) -> Tensor:
    if not has_kernel(qkv):
        raise RuntimeError(f"no kernel for {qkv.dtype} on {qkv.device.type}: the reference would run instead")
    return window_attention(qkv, bias, WINDOW, shift)


def attention_rivals(device: torch.device, shift: int, names: list[str]) -> dict[str, Callable[..., Tensor]]:
    """call(qkv, bias_table) by name: those of `names` that exist on the device."""

    def around(core: Callable[..., Tensor], compile_it: bool = False) -> Callable[..., Tensor]:
        def attend(qkv: Tensor, bias: Tensor, index: Tensor, mask: Tensor | None) -> Tensor:
            return shifted_windows(qkv, bias, index, mask, WINDOW, shift, core)

        run = compiled(attend) if compile_it else attend
        kept: list[tuple[Tensor, Tensor | None]] = []

        def call(qkv: Tensor, bias: Tensor) -> Tensor:
            if not kept:
                kept.append(constants(qkv, WINDOW, shift))
            return run(qkv, bias, *kept[0])

        return call

    cuda = device.type == "cuda"
    rivals: dict[str, Callable[..., Tensor]] = {
        "kernel": lambda qkv, bias: kernel(qkv, bias, shift),
        "eager": around(softmax_core),
        "sdpa": around(fused_sdpa_core if cuda else sdpa_core),
        "compile": around(softmax_core, compile_it=True),
    }
    if cuda:
        rivals["flex"] = around(flex_core, compile_it=True)
    return {name: call for name, call in rivals.items() if name in names}
