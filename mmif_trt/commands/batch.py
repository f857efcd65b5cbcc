"""`mmif-trt batch MANIFEST.csv|STUDY_ROOT|BIDS_ROOT|PLAN -o OUT`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmif_trt.clinical import pseudonym
from mmif_trt.commands.arguments import (
    add_cluster,
    add_how,
    add_network,
    add_pairing,
    cluster_of,
    count_to,
    options_of,
    say,
)
from mmif_trt.commands.planned import Network, absolute, names_are_temporary, no_pair, part_of, plan_of
from mmif_trt.image import InputError
from mmif_trt.running import Stop, stop_on_signal
from mmif_trt.storage import is_url, store_of

if TYPE_CHECKING:
    from mmif_trt.clinical.case import Case
    from mmif_trt.clinical.cases import How, Settled
    from mmif_trt.clinical.plan_folder import PlanFolder
    from mmif_trt.clinical.records import Output, Run
    from mmif_trt.clinical.spill import Spill
    from mmif_trt.cluster.ray_engine import Size

    Plan = PlanFolder | Spill

MANY = 4096  # cases; above, a case's outputs are compared only with its own sources
TO_DO, DONE, OTHERWISE = range(3)


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "batch",
        help="fuse many volumes: a manifest, a folder of DICOM studies or of BIDS, or a plan",
        description="Pair series by patient, study and frame of reference (BIDS: anat with pet and ct of a "
        "session), and fuse each pair. A case whose report says done is skipped: after a stop or a kill, run "
        "it again.",
    )
    parser.add_argument(
        "source",
        metavar="MANIFEST.csv|STUDY_ROOT|BIDS_ROOT|PLAN",
        help="columns: name,a,b and optional ones; or the output of mmif-trt plan",
    )
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="folder to write, or s3://")
    parser.add_argument("--format", choices=("nii", "nii.gz", "dcm"), default="nii", help="default: nii")
    parser.add_argument("--dry-run", action="store_true", help="show the plan, do nothing")
    what = "fuse again cases that were fused with other options or weights"
    parser.add_argument("--overwrite", action="store_true", help=what)
    what = f"of names; default: OUT/{pseudonym.FILE}, created if missing"
    parser.add_argument("--pseudonym-key", metavar="FILE", help=what)
    what = "also fuse cases claimed by a run on another machine that is known to be dead"
    parser.add_argument("--take-over", action="store_true", help=what)
    what = "every N-th case from the I-th on; of a PLAN, the I-th of N shares"
    parser.add_argument("--part", default="1/1", metavar="I/N", help=what)
    what = "also write a viewer page per case, NAME.html, see mmif-trt view"
    parser.add_argument("--view", action="store_true", help=what)
    add_how(parser)
    add_pairing(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress; errors stay")
    add_network(parser)
    parser.add_argument("--runtime", default="auto", help="what runs the network (see info); default: auto")
    parser.add_argument("--precision", default="auto", help="auto, bf16, fp16 or fp32; default: auto")
    what = "with --on: processes, each with its own network; default: 1"
    parser.add_argument("--workers", type=count_to(1024), metavar="N", help=what)
    add_cluster(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    part, size = part_of(args.part), cluster_of(args)
    if args.workers and size is None:
        raise InputError("--workers: expected with --on only")
    from mmif_trt.clinical import plan_folder, records

    how = records.Run(options_of(args), args.runtime, args.precision, args.network)
    with plan_of(args) as plan:
        network = Network(_run_of(plan, how, args))
        if size is not None:
            args.output = absolute(args.output)
        store, suffix = store_of(args.output), f".{args.format}"
        output = records.output_in(store, suffix, len(plan), not args.dry_run, plan.bids)
        output = replace(output, page=args.view)
        if args.dry_run:
            _show(plan, part, output, network)
            is_tree = not isinstance(plan, plan_folder.PlanFolder)
            if is_tree and names_are_temporary(args.source, args.output, args.pseudonym_key):
                key = Path(args.output) / pseudonym.FILE
                say(f"the names are temporary: the run makes {key} and names the cases by it")
            return 0
        if not len(plan):
            raise InputError(no_pair(args.source, plan.left()))
        return _carry(args, plan, part, output, network, size)


def _run_of(plan: Plan, stated: Run, args: argparse.Namespace) -> Run:
    """A plan has its own options; the command line must then state none."""
    from mmif_trt.clinical.plan_folder import PlanFolder
    from mmif_trt.clinical.records import Run

    if not isinstance(plan, PlanFolder):
        return stated
    if stated != Run():
        raise InputError(
            f"{args.source}: a plan says how its cases are fused; expected none of these options"
        )
    return plan.run


def _state(output: Output, case: Case, network: Network) -> tuple[int, str, str]:
    """(TO_DO, DONE or OTHERWISE, what differs in words, why the registration may be wrong)."""
    from mmif_trt.clinical import outputs, records

    record = records.is_done(output, case)
    if record is None:
        return TO_DO, "", ""
    how = records.difference(record, case, network.run)
    return (OTHERWISE if how else DONE), how, outputs.doubt(record)


def _carry(
    args: argparse.Namespace,
    plan: Plan,
    part: tuple[int, int],
    output: Output,
    network: Network,
    size: Size | None,
) -> int:
    from mmif_trt.clinical import cases as work

    states, doubted = _states(args, plan, part, output, network)
    log_path = None
    if not is_url(args.output):
        log_path = Path(args.output) / f"batch-{part[0]}-of-{part[1]}.log"
        if len(states) <= MANY:
            read = [path for path in (args.source, args.pseudonym_key) if path and os.path.isfile(path)]
            work.refuse_overwriting(list(plan.cases(*part)), output, str(log_path), read)
    output.begin()
    todo = sum(state != DONE for state in states)
    waiting = (x for x, state in zip(plan.cases(*part), states, strict=True) if state != DONE)
    start = time.monotonic()
    total: Counter[str] = Counter()
    with ExitStack() as ends:
        stop, received = ends.enter_context(stop_on_signal())
        ray = ends.enter_context(_ray(args.address, size)) if size and todo else None
        on_case = ends.enter_context(_Progress(todo, log_path, args.quiet))
        how = work.How(output, network.run, args.overwrite, args.take_over)
        if ray is not None and size is not None:
            from mmif_trt import cluster

            total = cluster.cases(ray, waiting, how, size, stop, on_case)
        elif todo:
            total = _here(waiting, how, network, stop, on_case)
    if stop.reason:
        print(f"mmif-trt: stopped: {stop.reason}", file=sys.stderr)
    if not args.quiet:
        on_case.in_doubt["before"] += doubted
        _say_totals(total, len(states) - todo, on_case.in_doubt, time.monotonic() - start)
    if received:
        return 128 + received[0]
    return 0 if total["done"] + total["before"] == todo else 1


def _here(
    waiting: Iterable[Case], how: How, network: Network, stop: Stop, on_case: Callable[[Settled], None]
) -> Counter[str]:
    from mmif_trt.clinical import cases as work
    from mmif_trt.clinical.records import Owner

    owner = Owner.new(os.environ.get("SLURM_JOB_ID", ""))  # a requeued job keeps its number
    try:
        with work.Runner(how, network.fuser, owner, stop) as runner:
            return work.carry(waiting, runner, on_case)
    finally:
        owner.ends()


def _ray(address: str | None, size: Size) -> AbstractContextManager[Any]:
    from mmif_trt.cluster.ray_engine import connected

    return connected(address, size)


def _states(
    args: argparse.Namespace,
    plan: Plan,
    part: tuple[int, int],
    output: Output,
    network: Network,
) -> tuple[bytearray, int]:
    """(of each case of the part, one byte; how many done ones have a registration in doubt). Raises
    InputError where one was fused otherwise. On an object store that would take a request per case, one after
    the other: there each is looked at when it is its turn."""
    if is_url(args.output):
        return bytearray(sum(1 for _ in plan.cases(*part))), 0
    states, others, doubted = bytearray(), list[tuple[str, str]](), 0
    for case in plan.cases(*part):
        state, how, doubt = _state(output, case, network)
        states.append(state)
        doubted += state == DONE and bool(doubt)
        if state == OTHERWISE and not args.overwrite:
            others = [*others[:1], (case.name, how)]
    if others:
        count = sum(state == OTHERWISE for state in states)
        raise InputError(
            f"{args.output}: {count} cases have other options, such as {others[0][0]} ({others[0][1]}); "
            "expected the same options, another folder, or --overwrite"
        )
    return states, doubted


class _Progress:
    """The bar, the log (a bucket has none), and a line for each failure and each registration in doubt."""

    def __init__(self, cases: int, log: Path | None, quiet: bool) -> None:
        from tqdm import tqdm

        self._bar: Any = tqdm(total=cases, unit="case", disable=True if quiet else None)
        self.in_doubt = Counter[str]()  # by status
        self._log: Any = open(os.devnull if log is None else log, "ab", buffering=0)  # noqa: SIM115

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._log.close()

    def __call__(self, settled: Settled) -> None:
        self._bar.update()
        error = settled.message if settled.status == "failed" else ""
        said = f"failed: {settled.name}: {error}" if error else ""
        self.in_doubt[settled.status] += bool(settled.doubt)
        if settled.doubt and settled.status == "done":
            said = f"warning: {settled.name}: {settled.doubt}"
        if said:
            with self._bar.external_write_mode(file=sys.stderr):
                print(f"mmif-trt: {said}", file=sys.stderr)
        ends = error or "; ".join(filter(None, (settled.status, settled.doubt)))
        line = f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {settled.name} {ends}\n"
        with suppress(OSError):  # a full disk, which ends the run with a message of its own
            self._log.write(line.encode(errors="replace"))


def _say_totals(total: Counter[str], skipped: int, in_doubt: Counter[str], seconds: float) -> None:
    rate = f", {total['done'] / seconds:.2f} cases/s" if total["done"] else ""
    skipped += total["before"]
    doubted = {x: f"{count} with a registration in doubt" for x, count in in_doubt.items() if count}
    fused = f"{total['done']} fused" + (f" ({doubted['done']})" if "done" in doubted else "")
    before = "; ".join(filter(None, ("done before", doubted.get("before"))))
    counts = f"{fused}, {skipped} skipped ({before}), {total['failed']} failed{rate}"
    if total["elsewhere"]:
        counts += f"; {total['elsewhere']} left to another run that works on them"
    print(f"mmif-trt: {counts}", file=sys.stderr)


def _show(plan: Plan, part: tuple[int, int], output: Output, network: Network) -> None:
    """The plan, and what is not paired."""
    from mmif_trt.clinical import foresee
    from mmif_trt.clinical.decoder import Decoder

    with Decoder() as decoder:
        for case in plan.cases(*part):
            state, how, _ = _state(output, case, network)
            words = {TO_DO: "to do", DONE: "done", OTHERWISE: f"done with {how}"}[state]
            if state == TO_DO and (fault := foresee.fault(case, decoder)):
                words += f"; {fault}"
            tie = f", by {case.registration}" if case.registration else ""
            print(f"{case.name}: {case.words or f'{_words(case.a)} + {_words(case.b)}'}{tie} ({words})")
    for line in plan.left():
        print(f"left out: {line}")


def _words(paths: tuple[str, ...]) -> str:
    return paths[0] if len(paths) == 1 else f"{len(paths)} files of {Path(paths[0]).parent}"
