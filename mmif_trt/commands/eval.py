"""`mmif-trt eval`: score fused pictures against their sources."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mmif_trt.commands.arguments import check_text_output, refuse_overwriting


def add(commands: Any) -> None:
    score = commands.add_parser("eval", help="score fused pictures against their sources")
    score.add_argument(
        "sources", type=Path, metavar="SOURCES", help="folder with mri/ and ct/, pet/ or spect/"
    )
    score.add_argument("fused", type=Path, metavar="FUSED", help="folder of fused pictures of the same names")
    score.add_argument("--baselines", action="store_true", help="add the pixel-wise average and maximum")
    score.add_argument("-o", "--output", metavar="TABLE", help="also write every row, as .csv or .json")
    score.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.output:  # before the minutes that scoring may take
        check_text_output("--output", args.output, ".csv", ".json")
        refuse_overwriting([args.sources, args.fused], [args.output], args.output, b"method,name,")
    from tqdm import tqdm

    from mmif_trt.measure.metrics import all_metrics
    from mmif_trt.measure.scores import evaluate, text_table, write_scores

    with tqdm(unit="picture", disable=None) as bar:

        def measure(*pictures: Any) -> dict[str, float]:
            bar.update()
            return all_metrics(*pictures)

        scores = evaluate(args.sources, args.fused, baselines=args.baselines, measure=measure)
    print(text_table(scores.means))
    print(f"means over {scores.pairs} pairs of {args.sources}, 8-bit luma")
    if args.output:
        write_scores(args.output, scores)
    return 0
