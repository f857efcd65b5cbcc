"""Many cases of volumes: read (in a child), fuse and write overlap; a record per case; resume after a kill.

A case is done when its record says so, and with what options: it is written last, so that a kill at any
moment leaves either a whole case or one that is made again. Memory holds one case in each of the three
stages, whatever their number.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from mmif_trt import overwriting
from mmif_trt.clinical import bids, outputs, records
from mmif_trt.clinical.case import Case, Loaded, VolumeFuser, fuse, load
from mmif_trt.clinical.decoder import Decoder
from mmif_trt.clinical.records import DONE, FAILED, Output, Owner, Run
from mmif_trt.files import disk_is_full, open_regular
from mmif_trt.image import Image
from mmif_trt.running import Stop, explain
from mmif_trt.view import page, triple

STAGES = 3  # read, fuse, write
BEFORE, ELSEWHERE, LEFT = "before", "elsewhere", "left"
FULL = "the disk of {} is full"


@dataclass(frozen=True)
class Settled:
    """What became of a case. status: DONE, FAILED; BEFORE: it was done; ELSEWHERE: another run is at it;
    LEFT: untouched, for the run was stopped."""

    name: str
    status: str
    message: str = ""


class Runner:
    """One case from its files to its record: the only way a case is made. Close it, or use `with`.

    Several threads may call it: one reads, one fuses, one writes. run: resolved.
    """

    def __init__(
        self,
        output: Output,
        run: Run,
        fuser: VolumeFuser,
        owner: Owner,
        stop: Stop | None = None,
        overwrite: bool = False,
    ) -> None:
        self.output, self.run, self.owner, self.stop = output, run, owner, stop or Stop()
        self._fuser, self._overwrite = fuser, overwrite
        self._decoder = Decoder()
        self._reading, self._fusing, self._writing = (threading.Lock() for _ in range(STAGES))

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._decoder.close()

    def __call__(self, case: Case) -> Settled:
        start = time.monotonic()
        try:
            done = records.is_done(self.output, case)
            if done is not None:
                how = records.difference(done, case, self.run)
                if not how:
                    return Settled(case.name, BEFORE)
                if not self._overwrite:
                    return Settled(case.name, FAILED, f"was fused otherwise ({how}); expected --overwrite")
            self._guard(case)
            record = records.claim(self.output, case, self.owner)
            if record is None:
                return Settled(case.name, ELSEWHERE)
        except Exception as error:
            return self._not_written(case, error)
        try:
            files = self._make(case)
        except Exception as error:
            if disk_is_full(error):
                return self._not_written(case, error)
            return self._commit({**record, "status": FAILED, "message": explain(error)}, start)
        if files is None:
            return Settled(case.name, LEFT)
        return self._commit({**record, **files}, start)

    def _guard(self, case: Case) -> None:
        """Raises InputError where an output is a source of the case, or somebody's file."""
        inputs = [path for path in (*case.a, *case.b, case.registration) if path]
        ours = records.claimed(self.output, case.name)
        overwriting.check(inputs, self.output.files(case.name), lambda path: os.path.basename(path) in ours)

    def _make(self, case: Case) -> dict[str, Any] | None:
        """What the record is to say of the fused case; None where the run was stopped by a full disk."""
        with self._reading:
            loaded = load(case, self._decoder, self.run.options)
        with self._fusing:
            fused = fuse(loaded, self._fuser)
        with self._writing:
            if self.stop.reason == FULL.format(self.output.store.root):
                return None
            target = self.output.target(case.name)
            self.output.store.make_room(target)
            files = outputs.save(self.output.store.where(target), fused, loaded.a, loaded.b)
            told = json.loads(outputs.report_of(fused, files))
            if self.output.bids:
                told |= bids.sidecar(case, self.output.bids)
            if self.output.page:
                files = [*files, self._page(case, loaded, fused.image, told)]
                told["files"] = files
        hashes = {os.path.basename(path): _sha256(path) for path in files}
        return {**told, "status": DONE, "sha256": hashes, "asked": records.asked(case, self.run)}

    def _page(self, case: Case, loaded: Loaded, fused: Image, record: dict[str, Any]) -> str:
        """The page to look at; it names the case, for paths may name a patient."""
        path = self.output.store.where(self.output.page_of(case.name))
        shown = triple.of_volumes(loaded.a, loaded.b, fused, record, loaded.options)
        page.write(path, shown, case.name, dict.fromkeys(("a", "b", "fused"), f"of {case.name}"))
        return path

    def _commit(self, record: dict[str, Any], start: float) -> Settled:
        record |= {"seconds": round(time.monotonic() - start, 3), "finished": round(time.time(), 3)}
        try:
            self.output.write(record)
        except Exception as error:
            return self._not_written(Case(record["name"], (), ()), error)
        return Settled(record["name"], record["status"], record["message"])

    def _not_written(self, case: Case, error: Exception) -> Settled:
        full = FULL.format(self.output.store.root)
        if disk_is_full(error):
            if self.stop.reason == full:
                return Settled(case.name, LEFT)  # told once; these are made by the next run
            self.stop.reason = self.stop.reason or full
        return Settled(case.name, FAILED, explain(error))


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def carry(
    cases: Iterable[Case], runner: Runner, on_case: Callable[[Settled], None] = lambda settled: None
) -> Counter[str]:
    """Every case through the runner, as many at once as it has stages; counts of each status.

    on_case: of one thread at a time, in order of completion. A full disk sets the runner's stop; so does an
    exception of `cases` or `on_case`, which is raised at the end.
    """
    todo, stop, count = iter(cases), runner.stop, Counter[str]()
    taking, telling = threading.Lock(), threading.Lock()
    errors: list[BaseException] = []

    def work() -> None:
        while not stop.reason:
            try:
                with taking:
                    case = next(todo, None)
                if case is None:
                    return
                settled = runner(case)
                with telling:
                    count[settled.status] += 1
                    if settled.status != LEFT:
                        on_case(settled)
            except BaseException as error:
                if disk_is_full(error):  # its log lies on the same disk
                    stop.reason = stop.reason or FULL.format(runner.output.store.root)
                else:
                    errors.append(error)
                    stop.reason = stop.reason or "interrupted"

    threads = [threading.Thread(target=work, name=f"case-{number}") for number in range(STAGES)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:  # Ctrl-C where nobody sets `stop`: the cases in hand still end whole
        stop.reason = stop.reason or "interrupted"
        for thread in threads:
            thread.join()
        raise
    if errors:
        raise errors[0]
    return count


def refuse_overwriting(cases: list[Case], output: Output, log: str, others: list[str]) -> None:
    """Raises InputError where an output of a case is a source of any, or of another case, or a file that no
    record claims. log: of the run, which is added to. others: further files that the run reads."""
    claimed = {os.path.basename(log)}.union(*(records.claimed(output, case.name) for case in cases))
    inputs = [path for case in cases for path in (*case.a, *case.b, case.registration) if path]
    overwriting.check(
        [*inputs, *others],
        [*(path for case in cases for path in output.files(case.name)), log],
        lambda path: os.path.basename(path) in claimed,
    )
