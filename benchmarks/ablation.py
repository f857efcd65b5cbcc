"""The worth of the diffusion model, of both branches and of two terms: python benchmarks/ablation.py --help

    train --data HARVARD --generated train.safetensors --runs DIR --seed S [--variant V ...] [--steps N]
    score --data HARVARD --runs DIR        rows in benchmarks/results/ablation.json
    table                                  benchmarks/ablation.md from them

The variants of one seed start from the same weights, where their layers are the same, and see the same
batches. They are scored as `heldout.py` scores: on training cases that all of them leave out, lesions first.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, reduce
from operator import getitem
from pathlib import Path
from typing import Any

import heldout
import numpy as np
import results_command
import torch
import torch.nn.functional as F
from quality import SETS, commit
from torch import Tensor, nn

from mmif_trt.files import write_atomic
from mmif_trt.image import InputError
from mmif_trt.machine import conditions
from mmif_trt.measure.baselines import Fuse
from mmif_trt.measure.metrics import RANKED
from mmif_trt.models.autoencoder import Autoencoder
from mmif_trt.models.denoiser import Denoiser
from mmif_trt.models.lagn import LAGN, PLANES, LAGNConfig
from mmif_trt.train import autoencoder, checkpoints, coloured, data, diffusion, fusion, generate, loop
from mmif_trt.weights import verified_diffusion

REPO = Path(__file__).resolve().parent.parent
RESULTS, PAGE = REPO / "benchmarks/results/ablation.json", REPO / "benchmarks/ablation.md"
# The long stage of the released weights, `wide` in the Makefile, less its term for bfloat16: scores are FP32.
RECIPE = """
    --predictability 4 --turns ct pet ct spect --randomised 0.5 --flat 3 --edge 1 --edge-ct 5 --complement 4
    --complement-ct 0.3 --detail-pet 0 --detail-spect 0 --structure-ct 2.5 --likeness-ct 3 --likeness-pet 0.5
    --likeness-spect 0.5 --outside-pet 200 --outside-spect 200 --lesion-gain-ct 1.75 --activity-ct 14
    --uptake-detail-pet 0.5 --uptake-detail-spect 0.9 --bone-ct 300 --soft-ct 16 --colour-pet 9
    --colour-spect 6 --lesions-ct 14 --lesions-pet 5 --lesions-spect 14 --crop-px 128 --batch-size 16
    --learning-rate 2e-3 --stride 8 --window 4 --below 2 --activation hardswish
"""
WARM_UP_STEPS = 60
SURPRISE, GENERATED_FUSED = 4.0, 0.2
AS_TRAINED, INFORMED = "as released", "expectations as input"
EXPECTED_SAMPLES = 4  # whose mean an expectation is, as for the training
NEEDS = {
    "mri-ct": ("soft", "bone_error"),
    "mri-pet": ("detail_top", "colour_top", "readback"),
    "mri-spect": ("detail_top", "colour_top", "readback"),
}


def _loss(**weights: float) -> Callable[[fusion.FusionConfig], fusion.FusionConfig]:
    return lambda config: replace(config, loss=replace(config.loss, **weights))


def _fidelity(**weights: float) -> Callable[[fusion.FusionConfig], fusion.FusionConfig]:
    return lambda config: replace(config, fidelity=replace(config.fidelity, **weights))


def _branch(name: str) -> Callable[[fusion.FusionConfig], fusion.FusionConfig]:
    return lambda config: replace(config, model=replace(config.model, branches=name))


VARIANTS: dict[str, Callable[[fusion.FusionConfig], fusion.FusionConfig]] = {
    AS_TRAINED: lambda config: config,
    "without diffusion": _loss(predictability=0.0),
    "generated-fused term too": _loss(generated_fused=GENERATED_FUSED),
    "lesions by surprise too": _fidelity(lesion_surprise=SURPRISE),
    INFORMED: lambda config: config,
    "local branch only": _branch("local"),
    "global branch only": _branch("global"),
    "without the lesion term": _fidelity(lesions_ct=0.0, lesions_pet=0.0, lesions_spect=0.0),
    "without the colour term": _fidelity(colour_pet=0.0, colour_spect=0.0),
}


class Informed(LAGN):
    """LAGN that also sees what the diffusion model expects of each source from the other one.

    forward(a, b): [B, 2, H, W] and [B, 3, H, W], each what LAGN takes and what is expected, to fused
    [B, 1, H, W]."""

    def __init__(self, config: LAGNConfig) -> None:
        super().__init__(config)
        self.stem = nn.Conv2d(4 * (PLANES + 2), config.local_dim, 3, padding=1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        x = torch.cat([F.pixel_unshuffle(a, 2), F.pixel_unshuffle(b, 2)], 1)
        return self.fused(self.stem(x), a[:, :1], b[:, : PLANES - 1])


class Shared(coloured.Batches):
    """Keeps the last batch, on the device, for the other variants."""

    last: tuple[int, coloured.Batch] | None = None

    def of(self, number: int, apart: int = 1) -> coloured.Batch:
        if self.last is None or self.last[0] != number:
            self.last = number, super().of(number, apart).to(loop.device())
        return self.last[1]

    def informed(self, model: LAGN, a: Tensor, b: Tensor, precision: str) -> Tensor:
        """The forward pass of an `Informed` network on this batch. Pictures of another size have no
        expectation: as where a crop has none, the sources themselves stand for it."""
        assert self.last is not None
        generated = self.last[1].generated
        expected = generated if generated is not None and generated[0].shape == a.shape else (a, b[:, :1])
        told_a, told_b = (torch.cat(x, 1) for x in zip((a, b), expected, strict=True))
        return fusion.forward(model, told_a, told_b, precision)


@dataclass(frozen=True)
class Run:
    """One variant in training: its configuration, its state, and the loss of a step."""

    name: str
    config: fusion.FusionConfig
    state: checkpoints.State
    objective: loop.Objective


def recipe(seed: int, steps: int) -> fusion.FusionConfig:
    """The configuration that all variants of a seed share."""
    words = ["--data", ".", "--out", ".", "--seed", str(seed), "--steps", str(steps), *RECIPE.split()]
    held_out = [f"{name.removeprefix('mri-')}:{case}" for name in SETS for case in heldout.CASES[name]]
    given = fusion.options(fusion.FusionConfig()).parse_args([*words, "--hold-out", *held_out])
    return replace(fusion.configured(given), warmup_steps=WARM_UP_STEPS)


def read(config: fusion.FusionConfig, root: Path, generated: Path) -> list[coloured.ColouredPairs]:
    """The training pairs in the order of their turns, less the cases held out, with what the diffusion model
    expects of each."""
    sets = coloured.without(generate.attach(generated, data.read_splits(root)[0]), config.hold_out)
    return fusion.in_turn([coloured.read_colours(root, "train", pairs) for pairs in sets], config.turns)


def runs_of(
    names: Sequence[str], shared: fusion.FusionConfig, sets: list[coloured.ColouredPairs], workers: int
) -> list[Run]:
    """The variants of one seed, before their first step, over one series of batches with lesions."""
    batches = Shared(sets, fusion.batches_of(shared, sets).mixture, workers)
    out = []
    for name in names:
        config = VARIANTS[name](shared)
        network, forward = (Informed, batches.informed) if name == INFORMED else (LAGN, fusion.forward)
        state = loop.new_state(config, lambda network=network, config=config: network(config.model))  # type: ignore[misc]
        assert isinstance(state.model, LAGN)
        out.append(Run(name, config, state, fusion.objective(state.model, config, batches, forward)))
    return out


def steps_of(runs: Sequence[Run]) -> Iterator[int]:
    """Train all side by side; after each step its number."""
    for step in range(runs[0].config.steps):
        for run in runs:
            loop.train_step(run.state, run.config, run.objective)
        yield step + 1


def file_of(folder: Path, name: str, seed: int) -> Path:
    return folder / f"{name.replace(' ', '-')}-{seed}.safetensors"


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    config = recipe(args.seed, args.steps)
    runs = runs_of(
        args.variant or list(VARIANTS), config, read(config, args.data, args.generated), args.workers
    )
    args.runs.mkdir(parents=True, exist_ok=True)
    for step in steps_of(runs):
        if step % args.checkpoint_every == 0 or step == config.steps:
            print(f"seed {args.seed}: {step} of {config.steps} steps", flush=True)
            for run in runs:
                checkpoints.save_checkpoint(file_of(args.runs, run.name, args.seed), run.state, run.config)


def informed_fuse(path: Path, name: str) -> Fuse:
    """As heldout.fuse_of, by a network that is told what the diffusion model expects of these pictures."""
    tensors, stated = checkpoints.read_average(path)
    network = Informed(LAGNConfig(**stated["model"]))
    network.load_state_dict(tensors)
    network.eval()
    joint, denoiser = diffusion_model()

    def told(a: Tensor, b: Tensor) -> Tensor:
        one, other = (np.rint(255 * x.numpy()[:, 0]).astype(np.uint8) for x in (a, b))
        pair = data.Pairs(name.removeprefix("mri-"), one, other, ("one",))
        expected = generate.cross_generate(joint, denoiser, pair, 1, EXPECTED_SAMPLES, precision="fp32")
        of_a, of_b = (torch.from_numpy(x)[None] / 255 for x in expected)
        fused: Tensor = network(torch.cat([a, of_a], 1), torch.cat([b, of_b], 1))
        return fused

    return heldout.by_planes(told)


@cache
def diffusion_model() -> tuple[Autoencoder, Denoiser]:
    """The shipped one."""
    return autoencoder.load(verified_diffusion("autoencoder")), diffusion.load(verified_diffusion("denoiser"))


def load(path: Path = RESULTS) -> dict[str, Any]:
    """{"conditions": {...}, "rows": [{"variant", "seed", "steps", "batch", set: {measure: mean}}]}."""
    report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": []}
    return report


def score(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    report = load(args.out)
    known = {(row["variant"], row["seed"]) for row in report["rows"]}
    files = [
        (name, seed, path)
        for seed in args.seeds
        for name in VARIANTS
        if (path := file_of(args.runs, name, seed)).exists() and (name, seed) not in known
    ]
    if not files:
        raise InputError(f"{args.runs}: no checkpoint of `train` without a row; expected some")
    sets = {name: heldout.planted_of(args.data, name) for name in SETS}
    for name, seed, path in files:
        _, stated = checkpoints.read_average(path)
        row = {"variant": name, "seed": seed, "steps": stated["steps"], "batch": stated["batch_size"]}
        row |= {"commit": args.commit, "trained_on": args.trained_on}
        for which, planted in sets.items():
            fuse = informed_fuse(path, which) if name == INFORMED else heldout.fuse_of(str(path))
            row[which] = heldout.row(fuse, planted)
        report["rows"].append(row)
        report["conditions"] = conditions()
        write_atomic(args.out, (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())


Place = tuple[str, ...]  # of a value in a row: set, measure; or set, "share", kind of lesion


def value(row: dict[str, Any], place: Place) -> float:
    return float(reduce(getitem, place, row))  # type: ignore[arg-type]


def changes(rows: Sequence[dict[str, Any]], variant: str, place: Place) -> list[float]:
    """What a variant changes against the recipe as released, within each seed that has both."""
    of = {(row["variant"], row["seed"]): value(row, place) for row in rows}
    seeds = sorted(seed for name, seed in of if name == variant and (AS_TRAINED, seed) in of)
    return [of[variant, seed] - of[AS_TRAINED, seed] for seed in seeds]


def cell(values: Sequence[float], sign: str = "") -> str:
    """The mean, and the least and the most where there are several; of a change with its sign."""
    span = f" ({min(values):{sign}.3f} to {max(values):{sign}.3f})" if len(values) > 1 else ""
    return f"{np.mean(values):{sign}.3f}{span}"


def table_of(rows: Sequence[dict[str, Any]], places: Sequence[Place]) -> list[str]:
    """The recipe as released, then what each variant changes."""
    out = [f"| | seeds | {' | '.join(place[-1] for place in places)} |", "|---|---:|" + "---:|" * len(places)]
    for variant in VARIANTS:
        mine = [row for row in rows if row["variant"] == variant]
        if variant == AS_TRAINED:
            values = [[value(row, place) for row in mine] for place in places]
        else:
            values = [changes(rows, variant, place) for place in places]
        if values[0]:
            sign = "" if variant == AS_TRAINED else "+"
            out.append(f"| {variant} | {len(values[0])} | {' | '.join(cell(x, sign) for x in values)} |")
    return out


def page(report: dict[str, Any]) -> str:
    rows = report["rows"]
    commits = sorted({row["commit"] for row in rows})
    budgets = sorted({f"{row['steps']} steps of {row['batch']} crops" for row in rows})
    devices = sorted({row["trained_on"] for row in rows})
    out = [
        "# Ablation: what the diffusion model, the branches and the terms add",
        "",
        "Made by `ablation.py table` from `results/ablation.json`; do not edit. Each run trains a network of "
        f"the released shape from random weights, {' or '.join(budgets)} of 128 px (the released weights had "
        "far more, see MODEL_CARD.md); the runs of one seed see the same crops. The first row is the "
        "released recipe, mean over the seeds (least to most). The others are what the variant changes "
        "against it within a seed. Scores are of training cases that all runs left out, fused in FP32. "
        f"Weights: predictability 4, generated-fused {GENERATED_FUSED:g}, lesions by surprise {SURPRISE:g}. "
        f"Trained on {', '.join(devices)}, in bfloat16; commits {', '.join(commits)}.",
    ]
    for name in SETS:
        first = [(name, key) for key in ("lesions", "worst", "lost", *NEEDS[name])]
        kinds = [(name, "share", kind) for kind in rows[0][name]["share"]]
        eight = [(name, key) for key in RANKED]
        out += ["", f"## {name}", "", *table_of(rows, first), "", "Lesions kept, by kind:", ""]
        out += [*table_of(rows, kinds), "", "The eight measures:", "", *table_of(rows, eight)]
    return "\n".join(out) + "\n"


def table(_: argparse.Namespace) -> None:
    write_atomic(PAGE, page(load()).encode())


def main(argv: Sequence[str] | None = None) -> int:
    parser = results_command.parser(__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    shared = argparse.ArgumentParser(add_help=False)
    results_command.add_data(shared)
    shared.add_argument("--runs", type=Path, required=True, help="folder of the checkpoints")
    shared.add_argument("--threads", type=int, default=torch.get_num_threads())
    one = commands.add_parser("train", parents=[shared], help="train the variants of a seed side by side")
    one.add_argument("--generated", type=Path, required=True, help="what train/generate.py wrote")
    one.add_argument("--seed", type=int, required=True)
    one.add_argument("--variant", choices=VARIANTS, action="append", help="default: all")
    one.add_argument("--steps", type=int, default=1000)
    one.add_argument("--checkpoint-every", type=int, default=100)
    one.add_argument("--workers", type=int, default=0, help="processes that make batches ahead")
    one.set_defaults(run=train)
    two = commands.add_parser("score", parents=[shared], help="score every checkpoint without a row")
    results_command.add_out(two, RESULTS.name)
    two.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    two.add_argument("--commit", default=commit(), help="that trained them; default: this one")
    two.add_argument(
        "--trained-on", default=str(loop.device()), help="as NVIDIA H100; default: this machine's"
    )
    two.set_defaults(run=score)
    commands.add_parser("table", help="write the page").set_defaults(run=table)
    return results_command.run("ablation", parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
