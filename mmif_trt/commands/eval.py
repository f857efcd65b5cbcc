"""`mmif-trt eval`: score fused pictures against their sources, and plant lesions for a method to keep."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmif_trt import weights
from mmif_trt.commands.arguments import (
    add_ranges,
    add_runtime,
    check_text_output,
    count_to,
    load_fuser,
    ranges_of,
    refuse_overwriting,
    say,
)
from mmif_trt.image import InputError

if TYPE_CHECKING:
    from mmif_trt.measure.lesions import Kept

PER_KIND = 150  # planting.PER_KIND, without its imports
LESIONS = """Planted lesions, of any method, in three steps:
  mmif-trt eval SOURCES --plant PLANTED      lesions into copies of the sources
  YOUR METHOD PLANTED/mri PLANTED/ct FUSED   (or pet, spect) every picture, the same names
  mmif-trt eval PLANTED FUSED --lesions      how much of each lesion remains
Without FUSED the installed LAGN fuses: mmif-trt eval SOURCES --lesions --baselines.

A lesion's share is its detectability (d' of a template reader in CIELAB with internal noise) in the fused
picture, relative to that in the source alone, where each has d' = 4; 0 where bright became dark. Pictures
should be about 256 px per side: lesions are 6 to 16 px across.
"""


def add(commands: Any) -> None:
    score = commands.add_parser(
        "eval",
        help="score fused pictures against their sources",
        description="Scores FUSED by what a reader needs (detail, bone, uptake, colour) and by the measures\n"
        "of published tables.",
        epilog=LESIONS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    score.add_argument(
        "sources", type=Path, metavar="SOURCES", help="folder with mri/ and ct/, pet/ or spect/"
    )
    score.add_argument(
        "fused", type=Path, nargs="?", metavar="FUSED", help="folder of fused pictures with the same names"
    )
    score.add_argument("--baselines", action="store_true", help="add the pixel-wise average and maximum")
    score.add_argument("-o", "--output", metavar="TABLE", help="also write every row, as .csv or .json")
    add_ranges(score)
    lesions = score.add_argument_group("planted lesions")
    lesions.add_argument("--plant", type=Path, metavar="PLANTED", help="write SOURCES with lesions, and stop")
    lesions.add_argument("--lesions", action="store_true", help="score what remains of the lesions")
    lesions.add_argument("--per-kind", type=count_to(10_000), metavar="N", help=f"default: {PER_KIND}")
    lesions.add_argument(
        "--seed", type=count_to(2**31, 0), metavar="N", help="of places and shapes; default: 0"
    )
    add_runtime(lesions)
    score.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    _check(args)
    if args.output:  # before scoring, which may take minutes
        check_text_output("--output", args.output, ".csv", ".json")
        inputs = [args.sources, *([args.fused] if args.fused else [])]
        heads = b"method,pair," if args.lesions else b"method,name,"
        refuse_overwriting(inputs, [args.output], args.output, heads)
    if args.plant:
        return _plant(args)
    return _lesions(args) if args.lesions else _score(args)


def _check(args: argparse.Namespace) -> None:
    if args.plant and (args.fused or args.lesions or args.baselines or args.output):
        raise InputError("--plant: with FUSED, --lesions, --baselines or --output; expected SOURCES alone")
    if not (args.fused or args.plant or args.lesions):
        raise InputError("FUSED: missing; expected a folder of fused pictures, or --plant or --lesions")
    if (args.per_kind, args.seed) != (None, None) and not (args.plant or args.lesions):
        raise InputError("--per-kind, --seed: expected with --plant or --lesions only")


def _score(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from mmif_trt.measure.fidelity import names_for
    from mmif_trt.measure.metrics import ALL, all_metrics
    from mmif_trt.measure.scores import evaluate, source_folders, text_table, write_scores

    with tqdm(unit="picture", disable=None) as bar:

        def measure(*pictures: Any) -> dict[str, float]:
            bar.update()
            return all_metrics(*pictures)

        how: dict[str, Any] = {"measure": measure, "fidelity": True, "ranges": ranges_of(args)}
        scores = evaluate(args.sources, args.fused, baselines=args.baselines, **how)
    modality = source_folders(args.sources)[1].name
    print(text_table(scores.means, names_for(modality)))
    exceptions = "bone_error (levels): lower" if modality == "ct" else "washed_top: lower"
    exceptions += "; soft_gain: 1 is right" if modality == "ct" else ""
    print(f"what a reader needs; higher is better, {exceptions}\n")
    print(text_table(scores.means, ALL))
    print(f"as in published tables; means over {scores.pairs} pairs of {args.sources}, 8-bit luma")
    for warning in scores.warnings:
        say(f"warning: {warning}")
    if args.output:
        write_scores(args.output, scores)
    return 0


def _plant(args: argparse.Namespace) -> int:
    from mmif_trt.measure.lesion_folder import plant_folder, refuse_used, write_planted

    refuse_used(args.plant)  # before planting, which may take minutes
    seed = args.seed or 0
    how: dict[str, Any] = {"per_kind": args.per_kind or PER_KIND, "ranges": ranges_of(args)}
    planted = plant_folder(args.sources, seed=seed, **how)
    pictures = write_planted(args.plant, planted, seed=seed)
    other = planted[0].modality
    print(f"{sum(len(one.lesions) for one in planted)} lesions in {pictures} pairs of pictures, {args.plant}")
    print(f"fuse {args.plant}/mri with {args.plant}/{other} into a folder FUSED, the same names; then:")
    print(f"mmif-trt eval {args.plant} FUSED --lesions")
    return 0


def _lesions(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from mmif_trt.measure.baselines import PICTURES, Fuse
    from mmif_trt.measure.lesion_folder import is_planted, plant_folder, read_fused, read_planted
    from mmif_trt.measure.lesion_scores import text_lesions, write_lesions
    from mmif_trt.measure.lesions import judge

    ranges = ranges_of(args)
    if is_planted(args.sources):
        if (args.per_kind, args.seed) != (None, None):
            raise InputError(f"--per-kind, --seed: {args.sources} is planted; expected with --plant")
        planted = read_planted(args.sources)
    elif args.fused:
        how = "mmif-trt eval SOURCES --plant PLANTED first, and FUSED made of PLANTED"
        raise InputError(f"{args.sources}: no lesions.json in it; expected {how}")
    else:
        count, seed = args.per_kind or PER_KIND, args.seed or 0
        planted = plant_folder(args.sources, per_kind=count, seed=seed, ranges=ranges)
    fuses: dict[str, Fuse] = {} if args.fused else {weights.title(args.network): load_fuser(args)}
    fuses |= PICTURES if args.baselines else {}
    kept: dict[str, list[Kept]] = {}
    with tqdm(unit="pair", total=len(planted) * (len(fuses) + bool(args.fused)), disable=None) as bar:
        if args.fused:
            kept["fused"] = read_fused(args.sources, planted, args.fused, bar.update, ranges)
        for method, fuse in fuses.items():
            for one in planted:
                kept.setdefault(method, []).extend(judge(fuse, [one]))
                bar.update()
    print(text_lesions(kept))
    print(f"share of each lesion's detectability that is kept, of {args.sources}; mean over the kinds")
    if args.output:
        write_lesions(args.output, kept)
    return 0
