"""`mmif-trt fuse`: two pictures, or two folders matched by name; volumes go to commands/volumes.py."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mmif_trt import io, runtimes, weights
from mmif_trt.about import RESEARCH_USE, VERSION
from mmif_trt.commands import look, volumes
from mmif_trt.commands.arguments import (
    add_cluster,
    add_runtime,
    check_text_output,
    cluster_of,
    count_to,
    load_fuser,
    refuse_overwriting,
    say,
    what_ran,
)
from mmif_trt.image import InputError
from mmif_trt.machine import conditions, usable_cores
from mmif_trt.running import stop_on_signal

if TYPE_CHECKING:
    from mmif_trt.cluster.ray_engine import Size
    from mmif_trt.folders.pairs import Plan
    from mmif_trt.folders.run import Result
    from mmif_trt.running import Stop

FORMATS = ("png", "tif", "jp2", "jpg")
MAX_WORKERS = 1024


def add(commands: Any) -> None:
    fuse = commands.add_parser(
        "fuse",
        help="fuse two files, or two folders matched by name",
        description="Fuse the MRI A with B (CT, PET, SPECT). Folders match by name without suffix.",
        epilog="A pair whose output exists is skipped. A name on one side only gives a warning. Ctrl-C "
        "finishes the current pairs, a second one ends at once. Exit code 0: success, 1: some failed, "
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
    add_runtime(fuse)
    fuse.add_argument(
        "--workers",
        type=count_to(MAX_WORKERS),
        help="pairs at a time; default: by the cores; with --on: processes, default: 1",
    )
    decoders = ("auto", "dali", "opencv")
    fuse.add_argument("--decode", choices=decoders, default="auto", help="what reads the files")
    fuse.add_argument("--overwrite", action="store_true", help="fuse finished pairs again")
    fuse.add_argument("--report", metavar="REPORT.json", help="write the outcome of each pair, as JSON")
    what = "for two files: also write a viewer page, see mmif-trt view"
    fuse.add_argument("--view", metavar="PAGE.html", help=what)
    fuse.add_argument(
        "--quiet", action="store_true", help="no progress bar, warnings and summary; errors stay"
    )
    add_cluster(fuse)
    volumes.add_options(fuse)
    fuse.set_defaults(run=run)


def _value_range(args: argparse.Namespace, side: str) -> tuple[float, float] | None:
    limits = getattr(args, f"value_range_{side}") or args.value_range
    if limits is None:
        return None
    low, high = limits
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(
            f"--value-range of {side.upper()}: {low:g} {high:g}; expected two finite numbers, LOW < HIGH"
        )
    return low, high


def run(args: argparse.Namespace) -> int:
    range_a, range_b = _value_range(args, "a"), _value_range(args, "b")
    if args.view:
        check_text_output("--view", args.view, ".html", ".htm")
    if volumes.wanted(args):
        return volumes.run(args, lambda: load_fuser(args, args.threads or usable_cores()), range_a, range_b)
    from mmif_trt.folders import run as batch
    from mmif_trt.folders.pairs import plan_pairs, prepare_output

    volumes.refuse_others(args, are_volumes=False)
    suffix = f".{args.format}" if args.format else None
    plan = plan_pairs(args.a, args.b, args.output, suffix=suffix, overwrite=args.overwrite)
    if args.view and (os.path.isdir(args.a) or os.path.isdir(args.b)):
        raise InputError(f"--view {args.view}: folders in A and B; expected two files")
    if args.report:
        check_text_output("--report", args.report, ".json")
    for path in filter(None, (args.report, args.view)):
        inputs = [path for pair in plan.pairs for path in (pair.a, pair.b)]
        outputs = [*(pair.out for pair in plan.pairs), path]
        refuse_overwriting(inputs, outputs, path if not args.overwrite else None)
    prepare_output(plan)
    size = cluster_of(args)
    workers = args.workers or (batch.default_workers() if size is None else size.workers)
    with stop_on_signal() as (stop, received):
        streams = 1 if size else batch.network_streams(plan.unfinished, workers, args.threads)
        fuser = load_fuser(args, streams) if plan.unfinished else None
        start = time.perf_counter()
        with _progress(plan, args.quiet) as on_result:
            if size is not None and fuser is not None:
                results = _on_cluster(args, size, plan, fuser.runtime, (range_a, range_b), stop, on_result)
            else:
                results = batch.run_pairs(
                    plan.pairs,
                    fuser,
                    workers=workers,
                    range_a=range_a,
                    range_b=range_b,
                    stop=stop,
                    on_result=on_result,
                    decode=args.decode,
                    network=args.network,
                )
        total = batch.totals(results, len(plan.pairs), time.perf_counter() - start)
        runtime = runtimes.describe(fuser.runtime) if fuser else None
        if args.report:
            head = _report_head(args, workers, plan, runtime, stop, total)
            batch.write_report(args.report, head, results)
    if args.view and all(result.status != "failed" for result in results):
        pair = plan.pairs[0]
        a, b, fused = (io.read(path) for path in (pair.a, pair.b, pair.out))
        shown = look.of_pictures(a, b, fused, range_a, range_b, args.modality_b)
        look.save(args.view, shown, (pair.a, pair.b, pair.out))
    if stop.reason:
        say(f"stopped: {stop.reason}; {total['not_started']} of {total['pairs']} pairs were not started")
    if not args.quiet:
        _summarise(args, plan, results, total, what_ran(runtime, args.network) if runtime else "")
    if received:
        return 128 + received[0]
    return 1 if total["failed"] or total["not_started"] else 0


def _on_cluster(
    args: argparse.Namespace,
    size: Size,
    plan: Plan,
    runtime: runtimes.Runtime,
    ranges: tuple[Any, Any],
    stop: Stop,
    on_result: Any,
) -> list[Result]:
    """The meaning of `auto` on this machine applies to all."""
    from mmif_trt import cluster
    from mmif_trt.cluster.ray_engine import connected

    with connected(args.address, size) as ray:
        how = (runtime.name, runtime.precision, args.network)
        return cluster.pairs(ray, plan.pairs, how, ranges, size, stop, on_result)


@contextmanager
def _progress(plan: Plan, quiet: bool) -> Iterator[Any]:
    """Yields a function to call with each Result: it prints failures at once; on a terminal a bar
    has rate and time left."""
    from tqdm import tqdm

    for warning in () if quiet else plan.warnings:
        say(f"warning: {warning}")
    off = True if quiet or len(plan.pairs) == 1 else None  # None: where stderr is no terminal
    finished = len(plan.pairs) - plan.unfinished
    with tqdm(total=len(plan.pairs), initial=finished, unit="pair", disable=off) as bar:

        def on_result(result: Result) -> None:
            if result.status == "failed":
                with tqdm.external_write_mode(file=sys.stderr):
                    say(f"failed: {result.message}")
            if not result.pair.finished:  # the bar started with these
                bar.update()

        yield on_result


def _summarise(
    args: argparse.Namespace, plan: Plan, results: list[Result], total: dict[str, Any], by: str
) -> None:
    """by: what ran the network, if it ran."""
    from mmif_trt.folders import run as batch

    out = plan.out_folder if os.path.isdir(args.a) else plan.pairs[0].out
    rate = f", {total['pairs_per_s']:g} pairs/s by {by}" if total["done"] else ""
    counts = f"{total['done']} fused, {total['skipped']} skipped (finished before), {total['failed']} failed"
    say(f"{counts} in {total['seconds']:.1f} s{rate} -> {out}")
    for what, message in (
        ("have a newer input", batch.NEWER),
        ("were fused by other weights", batch.OTHER_WEIGHTS),
    ):
        if found := [r.pair.name for r in results if r.status == "skipped" and message in r.message]:
            say(f"warning: {len(found)} skipped {what}, such as {found[0]}; use --overwrite to redo")


def _report_head(
    args: argparse.Namespace,
    workers: int,
    plan: Plan,
    runtime: dict[str, Any] | None,
    stop: Stop,
    total: dict[str, Any],
) -> dict[str, Any]:
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
        "mmif_trt": VERSION,
        "use": RESEARCH_USE,
        "weights": weights.in_use(args.network),
        "runtime": runtime,
        "conditions": conditions(),
        "settings": {**{name: getattr(args, name) for name in chosen}, "workers": workers},
        "warnings": plan.warnings,
        "stopped": stop.reason,
        "totals": total,
    }
