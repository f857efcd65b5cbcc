"""Folder throughput: pairs/s from files to files against the network alone, and peak memory.

    python benchmarks/bench_batch.py [--pairs 500 5000] [--runtime auto] [--threads N] [--workers N]
        [--decode opencv dali] [--json benchmarks/results/batch_cpu.json]

The pairs are the bundled samples, shifted by up to 4 px and with noise of 1 level (8 bit) where they are not
black. The command line fuses the folder in its own process. The network alone runs on decoded pairs, in fresh
processes just before and just after it; the mean of the two is reported. Each decoder has its own row over
equal files, one after the other. All files are in a temporary folder (TMPDIR).

`--runtime tensorrt --decode dali` decodes and fuses in the memory of a card, and ends where there is none.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import report

from mmif_trt import io
from mmif_trt.folders.run import default_workers
from mmif_trt.fuser import Fuser
from mmif_trt.image import Image, InputError
from mmif_trt.samples import PAIRS
from mmif_trt.samples import path as sample_path
from mmif_trt.stages import colour, normalise, tiling

ENCODE = io.FORMATS[".png"].encode
MAX_SHIFT_PX = 4
HELD_PAIRS = 24  # decoded pairs that the network alone cycles through
MAX_CALLS = 500
WARM_UP = 20
POLL_S = 0.02
# Where the folder run writes what, below the temporary folder.
FOLDER_A, FOLDER_B, FOLDER_OUT, REPORT = "mri", "other", "fused", "report.json"


@dataclass(frozen=True)
class Setting:
    """The settings that the folder run and the network alone share."""

    runtime: str
    precision: str
    threads: int | None
    workers: int
    decode: str


def vary(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A shifted copy with noise of one 8-bit level (16 levels of 12 bit) wherever it is not black."""
    shift = rng.integers(-MAX_SHIFT_PX, MAX_SHIFT_PX, 2, endpoint=True)
    moved = np.roll(pixels, tuple(shift), (0, 1)).astype(np.int32)
    level = 1 if pixels.dtype == np.uint8 else 16
    noise = rng.integers(-level, level, moved.shape, endpoint=True)
    limit = np.iinfo(pixels.dtype).max
    return np.where(moved > 0, np.clip(moved + noise, 0, limit), 0).astype(pixels.dtype)


def make_pairs(root: Path, count: int) -> None:
    """`count` pairs of 256 x 256 PNG in root/FOLDER_A and root/FOLDER_B, the three modalities in turn."""
    rng = np.random.default_rng(0)
    sources = [[io.read(sample_path(name, m)).data for m in ("mri", PAIRS[name].other)] for name in PAIRS]
    for folder in (FOLDER_A, FOLDER_B):
        (root / folder).mkdir()
    for i in range(count):
        for folder, pixels in zip((FOLDER_A, FOLDER_B), sources[i % len(sources)], strict=True):
            # Not io.write: its fsync is for outputs and would only slow this down.
            (root / folder / f"{i:05}.png").write_bytes(ENCODE(Image(vary(pixels, rng))))


def network_only(root: str, setting: Setting, calls: int) -> dict[str, float]:
    """Pairs/s of the network on decoded pairs, by one caller and by as many as the folder run has workers.

    Runs in its own process, free of this one's threads and memory.
    """
    fuser = Fuser(setting.runtime, setting.precision, setting.threads)
    held = []
    for path in sorted((Path(root) / FOLDER_A).iterdir())[:HELD_PAIRS]:
        a, b = io.read(path), io.read(path.parents[1] / FOLDER_B / path.name)
        held.append((normalise.to_unit(a), colour.planes(normalise.to_unit(b))))

    def call(i: int) -> None:
        tiling.run(fuser.runtime.infer, *held[i % len(held)])

    def rate(callers: int) -> float:
        with ThreadPoolExecutor(callers) as pool:
            list(pool.map(call, range(min(WARM_UP, calls))))
            start = time.perf_counter()
            list(pool.map(call, range(calls)))
            return calls / (time.perf_counter() - start)

    return {"one_caller": rate(1), "all_callers": rate(setting.workers)}


def in_fresh_process(root: Path, setting: Setting, calls: int) -> dict[str, float]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(network_only, str(root), setting, calls).result()


def run_folder(root: Path, setting: Setting) -> tuple[dict[str, Any], float, float | None]:
    """The JSON report of `mmif-trt fuse` over the folders, its wall time in s, and its peak memory in MiB."""
    names = [str(root / name) for name in (FOLDER_A, FOLDER_B, FOLDER_OUT, REPORT)]
    command = [
        sys.executable,
        "-m",
        "mmif_trt",
        "fuse",
        *names[:2],
        "-o",
        names[2],
        "--report",
        names[3],
        "--quiet",
    ]
    command += [
        "--runtime",
        setting.runtime,
        "--precision",
        setting.precision,
        "--workers",
        str(setting.workers),
    ]
    command += ["--threads", str(setting.threads)] if setting.threads else []
    command += ["--decode", setting.decode]
    with open(root / "stderr", "w+") as stderr:  # a pipe that nobody reads could fill up
        start = time.perf_counter()
        with subprocess.Popen(command, env=report.environment(), stderr=stderr) as process:
            peak_mib = None
            while process.poll() is None:
                peak_mib = peak_rss_mib(process.pid) or peak_mib
                time.sleep(POLL_S)
            seconds = time.perf_counter() - start
        stderr.seek(0)
        said = stderr.read().strip().splitlines()
    if process.returncode:
        raise SystemExit(
            f"bench_batch: mmif-trt fuse ended with {process.returncode}: {said[-1] if said else 'no word'}"
        )
    return json.loads(Path(names[3]).read_text()), seconds, peak_mib


def peak_rss_mib(pid: int) -> float | None:
    """VmHWM, the highest resident size so far, of a running process; None if /proc does not say."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    kib = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
    return None if kib is None else int(kib) / 1024


def measure(count: int, setting: Setting) -> dict[str, Any]:
    """One row: `count` pairs made, fused by the command line between two runs of the network alone."""
    calls = min(count, MAX_CALLS)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_pairs(root, count)
        before = in_fresh_process(root, setting, calls)
        done, seconds, peak_mib = run_folder(root, setting)
        after = in_fresh_process(root, setting, calls)
    totals = done["totals"]
    if totals["done"] != count:
        raise SystemExit(f"bench_batch: {totals['done']} of {count} pairs were fused")
    network = {key: (before[key] + after[key]) / 2 for key in before}
    rate = count / totals["seconds"]
    stages = ("decode", "fuse", "encode")
    return {
        "pairs": count,
        "runtime": done["runtime"],
        "workers": done["settings"]["workers"],
        "decode": setting.decode,
        "pairs_per_s": round(rate, 3),
        "pairs_per_s_with_start": round(count / seconds, 3),
        "network_only_pairs_per_s": {key: round(value, 3) for key, value in network.items()},
        "network_only_before_after": [{k: round(v, 3) for k, v in run.items()} for run in (before, after)],
        "ratio": round(rate / network["one_caller"], 4),
        "ratio_all_callers": round(rate / network["all_callers"], 4),
        "peak_rss_mib": None if peak_mib is None else round(peak_mib, 1),
        "worker_ms": {s: report.percentiles(pair["ms"][s] for pair in done["pairs"]) for s in stages},
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Folder throughput against the network alone, and peak memory."
    )
    parser.add_argument("--pairs", type=int, nargs="+", default=[500], help="one row each; default: 500")
    parser.add_argument("--runtime", default="auto", help="default: auto")
    parser.add_argument("--precision", default="auto", help="default: auto")
    parser.add_argument("--threads", type=int, help="of the network; default: the runtime's own choice")
    parser.add_argument("--workers", type=int, default=default_workers(), help="default: as the command line")
    parser.add_argument(
        "--decode", nargs="+", choices=("auto", "opencv", "dali"), default=["auto"], help="one row each"
    )
    parser.add_argument("--json", type=Path, help="also write the result there")
    args = parser.parse_args()
    if min([*args.pairs, args.workers]) < 1:
        parser.error(f"--pairs {args.pairs}, --workers {args.workers}; expected 1 or more")
    settings = [Setting(args.runtime, args.precision, args.threads, args.workers, x) for x in args.decode]
    result: dict[str, Any] = {"what": "bench_batch.py", "conditions": report.conditions()}
    result["settings"] = {"threads": args.threads, "size_px": 256}
    try:
        result["rows"] = [measure(count, setting) for count in args.pairs for setting in settings]
    except InputError as error:  # such as a runtime that is not usable here
        raise SystemExit(f"bench_batch: {error}") from None
    peaks = [row["peak_rss_mib"] for row in result["rows"] if row["decode"] == args.decode[0]]
    result["peak_growth"] = round(peaks[-1] / peaks[0], 4) if len(peaks) > 1 and all(peaks) else None
    result["load_average_end"] = report.load_average()
    if args.json:
        report.write_json(args.json, result)
    print(report.batch_table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
