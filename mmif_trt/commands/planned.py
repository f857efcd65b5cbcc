"""What `plan` and `batch` share: the source of cases, parts, and what `auto` means on this machine."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from mmif_trt.clinical import pseudonym
from mmif_trt.files import prove_writable
from mmif_trt.image import InputError
from mmif_trt.machine import usable_cores
from mmif_trt.storage import is_url, store_of

if TYPE_CHECKING:
    from mmif_trt.clinical.plan_folder import PlanFolder
    from mmif_trt.clinical.records import Run
    from mmif_trt.clinical.spill import Spill
    from mmif_trt.fuser import Fuser

LEFT_SHOWN = 5  # of the lines on what is left out, in a message


def part_of(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    index, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= index <= count:
        raise InputError(f"--part {text}: expected I/N with 1 <= I <= N")
    return index, count


def absolute(path: str) -> str:
    """For processes in other working folders."""
    return path if is_url(path) else os.path.abspath(path)


def secret_of(source: str, root: str, given: str | None, make: bool) -> bytes:
    """The key of the names, stored with the output. make: False for a dry run, whose names are temporary.
    BIDS has its own names."""
    has_patients = _has_patients(source)
    if is_url(root) and not given:
        if has_patients:
            raise InputError(f"-o {root}: expected --pseudonym-key FILE with it, so that the key stays here")
        return pseudonym.fresh_key()
    folder = Path(root)
    key = pseudonym.key_in(folder, given, make=False)
    if key is None and make and has_patients:
        prove_writable(folder)
        key = pseudonym.key_in(folder)
    return key or pseudonym.fresh_key()


def _has_patients(source: str) -> bool:
    """Whether cases are named by keyed hashes: those of a study tree."""
    from mmif_trt.clinical import bids

    is_tree = os.path.isdir(source) or is_url(source) and not source.lower().endswith(".csv")
    return is_tree and not bids.is_dataset(source)


def names_are_temporary(source: str, root: str, given: str | None) -> bool:
    """Whether a dry run had no key to name the cases by: the run makes one, which gives other names."""
    return not given and _has_patients(source) and pseudonym.key_in(Path(root), make=False) is None


@contextmanager
def plan_of(args: argparse.Namespace) -> Iterator[PlanFolder | Spill]:
    """The plan that the source is, or one made from it for this run. Raises InputError."""
    from mmif_trt.clinical import plan_folder, planning
    from mmif_trt.clinical.spill import Spill

    may_be = is_url(args.source) or os.path.isdir(args.source)
    if may_be and plan_folder.is_plan(store_of(args.source)):
        yield plan_folder.PlanFolder(store_of(args.source))
        return
    key = secret_of(args.source, args.output, args.pseudonym_key, not args.dry_run)
    with Spill() as spill:
        source = absolute(args.source) if args.on else args.source
        planning.fill(spill, source, key, args.registration == "rigid")
        yield spill


def no_pair(source: str, left: Iterator[str]) -> str:
    """What is wrong with a source that has no case. left: what was left out, and why."""
    from mmif_trt.clinical import bids

    if source.lower().endswith(".csv"):
        return f"{source}: no case; expected a line for each below the heading"
    lines = list(islice(left, LEFT_SHOWN + 1))
    why = "; ".join(lines[:LEFT_SHOWN]) or "no series"
    expected = "an MRI and a CT, PET or SPECT of one patient"
    if bids.is_dataset(source):
        expected = "of one session an MRI (T1w, T2w or FLAIR) in anat/ and a PET in pet/ or a CT in ct/"
    more = "; mmif-trt batch --dry-run lists all that is left out" if len(lines) > LEFT_SHOWN else ""
    return f"{source}: no pair ({why}); expected {expected}{more}"


class Network:
    """The run's network, loaded on demand, and the run with "auto" resolved."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._fuser: Fuser | None = None

    @property
    def fuser(self) -> Fuser:
        from mmif_trt.fuser import Fuser

        if self._fuser is None:
            self._fuser = Fuser(
                self._run.runtime, self._run.precision, streams=usable_cores(), network=self._run.network
            )
        return self._fuser

    @property
    def run(self) -> Run:
        if not self._run.is_resolved:
            runtime = self.fuser.runtime
            self._run = replace(self._run, runtime=runtime.name, precision=runtime.precision)
        return self._run
