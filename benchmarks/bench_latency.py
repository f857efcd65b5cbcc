"""Latency of one fusion by stage, runtime, precision, size and batch; cold start; share of a matmul's rate.

    python benchmarks/bench_latency.py [--runtime tensorrt,torch,torch-compile,...]
        [--network lagn,lagn-quality] [--peer PATH:CALLABLE] [--precision auto,fp32] [--size 256 512]
        [--batch 1 8] [--threads 2] [--repeats 100] [--warmup 20] [--stage network,encode] [--json RESULT]
        [--plot PNG] [--trace TRACE]

The pair is the bundled MRI and PET (colour, the longest path), resized. All runtimes, precisions, networks,
sizes and batches take turns in rounds of the same run, so that a change of the machine's load affects them
all. A turn starts with untimed calls, during which the previous thread pool becomes idle. A batch is one call
of the network on [B, H, W]; a runtime without batches that large gets a row that says so. The other stages
process one picture after another. On a GPU, CUDA events split the network's call, see card_stages.py.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import plot
import report
import rivals
from card_stages import OVERHEAD, Card, card_of, split
from cold_start import cold_start
from flops import make_matmul, network_macs
from trace_events import Trace, peak_memory

from mmif_trt import io, runtimes, weights
from mmif_trt.fuser import Fuser
from mmif_trt.image import MIN_SIDE_PX, Image, InputError
from mmif_trt.samples import path as sample_path
from mmif_trt.stages import colour, normalise, tiling

ROUNDS = 10
STAGES = (
    *("decode", "normalise_luma", "host_to_device", "network", "device_to_host", OVERHEAD),
    *("recombine", "encode"),
)
SETTLE = 2  # untimed calls at the beginning of a turn
# What keeps OpenVINO's and our own kernels from a processor's newest instructions.
ISA_LIMITS = ("ONEDNN_MAX_CPU_ISA", "MMIF_ISA")
ENCODE = io.FORMATS[".png"].encode


def make_pair(folder: Path, size_px: int) -> tuple[Path, Path]:
    """The bundled MRI and PET at size_px x size_px, as PNG files."""
    made = []
    for modality in ("mri", "pet"):
        image = io.read(sample_path("mri-pet", modality))
        pixels = cv2.resize(image.data, (size_px, size_px), interpolation=cv2.INTER_AREA)
        made.append(folder / f"{modality}_{size_px}.png")
        io.write(made[-1], Image(pixels))
    return made[0], made[1]


Turn = tuple[int, int]  # px per side, pairs per call


@dataclass
class Case:
    """One runtime at one precision with one network. ms: stage -> samples; device_mib: the peak on its card;
    refused: why a turn cannot be measured; matmul_ms: samples."""

    fuser: Fuser
    asked: list[str]
    matmul: Callable[[], object] | None
    card: Card | None = None
    ms: dict[Turn, dict[str, list[float]]] = field(default_factory=dict)
    device_mib: dict[Turn, float] = field(default_factory=dict)
    refused: dict[Turn, str] = field(default_factory=dict)
    matmul_ms: list[float] = field(default_factory=list)


def load_cases(names: Iterable[str], args: argparse.Namespace) -> tuple[list[Case], list[dict[str, Any]]]:
    """What can be measured, and a row with the reason for each refused combination."""
    cases: dict[tuple[str, str, str], Case] = {}
    refused = []
    for name in names:
        networks = args.network[:1] if ":" in name else args.network
        for precision, network in product(args.precision, networks):
            try:
                fuser = _fuser(name, precision, args.threads, network)
                key = fuser.runtime.name, fuser.runtime.precision, network
                if key not in cases:
                    matmul = make_matmul(fuser.runtime, args.matmul, args.threads)
                    cases[key] = Case(fuser, [], matmul, card_of(fuser.runtime))
                cases[key].asked.append(precision)  # "auto" may have chosen what is there
            except (InputError, ImportError) as error:
                row = {
                    "status": "refused",
                    "runtime": name,
                    "network": network,
                    "asked": precision,
                    "reason": " ".join(str(error).split()),
                }
                refused.append(row)
    return list(cases.values()), refused


def _fuser(name: str, precision: str, threads: int, network: str) -> Fuser:
    if name not in rivals.NAMES and ":" not in name:
        return Fuser(name, precision, threads, network=network)
    fuser = Fuser.__new__(Fuser)  # the stages of the package over a rival's network
    fuser.runtime = rivals.load(name, precision, threads, network)
    fuser.network = network
    return fuser


def run_stages(
    case: Case, files: list[tuple[Path, Path]], trace: Trace | None = None
) -> tuple[dict[str, float], list[np.ndarray]]:
    """ms of each stage over `files`, and the fused pixels. The order of Fuser.fuse_images, written out."""
    ms: dict[str, float] = {}
    runtime = case.fuser.runtime

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        if trace:
            trace.push(name)
        start = time.perf_counter()
        yield
        end = time.perf_counter()
        if trace:
            trace.pop()
            trace.add(f"{runtime.name} {runtime.precision}", name, start, end)
        ms[name] = (end - start) * 1e3

    with stage("decode"):
        images = [(io.read(a), io.read(b)) for a, b in files]
    with stage("normalise_luma"):
        units = [(normalise.to_unit(a), normalise.to_unit(b)) for a, b in images]
        planes = [(a, colour.planes(b)) for a, b in units]
    with stage("network"):
        fused = run_network((case.card or runtime).infer, planes)
    if case.card:
        ms |= split(ms["network"], case.card.laps)
        case.card.laps.clear()
    with stage("recombine"):
        rgb = [colour.recombine(y, b) for y, (_, b) in zip(fused, units, strict=True)]
        pixels = [normalise.from_unit(x, np.dtype(np.uint8), (0, 255)) for x in rgb]
    with stage("encode"):
        for x in pixels:
            ENCODE(Image(x))
    return {name: ms[name] for name in STAGES if name in ms}, pixels


def run_network(infer: tiling.Network, planes: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """One call for one pair or a batch of equal size; no pair is so large that it goes in tiles."""
    if len(planes) == 1:
        return [tiling.run(infer, *planes[0])]
    height, width = planes[0][0].shape
    a, b = (np.stack([tiling.padded(pair[k]) for pair in planes]) for k in (0, 1))
    return list(infer(a, b)[:, :height, :width])


def run_whole(case: Case, files: list[tuple[Path, Path]]) -> float:
    """ms from the files to encoded bytes; writing them to disk is not included (bench_batch.py has it)."""
    start = time.perf_counter()
    if len(files) > 1:
        run_stages(case, files)
    else:
        ENCODE(case.fuser.fuse_images(*map(io.read, files[0])))
    return (time.perf_counter() - start) * 1e3


def check_order(case: Case, files: list[tuple[Path, Path]]) -> None:
    """The separately timed stages must equal those of the Fuser, or their times mean nothing. A batch in half
    precision may round differently, each within a level of FP32; so may two calls on a GPU."""
    _, pixels = run_stages(case, files)
    whole = case.fuser.fuse_images(*map(io.read, files[0])).data.astype(int)
    tolerance = 2 if len(files) > 1 else 1 if case.card else 0
    if max(np.abs(x - whole).max() for x in pixels) > tolerance:
        raise SystemExit(
            "bench_latency: run_stages gives a different picture than Fuser.fuse_images; update it"
        )


def warm_up(case: Case, turn: Turn, files: list[tuple[Path, Path]], calls: int) -> bool:
    """False: refused, with the reason: a batch that this runtime or its GPU cannot take, a graph that cannot
    be captured, full GPU memory. The others still run."""
    try:
        check_order(case, files)
        for _ in range(calls):
            run_whole(case, files)
    except Exception as error:  # a peer's module, torch and drivers may raise anything
        reason = " ".join(str(error).split())
        if not isinstance(error, InputError):
            reason = f"{type(error).__name__}: {reason}"
        case.refused[turn] = f"batch {turn[1]}: {reason}"
        return False
    case.ms[turn] = {}
    return True


def measure(
    cases: list[Case],
    pairs: dict[int, tuple[Path, Path]],
    args: argparse.Namespace,
    trace: Trace,
    after_round: Callable[[], None],
) -> None:
    """Fills ms, device_mib and matmul_ms of every case, turn by turn."""
    all_turns = [
        (case, (size, batch), [pair] * batch)
        for size, pair in pairs.items()
        for batch in dict.fromkeys(args.batch)
        for case in cases
    ]
    turns = [
        (case, turn, files) for case, turn, files in all_turns if warm_up(case, turn, files, args.warmup)
    ]
    rounds = min(ROUNDS, args.repeats)
    for i in range(rounds):
        for case, turn, files in turns:
            if case.card:
                case.card.forget_peak()
            for _ in range(SETTLE):
                run_whole(case, files)
            for _ in range(args.repeats * (i + 1) // rounds - args.repeats * i // rounds):
                trace.push(f"{case.fuser.runtime.name} {turn[0]} px, batch {turn[1]}")
                sample, _ = run_stages(case, files, trace)
                trace.pop()
                sample["end_to_end"] = run_whole(case, files)
                for stage, ms in sample.items():
                    case.ms[turn].setdefault(stage, []).append(ms)
            if case.card:
                case.device_mib[turn] = max(case.device_mib.get(turn, 0.0), case.card.peak_mib())
        for case in cases:
            if case.matmul is None:
                continue
            case.matmul()
            start = time.perf_counter()
            case.matmul()
            case.matmul_ms.append((time.perf_counter() - start) * 1e3)
        after_round()


def make_rows(case: Case, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per size and batch. Rates are of medians; FLOP = 2 x MAC."""
    runtime = case.fuser.runtime
    config = weights.manifest()["models"][case.fuser.network]["config"]
    known = {"runtime": runtime.name, "precision": runtime.precision, "device": runtime.device}
    known |= {"asked": ", ".join(case.asked), "note": runtime.note}
    if ":" not in runtime.name:  # a peer has its own
        known |= {"network": case.fuser.network}
    rows: list[dict[str, Any]] = []
    for (size, batch), stages in case.ms.items():
        macs = network_macs(config, size, size)
        network_ms = float(np.median(stages["network"]))
        gflop_per_s = 2 * macs * batch / network_ms / 1e6
        row: dict[str, Any] = {"status": "measured", **known, "size_px": size, "batch": batch}

        def kept(stage: str) -> bool:
            return not args.stage or stage in (*args.stage, "network", "end_to_end")

        row |= {"ms": {stage: report.percentiles(ms, 4) for stage, ms in stages.items() if kept(stage)}}
        row |= {"pairs_per_s": round(batch * 1e3 / float(np.median(stages["end_to_end"])), 3)}
        row |= {"network_pairs_per_s": round(batch * 1e3 / network_ms, 3)}
        if (size, batch) in case.device_mib:
            row |= {"device_mib": round(case.device_mib[size, batch], 1)}
        if ":" not in runtime.name:  # a peer's work is unknown
            row |= {"gmac": round(macs / 1e9, 6), "gflop_per_s": round(gflop_per_s, 3)}
        if case.matmul is not None:
            matmul_gflop_per_s = 2 * args.matmul**3 / float(np.median(case.matmul_ms)) / 1e6
            row |= {"matmul": f"{args.matmul}^3 by {runtime.name} {runtime.precision}"}
            row |= {"matmul_ms": report.percentiles(case.matmul_ms)}
            row |= {"matmul_gflop_per_s": round(matmul_gflop_per_s, 3)}
            row |= {"matmul_share": round(gflop_per_s / matmul_gflop_per_s, 5)}
        rows.append(row)
    for (size, batch), reason in case.refused.items():
        rows.append({"status": "refused", **known, "size_px": size, "batch": batch, "reason": reason})
    return rows


def words(text: str) -> list[str]:
    return text.split(",")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Latency by stage, runtime, precision and size.")
    parser.add_argument(
        "--runtime", type=words, default=list(runtimes.NAMES), help="with commas; default: all"
    )
    what = "with commas; default: lagn"
    parser.add_argument("--network", type=words, default=[weights.DEFAULT], help=what)
    parser.add_argument("--peer", action="append", default=[], metavar="PATH:CALLABLE", help="a torch module")
    parser.add_argument(
        "--stage", type=words, default=[], help="of the stages, keep these and network; default: all"
    )
    parser.add_argument("--plot", type=Path, help="write a PNG: distributions and stages")
    parser.add_argument("--trace", type=Path, help="write the stages for Chrome's or Perfetto's trace viewer")
    parser.add_argument("--precision", type=words, default=["auto", "fp32"], help="default: auto,fp32")
    parser.add_argument(
        "--size", type=int, nargs="+", default=[256, 512], help="px per side; default: 256 512"
    )
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[1], help="pairs per call of the network; default: 1"
    )
    parser.add_argument(
        "--threads", type=int, default=2, help="of the network and the matrix product; default: 2"
    )
    parser.add_argument("--repeats", type=int, default=100, help="timed calls per row; default: 100")
    parser.add_argument(
        "--warmup", type=int, default=20, help="untimed calls per row at the start; default: 20"
    )
    parser.add_argument("--matmul", type=int, default=2048, help="side of the matrix product; default: 2048")
    parser.add_argument("--cold", type=int, default=5, help="processes for the cold start; default: 5")
    parser.add_argument("--json", type=Path, help="also write the result there")
    args = parser.parse_args()
    for name in ("batch", "threads", "repeats", "matmul"):
        given = getattr(args, name)
        if min(given if isinstance(given, list) else [given]) < 1:
            parser.error(f"--{name} {given}; expected 1 or more")
    if unknown := set(args.network) - set(weights.NAMES):
        parser.error(f"--network {', '.join(sorted(unknown))}; expected {', '.join(weights.NAMES)}")
    if unknown := set(args.stage) - {*STAGES, "end_to_end"}:
        parser.error(f"--stage {', '.join(sorted(unknown))}; expected {', '.join(STAGES)}, end_to_end")
    if not all(
        MIN_SIDE_PX <= size <= tiling.TILE_PX for size in args.size
    ):  # above it tiles overlap: other MACs
        parser.error(f"--size {args.size}; expected {MIN_SIDE_PX} to {tiling.TILE_PX}")
    return args


def settings(args: argparse.Namespace) -> dict[str, Any]:
    chosen = {name: getattr(args, name) for name in ("threads", "batch", "repeats", "warmup", "matmul")}
    limits = [f"{name}={os.environ[name]}" for name in ISA_LIMITS if name in os.environ]
    return chosen | {"pair": "MRI and PET"} | ({"instructions": limits} if limits else {})


def main() -> int:
    args = parse()
    result: dict[str, Any] = {"what": "bench_latency.py", "conditions": report.conditions(args.network)}
    if card := report.card_facts():
        result["conditions"]["device"] = card
    result["settings"] = settings(args)
    trace = Trace()
    with tempfile.TemporaryDirectory() as folder:
        pairs = {size: make_pair(Path(folder), size) for size in dict.fromkeys(args.size)}
        result["cold_start"] = cold_start(*make_pair(Path(folder), 256), args.cold)
        cases, refused = load_cases([*args.runtime, *args.peer], args)

        def so_far() -> None:
            result["rows"] = [row for case in cases for row in make_rows(case, args)] + refused
            report.write_so_far(args.json, result)

        measure(cases, pairs, args, trace, so_far)
    result["peak_memory"] = peak_memory()
    result["load_average_end"] = report.load_average()
    if args.plot:
        rows = {
            f"{c.fuser.runtime.name.rpartition('/')[2]} {c.fuser.runtime.precision} {size} px"
            + (f", {c.fuser.network}" if args.network != [weights.DEFAULT] else "")
            + (f", batch {batch}" if args.batch != [1] else ""): ms
            for c in cases
            for (size, batch), ms in c.ms.items()
        }
        batches = " ".join(map(str, args.batch))
        if rows:
            plot.draw(args.plot, rows, f"mmif_trt {report.conditions()['date']}, batch {batches}")
    if args.trace:
        trace.write(args.trace)
    if args.json:
        report.write_json(args.json, result)
    print(report.latency_tables(result))
    return 0 if cases else 1


if __name__ == "__main__":
    sys.exit(main())
