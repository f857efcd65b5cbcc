"""Cases for the CUDA kernels of window attention: inputs, the truth in double, and plain torch's results."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmif_trt.ops import reference

DTYPES = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 3}  # DType of csrc/dtype.h


@dataclass(frozen=True)
class Case:
    dtype: torch.dtype = torch.float32
    batch: int = 1
    height: int = 13
    width: int = 19
    heads: int = 2
    head_dim: int = 32
    window: int = 8
    shift: int = 4
    layout: str = "contiguous"  # or sliced, or unaligned, which is refused
    values: str = "normal"  # or constant, large
    chunks: int = 3
    seed: int = 1  # of the order of threads

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.batch, self.height, self.width, 3, self.heads, self.head_dim)

    @property
    def offsets(self) -> int:
        return (2 * self.window - 1) ** 2

    def __str__(self) -> str:
        default = Case()
        parts = [str(self.dtype).removeprefix("torch."), f"{self.batch}x{self.height}x{self.width}"]
        names = ("heads", "head_dim", "window", "shift", "layout", "values", "chunks", "seed")
        parts += [f"{n}={getattr(self, n)}" for n in names if getattr(self, n) != getattr(default, n)]
        return "-".join(parts)


@dataclass(frozen=True)
class Inputs:
    qkv: Tensor  # [B, H, W, 3, heads, D], a view of a larger buffer in some layouts
    bias: Tensor  # [(2 window - 1)^2, heads] float32
    d_out: Tensor  # [B, H, W, heads, D]


@dataclass(frozen=True)
class Outputs:
    out: Tensor
    lse: Tensor
    d_qkv: Tensor
    d_bias: Tensor

    NAMES = ("out", "lse", "d_qkv", "d_bias")


def inputs(case: Case) -> Inputs:
    g = torch.Generator().manual_seed(hash((case.shape, case.window)) % 2**31)
    qkv = torch.randn(case.shape, generator=g)
    d_out = torch.randn(*case.shape[:3], *case.shape[4:], generator=g)
    bias = torch.randn(case.offsets, case.heads, generator=g)
    if case.values == "constant":
        qkv, d_out = torch.full_like(qkv, 0.5), torch.full_like(d_out, -0.25)
    elif case.values == "large":  # scores in the hundreds, v up to the end of float16
        qkv[..., :2, :, :] *= 8
        qkv[..., 2, :, :] = (qkv[..., 2, :, :] * 20000).clamp(-65504, 65504)
        d_out *= 1e-3
    return Inputs(lay(qkv.to(case.dtype), case.layout), bias, lay(d_out.to(case.dtype), case.layout))


def lay(x: Tensor, layout: str) -> Tensor:
    """x as a slice of a buffer that is NaN elsewhere: its rows aligned for vector reads, or not."""
    if layout == "contiguous":
        return x.contiguous()
    spare = {"sliced": 16, "unaligned": 3}[layout]
    buffer = x.new_full((*x.shape[:-1], x.shape[-1] + spare), float("nan"))
    view = buffer[..., spare if layout == "sliced" else 1 :][..., : x.shape[-1]]
    view.copy_(x)
    return view


def plain(case: Case, given: Inputs, dtype: torch.dtype) -> Outputs:
    """Window attention and its gradients, computed with plain operations in dtype."""
    qkv = given.qkv.to(dtype).contiguous().requires_grad_()
    bias = given.bias.to(dtype).requires_grad_()
    out = reference.window_attention(qkv, bias, case.window, case.shift)
    out.backward(given.d_out.to(dtype))
    assert qkv.grad is not None and bias.grad is not None
    wide = dtype if dtype == torch.float64 else torch.float32
    lse = plain_lse(case, qkv.detach().to(wide), given.bias.to(wide))
    return Outputs(out.detach(), lse, qkv.grad, bias.grad)


def plain_lse(case: Case, qkv: Tensor, bias: Tensor) -> Tensor:
    """[B, heads, H, W]: log of the softmax's denominator, window by window as in the reference."""
    B, H, W, _, heads, D = case.shape
    lse = qkv.new_empty(B, heads, H, W)
    for y in reference.spans(H, case.window, case.shift):
        for x in reference.spans(W, case.window, case.shift):
            place = torch.cartesian_prod(torch.arange(H)[y], torch.arange(W)[x])
            offset = place[:, None] - place[None, :] + case.window - 1
            table = bias[offset[..., 0] * (2 * case.window - 1) + offset[..., 1]]
            q, k, _ = qkv[:, y, x].flatten(1, 2).permute(2, 0, 3, 1, 4)
            score = q @ k.transpose(-2, -1) * D**-0.5 + table.permute(2, 0, 1)
            lse[:, :, y, x] = score.logsumexp(-1).reshape(lse[:, :, y, x].shape)
    return lse


def pack(case: Case, given: Inputs) -> bytes:
    """One case as tests/emulator/run_window_attention.cpp reads it."""
    qkv, d_out = storage(given.qkv), storage(given.d_out)
    windows = case.batch * -(-case.height // case.window) * -(-case.width // case.window)
    header = [DTYPES[case.dtype], case.batch, case.height, case.width, case.heads, case.head_dim]
    header += [case.window, case.shift, *given.qkv.stride()[:5], given.qkv.storage_offset(), qkv.numel()]
    header += [*given.d_out.stride()[:4], given.d_out.storage_offset(), d_out.numel()]
    header += [min(case.chunks, windows), case.seed, case.layout == "unaligned"]
    return struct.pack(f"{len(header)}q", *header) + raw(qkv) + raw(given.bias) + raw(d_out)


def storage(x: Tensor) -> Tensor:
    return x.as_strided((x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)


def raw(x: Tensor) -> bytes:
    return x.contiguous().view(torch.uint8).numpy().tobytes() if x.numel() else b""


def unpack(case: Case, take: Callable[[int], bytes]) -> Outputs:
    def array(dtype: torch.dtype, *shape: int) -> Tensor:
        count = torch.Size(shape).numel()
        data = bytearray(take(count * dtype.itemsize))
        return (
            torch.frombuffer(data, dtype=dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)
        )

    B, H, W, _, heads, D = case.shape
    return Outputs(
        array(case.dtype, B, H, W, heads, D),
        array(torch.float32, B, heads, H, W),
        array(case.dtype, *case.shape),
        array(torch.float32, case.offsets, heads),
    )


def variants(case: Case, **values: object) -> list[Case]:
    """The case once for each dtype and head dimension, with the given fields."""
    case = replace(case, **values)  # type: ignore[arg-type]
    return [replace(case, dtype=dtype, head_dim=D) for dtype in DTYPES for D in (16, 32)]
