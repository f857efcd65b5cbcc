"""The kernels against plain torch, side by side: window attention, fusion loss, blocks, and a training step.

    python benchmarks/bench_ops.py [--op attention loss blocks step] [--device cpu|cuda]
        [--dtype float32 bfloat16] [--scale 1 2 4] [--rounds 30] [--threads 2]
        [--json benchmarks/results/ops_cpu.json]

Shapes are those of LAGN in training (6 crops of 128 x 128 px) times --scale a side. All rivals of
a row take turns in one run; forward and backward are timed apart; memory is the peak of what a forward and
backward allocate. `floor` is the time in which the bytes that must move would be copied.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import report
import torch
import torch.nn.functional as F
from timing import Phases, copy_gb_per_s, peak_mib, take_turns
from torch import Tensor, nn

from mmif_trt import ops
from mmif_trt.models.lagn import LAGN, STRIDE, LAGNConfig, relative_position_index, shift_mask, weights
from mmif_trt.ops import reference
from mmif_trt.ops.gated_mix import gated_mix
from mmif_trt.ops.local_block import local_block
from mmif_trt.ops.mlp_block import mlp_block
from mmif_trt.ops.window_attention import window_attention

INPUT_SETS = 3


def shifted_windows(
    qkv: Tensor, bias_table: Tensor, window: int, shift: int, core: Callable[..., Tensor]
) -> Tensor:
    """What a model does without the kernel: roll, cut into windows, attend by `core`, put back, roll back."""
    B, H, W, _, heads, D = qkv.shape
    N = window**2
    index = relative_position_index(window).to(qkv.device)
    bias = bias_table[index.flatten()].reshape(N, N, heads).permute(2, 0, 1)[None]
    if shift:
        qkv = torch.roll(qkv, (-shift, -shift), (1, 2))
        bias = (bias + shift_mask(H, W, window, shift).to(bias)).repeat(B, 1, 1, 1)
    qkv = qkv.reshape(B, H // window, window, W // window, window, 3, heads, D)
    q, k, v = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(3, -1, heads, N, D).unbind(0)
    out = core(q, k, v, bias.to(q.dtype))
    out = out.reshape(B, H // window, W // window, heads, window, window, D).permute(0, 1, 4, 2, 5, 3, 6)
    out = out.reshape(B, H, W, heads, D)
    return torch.roll(out, (shift, shift), (1, 2)) if shift else out


def softmax_core(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + bias).softmax(-1) @ v


def sdpa_core(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(len(q), -1, -1, -1))


def flex_core(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    def add_bias(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + bias[b % len(bias), h, i, j]

    return flex_attention(q, k, v, score_mod=add_bias)


def attention_rivals(device: torch.device, shift: int) -> dict[str, Callable[..., Tensor]]:
    def around(core: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda qkv, bias: shifted_windows(qkv, bias, 8, shift, core)

    rivals: dict[str, Callable[..., Tensor]] = {
        "kernel": lambda qkv, bias: window_attention(qkv, bias, 8, shift),
        "eager": around(softmax_core),
        "sdpa": around(sdpa_core),
        "compile": torch.compile(around(softmax_core), dynamic=False),
    }
    if device.type == "cuda":
        rivals["flex"] = torch.compile(around(flex_core), dynamic=False)
    return rivals


def both_ways(call: Callable[..., Tensor], inputs: Any, mark: Callable[[], None]) -> None:
    """Forward and backward of call(*leaves) with a given gradient; inputs: (*leaves, gradient)."""
    *leaves, gradient = inputs
    out = call(*leaves)
    mark()
    torch.autograd.backward(out, gradient)
    for leaf in leaves:
        leaf.grad = None
    mark()


def attention_cases(args: argparse.Namespace, device: torch.device) -> None:
    config = LAGNConfig()
    heads, side = config.global_dim // config.head_dim, args.crop // STRIDE
    for scale, dtype, shift in [(s, d, t) for s in args.scale for d in args.dtype for t in (0, 4)]:
        shape = (args.batch, side * scale, side * scale)

        def one_set(shape: Any = shape, dtype: str = dtype) -> tuple[Tensor, ...]:
            kind = getattr(torch, dtype)
            qkv = torch.randn(*shape, 3, heads, config.head_dim, device=device, dtype=kind)
            bias = torch.randn((2 * config.window - 1) ** 2, heads, device=device)
            out = torch.randn(*shape, heads, config.head_dim, device=device, dtype=kind)
            return qkv.requires_grad_(), bias.requires_grad_(), out

        inputs = [one_set() for _ in range(INPUT_SETS)]
        qkv, _, out = inputs[0]
        # forward: qkv in, out out; backward: qkv, d_out and out (for delta) in, d_qkv out
        moved = {"forward": qkv.nbytes + out.nbytes, "backward": 2 * qkv.nbytes + 2 * out.nbytes}
        rivals: dict[str, Phases] = {
            n: partial(both_ways, f) for n, f in attention_rivals(device, shift).items()
        }
        title = {"op": "window_attention", "shape": list(qkv.shape), "dtype": dtype, "shift": shift}
        measure(title, rivals, inputs, moved, args, device)


def loss_cases(args: argparse.Namespace, device: torch.device) -> None:
    from mmif_trt.ops.fusion_loss import fusion_loss

    for scale in args.scale:
        side = args.crop * scale

        def one_set(side: int = side) -> tuple[Tensor, ...]:
            a, b, f = torch.rand(3, args.batch, 1, side, side, device=device).unbind(0)
            return f.contiguous().requires_grad_(), a.contiguous(), b.contiguous()

        def phases(call: Callable[..., Tensor], inputs: Any, mark: Callable[[], None]) -> None:
            total = call(*inputs).sum()
            mark()
            total.backward()
            inputs[0].grad = None
            mark()

        inputs = [one_set() for _ in range(INPUT_SETS)]
        size = inputs[0][0].nbytes
        moved = {"forward": 3 * size, "backward": 4 * size}  # f, a, b in; backward d_f out as well
        calls = {
            "kernel": fusion_loss,
            "eager": reference.fusion_loss,
            "compile": torch.compile(reference.fusion_loss, dynamic=False),
        }
        rivals: dict[str, Phases] = {name: partial(phases, call) for name, call in calls.items()}
        title = {"op": "fusion_loss", "shape": [args.batch, 1, side, side], "dtype": "float32", "shift": None}
        measure(title, rivals, inputs, moved, args, device)


def block_inputs(name: str, batch: int, side: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """(*leaves, gradient) of a block of LAGN's at half (the global one: quarter) of the resolution `side`."""
    model: Any = LAGN().to(dtype)
    config = model.config
    layers: dict[str, list[nn.Module]] = {
        "local_block": list(model.local[0].children()),
        "mlp_block": [model.blocks[0].norm2, *model.blocks[0].mlp],
        "gated_mix": [model.gate],
    }
    if name == "mlp_block":
        maps = [torch.randn(batch, side // 4, side // 4, config.global_dim, dtype=dtype)]
    else:
        shape = (batch, config.local_dim, side // 2, side // 2)
        maps = [torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)]
        maps += [torch.randn_like(maps[0])] * (name == "gated_mix")
    leaves = [x.detach().requires_grad_() for x in maps] + weights(*layers[name])
    return *leaves, torch.randn_like(maps[0])


def block_cases(args: argparse.Namespace, device: torch.device) -> None:
    if device.type != "cpu":
        return  # kernels of the CPU alone
    kernels = {"local_block": local_block, "mlp_block": mlp_block, "gated_mix": gated_mix}
    for name, scale, dtype in [
        (n, s, d) for n in kernels for s in args.scale for d in ("float32", "bfloat16")
    ]:
        side, kind = args.crop * scale, getattr(torch, dtype)
        inputs = [block_inputs(name, args.batch, side, kind) for _ in range(INPUT_SETS)]
        eager = getattr(reference, name)
        calls = {"kernel": kernels[name], "eager": eager, "compile": torch.compile(eager, dynamic=False)}
        rivals: dict[str, Phases] = {rival: partial(both_ways, call) for rival, call in calls.items()}
        title = {"op": name, "shape": list(inputs[0][0].shape), "dtype": dtype, "shift": None}
        measure(title, rivals, inputs, {}, args, device)


def step_cases(args: argparse.Namespace, device: torch.device) -> None:
    """An optimiser step of train/fusion.py on made-up pairs, in both precisions, with and without kernels."""
    from mmif_trt.train import fusion
    from mmif_trt.train.losses import fusion_loss

    modalities = [("ct", "pet", "spect")[i % 3] for i in range(args.batch)]
    sides = (args.batch, 1, args.crop, args.crop)
    inputs = [(torch.rand(sides, device=device), torch.rand(sides, device=device)) for _ in range(INPUT_SETS)]
    for precision, dtype in (("bf16", "bfloat16"), ("fp32", "float32")):
        config = fusion.FusionConfig(precision=precision)
        state = fusion.new_state(config)
        state.model.to(device)
        assert isinstance(state.model, LAGN)
        optimiser = torch.optim.AdamW(state.model.parameters(), lr=1e-5, fused=True)

        def step(
            pair: tuple[Tensor, Tensor],
            mark: Callable[[], None],
            config: fusion.FusionConfig = config,
            model: LAGN = state.model,
            optimiser: torch.optim.AdamW = optimiser,
        ) -> None:
            fused = fusion.forward(model, *pair, config.precision)
            loss, _ = fusion_loss(fused, *pair, modalities, config.loss)
            mark()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimiser.step()
            mark()

        def plain(pair: tuple[Tensor, Tensor], mark: Callable[[], None], step: Phases = step) -> None:
            with ops.plain_operations():
                step(pair, mark)

        title = {"op": "training step", "shape": list(sides), "dtype": dtype, "shift": None}
        measure(title, {"kernel": step, "eager": plain}, inputs, {}, args, device)


def measure(
    title: dict[str, Any],
    rivals: dict[str, Phases],
    inputs: list[Any],
    moved: dict[str, int],
    args: argparse.Namespace,
    device: torch.device,
) -> None:
    """A row a rival into args.result: percentiles of forward, backward and both, speed-up over each rival's
    both, memory."""
    rows = []
    samples = take_turns(rivals, inputs, args.rounds, args.warmup)
    for name, phases in samples.items():
        row = {**title, "rival": name}
        if isinstance(phases[0][0], str):
            rows.append({**row, "status": "refused", "reason": phases[0][0]})
            continue
        forward, backward = phases
        both = [x + y for x, y in zip(forward, backward, strict=True)]
        named = {"forward": forward, "backward": backward, "both": both}
        row |= {"status": "measured", "ms": {k: report.percentiles(v, 4) for k, v in named.items()}}
        row["peak_mib"] = round(peak_mib(partial(rivals[name], inputs[0], lambda: None), device), 1)
        row["floor_ms"] = {k: round(v / args.copy_gb_per_s / 1e6, 4) for k, v in moved.items()}
        rows.append(row)
        print(f"{title['op']} {title['shape']} {title['dtype']} {name}: {row['ms']['both']['p50']} ms")
    kernel = next(
        (row["ms"]["both"]["p50"] for row in rows if row["rival"] == "kernel" and "ms" in row), None
    )
    for row in rows:
        if "ms" in row and kernel:
            row["kernel_is_faster"] = round(row["ms"]["both"]["p50"] / kernel, 3)
    args.result["rows"] += rows
    report.write_so_far(args.json, args.result)


CASES = {"attention": attention_cases, "loss": loss_cases, "blocks": block_cases, "step": step_cases}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--op", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", nargs="+", default=["float32"], help="of attention; default: float32")
    parser.add_argument("--scale", type=int, nargs="+", default=[1, 2, 4], help="of each side")
    parser.add_argument("--batch", type=int, default=6, help="images; default: 6")
    parser.add_argument("--crop", type=int, default=128, help="px a side at scale 1; default: 128")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the result there")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device(args.device)
    result: dict[str, Any] = {"what": "bench_ops.py", "conditions": report.conditions()}
    result["conditions"]["device"] = report.device_facts(device)
    args.copy_gb_per_s = copy_gb_per_s(device)
    chosen = ("threads", "rounds", "warmup", "batch", "crop")
    result["settings"] = {name: getattr(args, name) for name in chosen}
    result["settings"] |= {"device": args.device, "kernels": ops.KERNELS}
    result["settings"]["copy GB/s"] = round(args.copy_gb_per_s, 1)
    result["rows"] = []
    args.result = result
    for op in args.op:
        CASES[op](args, device)
    result["load_average_end"] = report.load_average()
    if args.json:
        report.write_json(args.json, result)
    print(report.ops_table(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
