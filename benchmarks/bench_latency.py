"""Latency of one fusion by stage, runtime, precision and size; cold start; the share of a matmul's rate.

    python benchmarks/bench_latency.py [--runtime tensorrt,torch,torch-compile,...]
        [--peer PATH:CALLABLE] [--precision auto,fp32] [--size 256 512] [--batch 1] [--threads 2]
        [--repeats 100] [--warmup 20] [--stage network,encode] [--json RESULT] [--plot PNG] [--trace TRACE]

The pair is the bundled MRI and PET (colour, the longest path), resized. All runtimes, precisions and sizes
take turns in rounds of the same run, so that a change of the machine's load meets them all. A turn begins
with untimed calls, in which the thread pool of the one before comes to rest. A batch is a loop: the runtimes
take one pair a call.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import plot
import report
import rivals
from cold_start import cold_start
from trace_events import Trace, peak_memory

from mmif_trt import colour, io, normalise, runtimes, tiling, weights
from mmif_trt.fuser import Fuser
from mmif_trt.image import MIN_SIDE_PX, Image, InputError
from mmif_trt.samples import path as sample_path

ROUNDS = 10
STAGES = ("decode", "normalise_luma", "network", "recombine", "encode")
SETTLE = 2  # untimed calls at the beginning of a turn
ENCODE = io.FORMATS[".png"].encode


def network_macs(config: dict[str, int], height: int, width: int) -> int:
    """Multiply-accumulates of LAGN's convolutions, linear layers and attention for one pair, padded.

    config: LAGNConfig's fields. What is element-wise (normalisation, GELU, softmax, blend) is not counted, as
    is usual. tests/test_bench.py compares with torch's own counter.
    """
    multiple = 4 * config["window"]
    height, width = (-(-side // multiple) * multiple for side in (height, width))
    half, quarter = height * width // 4, height * width // 16
    local, wide, tokens = config["local_dim"], config["global_dim"], config["window"] ** 2
    local_block = 9 * local + 2 * (local * 2 * local)  # depthwise 3x3, expand, reduce
    global_block = 4 * wide**2 + 2 * (wide * 2 * wide) + 2 * tokens * wide  # qkv and proj, MLP, QK^T and AV
    at_half = 9 * 8 * local + (config["local_depth"] + config["decoder_depth"]) * local_block
    at_half += 2 * local * local + 9 * local * 4  # gate, head
    at_quarter = (
        4 * local * wide + config["global_depth"] * global_block + wide * 4 * local
    )  # embed, blocks, unembed
    return half * at_half + quarter * at_quarter


def make_pair(folder: Path, size_px: int) -> tuple[Path, Path]:
    """The bundled MRI and PET at size_px x size_px, as PNG files."""
    made = []
    for modality in ("mri", "pet"):
        image = io.read(sample_path("mri-pet", modality))
        pixels = cv2.resize(image.data, (size_px, size_px), interpolation=cv2.INTER_AREA)
        made.append(folder / f"{modality}_{size_px}.png")
        io.write(made[-1], Image(pixels))
    return made[0], made[1]


@dataclass
class Case:
    """One runtime at one precision. ms: size_px -> stage -> samples; matmul_ms: samples."""

    fuser: Fuser
    asked: list[str]
    matmul: Callable[[], object] | None
    ms: dict[int, dict[str, list[float]]] = field(default_factory=dict)
    matmul_ms: list[float] = field(default_factory=list)


def load_cases(names: Iterable[str], args: argparse.Namespace) -> tuple[list[Case], list[dict[str, Any]]]:
    """What can be measured, and a row with the reason for each combination that is refused."""
    cases: dict[tuple[str, str], Case] = {}
    refused = []
    for name in names:
        for precision in args.precision:
            try:
                fuser = _fuser(name, precision, args.threads)
            except (InputError, ImportError) as error:
                row = {
                    "status": "refused",
                    "runtime": name,
                    "asked": precision,
                    "reason": " ".join(str(error).split()),
                }
                refused.append(row)
                continue
            key = fuser.runtime.name, fuser.runtime.precision
            if key in cases:  # "auto" came to the same
                cases[key].asked.append(precision)
            else:
                cases[key] = Case(fuser, [precision], make_matmul(fuser.runtime, args.matmul, args.threads))
    return list(cases.values()), refused


def _fuser(name: str, precision: str, threads: int) -> Fuser:
    if name not in rivals.NAMES and ":" not in name:
        return Fuser(name, precision, threads)
    fuser = Fuser.__new__(Fuser)  # the stages of the package over a rival's network
    fuser.runtime = rivals.load(name, precision, threads)
    return fuser


def make_matmul(runtime: runtimes.Runtime, n: int, threads: int) -> Callable[[], object] | None:
    """An n x n by n x n product in the runtime's own library and precision. In OpenVINO the second factor is
    a constant, as weights are, so that it is packed beforehand.
    None: of that library there is none here."""
    if runtime.name not in ("torch", "torch-compile", "cuda-graph", "openvino"):
        return None
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((n, n), np.float32) for _ in range(2))
    if runtime.name != "openvino":
        import torch

        x, y = (torch.from_numpy(m).to(runtime.device) for m in (left, right))

        def product() -> object:
            with torch.inference_mode():
                out = x @ y
                if out.is_cuda:
                    torch.cuda.synchronize()
            return out

        return product
    import openvino
    from openvino import opset13 as ops

    x = ops.parameter([n, n], np.float32)
    model = openvino.Model([ops.matmul(x, ops.constant(right), False, False)], [x])
    hint = {"bf16": "bf16", "fp32": "f32"}[runtime.precision]
    options = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    return lambda: request.infer([left], share_inputs=True, share_outputs=True)


def run_stages(
    fuser: Fuser, files: list[tuple[Path, Path]], trace: Trace | None = None
) -> tuple[dict[str, float], list[np.ndarray]]:
    """ms of each stage over `files`, and the fused pixels. The order of Fuser.fuse_images, written out."""
    ms: dict[str, float] = {}
    last = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal last
        now = time.perf_counter()
        if trace:
            trace.add(f"{fuser.runtime.name} {fuser.runtime.precision}", stage, last, now)
        ms[stage], last = (now - last) * 1e3, now

    images = [(io.read(a), io.read(b)) for a, b in files]
    lap("decode")
    units = [(normalise.to_unit(a), normalise.to_unit(b)) for a, b in images]
    lumas = [(a, colour.luma(b)) for a, b in units]
    lap("normalise_luma")
    fused = [tiling.run(fuser.runtime.infer, a, b) for a, b in lumas]
    lap("network")
    rgb = [colour.recombine(y, b) for y, (_, b) in zip(fused, units, strict=True)]
    pixels = [normalise.from_unit(x, np.dtype(np.uint8), (0, 255)) for x in rgb]
    lap("recombine")
    for x in pixels:
        ENCODE(Image(x))
    lap("encode")
    return ms, pixels


def run_whole(fuser: Fuser, files: list[tuple[Path, Path]]) -> float:
    """ms from the files to encoded bytes; writing them to a disk is not in it (bench_batch.py has it)."""
    start = time.perf_counter()
    for a, b in files:
        ENCODE(fuser.fuse_images(io.read(a), io.read(b)))
    return (time.perf_counter() - start) * 1e3


def check_order(fuser: Fuser, files: list[tuple[Path, Path]]) -> None:
    """The stages timed apart must be those of the Fuser, or their times mean nothing."""
    _, pixels = run_stages(fuser, files)
    whole = fuser.fuse_images(io.read(files[0][0]), io.read(files[0][1])).data
    if not np.array_equal(pixels[0], whole):
        raise SystemExit(
            "bench_latency: run_stages gives another picture than Fuser.fuse_images; bring it up to date"
        )


def measure(
    cases: list[Case], pairs: dict[int, tuple[Path, Path]], args: argparse.Namespace, trace: Trace
) -> None:
    """Fills ms and matmul_ms of every case, turn by turn."""
    turns = [(case, size, [pair] * args.batch) for size, pair in pairs.items() for case in cases]
    for case, size, files in turns:
        check_order(case.fuser, files)
        case.ms[size] = {}
        for _ in range(args.warmup):
            run_whole(case.fuser, files)
    rounds = min(ROUNDS, args.repeats)
    for i in range(rounds):
        for case, size, files in turns:
            for _ in range(SETTLE):
                run_whole(case.fuser, files)
            for _ in range(args.repeats * (i + 1) // rounds - args.repeats * i // rounds):
                trace.push(f"{case.fuser.runtime.name} {size} px")
                sample, _ = run_stages(case.fuser, files, trace)
                trace.pop()
                sample["end_to_end"] = run_whole(case.fuser, files)
                for stage, ms in sample.items():
                    case.ms[size].setdefault(stage, []).append(ms)
        for case in cases:
            if case.matmul is None:
                continue
            case.matmul()
            start = time.perf_counter()
            case.matmul()
            case.matmul_ms.append((time.perf_counter() - start) * 1e3)


def make_rows(case: Case, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a size. Rates are of medians; FLOP = 2 x MAC."""
    runtime = case.fuser.runtime
    config = weights.manifest()["models"]["lagn"]["config"]
    rows = []
    for size, stages in case.ms.items():
        macs = network_macs(config, size, size)
        gflop_per_s = 2 * macs * args.batch / float(np.median(stages["network"])) / 1e6
        row: dict[str, Any] = {
            "status": "measured",
            "runtime": runtime.name,
            "precision": runtime.precision,
            "device": runtime.device,
        }
        row |= {"asked": ", ".join(case.asked), "note": runtime.note, "size_px": size, "batch": args.batch}

        def kept(stage: str) -> bool:
            return not args.stage or stage in (*args.stage, "network", "end_to_end")

        shown = {s: report.percentiles(x) for s, x in stages.items() if kept(s)}
        row |= {"ms": shown}
        row |= {"pairs_per_s": round(args.batch * 1e3 / float(np.median(stages["end_to_end"])), 3)}
        if ":" not in runtime.name:  # a peer's work is not known
            row |= {"gmac": round(macs / 1e9, 6), "gflop_per_s": round(gflop_per_s, 3)}
        if case.matmul is not None:
            matmul_gflop_per_s = 2 * args.matmul**3 / float(np.median(case.matmul_ms)) / 1e6
            row |= {"matmul": f"{args.matmul}^3 by {runtime.name} {runtime.precision}"}
            row |= {"matmul_ms": report.percentiles(case.matmul_ms)}
            row |= {"matmul_gflop_per_s": round(matmul_gflop_per_s, 3)}
            row |= {"matmul_share": round(gflop_per_s / matmul_gflop_per_s, 5)}
        rows.append(row)
    return rows


def words(text: str) -> list[str]:
    return text.split(",")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Latency by stage, runtime, precision and size.")
    parser.add_argument(
        "--runtime", type=words, default=list(runtimes.NAMES), help="with commas; default: all"
    )
    parser.add_argument("--peer", action="append", default=[], metavar="PATH:CALLABLE", help="a torch module")
    parser.add_argument(
        "--stage", type=words, default=[], help="of the stages, keep these and network; default: all"
    )
    parser.add_argument("--plot", type=Path, help="write a PNG: distributions and stages")
    parser.add_argument("--trace", type=Path, help="write the stages for Chrome's or Perfetto's trace viewer")
    parser.add_argument("--precision", type=words, default=["auto", "fp32"], help="default: auto,fp32")
    parser.add_argument("--size", type=int, nargs="+", default=[256, 512], help="px a side; default: 256 512")
    parser.add_argument(
        "--batch", type=int, default=1, help="pairs a timed call, one after the other; default: 1"
    )
    parser.add_argument(
        "--threads", type=int, default=2, help="of the network and the matrix product; default: 2"
    )
    parser.add_argument("--repeats", type=int, default=100, help="timed calls a row; default: 100")
    parser.add_argument("--warmup", type=int, default=20, help="untimed calls a row before all; default: 20")
    parser.add_argument("--matmul", type=int, default=2048, help="side of the matrix product; default: 2048")
    parser.add_argument("--cold", type=int, default=5, help="processes of the cold start; default: 5")
    parser.add_argument("--json", type=Path, help="also write the result there")
    args = parser.parse_args()
    for name in ("batch", "threads", "repeats", "matmul"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}; accepted are 1 and more")
    if unknown := set(args.stage) - {*STAGES, "end_to_end"}:
        parser.error(f"--stage {', '.join(sorted(unknown))}; accepted are {', '.join(STAGES)}, end_to_end")
    if not all(
        MIN_SIDE_PX <= size <= tiling.TILE_PX for size in args.size
    ):  # above it tiles overlap: other MACs
        parser.error(f"--size {args.size}; accepted are {MIN_SIDE_PX} to {tiling.TILE_PX}")
    return args


def main() -> int:
    args = parse()
    result: dict[str, Any] = {"what": "bench_latency.py", "conditions": report.conditions()}
    chosen = ("threads", "batch", "repeats", "warmup", "matmul")
    result["settings"] = {name: getattr(args, name) for name in chosen} | {"pair": "MRI and PET"}
    trace = Trace()
    with tempfile.TemporaryDirectory() as folder:
        pairs = {size: make_pair(Path(folder), size) for size in dict.fromkeys(args.size)}
        result["cold_start"] = cold_start(*make_pair(Path(folder), 256), args.cold)
        cases, refused = load_cases([*args.runtime, *args.peer], args)
        measure(cases, pairs, args, trace)
    result["rows"] = [row for case in cases for row in make_rows(case, args)] + refused
    result["peak_memory"] = peak_memory()
    result["load_average_end"] = report.load_average()
    if args.plot and cases:
        rows = {
            f"{c.fuser.runtime.name.rpartition('/')[2]} {c.fuser.runtime.precision} {size} px": ms
            for c in cases
            for size, ms in c.ms.items()
        }
        plot.draw(args.plot, rows, f"mmif_trt {report.conditions()['date']}, batch {args.batch}")
    if args.trace:
        trace.write(args.trace)
    if args.json:
        report.write_json(args.json, result)
    print(report.latency_tables(result))
    return 0 if cases else 1


if __name__ == "__main__":
    sys.exit(main())
