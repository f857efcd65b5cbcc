"""The kernels against plain torch, side by side: window attention, fusion loss, blocks, and a training step.

    python benchmarks/bench_ops.py [--op attention loss blocks step] [--device cpu|cuda]
        [--dtype float32 bfloat16] [--scale 1 2 4] [--rival kernel eager sdpa compile flex] [--shift 0 4]
        [--rounds 30] [--threads 2] [--json benchmarks/results/ops_cpu.json]

Shapes are those of LAGN in training (6 crops of 128 x 128 px) times --scale per side. All rivals of a row
take turns in one run; forward and backward are timed separately; memory is the peak that forward and backward
allocate. `floor` is the time to copy the bytes that must move, `designed` that for the bytes that our kernels
move. A rival is refused if something else would run in its place.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import report
import torch
from attention_rivals import attention_rivals
from compiled import compiled, forget
from timing import Phases, Samples, card_state, copy_gb_per_s, peak_mib, take_turns
from torch import Tensor, nn

from mmif_trt import ops
from mmif_trt.models.lagn import LAGN, STRIDE, LAGNConfig, weights
from mmif_trt.ops import reference
from mmif_trt.ops.gated_mix import gated_mix
from mmif_trt.ops.local_block import local_block
from mmif_trt.ops.mlp_block import mlp_block

INPUT_SETS = 3
RIVALS = ("kernel", "eager", "sdpa", "compile", "flex")


def only(ready: Callable[[Tensor], bool], call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """call, if it runs as a kernel on its first argument; otherwise the reference would be timed."""

    def checked(*given: Any) -> Tensor:
        if not ready(given[0]):
            raise RuntimeError(f"no kernel for {given[0].dtype} on {given[0].device.type} ({ops.KERNELS})")
        return call(*given)

    return checked


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
    for scale, dtype, shift in [(s, d, t) for s in args.scale for d in args.dtype for t in args.shift]:
        forget()
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
        lse = 4 * out.numel() // config.head_dim  # out of forward, into backward
        calls = attention_rivals(device, shift, args.rival)
        rivals: dict[str, Phases] = {n: partial(both_ways, f) for n, f in calls.items()}
        title = {"op": "window_attention", "shape": list(qkv.shape), "dtype": dtype, "shift": shift}
        designed = {phase: size + lse for phase, size in moved.items()}
        measure(title, rivals, inputs, (moved, designed), args, device)


def loss_cases(args: argparse.Namespace, device: torch.device) -> None:
    from mmif_trt.ops.fusion_loss import fusion_loss

    for scale in args.scale:
        forget()
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
        # Four float32 moments and a byte of choices per pixel, out of forward and into backward.
        designed = {phase: bytes_ + 4 * size + size // 4 for phase, bytes_ in moved.items()}
        calls = {
            "kernel": only(ops.has_kernel, fusion_loss),
            "eager": reference.fusion_loss,
        }
        if "compile" in args.rival:
            calls["compile"] = compiled(reference.fusion_loss)
        rivals: dict[str, Phases] = {n: partial(phases, call) for n, call in calls.items() if n in args.rival}
        title = {"op": "fusion_loss", "shape": [args.batch, 1, side, side], "dtype": "float32", "shift": None}
        measure(title, rivals, inputs, (moved, designed), args, device)


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
        return  # kernels exist only on the CPU
    blocks: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
        "local_block": (local_block, reference.local_block),
        "local_block hardswish": (
            partial(local_block, activation="hardswish"),
            partial(reference.local_block, activation="hardswish"),
        ),
        "mlp_block": (mlp_block, reference.mlp_block),
        "gated_mix": (gated_mix, reference.gated_mix),
    }
    for name, scale, dtype in [
        (n, s, d) for n in blocks for s in args.scale for d in ("float32", "bfloat16")
    ]:
        forget()
        side, kind = args.crop * scale, getattr(torch, dtype)
        inputs = [block_inputs(name.split()[0], args.batch, side, kind) for _ in range(INPUT_SETS)]
        fused, eager = blocks[name]
        kernel = only(lambda x: ops.kernels_available(x.device.type), fused)
        calls = {"kernel": kernel, "eager": eager}
        if "compile" in args.rival:
            calls["compile"] = compiled(eager)
        rivals: dict[str, Phases] = {
            n: partial(both_ways, call) for n, call in calls.items() if n in args.rival
        }
        title = {"op": name, "shape": list(inputs[0][0].shape), "dtype": dtype, "shift": None}
        measure(title, rivals, inputs, ({}, {}), args, device)


def step_cases(args: argparse.Namespace, device: torch.device) -> None:
    """An optimiser step of train/fusion.py on made-up pairs, in both precisions, with and without kernels."""
    from mmif_trt.train import fusion
    from mmif_trt.train.losses import fusion_loss

    modalities = [("ct", "pet", "spect")[i % 3] for i in range(args.batch)]
    sides = (args.batch, 1, args.crop, args.crop)
    of_b = (args.batch, 2, args.crop, args.crop)
    inputs = [(torch.rand(sides, device=device), torch.rand(of_b, device=device)) for _ in range(INPUT_SETS)]
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
            loss, _ = fusion_loss(fused, pair[0], pair[1][:, :1].contiguous(), modalities, config.loss)
            mark()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimiser.step()
            mark()

        def plain(pair: tuple[Tensor, Tensor], mark: Callable[[], None], step: Phases = step) -> None:
            with ops.plain_operations():
                step(pair, mark)

        def kernel(pair: tuple[Tensor, Tensor], mark: Callable[[], None], step: Phases = step) -> None:
            if not ops.has_kernel(pair[0]):
                raise RuntimeError(f"no kernel on {pair[0].device.type} ({ops.KERNELS})")
            step(pair, mark)

        title = {"op": "training step", "shape": list(sides), "dtype": dtype, "shift": None}
        measure(title, {"kernel": kernel, "eager": plain}, inputs, ({}, {}), args, device)


def named(phases: list[list[float]]) -> dict[str, dict[str, float]]:
    forward, backward = phases
    both = [x + y for x, y in zip(forward, backward, strict=True)]
    laps = {"forward": forward, "backward": backward, "both": both}
    return {name: report.percentiles(ms, 4) for name, ms in laps.items()}


def row_of(samples: Samples, bytes_: tuple[dict[str, int], ...], copy_gb_per_s: float) -> dict[str, Any]:
    """A rival's measurements. On a GPU, "ms" is the device's time if available."""
    if samples.refused is not None:
        return {"status": "refused", "reason": samples.refused}
    row: dict[str, Any] = {"status": "measured", "ms": named(samples.phases())}
    if samples.device is not samples.as_called:
        row["clock"] = "device" if samples.device else "as called: the host waits for the device within"
        row["as_called_ms"] = named(samples.as_called)
    for name, moved in zip(("floor_ms", "designed_ms"), bytes_, strict=True):
        row[name] = {phase: round(size / copy_gb_per_s / 1e6, 4) for phase, size in moved.items()}
    return row


def faster(row: dict[str, Any], kernel: dict[str, Any]) -> float:
    """The rival's time divided by the kernel's, both by the same clock."""
    clock = "ms" if row.get("clock") == kernel.get("clock") else "as_called_ms"
    return round(row[clock]["both"]["p50"] / kernel[clock]["both"]["p50"], 3)


def measure(
    title: dict[str, Any],
    rivals: dict[str, Phases],
    inputs: list[Any],
    bytes_: tuple[dict[str, int], dict[str, int]],
    args: argparse.Namespace,
    device: torch.device,
) -> None:
    """One row per rival into args.result: percentiles of forward, backward and both, speed-up over each
    rival's both, memory. bytes_: those that must move, and those that the kernels as designed move."""
    rows = []
    for name, samples in take_turns(rivals, inputs, args.rounds, args.warmup).items():
        row = {**title, "rival": name, **row_of(samples, bytes_, args.copy_gb_per_s)}
        rows.append(row)
        if row["status"] == "measured":
            row["peak_mib"] = round(peak_mib(partial(rivals[name], inputs[0], lambda: None), device), 1)
        told = f"{row['ms']['both']['p50']} ms" if "ms" in row else row["reason"]
        print(f"{title['op']} {title['shape']} {title['dtype']} {name}: {told}", flush=True)
    kernel = next((row for row in rows if row["rival"] == "kernel" and "ms" in row), None)
    for row in rows:
        if "ms" in row and kernel:
            row["kernel_is_faster"] = faster(row, kernel)
    if device.type == "cuda":
        args.result["card"].append(card_state())
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
    parser.add_argument("--crop", type=int, default=128, help="px per side at scale 1; default: 128")
    parser.add_argument("--rival", nargs="+", choices=RIVALS, default=list(RIVALS))
    parser.add_argument("--shift", type=int, nargs="+", default=[0, 4], help="of attention's windows")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--copy-mib", type=int, default=512, help="of the copy that tells the bandwidth")
    parser.add_argument("--json", type=Path, help="also write the result there")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device(args.device)
    result: dict[str, Any] = {"what": "bench_ops.py", "conditions": report.conditions()}
    result["conditions"]["device"] = report.device_facts(device)
    args.copy_gb_per_s = copy_gb_per_s(device, args.copy_mib)
    chosen = ("threads", "rounds", "warmup", "batch", "crop")
    result["settings"] = {name: getattr(args, name) for name in chosen}
    result["settings"] |= {"device": args.device, "kernels": ops.KERNELS}
    result["settings"]["copy GB/s"] = round(args.copy_gb_per_s, 1)
    result["rows"] = []
    if device.type == "cuda":
        result["card"] = [card_state()]  # at the start, and after each case
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
