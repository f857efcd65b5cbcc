"""`mmif-trt status OUT`."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mmif_trt.image import InputError
from mmif_trt.storage import is_url, store_of

if TYPE_CHECKING:
    from mmif_trt.clinical.progress import Progress


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "status",
        help="how far a `batch` is, from the records in its output",
        description="Counts of the cases in OUT, the rate and the time left, only from their records: also "
        "while runs on other machines work there. Exit code 1 if cases failed or are left, 2 if there is no "
        "record.",
    )
    parser.add_argument("output", metavar="OUT", help="what batch -o wrote")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from mmif_trt.clinical import progress

    store = store_of(args.output)
    if not (is_url(args.output) or os.path.isdir(args.output)):
        raise InputError(f"{args.output}: no such folder; expected the output of a batch")
    found = progress.of(store)
    if not found.cases:
        raise InputError(f"{args.output}: no record of a batch; expected what batch -o wrote (or will write)")
    if args.json:
        print(json.dumps({**asdict(found), "left": found.left, "left_s": found.left_s}, indent=1))
    else:
        print("\n".join(_lines(found)))
    return 1 if found.failed or found.left else 0


def _lines(found: Progress) -> list[str]:
    where = f" on {', '.join(found.machines)}" if found.machines else ""
    rate = f"{found.rate:.3g} cases/s" if found.rate else "not known yet"
    lines = [
        f"cases        {found.cases}",
        f"done         {found.done}",
        *([f"in doubt     {found.in_doubt} of the done"] if found.in_doubt else []),
        f"failed       {found.failed}",
        f"running      {found.running}{where}",
        f"interrupted  {found.interrupted}",
        f"left         {found.left}",
        f"rate         {rate}",
        f"time left    {_duration(found.left_s)}",
    ]
    lines += [f"in doubt: {name}: {why}" for name, why in found.doubts]
    return lines + [f"failed: {name}: {message}" for name, message in found.failures]


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "not known yet"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
