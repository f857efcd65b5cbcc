"""Training LAGN with and without the kernels: python benchmarks/bench_training.py [--steps 300]

The same seed and batches for both, in bfloat16, on the bundled sample pairs, step by step in turn; the loss
of every step, and the time of a step by the host's clock, which waits for each loss as training does.
Diverging curves reveal errors in a kernel that single calls do not.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import report
import torch

from mmif_trt import ops
from mmif_trt.models.lagn import LAGN
from mmif_trt.samples import PAIRS, sample
from mmif_trt.train import coloured, data, fusion, loop
from mmif_trt.train.captured import CapturedForward

SMOOTH = 20  # steps of the means that are compared
COLD = 10  # steps before the timed ones


def bundled(root: Path) -> list[coloured.ColouredPairs]:
    """The bundled pairs, laid out in `root` as the training reads them: 8-bit PNG by set and side."""
    for name, pair in PAIRS.items():
        for modality, image in zip(("mri", pair.other), sample(name), strict=True):
            folder = root / name / "train" / modality
            folder.mkdir(parents=True)
            levels = np.rint(image.data * (255 / pair.white)).astype(np.uint8)
            if not cv2.imwrite(
                str(folder / "sample_1.png"), levels[..., ::-1] if levels.ndim == 3 else levels
            ):
                raise OSError(f"{folder}: cannot be written")
    sets = data.read_sets(root, "train")
    return [coloured.read_colours(root, "train", pairs) for pairs in sets]


class Training:
    """One training, a step at a time, with the kernels or without, its network captured or not."""

    def __init__(
        self,
        config: fusion.FusionConfig,
        sets: list[coloured.ColouredPairs],
        kernels: bool,
        capture: bool,
    ) -> None:
        self.config, self.kernels, self.capture = config, kernels, capture
        self.state = fusion.new_state(config)
        assert isinstance(self.state.model, LAGN)
        run_network = CapturedForward() if capture else fusion.forward
        self.objective = fusion.objective(
            self.state.model, config, fusion.batches_of(config, sets), run_network
        )
        self.losses: list[float] = []
        self.ms: list[float] = []

    def step(self) -> None:
        with nullcontext() if self.kernels else ops.plain_operations():
            start = time.perf_counter()
            loss, _ = loop.train_step(self.state, self.config, self.objective)
            self.ms.append((time.perf_counter() - start) * 1e3)
        self.losses.append(round(loss, 5))

    def row(self) -> dict[str, Any]:
        step_ms = report.percentiles(self.ms[COLD:] or self.ms)
        ends = f"loss {self.losses[0]} to {self.losses[-1]}"
        title = {"kernels": self.kernels, "captured": self.capture}
        print(f"{title}: {step_ms['p50']} ms per step, {ends}", flush=True)
        return {"status": "measured", **title, "loss": self.losses, "step_ms": step_ms}


def gap(a: list[float], b: list[float]) -> float:
    """The largest distance between the two smoothed curves, relative to the fall of the first."""
    width = min(SMOOTH, len(a))
    kernel = np.ones(width) / width
    x, y = (np.convolve(curve, kernel, "valid") for curve in (a, b))
    return float(np.abs(x - y).max() / max(abs(a[0] - x[-1]), 1e-9))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = fusion.FusionConfig(
        steps=args.steps, batch_size=args.batch, crop_px=args.crop, warmup_steps=max(1, args.steps // 10)
    )
    device = loop.device()
    with tempfile.TemporaryDirectory() as folder:
        sets = bundled(Path(folder))
    result: dict[str, Any] = {"what": "bench_training.py", "conditions": report.conditions()}
    result["conditions"]["device"] = report.device_facts(device)
    result["settings"] = {name: getattr(args, name) for name in ("steps", "crop", "batch", "threads")}
    result["rows"] = []
    ways = [(True, False), (False, False)]  # kernels, captured
    if device.type == "cuda":
        ways.append((True, True))
    if not ops.has_kernel(torch.empty(0, device=device)):
        ways = [way for way in ways if not way[0]]
        reason = f"no kernel here ({ops.KERNELS})"
        result["rows"].append({"status": "refused", "kernels": True, "captured": False, "reason": reason})
    trainings = [Training(config, sets, *way) for way in ways]
    for number in range(1, args.steps + 1):
        for training in trainings:
            training.step()
        if number == args.steps or number % 100 == 0:
            rows = [training.row() for training in trainings]
            report.write_so_far(args.json, {**result, "rows": result["rows"] + rows})
    result["rows"] += rows
    if all(row["status"] == "measured" for row in result["rows"]):
        first, *others = (row["loss"] for row in result["rows"])
        result["gap"] = round(max(gap(first, other) for other in others), 4)
        print(f"largest gap of the smoothed curves: {100 * result['gap']:.1f} % of the fall")
    if args.json:
        report.write_json(args.json, result)
    return 0 if "gap" in result else 1


if __name__ == "__main__":
    raise SystemExit(main())
