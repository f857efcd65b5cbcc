"""A trial of the network in int8: what it costs and what it saves, beside FP32 and bfloat16, by OpenVINO.

    pip install nncf
    python benchmarks/int8.py --data HARVARD

NNCF quantises lagn.onnx after training, calibrated on 32 training pairs of each set without the cases held
out; those judge it, as in heldout.py. Times are of one 256 x 256 pair on one thread, the three in turn. One
row, in --out (benchmarks/results/int8.json).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import results_command
from heldout import CASES, planted_of, row
from quality import SETS, commit

from mmif_trt import runtimes, weights
from mmif_trt.files import write_atomic
from mmif_trt.image import InputError
from mmif_trt.machine import conditions
from mmif_trt.measure.baselines import Fuse
from mmif_trt.runtimes import stacked
from mmif_trt.runtimes.openvino import core_of
from mmif_trt.stages.colour import planes, recombine
from mmif_trt.train.coloured import read_colours
from mmif_trt.train.data import case, read_sets

CALIBRATION_PAIRS, CALLS = 32, 60
SIDE = 256


def graph() -> Any:
    model = core_of(os.getpid()).read_model(str(weights.verified_path("lagn", "onnx")))
    model.reshape({"a": [1, 1, SIDE, SIDE], "b": [1, 2, SIDE, SIDE]})
    return model


def quantised(data: Path) -> Any:
    try:
        import nncf  # type: ignore[import-not-found]
    except ImportError as error:
        raise InputError(
            "int8.py: nncf is not installed; expected it beside OpenVINO: pip install nncf"
        ) from error
    rng, pairs = np.random.default_rng(0), []
    for one in read_sets(data, "train"):
        known = CASES[f"mri-{one.modality}"]
        left = [i for i, name in enumerate(one.names) if case(name) not in known]
        rgb = read_colours(data, "train", one).rgb
        for i in rng.choice(left, CALIBRATION_PAIRS, replace=False):
            b = one.b[i] if rgb is None else rgb[i]
            a, b = one.a[i].astype(np.float32) / 255, planes(b.astype(np.float32) / 255)
            pairs.append(dict(zip("ab", stacked(a, b), strict=True)))
    return nncf.quantize(
        graph(), nncf.Dataset(pairs), subset_size=len(pairs), preset=nncf.QuantizationPreset.MIXED
    )


def request(model: Any, precision: str) -> Any:
    told = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    return core_of(os.getpid()).compile_model(model, "CPU", told).create_infer_request()


def infer(one: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    one.infer(list(stacked(a, b)))
    out: np.ndarray = one.get_output_tensor(0).data[0, 0].copy()
    return out


def fuse_of(one: Any) -> Fuse:
    def fuse(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        other = b.astype(np.float32) / 255
        y = infer(one, a.astype(np.float32) / 255, planes(other))
        fused = y if b.ndim == 2 else recombine(y, other)
        return np.rint(255 * np.clip(fused, 0, 1)).astype(np.uint8)

    return fuse


def times_ms(requests: dict[str, Any]) -> dict[str, dict[str, float]]:
    a, b, _ = runtimes.golden("lagn")
    taken: dict[str, list[float]] = {name: [] for name in requests}
    for _ in range(CALLS):
        for name, one in requests.items():
            start = time.perf_counter()
            infer(one, a[1], b[1])
            taken[name].append(1e3 * (time.perf_counter() - start))
    return {
        name: {"least": round(min(x), 1), "median": round(float(np.median(x)), 1)}
        for name, x in taken.items()
    }


def trial(args: argparse.Namespace) -> None:
    small = quantised(args.data)
    requests = {"fp32": request(graph(), "f32"), "int8": request(small, "f32")}
    if "avx512_bf16" in Path("/proc/cpuinfo").read_text():
        requests["bf16"] = request(graph(), "bf16")
    report: dict[str, Any] = {"conditions": conditions() | {"commit": commit(), "threads": 1}}
    report["conditions"]["date"] = f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}"
    a, b, expected = runtimes.golden("lagn")
    report["golden_levels"] = {
        name: round(
            255
            * max(float(np.abs(infer(one, x, y) - f).max()) for x, y, f in zip(a, b, expected, strict=True)),
            2,
        )
        for name, one in requests.items()
    }
    report["ms"] = times_ms(requests)
    report["heldout"] = {}
    for name in SETS:
        planted = planted_of(args.data, name)
        report["heldout"][name] = {k: row(fuse_of(requests[k]), planted) for k in ("fp32", "int8")}
    write_atomic(args.out, (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())


def main(argv: Sequence[str] | None = None) -> int:
    parser = results_command.parser(__doc__)
    results_command.add_data(parser)
    results_command.add_out(parser, "int8.json")
    parser.set_defaults(run=trial)
    return results_command.run("int8", parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
