"""`mmif-trt plan MANIFEST.csv|STUDY_ROOT|BIDS_ROOT -o PLAN`."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from mmif_trt import weights
from mmif_trt.clinical import pseudonym
from mmif_trt.commands import look
from mmif_trt.commands.arguments import add_how, add_network, add_pairing, options_of
from mmif_trt.commands.planned import Network, absolute, no_pair, part_of, secret_of
from mmif_trt.image import InputError
from mmif_trt.storage import is_url, store_of


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "plan",
        help="list once which volumes to fuse, and how, for many `batch` runs",
        description="Pair the series of a folder of DICOM studies or of BIDS, or read a manifest, and write "
        "the cases with their options into the folder PLAN, for `mmif-trt batch PLAN` on many machines.",
    )
    parser.add_argument("source", metavar="MANIFEST.csv|STUDY_ROOT|BIDS_ROOT", help="as for batch")
    parser.add_argument("-o", "--output", required=True, metavar="PLAN", help="folder to write, or s3://")
    what = (
        "every N-th entry of STUDY_ROOT, subject or row, from the I-th on; no study may span several entries"
    )
    parser.add_argument("--part", default="1/1", metavar="I/N", help=what)
    what = f"of names; default: PLAN/{pseudonym.FILE}, created if missing"
    parser.add_argument("--pseudonym-key", metavar="FILE", help=what)
    add_how(parser)
    add_pairing(parser)
    parser.add_argument("--quiet", action="store_true", help="no summary")
    add_network(parser)
    what = "what runs the network on all machines; default: auto, resolved on this one"
    parser.add_argument("--runtime", default="auto", help=what)
    what = "bf16, fp16 or fp32, on all machines; default: auto, resolved on this one"
    parser.add_argument("--precision", default="auto", help=what)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    part = part_of(args.part)
    from mmif_trt.clinical import plan_folder, planning
    from mmif_trt.clinical.records import Run
    from mmif_trt.clinical.spill import Spill

    options, store = options_of(args), store_of(args.output)
    if os.path.isfile(args.output):
        raise InputError(f"{args.output}: a file; expected a new folder for a plan")
    if not is_url(args.output) and not os.path.exists(args.output):
        os.makedirs(args.output, mode=0o700, exist_ok=True)  # private: it contains paths and names of series
    plan_folder.refuse(store, part)
    store.prove_writable()
    key = secret_of(args.source, args.output, args.pseudonym_key, make=True)
    how = Network(Run(options, args.runtime, args.precision, args.network)).run
    with Spill() as spill:
        with look.steps(2, args.quiet) as step:
            step("reading headers")
            planning.fill(spill, absolute(args.source), key, args.registration == "rigid", part)
            if not len(spill) and part == (1, 1):
                raise InputError(no_pair(args.source, spill.left()))
            step("writing")
            plan_folder.write(store, spill, how, part)
        if not args.quiet:
            left_out = sum(1 for _ in spill.left())
            words = f"{len(spill)} cases, {left_out} lines of what is left out, "
            words += "" if how.network == weights.DEFAULT else f"{how.network} by "
            words += f"{how.runtime} {how.precision}"
            print(f"mmif-trt: {words} -> {args.output}", file=sys.stderr)
    return 0
