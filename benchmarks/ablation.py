"""The worth of the diffusion model and of the two branches: python benchmarks/ablation.py run|table

    run --data HARVARD --generated train.safetensors --runs DIR [--variant V] [--seeds 0 1 2] [--steps N]
    table                              benchmarks/ablation.md from benchmarks/results/ablation.json

Every run of a variant has the same budget, data and seeds; it is fused in FP32 and scored on the 8-bit luma
of the validation pairs, the whole picture and its foreground. A run whose row exists is not repeated; several
processes may share the work, each with its own --variant or --seeds.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quality import commit

from mmif_trt import ops
from mmif_trt.files import write_atomic
from mmif_trt.machine import conditions
from mmif_trt.measure.metrics import ALL, all_metrics, foreground_metrics
from mmif_trt.models.lagn import LAGN, LAGNConfig
from mmif_trt.train import data, fusion, loop

REPO = Path(__file__).resolve().parent.parent
RESULTS, PAGE = REPO / "benchmarks/results/ablation.json", REPO / "benchmarks/ablation.md"
PREDICTABILITY, GENERATED_FUSED = 4.0, 0.2
VARIANTS: dict[str, tuple[str, float, float]] = {  # branches, weight of predictability, of generated-fused
    "without diffusion": ("both", 0, 0),
    "predictability weights": ("both", PREDICTABILITY, 0),
    "generated-fused term": ("both", 0, GENERATED_FUSED),
    "both": ("both", PREDICTABILITY, GENERATED_FUSED),
    "without diffusion, local branch only": ("local", 0, 0),
    "without diffusion, global branch only": ("global", 0, 0),
}
PLAIN = "without diffusion"


def configuration(variant: str, seed: int, steps: int) -> fusion.FusionConfig:
    branches, predictability, generated_fused = VARIANTS[variant]
    base = fusion.FusionConfig(steps=steps, seed=seed, model=LAGNConfig(branches=branches))
    loss = replace(base.loss, predictability=predictability, generated_fused=generated_fused)
    return replace(base, loss=loss)


@torch.no_grad()
def fused(model: LAGN, pairs: data.Pairs) -> np.ndarray:
    """[n, H, W] uint8 of every pair; sizes must be multiples of the network's."""
    out = []
    for a, b in zip(pairs.a, pairs.b, strict=True):
        x, y = (torch.from_numpy(p).float()[None, None].to(loop.device()) / 255 for p in (a, b))
        out.append((255 * model(x, y)[0, 0]).round().byte().cpu().numpy())
    return np.stack(out)


def score(model: LAGN, pairs: data.Pairs) -> dict[str, dict[str, float]]:
    """Means over the pairs, of the whole picture and of the foreground."""
    whole, inside = [], []
    for a, b, f in zip(pairs.a, pairs.b, fused(model, pairs), strict=True):
        triple = tuple(x.astype(np.float64) for x in (a, b, f))
        whole.append(all_metrics(*triple))
        inside.append(foreground_metrics(*triple))
    return {
        name: {key: round(float(np.nanmean([row[key] for row in rows])), 4) for key in rows[0]}
        for name, rows in (("whole", whole), ("foreground", inside))
    }


def load() -> dict[str, Any]:
    report: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    return report


def add(row: dict[str, Any]) -> None:
    """Add a row to those written by now, also by other processes."""
    folder = os.open(RESULTS.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        report = load()
        report["rows"].append(row)
        report["conditions"] = conditions()
        write_atomic(RESULTS, (json.dumps(report, indent=1) + "\n").encode())
    finally:
        os.close(folder)


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    held_out = data.read_sets(args.data, "val")
    for seed in args.seeds:
        for variant in args.variant or VARIANTS:
            key = {"variant": variant, "seed": seed, "steps": args.steps}
            if any(key.items() <= row.items() for row in load()["rows"]):
                continue
            config = configuration(variant, seed, args.steps)
            out = args.runs / f"{variant.replace(' ', '-').replace(',', '')}-{args.steps}-{seed}"
            needed = args.generated if config.loss.predictability or config.loss.generated_fused else None
            checkpoint = fusion.train(config, args.data, out, generated=needed)
            tensors, _ = loop.read_average(checkpoint)
            model: LAGN = loop.built(checkpoint, lambda m=config.model: LAGN(m), tensors)  # type: ignore[misc]
            sets = {f"mri-{pairs.modality}": score(model, pairs) for pairs in held_out}
            add(key | {"commit": commit(), "kernels": ops.KERNELS, "sets": sets})


def cell(values: list[float]) -> str:
    """Mean, and the standard deviation over the seeds where there are several."""
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def lines(rows: list[dict[str, Any]], name: str, part: str) -> list[str]:
    """Every variant's metrics on one set."""
    keys = list(rows[0]["sets"][name][part])
    out = [f"| variant | seeds | {' | '.join(keys)} |", "|---|---:|" + "---:|" * len(keys)]
    for variant in VARIANTS:
        found = [row["sets"][name][part] for row in rows if row["variant"] == variant]
        if found:
            cells = [cell([row[key] for row in found]) for key in keys]
            out.append(f"| {variant} | {len(found)} | {' | '.join(cells)} |")
    return out


def differences(rows: list[dict[str, Any]], name: str) -> list[str]:
    """The main contrast: what each use of diffusion changes on one set, within a seed."""
    out = [f"| minus {PLAIN} | seeds | {' | '.join(ALL)} |", "|---|---:|" + "---:|" * len(ALL)]
    plain = {row["seed"]: row["sets"][name]["whole"] for row in rows if row["variant"] == PLAIN}
    for variant, (branches, *_) in VARIANTS.items():
        pairs = [
            (row["sets"][name]["whole"], plain[row["seed"]])
            for row in rows
            if row["variant"] == variant and row["seed"] in plain and branches == "both"
        ]
        if pairs and variant != PLAIN:
            cells = []
            for key in ALL:
                change = [x[key] - y[key] for x, y in pairs]
                cells.append(f"{np.mean(change):+.3f} ({min(change):+.3f} to {max(change):+.3f})")
            out.append(f"| {variant} | {len(pairs)} | {' | '.join(cells)} |")
    return out


def page(report: dict[str, Any]) -> str:
    commits = sorted({row["commit"] for row in report["rows"]})
    out = [
        "# Ablation: what the diffusion model and the branches add",
        "",
        "Made by `ablation.py table` from `results/ablation.json`; do not edit. All runs under one heading "
        "have the same budget (steps of six 128 px crops; the released weights had more, see MODEL_CARD.md), "
        "data and seeds, and differ only in the loss or the branches. Fusion is in FP32; scores are of the "
        "8-bit luma of the validation pairs. Values are means, of several seeds ± their standard deviation; "
        "differences have their minimum and maximum. Foreground: pixels where either source is above 2 "
        f"of 255. Weights: predictability {PREDICTABILITY:g}, generated-fused {GENERATED_FUSED:g}. "
        f"Commits {', '.join(commits)}.",
    ]
    for step in sorted({row["steps"] for row in report["rows"]}):
        rows = [row for row in report["rows"] if row["steps"] == step]
        for name in rows[0]["sets"]:
            out += ["", f"## {step} steps, {name}", "", *lines(rows, name, "whole")]
            out += ["", *differences(rows, name), "", "Foreground:", "", *lines(rows, name, "foreground")]
    return "\n".join(out) + "\n"


def table(args: argparse.Namespace) -> None:
    write_atomic(PAGE, page(load()).encode())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = commands.add_parser("run")
    one.add_argument("--data", type=Path, required=True)
    one.add_argument("--generated", type=Path, help="what train/generate.py wrote; for diffusion only")
    one.add_argument("--runs", type=Path, required=True, help="folder for the runs, outside the repository")
    one.add_argument("--variant", choices=VARIANTS, action="append")
    one.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    one.add_argument("--steps", type=int, default=2000)
    one.add_argument("--threads", type=int, default=torch.get_num_threads())
    one.set_defaults(run=run)
    commands.add_parser("table").set_defaults(run=table)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
