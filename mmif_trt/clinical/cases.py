"""Many cases of volumes: read (in a child), fuse and write overlap; a record per case; resume after a kill.

A case is done when its record says so, with its options. The record is written last, so that a kill at any
moment leaves either a complete case or one that is redone. Memory holds one case in each of the three stages,
however many there are.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmif_trt import overwriting, scratch
from mmif_trt.clinical import bids, outputs, records, staging
from mmif_trt.clinical.case import Case, Loaded, VolumeFuser, fuse, load
from mmif_trt.clinical.decoder import Decoder
from mmif_trt.clinical.records import DONE, FAILED, Output, Owner, Run
from mmif_trt.files import disk_is_full, sha256_of
from mmif_trt.image import InputError
from mmif_trt.running import Stop, explain
from mmif_trt.storage import Bucket, Folder
from mmif_trt.view import page, triple
from mmif_trt.volume import Fused

STAGES = 3  # read, fuse, write
BEFORE, ELSEWHERE, LEFT = "before", "elsewhere", "left"
FULL = "the disk of {} is full"


@dataclass(frozen=True)
class Settled:
    """The outcome of a case. status: DONE, FAILED; BEFORE: it was done; ELSEWHERE: another run works on it;
    LEFT: untouched, because the run was stopped. doubt: why the registration of a case that is DONE or
    was may be wrong, or ""."""

    name: str
    status: str
    message: str = ""
    doubt: str = ""


@dataclass(frozen=True)
class How:
    """run: resolved. overwrite: redo cases fused with other options. take_over: see records.claim."""

    output: Output
    run: Run
    overwrite: bool = False
    take_over: bool = False


class Runner:
    """One case from its files to its record: the only way to make a case. Close it, or use `with`.

    Several threads may call it: one reads, one fuses, one writes.
    """

    def __init__(
        self,
        how: How,
        fuser: VolumeFuser,
        owner: Owner,
        stop: Stop | None = None,
    ) -> None:
        self.output, self.run, self.owner, self.stop = how.output, how.run, owner, stop or Stop()
        self._fuser, self._how = fuser, how
        self._decoder, self._ends = Decoder(), ExitStack()
        self._scratch: Path | None = None
        self._reading, self._fusing, self._writing = (threading.Lock() for _ in range(STAGES))

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._decoder.close()
        self._ends.close()

    @property
    def scratch(self) -> Path:
        """A folder on this machine for files from or for an object store."""
        if self._scratch is None:
            self._scratch = self._ends.enter_context(scratch.folder("cases"))
        return self._scratch

    def __call__(self, case: Case) -> Settled:
        start = time.monotonic()
        try:
            done = records.is_done(self.output, case)
            if done is not None:
                how = records.difference(done, case, self.run)
                if not how:
                    return Settled(case.name, BEFORE, doubt=outputs.doubt(done))
                if not self._how.overwrite:
                    return Settled(case.name, FAILED, f"was fused otherwise ({how}); expected --overwrite")
                self.output.forget(case.name)
            self._guard(case)
            record = records.claim(self.output, case, self.owner, self._how.take_over)
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
        """Raises InputError if an output is a source of the case, or a file that is not ours."""
        if isinstance(self.output.store, Bucket):
            return
        inputs = [path for path in (*case.a, *case.b, case.registration) if path]
        ours = records.claimed(self.output, case.name)
        overwriting.check(inputs, self.output.files(case.name), lambda path: os.path.basename(path) in ours)

    def _make(self, case: Case) -> dict[str, Any] | None:
        """The record's content for the fused case; None if a full disk stopped the run."""
        with self._reading:
            loaded = self._load(case)
        with self._fusing:
            fused = fuse(loaded, self._fuser)
        with self._writing:
            if self.stop.reason == FULL.format(self.output.store.root):
                return None
            told, hashes = self._save(case, fused, loaded)
        return {**told, "status": DONE, "sha256": hashes, "asked": records.asked(case, self.run)}

    def _load(self, case: Case) -> Loaded:
        if not staging.is_remote(case):
            return load(case, self._decoder, self.run.options)
        folder, names = self.scratch / "in", dict[str, str]()
        folder.mkdir()
        try:
            local, names = staging.fetched(case, folder)
            return load(local, self._decoder, self.run.options)
        except InputError as error:
            raise type(error)(staging.named(str(error), names)) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _save(self, case: Case, fused: Fused, loaded: Loaded) -> tuple[dict[str, Any], dict[str, str]]:
        """(the report with its files, the SHA-256 of each file by its base name)."""
        store, target = self.output.store, self.output.target(case.name)
        if isinstance(store, Folder):
            store.make_room(target)
            told = self._write(store.where(target), case, fused, loaded)
            return told, {os.path.basename(path): sha256_of(path) for path in told["files"]}
        folder = self.scratch / "out"
        folder.mkdir()
        try:
            made = self._write(str(folder / f"x{self.output.suffix}"), case, fused, loaded)
            hashes = [sha256_of(path) for path in made["files"]]
            digest = hashlib.sha256("".join(hashes).encode()).hexdigest()[:16]
            names = outputs.names(self.output.target(case.name, digest))
            names += [self.output.page_of(case.name, digest)] if self.output.page else []
            for name, path in zip(names, made["files"], strict=True):
                store.put(name, path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        bases = (os.path.basename(name) for name in names)
        return {**made, "files": [store.where(x) for x in names]}, dict(zip(bases, hashes, strict=True))

    def _write(self, path: str, case: Case, fused: Fused, loaded: Loaded) -> dict[str, Any]:
        """The files of a case under `path`, and what their report says."""
        files = outputs.save(path, fused, loaded.a, loaded.b)
        told: dict[str, Any] = json.loads(outputs.report_of(fused, files))
        if self.output.bids:
            told |= bids.sidecar(case, self.output.bids)
        if self.output.page:
            shown = triple.of_volumes(loaded.a, loaded.b, fused.image, told, loaded.options)
            beside = path.removesuffix(self.output.suffix) + ".html"
            # Names the case, because paths may name a patient.
            page.write(beside, shown, case.name, dict.fromkeys(("a", "b", "fused"), f"of {case.name}"))
            told["files"] = [*files, beside]
        return told

    def _commit(self, record: dict[str, Any], start: float) -> Settled:
        record |= {"seconds": round(time.monotonic() - start, 3), "finished": round(time.time(), 3)}
        try:
            if not self.output.write(record):  # another writer was first, perhaps with other bytes
                self._withdraw(record)
                return Settled(record["name"], BEFORE)
        except Exception as error:
            return self._not_written(Case(record["name"], (), ()), error)
        return Settled(record["name"], record["status"], record["message"], outputs.doubt(record))

    def _withdraw(self, record: dict[str, Any]) -> None:
        """Deletes what was uploaded in vain, unless the other's outputs are the same."""
        store, kept = self.output.store, self.output.read(record["name"])
        if isinstance(store, Bucket) and kept is not None:
            for url in set(record["files"]) - set(kept["files"]):
                store.remove(url.removeprefix(store.root + "/"))

    def _not_written(self, case: Case, error: Exception) -> Settled:
        full = FULL.format(self.output.store.root)
        if disk_is_full(error):
            if self.stop.reason == full:
                return Settled(case.name, LEFT)  # reported once; the next run makes these
            self.stop.reason = self.stop.reason or full
        return Settled(case.name, FAILED, explain(error))


def carry(
    cases: Iterable[Case], runner: Runner, on_case: Callable[[Settled], None] = lambda settled: None
) -> Counter[str]:
    """Every case through the runner, as many at once as it has stages; counts of each status.

    on_case: called by one thread at a time, in order of completion. A full disk sets the runner's stop; so
    does an exception from `cases` or `on_case`, which is raised at the end.
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
                if disk_is_full(error):  # its log is on the same disk
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
    except BaseException:  # Ctrl-C without `stop`: the current cases still finish
        stop.reason = stop.reason or "interrupted"
        for thread in threads:
            thread.join()
        raise
    if errors:
        raise errors[0]
    return count


def refuse_overwriting(cases: list[Case], output: Output, log: str, others: list[str]) -> None:
    """Raises InputError if an output of a case is a source of any case, an output of another, or a file that
    no record claims. log: the run's, which is appended to. others: further files that the run reads."""
    claimed = {os.path.basename(log)}.union(*(records.claimed(output, case.name) for case in cases))
    inputs = [path for case in cases for path in (*case.a, *case.b, case.registration) if path]
    overwriting.check(
        [*inputs, *others],
        [*(path for case in cases for path in output.files(case.name)), log],
        lambda path: os.path.basename(path) in claimed,
    )
