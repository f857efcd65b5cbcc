"""Weights chosen on training cases: one row per set for each checkpoint, on cases that its training left out.

    python benchmarks/heldout.py score --data HARVARD NAME=CHECKPOINT [NAME=0.5*CHECKPOINT+0.5*OTHER ...]
    python benchmarks/heldout.py score --data HARVARD --validation NAME=CHECKPOINT
    python benchmarks/heldout.py table

HARVARD holds SET/train/{mri,ct|pet|spect}/NAME.png. A checkpoint is one of train/fusion.py (its running
average) or a released .safetensors; a weighted sum of several is a network of interpolated weights. The
validation cases are for the end: with --validation the rows are of as many of their pairs and say so in
their names. Rows of other names stay in --out (benchmarks/results/heldout.json).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import results_command
import torch
from lesions import rounded
from quality import SETS, commit
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from mmif_trt import io
from mmif_trt.files import write_atomic
from mmif_trt.image import Image, InputError
from mmif_trt.measure.baselines import PICTURES, Fuse
from mmif_trt.measure.fidelity import fidelity
from mmif_trt.measure.lesions import read, summarise
from mmif_trt.measure.metrics import RANKED, all_metrics
from mmif_trt.measure.planting import Pair, Planted, plant
from mmif_trt.measure.scores import as_8_bit, luma_8_bit
from mmif_trt.models.lagn import LAGN, LAGNConfig
from mmif_trt.stages.colour import planes, recombine
from mmif_trt.train.data import case

CASES = {"mri-ct": ("case34", "case37"), "mri-pet": ("case25",), "mri-spect": ("case15", "case40")}
PAIRS, PER_KIND = 14, 40  # of a set; lesions of a kind
VALIDATION = ", validation"  # at the end of such a row's name
END_SLICES = {"mri-pet": 8}  # of a case at either end, almost empty


def weights(told: str) -> dict[str, Tensor]:
    """The tensors of "FILE", or of "0.25*FILE+0.75*FILE". Raises InputError."""
    total: dict[str, Tensor] = {}
    for term in told.split("+"):
        factor, _, path = term.rpartition("*")
        try:
            share, tensors = float(factor or 1), load_file(path)
        except (OSError, ValueError) as error:
            raise InputError(f"{term}: {error}; expected FILE.safetensors, or NUMBER*FILE") from error
        averages = {k.removeprefix("average."): v for k, v in tensors.items() if k.startswith("average.")}
        for key, value in (averages or tensors).items():
            total[key] = total[key] + share * value if key in total else share * value
    return total


def config_of(told: str) -> LAGNConfig:
    """The network's dimensions, as the first file of `told` states them."""
    path = told.partition("+")[0].rpartition("*")[2]
    with safe_open(path, "pt") as file:
        stated = json.loads((file.metadata() or {}).get("config", "{}"))
    return LAGNConfig(**stated.get("model", stated))


def fuse_of(told: str) -> Fuse:
    """A network of these weights in FP32, fusing pictures whose sides are multiples of its windows."""
    model = LAGN(config_of(told))
    model.load_state_dict(weights(told))
    return by_planes(model.eval())


def by_planes(network: Callable[[Tensor, Tensor], Tensor]) -> Fuse:
    """8-bit pictures fused by a network of [1, 1, H, W] and `colour.planes` [1, 2, H, W]."""

    def fuse(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        mri, other = a.astype(np.float32) / 255, b.astype(np.float32) / 255
        with torch.inference_mode():
            given = torch.from_numpy(mri)[None, None], torch.from_numpy(planes(other))[None]
            y = network(*given)[0, 0].numpy()
        fused = y if b.ndim == 2 else recombine(y, other)
        return np.rint(255 * np.clip(fused, 0, 1)).astype(np.uint8)

    return fuse


def pairs_of(data: Path, name: str, count: int, *, held_out: bool = True) -> list[Pair]:
    """count evenly spaced pairs, the MRI as luma, of the set's held-out cases or of those for validation."""
    folder, kind = data / name / ("train" if held_out else "val"), name.removeprefix("mri-")
    stems = sorted(p.stem for p in (folder / "mri").glob("*.png"))
    if held_out:
        stems = [stem for stem in stems if case(stem) in CASES[name]]
        if not stems:
            raise InputError(f"{folder}: none of {', '.join(CASES[name])}; expected the cases held out")
    ends = END_SLICES.get(name, 0)
    stems = stems[ends : len(stems) - ends]
    if not stems:
        raise InputError(f"{folder}: no pairs; expected mri/ and {kind}/ with PNG files of equal names")
    pairs = []
    for i in np.linspace(0, len(stems) - 1, count).round().astype(int):
        a, b = (io.read(folder / x / f"{stems[i]}.png") for x in ("mri", kind))
        pairs.append((stems[i], luma_8_bit(a).astype(np.uint8), as_8_bit(b)))
    return pairs


def planted_of(data: Path, name: str, held_out: bool = True) -> list[Planted]:
    """PAIRS of the set's held-out cases, or of those for validation, with lesions."""
    return plant(pairs_of(data, name, PAIRS, held_out=held_out), name.removeprefix("mri-"), per_kind=PER_KIND)


def row(fuse: Fuse, planted: Sequence[Planted]) -> dict[str, Any]:
    """Lesions, what a reader needs and the eight measures of published tables: means over the pairs."""
    kept, needs, published = [], [], []
    for one in planted:
        fused = fuse(one.a, one.b)
        kept += read(one, fused, [fuse(a, b) for a, b in one.scenes])
        needs.append(fidelity(one.a, one.b, fused, one.modality, one.palette))
        published.append(all_metrics(*(luma_of(x) for x in (one.a, one.b, fused))))
    total = summarise(kept)
    out: dict[str, Any] = {"lesions": total.mean, "worst": total.worst, "lost": total.lost}
    out |= {key: mean([x[key] for x in needs]) for key in needs[0]}
    out |= {key: float(np.nanmean([x[key] for x in published])) for key in RANKED}
    rows = {key: rounded(value) for key, value in out.items()}
    return rows | {"share": {kind: rounded(share) for kind, share in total.share.items()}}


def mean(values: Sequence[float]) -> float:
    """Of those that are there; nan where a measure does not apply to any pair, as colour to a grey one."""
    there = [value for value in values if not np.isnan(value)]
    return float(np.mean(there)) if there else float("nan")


def luma_of(picture: np.ndarray) -> np.ndarray:
    return luma_8_bit(Image(picture))


def load(path: Path) -> dict[str, Any]:
    """{"cases": {set: [...]}, "rows": {name: {"commit", "weights", set: {measure: mean}}}}."""
    if not path.exists():
        return {"cases": {name: list(cases) for name, cases in CASES.items()}, "rows": {}}
    report: dict[str, Any] = json.loads(path.read_text())
    return report


def methods_of(networks: Sequence[str]) -> dict[str, Fuse]:
    """The networks of "NAME=CHECKPOINT"s, by name. Raises InputError."""
    methods = {}
    for told in networks:
        name, _, files = told.partition("=")
        if not files:
            raise InputError(f"{told}: expected NAME=CHECKPOINT")
        expected = "expected a checkpoint of train/fusion.py or a released .safetensors"
        for path in (term.rpartition("*")[2] for term in files.split("+")):
            if not Path(path).is_file():
                raise InputError(f"NAME=CHECKPOINT {told}: {path!r} is not a file; {expected}")
        try:
            methods[name] = fuse_of(files)
        except InputError:
            raise
        except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
            raise InputError(f"NAME=CHECKPOINT {told}: holds no network of ours; {expected}") from error
    return methods


def refuse_seen(networks: Sequence[str]) -> None:
    """Raises InputError for a checkpoint whose training had cases that are measured. A released file does not
    say; nor does a checkpoint what those before it had (--init)."""
    measured = {f"{name.removeprefix('mri-')}:{one}" for name, cases in CASES.items() for one in cases}
    for told in networks:
        for term in told.partition("=")[2].split("+"):
            with safe_open(term.rpartition("*")[2], "pt") as file:
                stated = json.loads((file.metadata() or {}).get("config", "{}"))
            if seen := sorted(measured - set(stated.get("hold_out", measured))):
                expected = (
                    f"expected --hold-out {' '.join(sorted(measured))} in its training, or --validation"
                )
                raise InputError(f"NAME=CHECKPOINT {told}: trained on {' '.join(seen)}; {expected}")


def score(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    methods = {"max": PICTURES["max"]} | methods_of(args.networks)
    if not args.validation:
        refuse_seen(args.networks)
    report = load(args.out)
    for name in SETS:
        planted = planted_of(args.data, name, not args.validation)
        for method, fuse in methods.items():
            method += VALIDATION if args.validation else ""
            report["rows"].setdefault(method, {})[name] = row(fuse, planted)
            report["rows"][method]["commit"] = commit()
            write_atomic(args.out, (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())


def show(args: argparse.Namespace) -> None:
    """One line per set and method: lesions, needs, and which of the eight it wins over the maximum."""
    rows = load(args.out)["rows"]
    for name in SETS:
        for method, sets in rows.items():
            if name not in sets:
                continue
            values = sets[name]
            largest = rows["max" + (VALIDATION if method.endswith(VALIDATION) else "")][name]
            wins = [key for key in RANKED if values[key] > largest[key]]
            cells = [f"{k} {v:.3f}" for k, v in values.items() if isinstance(v, float)]
            print(f"{name} {method}: {', '.join(cells)}; {len(wins)} over the maximum: {' '.join(wins)}")


def main(argv: Sequence[str] | None = None) -> int:
    shared = argparse.ArgumentParser(add_help=False)
    results_command.add_out(shared, "heldout.json")
    parser = results_command.parser(__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = commands.add_parser("score", parents=[shared], help="measure networks and the maximum")
    results_command.add_data(one)
    one.add_argument("networks", nargs="+", metavar="NAME=CHECKPOINT")
    one.add_argument("--validation", action="store_true", help="the validation cases, not those held out")
    one.add_argument("--threads", type=int, default=1)
    one.set_defaults(run=score)
    page = commands.add_parser("table", parents=[shared], help="print all rows")
    page.set_defaults(run=show)
    return results_command.run("heldout", parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
