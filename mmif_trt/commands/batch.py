"""`mmif-trt batch MANIFEST.csv|STUDY_ROOT -o OUT`."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from mmif_trt.clinical import pseudonym
from mmif_trt.commands.arguments import add_how, add_pairing, options_of
from mmif_trt.image import InputError
from mmif_trt.running import stop_on_signal


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "batch",
        help="fuse many volumes: a manifest, or a folder of DICOM studies",
        description="Pair series by patient, study and frame of reference, and fuse each pair. A case whose "
        "report says done is skipped: start it again after a stop or a kill.",
    )
    parser.add_argument(
        "source", metavar="MANIFEST.csv|STUDY_ROOT", help="columns: name,a,b and optional ones"
    )
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--format", choices=("nii", "nii.gz", "dcm"), default="nii", help="default: nii")
    parser.add_argument("--dry-run", action="store_true", help="show the plan, do nothing")
    what = "fuse again what was fused with other options or weights"
    parser.add_argument("--overwrite", action="store_true", help=what)
    what = f"of names; default: one made as OUT/{pseudonym.FILE}"
    parser.add_argument("--pseudonym-key", metavar="FILE", help=what)
    parser.add_argument("--part", default="1/1", metavar="I/N", help="every N-th case from the I-th on")
    add_how(parser)
    add_pairing(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress; errors stay")
    parser.add_argument("--runtime", default="auto", help="what runs the network (see info); default: auto")
    parser.add_argument("--precision", default="auto", help="auto, bf16, fp16 or fp32; default: auto")
    parser.set_defaults(run=run)


def part_of(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,4})/(\d{1,4})", text)
    index, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= index <= count:
        raise InputError(f"--part {text}: expected I/N with 1 <= I <= N")
    return index, count


def _secret(args: argparse.Namespace) -> bytes:
    """The key of the names, kept with the output. A dry run makes none: its names are for that one look."""
    from mmif_trt.files import prove_writable

    key = pseudonym.key_in(args.output, args.pseudonym_key, make=False)
    if key is None and not args.dry_run and os.path.isdir(args.source):
        prove_writable(args.output)
        key = pseudonym.key_in(args.output)
    return key or pseudonym.fresh_key()


def run(args: argparse.Namespace) -> int:
    index, count = part_of(args.part)
    from tqdm import tqdm

    from mmif_trt.clinical import cases as work
    from mmif_trt.files import prove_writable
    from mmif_trt.fuser import Fuser
    from mmif_trt.machine import usable_cores

    found, left = work.plan(args.source, _secret(args), args.registration == "rigid")
    mine = found[index - 1 :: count]
    suffix = f".{args.format}"
    how = work.Run(options_of(args), args.runtime, args.precision)
    differs = {case.name: work.difference(case, args.output, suffix, how) for case in mine}
    todo = [case for case in mine if differs[case.name] is None or args.overwrite and differs[case.name]]
    if args.dry_run:
        _show(mine, differs, left)
        return 0
    if not found:
        raise InputError(
            f"{args.source}: no pair ({'; '.join(left) or 'no series'}); expected an MRI and a partner"
        )
    others = [name for name, what in differs.items() if what and not args.overwrite]
    if others:
        raise InputError(
            f"{args.output}: {len(others)} cases were fused otherwise, as {others[0]} "
            f"({differs[others[0]]}); expected the same options, another folder, or --overwrite"
        )
    log_path = args.output / f"batch-{index}-of-{count}.log"
    read = [path for path in (args.source, args.pseudonym_key) if path and os.path.isfile(path)]
    work.refuse_overwriting(mine, args.output, suffix, str(log_path), read)
    prove_writable(args.output)
    start = time.monotonic()
    total = {"done": 0, "failed": 0}
    with (
        stop_on_signal() as (stop, received),
        tqdm(total=len(todo), unit="case", disable=args.quiet) as bar,
    ):
        log = log_path.open("ab", buffering=0)

        def on_case(case: Any, error: str) -> None:
            bar.update()
            if error:
                with tqdm.external_write_mode(file=sys.stderr):
                    print(f"mmif-trt: failed: {case.name}: {error}", file=sys.stderr)
            line = f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {case.name} {error or 'done'}\n"
            log.write(line.encode(errors="replace"))

        if todo:
            fuser = Fuser(args.runtime, args.precision, streams=usable_cores())
            total = work.carry(todo, args.output, suffix, fuser, stop, on_case, how)
        log.close()
    seconds = time.monotonic() - start
    if stop.reason:
        print(f"mmif-trt: stopped: {stop.reason}", file=sys.stderr)
    if not args.quiet:
        _say_totals(total, len(mine) - len(todo), seconds)
    if received:
        return 128 + received[0]
    return 1 if total["failed"] or sum(total.values()) < len(todo) else 0


def _say_totals(total: dict[str, int], skipped: int, seconds: float) -> None:
    rate = f", {total['done'] / seconds:.2f} cases/s" if total["done"] else ""
    counts = f"{total['done']} fused, {skipped} skipped (done before), {total['failed']} failed{rate}"
    print(f"mmif-trt: {counts}", file=sys.stderr)


def _show(cases: list[Any], differs: dict[str, str | None], left: list[str]) -> None:
    """The plan. differs: see cases.difference; left: what is not paired."""
    for case in cases:
        how = differs[case.name]
        state = "to do" if how is None else f"done with {how}" if how else "done"
        tie = f", by {case.registration}" if case.registration else ""
        print(f"{case.name}: {case.words or f'{_words(case.a)} + {_words(case.b)}'}{tie} ({state})")
    for line in left:
        print(f"left out: {line}")


def _words(paths: tuple[str, ...]) -> str:
    return paths[0] if len(paths) == 1 else f"{len(paths)} files of {Path(paths[0]).parent}"
