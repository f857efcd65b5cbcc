"""The pixel terms of the fusion loss as one operation: `torch.ops.mmif_trt.fusion_loss`, or plain torch.

The kernels are csrc/cpu/fusion_loss* and csrc/cuda/fusion_loss*; csrc/fusion_loss.h has the derivation and
what forward saves for backward. This file has the public function and the operation's fake and autograd.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmif_trt.ops import KERNEL_DEVICES, has_kernel, reference
from mmif_trt.ops.second_order import refuse

HALF = (torch.float16, torch.bfloat16)


def fusion_loss(
    f: Tensor,
    a: Tensor,
    b: Tensor,
    wa: Tensor | None = None,
    wb: Tensor | None = None,
    c1: float = reference.SSIM_C1,
    c2: float = reference.SSIM_C2,
) -> Tensor:
    """Intensity, gradient and structure term of each image: [B, 3], in this order, differentiable in f.

    f: the fused image; a, b: its sources; all [B, 1, H, W] in [0, 1], H and W at least 11 (the SSIM window).
    wa, wb: the weight of each pixel of a source, >= 0, [B, 1, H, W]; None is 1 everywhere.
    c1, c2: SSIM's constants, > 0; the defaults are the usual ones for a data range of 1.
    float32 or float64, one dtype and device for all; float16 and bfloat16 (autocast) are converted to
    float32.
    Any strides: slices of larger images are read in place if their rows are contiguous.

    `reference.fusion_loss` states the terms and their ties; SSIM is Wang et al.'s (IEEE TIP 13:600, 2004). It
    also runs where there is no kernel: without the extension, on other devices, in float64 on CUDA.
    Both choose exactly the same source at every pixel.

    RuntimeError: a shape, dtype or device that does not match, or a gradient required for anything but f. The
    kernel refuses second derivatives.
    """
    for name, x in (("a", a), ("b", b), ("wa", wa), ("wb", wb)):
        if x is not None and x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(_refusal(name))
    f, a, b = as_float(f), as_float(a), as_float(b)
    wa, wb = None if wa is None else as_float(wa), None if wb is None else as_float(wb)
    if has_kernel(f):
        return torch.ops.mmif_trt.fusion_loss(f, a, b, wa, wb, c1, c2)[0]
    check(f, a, b, wa, wb, c1, c2)
    return reference.fusion_loss(f, a, b, wa, wb, c1, c2)


def as_float(x: Tensor) -> Tensor:
    return x.float() if x.dtype in HALF else x


def check(
    f: Tensor, a: Tensor, b: Tensor, wa: Tensor | None, wb: Tensor | None, c1: float, c2: float
) -> None:
    """The kernels' checks and messages, for plain ops and for tracing."""

    def expect(argument: str, received: object, expected: str, condition: bool) -> None:
        if not condition:
            raise RuntimeError(f"mmif_trt::fusion_loss: {argument} is {received}; expected: {expected}")

    shape = list(f.shape)
    expect("f", shape, "[B, 1, H, W]", f.dim() == 4 and f.shape[1] == 1)
    large = f.shape[2] >= reference.SSIM_WINDOW and f.shape[3] >= reference.SSIM_WINDOW
    expect("f", shape, f"H and W of at least {reference.SSIM_WINDOW}, the SSIM window", large)
    expect("f", f.dtype, "float32 and float64", f.dtype in (torch.float32, torch.float64))
    expect("c1, c2", f"{c1:g}, {c2:g}", "more than 0", c1 > 0 and c2 > 0)
    for name, x in (("a", a), ("b", b), ("wa", wa), ("wb", wb)):
        if x is not None:
            expect(name, list(x.shape), f"f's shape, {shape}", x.shape == f.shape)
            expect(name, x.dtype, f"f's dtype, {f.dtype}", x.dtype == f.dtype)
            expect(name, f"on {x.device}", f"f's device, {f.device}", x.device == f.device)


def _refusal(name: str) -> str:
    return f"mmif_trt::fusion_loss: {name} requires a gradient; expected: only f does; pass {name}.detach()"


def _fake(
    f: Tensor, a: Tensor, b: Tensor, wa: Tensor | None, wb: Tensor | None, c1: float = 1, c2: float = 1
) -> tuple[Tensor, Tensor, Tensor]:
    check(f, a, b, wa, wb, c1, c2)
    B, _, H, W = f.shape
    edge = reference.SSIM_WINDOW - 1
    # As the device's kernels lay them out: csrc/fusion_loss_host.h.
    order = torch.channels_last if f.device.type == "cuda" else torch.contiguous_format
    moments = torch.empty(B, 4, H - edge, W - edge, dtype=f.dtype, device=f.device, memory_format=order)
    return f.new_empty(B, 3), moments, f.new_empty(B, 1, H, W, dtype=torch.uint8)


def _fake_bwd(d_terms: Tensor, f: Tensor, *_: Tensor | None) -> Tensor:
    return f.new_empty(f.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    for name, wanted in zip(("a", "b", "wa", "wb"), ctx.needs_input_grad[1:5], strict=True):
        if wanted:
            raise RuntimeError(_refusal(name))
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:5], *output[1:])


def _backward(ctx: Any, d_terms: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if d_terms is None:
        return (None,) * 7
    return torch.ops.mmif_trt.fusion_loss_bwd(d_terms, *ctx.saved_tensors), *(None,) * 6


if "cpu" in KERNEL_DEVICES:  # a build that has CUDA kernels has the CPU's as well
    torch.library.register_fake("mmif_trt::fusion_loss", _fake)
    torch.library.register_fake("mmif_trt::fusion_loss_bwd", _fake_bwd)
    torch.library.register_autograd("mmif_trt::fusion_loss", _backward, setup_context=_save)
    refuse("fusion_loss")
