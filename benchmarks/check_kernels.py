"""The kernels against float64, without pytest: python benchmarks/check_kernels.py [--device cuda]

    [--json FILE]   relative L2 error of every output beside that of plain torch in the same type
    --small         run each kernel once on odd sizes and compare nothing: for compute-sanitizer
    --once          each kernel once at 4 times the training's size, between cudaProfilerStart and Stop, for
                    ncu

An output passes if its error is at most twice plain torch's, or a few roundings of float32; every run draws
new inputs and first fills memory with NaN. Exit status 1 if an output does not pass, or no kernel would run.
"""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report
import torch
from torch import Tensor

from mmif_trt import ops
from mmif_trt.ops import fusion_loss as loss_op
from mmif_trt.ops import reference
from mmif_trt.ops.window_attention import window_attention

TYPES = (torch.float32, torch.float16, torch.bfloat16)
# B, H, W, heads, D, window, shift
ATTENTION = [
    (6, 32, 32, 2, 32, 8, 4),
    (2, 40, 56, 3, 16, 8, 0),
    (2, 13, 19, 2, 32, 8, 3),
    (3, 9, 6, 1, 16, 5, 2),
]
# B, H, W, weighted
LOSS = [(6, 128, 128, False), (2, 61, 77, True)]
FLOOR = {torch.float32: 1e-6, torch.float16: 2e-6, torch.bfloat16: 2e-6}

Outputs = dict[str, Tensor]


def poison(device: torch.device) -> None:
    """Makes the next allocation contain NaN, not the correct result of an earlier run."""
    del_me = [torch.full((1 << 22,), float("nan"), device=device) for _ in range(4)]
    del del_me


def attention_inputs(case: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    B, H, W, heads, D, window, _ = case
    qkv = torch.randn(B, H, W, 3, heads, D, device=device).to(dtype)
    bias = torch.randn((2 * window - 1) ** 2, heads, device=device)
    return qkv, bias, torch.randn(B, H, W, heads, D, device=device).to(dtype)


def attention(op: Callable[..., Tensor], given: tuple[Tensor, ...], case: tuple[int, ...]) -> Outputs:
    qkv, bias = (x.detach().requires_grad_() for x in given[:2])
    out = op(qkv, bias, *case[5:])
    d_qkv, d_bias = torch.autograd.grad(out, (qkv, bias), given[2])
    return {"out": out.detach(), "d_qkv": d_qkv, "d_bias": d_bias}


def loss_inputs(case: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> list[Tensor | None]:
    B, H, W, weighted = case
    images = torch.rand(5, B, 1, H, W, device=device).to(dtype).unbind(0)
    return [*images[:3], *(images[3:] if weighted else (None, None))]


def loss(op: Callable[..., Tensor], given: list[Tensor | None], dtype: torch.dtype | None) -> Outputs:
    f, *others = (None if x is None else x if dtype is None else x.to(dtype) for x in given)
    assert f is not None
    f = f.detach().requires_grad_()
    terms = op(f, *others)
    (d_f,) = torch.autograd.grad(terms.sum(), f)
    return {"terms": terms.detach(), "d_f": d_f}


def relative(x: Tensor, truth: Tensor) -> float:
    return float((x.double() - truth).norm() / truth.norm().clamp(min=1e-30))


def rows_of(title: dict[str, Any], ours: Outputs, plain: Outputs, truth: Outputs, floor: float) -> list[Any]:
    rows = []
    for name, true in truth.items():
        error, theirs = relative(ours[name], true), relative(plain[name], true)
        finite = bool(ours[name].isfinite().all())
        passes = finite and error <= max(2 * theirs if theirs < 1 else 0.0, floor)
        rows.append({**title, "output": name, "error": error, "plain_error": theirs, "passes": passes})
        print(f"{title['op']:16} {title['dtype']:8} {title['case']} {name}: {error:.2e}, plain {theirs:.2e}"
              f"{'' if passes else '  FAILS'}", flush=True)  # fmt: skip
    return rows


def compare(device: torch.device) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for dtype in TYPES:
        name = str(dtype).removeprefix("torch.")
        for case in ATTENTION:
            given = attention_inputs(case, dtype, device)
            wide = tuple(x.double() for x in given)
            truth = attention(reference.window_attention, wide, case)
            plain = attention(reference.window_attention, (given[0], given[1].to(dtype), given[2]), case)
            poison(device)
            ours = attention(window_attention, given, case)
            title = {"op": "window_attention", "dtype": name, "case": list(case)}
            rows += rows_of(title, ours, plain, truth, FLOOR[dtype])
        for size in LOSS:
            images = loss_inputs(size, dtype, device)
            wide_terms = loss(reference.fusion_loss, images, torch.float64)
            plain = loss(reference.fusion_loss, images, torch.float32)
            poison(device)
            ours = loss(loss_op.fusion_loss, images, None)
            title = {"op": "fusion_loss", "dtype": name, "case": list(size)}
            # d_f of a half type is rounded to it on the way back through the widening.
            floor = FLOOR[dtype] if dtype == torch.float32 else 1e-3 if dtype == torch.float16 else 8e-3
            rows += rows_of(title, ours, plain, wide_terms, floor)
    return rows


def once(device: torch.device, scale: int) -> None:
    """Each kernel, forward and backward, at LAGN's training shape times scale; small and odd for scale 0."""
    attention_case = (6, 32 * scale, 32 * scale, 2, 32, 8, 4) if scale else (2, 13, 19, 2, 32, 8, 4)
    loss_cases = [(6, 128 * scale, 128 * scale, False)] if scale else [(2, 29, 41, w) for w in (True, False)]
    for dtype in TYPES:
        attention(window_attention, attention_inputs(attention_case, dtype, device), attention_case)
    for case in loss_cases:
        loss(loss_op.fusion_loss, loss_inputs(case, torch.float32, device), None)
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    if not ops.has_kernel(torch.empty(0, device=device)):
        print(f"no kernels for {device}: {ops.KERNELS}")
        return 1
    seed = secrets.randbits(31)
    torch.manual_seed(seed)
    print(f"seed {seed}")
    if args.small or args.once:
        once(device, 0 if args.small else 4)
        if args.once and device.type == "cuda":
            torch.cuda.profiler.start()
            once(device, 4)
            torch.cuda.profiler.stop()
        print("ran")
        return 0
    rows = compare(device)
    failed = sum(not row["passes"] for row in rows)
    if args.json:
        result: dict[str, Any] = {"what": "check_kernels.py", "conditions": report.conditions()}
        result |= {"seed": seed, "rows": rows}
        result["conditions"]["device"] = report.device_facts(device)
        report.write_json(args.json, result)
    print(f"{len(rows) - failed} of {len(rows)} outputs pass")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
