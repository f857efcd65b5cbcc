"""The cost of a plan of many studies: headers, cases on disk, the share of one run, and `status`.

    python benchmarks/bench_plan.py OUT [--headers 600] [--cases 10000] [--records 10000]

Headers are those of a phantom's MR series, 512 bytes of pixels each; CPU seconds are those of this process
and the child that reads. A case has an MRI of 176 files and a PET of 90, named by UIDs. Peak memory is that
of a separate process, after a tenth of the cases and after all. Writes benchmarks/results/plan_cpu.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import report

from mmif_trt.clinical import plan_folder, progress, records
from mmif_trt.clinical.case import Case
from mmif_trt.clinical.decoder import Decoder
from mmif_trt.clinical.spill import Spill
from mmif_trt.storage import Folder

RESULT = Path(__file__).parent / "results" / "plan_cpu.json"
SHARES = 64
RUN = records.Run(runtime="openvino", precision="fp32")


def cpu_s() -> float:
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in both)


def headers(out: Path, count: int) -> dict[str, Any]:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    import phantoms

    shape = (count, 16, 16)
    phantoms.write_mr(out / "mr", phantoms.affine_of(shape=shape), shape)
    paths = sorted(str(path) for path in (out / "mr").iterdir())
    before, start = cpu_s(), time.perf_counter()
    with Decoder() as decoder:
        found = sum(1 for _ in decoder.headers(paths))
    seconds = time.perf_counter() - start
    assert found == count
    return {
        "headers": count,
        "cpu_ms_per_header": ms(cpu_s() - before, count),
        "clock_ms": ms(seconds, count),
    }


def ms(seconds: float, count: int) -> float:
    return round(1e3 * seconds / count, 3)


def case(number: int) -> Case:
    def series(which: int, count: int) -> tuple[str, ...]:
        root = root_of(number, which)
        folder = f"/archive/{number // 1000:04}/{number:07}/{root}"
        return tuple(f"{folder}/{root}.{k * 31 % 10**6}.{number * 1000 + k}.dcm" for k in range(count))

    name = f"{hashlib.sha256(str(number).encode()).hexdigest()[:12]}_0123abcd_pet_4567cdef"
    words = f"mri series 3 't1' (176 slices of 256 x 256, /archive/{number}) + pet series 4 (90 slices)"
    uids = (root_of(number, 1), root_of(number, 2))
    return Case(name, series(1, 176), series(2, 90), words=words, series=uids)


def root_of(number: int, which: int) -> str:
    return f"1.2.840.113619.2.{number % 997}.{(number * 7919 + which * 104729) % 10**12}"


def plan(out: Path, count: int) -> dict[str, Any]:
    """In this process, whose peak memory is measured."""
    store, before = Folder(out / "plan"), cpu_s()
    peaks = []
    with Spill() as spill:
        for number in range(count):
            spill.put(case(number))
            if number + 1 in (count // 10, count):
                peaks.append(round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1))
        plan_folder.write(store, spill, RUN, (1, 1))
    written = cpu_s()
    share = sum(1 for _ in plan_folder.PlanFolder(store).cases(SHARES // 2, SHARES))
    return {
        "cases": count,
        "cpu_ms_per_case": ms(written - before, count),
        "bytes_per_case": round(sum(e.stat().st_size for e in os.scandir(out / "plan")) / count),
        "peak_mb": peaks,
        "share": f"{share} cases",
        "share_cpu_s": round(cpu_s() - written, 3),
    }


def status(out: Path, count: int) -> dict[str, Any]:
    """Records as a run writes them, without the volumes."""
    output = records.output_in(Folder(out / "fused"), ".nii", count)
    owner = records.Owner.new()
    for number in range(count):
        record = {"name": case(number).name, "status": records.DONE, "of": count, **records.stamp(owner)}
        text = json.dumps({**record, "finished": time.time(), "asked": records.asked(case(number), RUN)})
        path = Path(output.store.where(output.record(record["name"])))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    before = cpu_s()
    assert progress.of(output.store).done == count
    return {"records": count, "cpu_ms_per_record": ms(cpu_s() - before, count)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--headers", type=int, default=600)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--only-plan", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, default=RESULT)
    args = parser.parse_args()
    if args.only_plan:
        print(json.dumps(plan(args.out, args.cases)))
        return
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    result: dict[str, Any] = {"conditions": report.conditions()}
    result["headers"] = headers(args.out, args.headers)
    own = [sys.executable, __file__, str(args.out), "--cases", str(args.cases), "--only-plan"]
    made = subprocess.run(own, check=True, capture_output=True, text=True, env=report.environment())
    result["plan"] = json.loads(made.stdout)
    result["status"] = status(args.out, args.records)
    result["load_average_end"] = report.load_average()
    report.write_json(args.json, result)
    shutil.rmtree(args.out)


if __name__ == "__main__":
    main()
