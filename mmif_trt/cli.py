"""The command line. Exit code 0 all well, 1 some failed, 2 usage: nothing done.

Heavy imports are inside the functions, so that --help and a mistyped option answer at once.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mmif_trt import engine_cli
from mmif_trt.console import batch_command, volumes
from mmif_trt.image import InputError
from mmif_trt.info import (
    RESEARCH_USE,
    conditions,
    describe,
    describe_runtime,
    facts,
    usable_cores,
    weights_in_use,
)
from mmif_trt.node import command as node_command
from mmif_trt.report import command as report
from mmif_trt.study import command as study

if TYPE_CHECKING:
    from mmif_trt.batch import Result, Stop
    from mmif_trt.pairs import Plan

FORMATS = ("png", "tif", "jp2", "jpg")
MAX_WORKERS = 64


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; argv without the program's name, None: the process's own. Returns the exit code."""
    try:
        args = _parser().parse_args(argv)
        return int(args.run(args))
    except KeyboardInterrupt:  # before or after the part of `fuse` that ends its pairs first
        return _say("interrupted", 130)
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        from mmif_trt.batch import explain

        return _say(explain(error), 2 if isinstance(error, InputError | OSError) else 1)


def _say(line: str, code: int = 0) -> int:
    print(f"mmif-trt: {line}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="mmif-trt", description=f"Fuse brain MRI with CT, PET or SPECT. {RESEARCH_USE}")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_fuse(commands)
    score = commands.add_parser("eval", help="score fused pictures against their sources")
    score.add_argument(
        "sources", type=Path, metavar="SOURCES", help="folder with mri/ and ct/, pet/ or spect/"
    )
    score.add_argument("fused", type=Path, metavar="FUSED", help="folder of fused pictures of the same names")
    score.add_argument("--baselines", action="store_true", help="add the pixel-wise average and maximum")
    score.add_argument("-o", "--output", metavar="TABLE", help="also write every row, as .csv or .json")
    score.set_defaults(run=_eval)
    info = commands.add_parser("info", help="version, runtimes, weights, CPU")
    info.add_argument("--json", action="store_true", help="as JSON")
    info.set_defaults(run=_info)
    batch_command.add(commands)
    node_command.add(commands)
    demo = commands.add_parser("demo", help="fuse the bundled samples, draw a contact sheet")
    demo.add_argument("out", type=Path, metavar="OUT_DIR")
    _add_runtime(demo)
    demo.set_defaults(run=_demo)
    engine_cli.add(commands)
    report.add(commands)
    study.add(commands)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from mmif_trt import __version__

        print(f"mmif-trt {__version__}")
        parser.exit()


def _add_fuse(commands: Any) -> None:
    fuse = commands.add_parser(
        "fuse",
        help="fuse two files, or two folders matched by name",
        description="Fuse the MRI A with B (CT, PET, SPECT). Folders match by name, the suffix aside.",
        epilog="A pair whose output exists is skipped. A name on one side only is a warning. Ctrl-C "
        "finishes the pairs in hand, a second one ends at once. Exit code 0: all well, 1: some failed, "
        "2: usage, nothing was done.",
    )
    fuse.add_argument("a", metavar="A", help="the MRI: a file or a folder")
    fuse.add_argument("b", metavar="B", help="the CT, PET or SPECT: a file or a folder")
    fuse.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="file (of two files) or folder to write"
    )
    fuse.add_argument("--format", choices=FORMATS, help="of the outputs; default: that of B")
    for option, what in (("--value-range", "A and B"), ("--value-range-a", "A"), ("--value-range-b", "B")):
        what = f"black and white of {what}; default: the whole range of the file's type"
        fuse.add_argument(option, type=float, nargs=2, metavar=("LOW", "HIGH"), help=what)
    _add_runtime(fuse)
    fuse.add_argument(
        "--workers", type=_count(MAX_WORKERS), help="pairs in hand at once; default: by the cores"
    )
    decoders = ("auto", "dali", "opencv")
    fuse.add_argument("--decode", choices=decoders, default="auto", help="what reads the files")
    fuse.add_argument("--overwrite", action="store_true", help="fuse finished pairs again")
    fuse.add_argument("--report", metavar="REPORT.json", help="write what became of each pair, as JSON")
    fuse.add_argument(
        "--quiet", action="store_true", help="no progress bar, warnings and summary; errors stay"
    )
    volumes.add_options(fuse)
    fuse.set_defaults(run=_fuse)


def _add_runtime(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runtime", default="auto", help="what runs the network (see info); default: auto")
    parser.add_argument("--precision", default="auto", help="auto, bf16, fp16 or fp32; default: auto")
    parser.add_argument("--threads", type=_count(1024), help="threads of the network; default: by the cores")


def _count(most: int) -> Any:
    def count(text: str) -> int:
        if not (text.isdecimal() and 1 <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"{text!r}; accepted are whole numbers from 1 to {most}")
        return int(text)

    return count


def _value_range(args: argparse.Namespace, side: str) -> tuple[float, float] | None:
    limits = getattr(args, f"value_range_{side}") or args.value_range
    if limits is None:
        return None
    low, high = limits
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(
            f"--value-range of {side.upper()}: {low:g} {high:g}; accepted are two finite numbers, LOW < HIGH"
        )
    return low, high


def _fuse(args: argparse.Namespace) -> int:
    range_a, range_b = _value_range(args, "a"), _value_range(args, "b")
    if volumes.wanted(args):
        return volumes.run(args, lambda: _fuser(args, args.threads or usable_cores()), range_a, range_b)
    from mmif_trt import batch
    from mmif_trt.pairs import plan_pairs, prepare_output

    suffix = f".{args.format}" if args.format else None
    plan = plan_pairs(args.a, args.b, args.output, suffix=suffix, overwrite=args.overwrite)
    if args.report:
        _check_text_output("--report", args.report, ".json")
    prepare_output(plan)
    workers = args.workers or batch.default_workers()
    with batch.stop_on_signal() as (stop, received):
        streams = batch.network_streams(plan.unfinished, workers, args.threads)
        fuser = _fuser(args, streams) if plan.unfinished else None
        start = time.perf_counter()
        with _progress(plan, args.quiet) as on_result:
            results = batch.run_pairs(
                plan.pairs,
                fuser,
                workers=workers,
                range_a=range_a,
                range_b=range_b,
                stop=stop,
                on_result=on_result,
                decode=args.decode,
            )
        total = batch.totals(results, len(plan.pairs), time.perf_counter() - start)
        runtime = describe_runtime(fuser) if fuser else None
        if args.report:
            head = _report_head(args, workers, plan, runtime, stop, total)
            batch.write_report(args.report, head, results)
    if stop.reason:
        _say(f"stopped: {stop.reason}; {total['not_started']} of {total['pairs']} pairs were not started")
    if not args.quiet:
        _summarise(plan, results, total, runtime)
    if received:
        return 128 + received[0]
    return 1 if total["failed"] or total["not_started"] else 0


def _fuser(args: argparse.Namespace, streams: int = 1) -> Any:
    from mmif_trt.fuser import Fuser

    return Fuser(args.runtime, args.precision, args.threads, streams)


@contextmanager
def _progress(plan: Plan, quiet: bool) -> Iterator[Any]:
    """Yields what to call with each Result: a failure is told at once, the bar shows rate and time left."""
    from tqdm import tqdm

    for warning in () if quiet else plan.warnings:
        _say(f"warning: {warning}")
    calm = 0.1 if sys.stderr.isatty() else 10  # a log file is no terminal: one line every ten seconds
    off = quiet or len(plan.pairs) == 1
    finished = len(plan.pairs) - plan.unfinished
    with tqdm(total=len(plan.pairs), initial=finished, unit="pair", disable=off, mininterval=calm) as bar:

        def on_result(result: Result) -> None:
            if result.status == "failed":
                with tqdm.external_write_mode(file=sys.stderr):
                    _say(f"failed: {result.message}")
            if not result.pair.finished:  # those the bar began with
                bar.update()

        yield on_result


def _summarise(
    plan: Plan, results: list[Result], total: dict[str, Any], runtime: dict[str, Any] | None
) -> None:
    by = f" by {runtime['name']} {runtime['precision']} on {runtime['device']}" if runtime else ""
    rate = f", {total['pairs_per_s']:g} pairs/s{by}" if total["done"] else ""
    counts = f"{total['done']} fused, {total['skipped']} skipped (finished before), {total['failed']} failed"
    _say(f"{counts} in {total['seconds']:.1f} s{rate} -> {plan.out_folder}")
    if newer := [r.pair.name for r in results if r.status == "skipped" and r.message]:
        _say(f"warning: {len(newer)} skipped have a newer input, as {newer[0]}; --overwrite fuses them again")


def _report_head(
    args: argparse.Namespace,
    workers: int,
    plan: Plan,
    runtime: dict[str, Any] | None,
    stop: Stop,
    total: dict[str, Any],
) -> dict[str, Any]:
    from mmif_trt import __version__

    chosen = (
        "a",
        "b",
        "output",
        "format",
        "value_range",
        "value_range_a",
        "value_range_b",
        "threads",
        "overwrite",
        "decode",
    )
    return {
        "mmif_trt": __version__,
        "use": RESEARCH_USE,
        "weights": weights_in_use(),
        "runtime": runtime,
        "conditions": conditions(),
        "settings": {**{name: getattr(args, name) for name in chosen}, "workers": workers},
        "warnings": plan.warnings,
        "stopped": stop.reason,
        "totals": total,
    }


def _info(args: argparse.Namespace) -> int:
    found = facts()
    print(json.dumps(found, indent=2) if args.json else describe(found))
    return 0


def _eval(args: argparse.Namespace) -> int:
    if args.output:  # before the minutes that scoring may take
        _check_text_output("--output", args.output, ".csv", ".json")
    from tqdm import tqdm

    from mmif_trt.evaluate import evaluate, text_table, write_scores
    from mmif_trt.metrics import all_metrics

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


def _check_text_output(option: str, path: str, *suffixes: str) -> None:
    """Refused early: a folder that takes no files, and a suffix (or link) under which a picture might lie."""
    from mmif_trt.pairs import prove_writable

    if os.path.splitext(os.path.realpath(path))[1].lower() not in suffixes:
        raise InputError(f"{option} {path}: accepted is a file name that ends in {' or '.join(suffixes)}")
    prove_writable(Path(path).parent)


def _demo(args: argparse.Namespace) -> int:
    from mmif_trt.demo import run

    run(args.out, lambda: _fuser(args))
    return 0
