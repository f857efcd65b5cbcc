"""PET and SPECT in palettes that are not the archive's: lesions, colour and uptake of the fused pictures.

    python benchmarks/repainted.py score --data HARVARD [--held-out] [NAME=CHECKPOINT ...] [--out JSON]
    python benchmarks/repainted.py table [--out JSON]

A pair's uptake is read off its colours by the palette's inverse and shown again in each of DICOM's palettes
(PS3.6, table B.1-1), which consoles use for PET and SPECT, or in grey. Without NAME=CHECKPOINT the released
networks are scored, on the validation cases, beside the overlay and the maximum; --held-out takes the
training cases that heldout.py takes, to choose weights on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any

import heldout
import numpy as np
import readme
import results_command
import torch
from quality import commit

from mmif_trt import weights
from mmif_trt.files import write_atomic
from mmif_trt.image import InputError
from mmif_trt.measure.baselines import PICTURES, Fuse
from mmif_trt.measure.planting import Pair, plant
from mmif_trt.measure.uptake import Palette, recover
from mmif_trt.stages import palettes
from mmif_trt.train.data import case

SETS = ("mri-pet", "mri-spect")
OWN, GREY = "archive's own", "grey"
SHOWN = (OWN, *palettes.PALETTES, GREY)
PAIRS, PER_KIND = 12, 24  # of a set; lesions of a kind
BLACK = 3  # levels: the archive's background is not part of its palette


def repainted(pairs: Sequence[Pair]) -> Iterator[tuple[str, list[Pair]]]:
    """The pairs under each palette. Raises InputError where a case's own cannot be recovered."""
    cases = [case(name) or name for name, *_ in pairs]
    own: dict[str, Palette] = {}
    for one in sorted(set(cases)):
        found = recover(np.stack([b for of, (_, _, b) in zip(cases, pairs, strict=True) if of == one]))
        if found is None:
            raise InputError(f"{one}: no palette found in its pictures; expected a colour-mapped tracer")
        own[one] = found
    places = [
        np.rint(255 * own[of].place(b)).astype(np.uint8) for of, (_, _, b) in zip(cases, pairs, strict=True)
    ]
    for shown in SHOWN:
        if shown == OWN:
            yield shown, list(pairs)
            continue
        levels = np.arange(256) if shown == GREY else 255 * palettes.table(shown)
        colours = np.rint(np.broadcast_to(levels.reshape(256, -1), (256, 3))).astype(np.uint8)
        yield (
            shown,
            [
                (name, a, colours[place] * (b.max(2, keepdims=True) > BLACK))
                for (name, a, b), place in zip(pairs, places, strict=True)
            ],
        )


def score(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    released = [f"{name}={weights.verified_path(name, 'safetensors')}" for name in weights.NAMES]
    methods: dict[str, Fuse] = {name: PICTURES[name] for name in ("average", "max")}
    methods |= heldout.methods_of(args.networks or released)
    result: dict[str, Any] = {"what": "repainted.py", "split": "held out" if args.held_out else "validation"}
    result |= {"commit": commit(), "pairs": PAIRS, "sets": {}}
    for name in SETS:
        for shown, pairs in repainted(heldout.pairs_of(args.data, name, PAIRS, held_out=args.held_out)):
            planted = plant(pairs, name.removeprefix("mri-"), per_kind=PER_KIND)
            rows = {method: heldout.row(fuse, planted) for method, fuse in methods.items()}
            result["sets"].setdefault(name, {})[shown] = rows
            write_atomic(args.out, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())


def show(args: argparse.Namespace) -> None:
    print(readme.repainted_tables(json.loads(args.out.read_text())))


def main(argv: Sequence[str] | None = None) -> int:
    shared = argparse.ArgumentParser(add_help=False)
    results_command.add_out(shared, "repainted.json")
    parser = results_command.parser(__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = commands.add_parser("score", parents=[shared], help="measure networks, the overlay and the maximum")
    results_command.add_data(one)
    one.add_argument("networks", nargs="*", metavar="NAME=CHECKPOINT", help="default: the released ones")
    one.add_argument("--held-out", action="store_true", help="training cases that heldout.py takes")
    one.add_argument("--threads", type=int, default=1)
    one.set_defaults(run=score)
    commands.add_parser("table", parents=[shared], help="print all rows").set_defaults(run=show)
    return results_command.run("repainted", parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
