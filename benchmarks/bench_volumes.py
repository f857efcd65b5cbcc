"""Volumes end to end by `mmif-trt batch` against the network alone on the same slices.

    python benchmarks/bench_volumes.py TEMPLATES OUT [--volumes 200] [--rounds 3]

TEMPLATES holds T1.nii and PET.nii (91 x 109 x 91, see the data's README). Network alone: every slice that is
not black through the runtime, as many at a time as the batch uses, inputs in memory; mean of ALONE volumes
after as many untimed ones (an idle processor starts faster than it continues). Each round is the batch
between two such measurements, and its share is relative to the mean of both; the median of the rounds is
reported. The batch's seconds include its start. Writes benchmarks/results/volumes_cpu.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import report

import mmif_trt
from mmif_trt.machine import usable_cores
from mmif_trt.stages import colour, palettes, tiling
from mmif_trt.volume import orient

ALONE = 20
RESULT = Path(__file__).parent / "results" / "volumes_cpu.json"


def network_alone_s(templates: Path) -> float:
    """Seconds of one volume."""
    a, b = mmif_trt.read(templates / "T1.nii"), mmif_trt.read(templates / "PET.nii")
    assert a.affine is not None
    slices_a, _ = orient(np.clip(a.data / np.float32(0.9), 0, 1), a.affine, "axial")
    slices_b, _ = orient(np.clip(b.data, 0, 1), a.affine, "axial")
    pairs = [(x, colour.planes(palettes.apply(y, "PET"))) for x, y in zip(slices_a, slices_b, strict=True)]
    pairs = [(x, y) for x, y in pairs if x.any() or y.any()]
    fuser = mmif_trt.Fuser(streams=usable_cores())

    def run() -> None:
        for _ in range(ALONE):
            with ThreadPoolExecutor(usable_cores()) as pool:
                list(pool.map(lambda pair: tiling.run(fuser.runtime.infer, *pair), pairs))

    run()
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) / ALONE


def batch_s(listed: Path, out: Path) -> float:
    """Seconds of `mmif-trt batch`, its start included."""
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    command = [sys.executable, "-m", "mmif_trt", "batch", str(listed), "-o", str(out), "--quiet"]
    subprocess.run(command, check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("templates", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--volumes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    folder = args.templates.resolve()
    rows = [f"v{i:03},{folder}/T1.nii,{folder}/PET.nii,pet,0,0.9,0,1" for i in range(args.volumes)]
    head = "name,a,b,modality_b,low_a,high_a,low_b,high_b"
    (args.out / "list.csv").write_text("\n".join([head, *rows]) + "\n")
    begin = report.conditions()
    alone, seconds = [network_alone_s(args.templates)], []
    for _ in range(args.rounds):
        seconds.append(batch_s(args.out / "list.csv", args.out / "fused"))
        alone.append(network_alone_s(args.templates))
    means = [(x + y) / 2 for x, y in zip(alone[:-1], alone[1:], strict=True)]
    shares = [args.volumes * mean / second for mean, second in zip(means, seconds, strict=True)]
    row = {
        "volumes": args.volumes,
        "batch_s": [round(x, 2) for x in seconds],
        "batch_volumes_per_s": round(args.volumes / statistics.median(seconds), 3),
        "network_alone_s_per_volume": [round(x, 4) for x in alone],
        "network_alone_volumes_per_s": round(1 / statistics.median(means), 3),
        "share_of_network": round(statistics.median(shares), 3),
        "shares": [round(x, 3) for x in shares],
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10,
        "conditions": begin,
        "load_average_end": report.load_average(),
    }
    report.write_json(RESULT, row)
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
