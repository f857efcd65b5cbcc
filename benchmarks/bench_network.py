"""LAGN by torch on one device: eager, compiled, as a CUDA graph; by precision, batch and size.

    python benchmarks/bench_network.py [--device cuda] [--mode eager compile cuda-graph]
        [--dtype float32 float16] [--batch 1 8 32 64 256] [--size 256 512] [--rounds 30] [--json FILE.json]

The network alone, on tensors that lie on the device; copies from and to pinned host memory are timed apart.
All modes of a size and batch take turns in one run. On a CUDA device times are events on the current stream.
A mode that is refused (memory, compiler) is a row with the reason.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report
import torch
from flops import network_macs
from timing import Phases, peak_mib, take_turns
from torch import Tensor

from mmif_trt import ops
from mmif_trt.models import load_model

INPUT_SETS = 3


def make_network(mode: str, dtype: torch.dtype, device: torch.device, example: Any) -> Callable[..., Tensor]:
    """LAGN in one mode; the halves run under autocast, so that the blend stays in float32."""
    model = load_model("lagn", str(device)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def network(a: Tensor, b: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            fused: Tensor = model(a, b)
        return fused

    if mode == "compile":
        return torch.compile(network, dynamic=False)
    if mode == "eager":
        return network
    a, b = (x.clone() for x in example[:2])
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            network(a, b)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fused = network(a, b)

    def replay(new_a: Tensor, new_b: Tensor) -> Tensor:
        a.copy_(new_a)
        b.copy_(new_b)
        graph.replay()
        return fused

    return replay


def phases(network: Callable[..., Tensor]) -> Phases:
    def run(inputs: Any, mark: Callable[[], None]) -> None:
        with torch.inference_mode():
            network(*inputs[:2])
        mark()

    return run


def copies(inputs: Any, mark: Callable[[], None]) -> None:
    """Both sources to the device, then one image back."""
    a, b, host = inputs
    a.copy_(host, non_blocking=True)
    b.copy_(host, non_blocking=True)
    mark()
    host.copy_(a, non_blocking=True)
    mark()


def rows_of(size: int, batch: int, args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    def one_set() -> tuple[Tensor, Tensor, Tensor]:
        a, b = torch.rand(2, batch, 1, size, size, device=device).unbind(0)
        host = torch.rand(batch, 1, size, size)
        return a.contiguous(), b.contiguous(), host.pin_memory() if device.type == "cuda" else host

    inputs = [one_set() for _ in range(INPUT_SETS)]
    rivals: dict[str, Phases] = {"copies": copies}
    refused = {}
    for mode in args.mode:
        for dtype in args.dtype:
            try:
                network = make_network(mode, getattr(torch, dtype), device, inputs[0])
                rivals[f"{mode} {dtype}"] = phases(network)
            except RuntimeError as error:  # out of memory while capturing, no such mode on this device
                refused[f"{mode} {dtype}"] = str(error).splitlines()[0]
    samples = take_turns(rivals, inputs, args.rounds, args.warmup)
    to_device, back = samples.pop("copies")
    copy_ms = {"to_device": report.percentiles(to_device, 4), "back": report.percentiles(back, 4)}
    refused |= {name: str(found[0][0]) for name, found in samples.items() if isinstance(found[0][0], str)}
    rows: list[dict[str, Any]] = []
    for name, (ms, *_) in samples.items():
        if name in refused:
            continue
        at = report.percentiles(ms, 4)
        gflop = 2 * network_macs(load_model("lagn").config.as_dict(), size, size) * batch / 1e9
        row = {"status": "measured", "rival": name, "size_px": size, "batch": batch, "ms": at}
        row |= {"pairs_per_s": round(batch / at["p50"] * 1e3, 1), "copy_ms": copy_ms}
        row |= {"gflop_per_s": round(gflop / at["p50"] * 1e3, 1)}
        row |= {"peak_mib": round(peak_mib(lambda name=name: rivals[name](inputs[0], int), device), 1)}  # type: ignore
        rows.append(row)
        print(f"{size} px, batch {batch}, {name}: {at['p50']} ms, {row['pairs_per_s']} pairs/s")
    for name, reason in refused.items():
        rows.append({"status": "refused", "rival": name, "size_px": size, "batch": batch, "reason": reason})
    return rows


def main() -> int:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    modes = ["eager", "compile", "cuda-graph"]
    parser.add_argument("--mode", nargs="+", choices=modes, default=modes if cuda else modes[:2])
    parser.add_argument("--dtype", nargs="+", default=["float32", "float16"] if cuda else ["float32"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32, 64, 256] if cuda else [1])
    parser.add_argument("--size", type=int, nargs="+", default=[256])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the result there")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    result: dict[str, Any] = {"what": "bench_network.py", "conditions": report.conditions()}
    result["conditions"]["device"] = report.device_facts(device)
    result["settings"] = {name: getattr(args, name) for name in ("rounds", "warmup", "threads")}
    result["settings"] |= {"device": args.device, "kernels": ops.KERNELS}
    result["rows"] = []
    for size, batch in [(size, batch) for size in args.size for batch in args.batch]:
        result["rows"] += rows_of(size, batch, args, device)
        report.write_so_far(args.json, result)
    result["load_average_end"] = report.load_average()
    if args.json:
        report.write_json(args.json, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
