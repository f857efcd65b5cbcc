"""LAGN by torch on one device: eager, compiled, as a CUDA graph; by precision, batch and size.

    python benchmarks/bench_network.py [--device cuda] [--mode eager compile cuda-graph]
        [--dtype float32 tf32 float16] [--batch 1 8 32 64 256] [--size 256 512] [--rounds 30]
        [--json FILE.json]

The network alone, on tensors on the device; copies from and to pinned host memory are timed separately. All
modes of a size and batch take turns in one run; timing.py says how a CUDA device is timed. float32 is IEEE
throughout, tf32 the same network with convolutions and products in TF32. The half types have weights of their
type. A refused mode (memory, compiler) is a row with the reason.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import report
import torch
from compiled import compiled, forget
from flops import network_macs
from timing import Phases, card_state, peak_mib, take_turns
from torch import Tensor, nn

from mmif_trt import ops
from mmif_trt.models import load_model
from mmif_trt.runtimes.torch import float_products

INPUT_SETS = 3


@contextmanager
def in_type(dtype: str, device: torch.device) -> Iterator[None]:
    """Within it the network runs in dtype: half types under autocast, so that the blend stays in float32."""
    half = getattr(torch, "float32" if dtype == "tf32" else dtype)
    autocast = torch.autocast(device.type, half, enabled=half != torch.float32)
    with float_products(tf32=dtype == "tf32"), autocast:
        yield


def make_network(mode: str, dtype: str, device: torch.device, example: Any) -> Callable[..., Tensor]:
    """LAGN in one mode. Weights are converted once: autocast does not convert what has its type."""
    model = load_model("lagn", str(device)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if dtype in ("float16", "bfloat16"):
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.to(getattr(torch, dtype))

    def network(a: Tensor, b: Tensor) -> Tensor:
        fused: Tensor = model(a, b)
        return fused

    if mode == "compile":
        network = compiled(network)
    if mode != "cuda-graph":
        return within(network, dtype, device)
    return captured(within(network, dtype, device), example)


def within(network: Callable[..., Tensor], dtype: str, device: torch.device) -> Callable[..., Tensor]:
    def call(a: Tensor, b: Tensor) -> Tensor:
        with in_type(dtype, device):
            return network(a, b)

    return call


def captured(network: Callable[..., Tensor], example: Any) -> Callable[..., Tensor]:
    """network as a CUDA graph, replayed on inputs copied to its buffers."""
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
    a.copy_(host[0], non_blocking=True)
    b.copy_(host[1:].view(b.shape), non_blocking=True)
    mark()
    host[0].copy_(a, non_blocking=True)
    mark()


def rows_of(size: int, batch: int, args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    def one_set() -> tuple[Tensor, Tensor, Tensor]:
        a, b = (torch.rand(batch, planes, size, size, device=device) for planes in (1, 2))
        host = torch.rand(3, batch, 1, size, size)  # a, and both planes of b
        return a, b, host.pin_memory() if device.type == "cuda" else host

    inputs = [one_set() for _ in range(INPUT_SETS)]
    forget()
    rivals: dict[str, Phases] = {"copies": copies}
    refused: dict[str, str] = {}
    for mode in args.mode:
        for dtype in args.dtype:
            try:
                with torch.inference_mode():
                    network = make_network(mode, dtype, device, inputs[0])
                rivals[f"{mode} {dtype}"] = phases(network)
            except RuntimeError as error:  # out of memory while capturing, no such mode on this device
                refused[f"{mode} {dtype}"] = str(error).splitlines()[0]
    samples = take_turns(rivals, inputs, args.rounds, args.warmup)
    to_device, back = samples.pop("copies").phases()
    copy_ms = {"to_device": report.percentiles(to_device, 4), "back": report.percentiles(back, 4)}
    refused |= {name: found.refused for name, found in samples.items() if found.refused is not None}
    attention = "kernel" if ops.has_kernel(inputs[0][0]) else "plain torch"
    rows: list[dict[str, Any]] = []
    for name, found in samples.items():
        if name in refused:
            continue
        at = report.percentiles(found.phases()[0], 4)
        gflop = 2 * network_macs(load_model("lagn").config.as_dict(), size, size) * batch / 1e9
        row = {"status": "measured", "rival": name, "attention": attention, "size_px": size, "batch": batch}
        row |= {"ms": at, "pairs_per_s": round(batch / at["p50"] * 1e3, 1), "copy_ms": copy_ms}
        if device.type == "cuda":
            row |= {"clock": "device" if found.device else "as called"}
            row |= {"as_called_ms": report.percentiles(found.as_called[0], 4)}
        row |= {"gflop_per_s": round(gflop / at["p50"] * 1e3, 1)}
        row |= {"peak_mib": round(peak_mib(lambda name=name: rivals[name](inputs[0], int), device), 1)}  # type: ignore
        rows.append(row)
        print(f"{size} px, batch {batch}, {name}: {at['p50']} ms, {row['pairs_per_s']} pairs/s", flush=True)
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
        if device.type == "cuda":
            result.setdefault("card", []).append(card_state())
        report.write_so_far(args.json, result)
    result["load_average_end"] = report.load_average()
    if args.json:
        report.write_json(args.json, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
