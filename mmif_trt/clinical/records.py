"""The record of a case, OUT/NAME.json: its outcome, written last, and the only source of truth about it.

A record is also the claim on its case: whoever starts a case creates it as "running", with its process. Two
runs over one output thereby share the cases. A claim is taken over once its process is gone.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from mmif_trt import processes, weights
from mmif_trt.clinical import bids, outputs
from mmif_trt.clinical.case import Case
from mmif_trt.files import OutputError
from mmif_trt.image import InputError
from mmif_trt.storage import Bucket, Folder, Store
from mmif_trt.volume import Options

DONE, FAILED, RUNNING = "done", "failed", "running"
EARLIER = "writing"  # as versions before the claims called RUNNING
STATUSES = (DONE, FAILED, RUNNING, EARLIER, "")
LAYOUT, STATE = ".layout", ".state.json"
AT_ONCE = 128  # records that are asked for together
SHARD_ABOVE, SHARD_DIGITS = 4096, 2
_at_work: set[str] = set()  # runs of this process


@dataclass(frozen=True)
class Run:
    """What all cases of a run share: how volumes are fused, by which network, and what runs it. "auto" is
    resolved before the first case, because machines differ."""

    options: Options = field(default_factory=Options)
    runtime: str = "auto"
    precision: str = "auto"
    network: str = weights.DEFAULT

    @property
    def is_resolved(self) -> bool:
        return "auto" not in (self.runtime, self.precision)


@dataclass(frozen=True)
class Owner:
    """Who works on a case: a run and its process. token: the same for all workers of one driver, which gives
    a case to one of them at a time."""

    token: str
    process: processes.Process

    @classmethod
    def new(cls, token: str = "") -> Owner:
        owner = cls(token or secrets.token_hex(8), processes.this())
        _at_work.add(owner.token)
        return owner

    def ends(self) -> None:
        _at_work.discard(self.token)


@dataclass(frozen=True)
class Output:
    """digits: of the hash of a case's name that name its folder; 0: one folder for all. cases: of the whole
    plan, to tell how many are left. suffix: with its dot. page: each case has a viewer page, NAME.html. bids:
    the data set of these cases, whose outputs are laid out as a derived one; or "".

    An object store can create on a condition, but not replace. So the record of a done case, NAME.json, is
    created once and for all; claims and failures are in NAME.state.json; and the outputs have their hash in
    their names, so that independent writers never collide.
    """

    store: Store
    suffix: str
    digits: int = 0
    cases: int = 0
    page: bool = False
    bids: str = ""

    def begin(self) -> None:
        """Call before the first case: clears away what killed runs left, and describes a derived data set. Of
        several runs at once, any may be the first. Raises InputError where nothing can be written."""
        self.store.prove_writable()
        if isinstance(self.store, Folder):
            self.store.sweep()
            if self.bids:
                bids.describe(self.store, self.bids)

    def at(self, name: str) -> str:
        if self.bids:
            return f"{bids.folder_of(name)}/{name}"
        if not self.digits:
            return name
        return f"{hashlib.sha256(name.encode(errors='replace')).hexdigest()[: self.digits]}/{name}"

    def record(self, name: str) -> str:
        return f"{self.at(name)}.json"

    def state(self, name: str) -> str:
        """The name for claims and failures."""
        return f"{self.at(name)}{STATE}" if isinstance(self.store, Bucket) else self.record(name)

    def target(self, name: str, digest: str = "") -> str:
        return f"{self.at(name)}{digest and f'-{digest}'}{self.suffix}"

    def page_of(self, name: str, digest: str = "") -> str:
        return f"{self.at(name)}{digest and f'-{digest}'}.html"

    def read(self, name: str) -> dict[str, Any] | None:
        """The record; None if there is none of ours."""
        record = read_record(self.store, self.record(name), name)
        if record is None and isinstance(self.store, Bucket):
            return read_record(self.store, self.state(name), name)
        return record

    def write(self, record: dict[str, Any]) -> bool:
        """False if another writer's record was first, on an object store. Raises OutputError."""
        name = record["name"]
        if not isinstance(self.store, Bucket):
            self.store.write(self.record(name), _text(record))
        elif record["status"] != DONE:
            self.store.write(self.state(name), _text(record))
        elif self.store.create(self.record(name), _text(record)):
            self.store.remove(self.state(name))
        else:
            there = self.read(name)
            return there is not None and (there.get("run"), there.get("sha256")) == (
                record["run"],
                record["sha256"],
            )  # our own: the answer to the first try was lost
        return True

    def forget(self, name: str) -> None:
        """Call before redoing a done case: an object store replaces nothing."""
        if isinstance(self.store, Bucket):
            self.store.remove(self.record(name))

    def lies_there(self, record: dict[str, Any]) -> bool:
        """Whether the outputs that a record of ours names exist."""
        files = record.get("files")
        folder = self.at(record["name"]).rpartition("/")[0]
        names = [os.path.basename(str(file)) for file in files] if isinstance(files, list) else []
        return bool(names) and all(self.store.holds(f"{folder}/{x}" if folder else x) for x in names)

    def files(self, name: str) -> list[str]:
        """All that a case writes, its record last, as full names."""
        made = outputs.names(self.store.where(self.target(name)))
        made += [self.store.where(self.page_of(name))] if self.page else []
        return [*made, self.store.where(self.record(name))]


def output_in(store: Store, suffix: str, cases: int, keep: bool = True, data_set: str = "") -> Output:
    """The folder's layout; for a new folder, one for so many cases, which is stored in it. keep: False writes
    nothing. data_set: see Output.bids. Raises InputError."""
    if data_set:
        bids.refuse_output(store, suffix, data_set)
        return Output(store, suffix, cases=cases, bids=data_set)
    try:
        digits = int(json.loads(store.read(LAYOUT))["shard_digits"])
    except FileNotFoundError:
        digits = SHARD_DIGITS if cases > SHARD_ABOVE and not _has_records(store) else 0
        if (
            digits
            and keep
            and not store.create(LAYOUT, _text({"mmif_trt": "layout", "shard_digits": digits}))
        ):
            return output_in(store, suffix, cases)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError):
        where = store.where(LAYOUT)
        raise InputError(f"{where}: damaged; expected a layout written by batch, or no file") from None
    return Output(store, suffix, digits, cases)


def _has_records(store: Store) -> bool:
    return any(name.endswith(".json") for name in store.names())


def read_record(store: Store, at: str, name: str) -> dict[str, Any] | None:
    """The record of `name`; None where there is none of ours."""
    try:
        record = _parsed(at, store.read(at))
    except (InputError, OSError):
        return None
    return record if record is not None and record["name"] == name else None


def _parsed(at: str, text: bytes) -> dict[str, Any] | None:
    """An empty file has nothing to lose: it counts as a record."""
    own = os.path.basename(at).removesuffix(STATE).removesuffix(".json")
    try:
        record = json.loads(text) if text else {"name": own, "status": "", "files": []}
    except ValueError:
        return None
    return record if _is_ours(record) else None


def _is_ours(record: Any) -> bool:
    """By what we rely on elsewhere: a folder may contain anybody's JSON."""
    if not isinstance(record, dict) or not isinstance(record.get("name"), str):
        return False
    numbers = (record.get(key) or 0 for key in ("of", "began", "finished"))
    return record.get("status") in STATUSES and all(isinstance(number, int | float) for number in numbers)


def all_records(store: Store) -> Iterator[dict[str, Any]]:
    """Every record of an output, one by one."""
    for folder in ("", *store.folders()):
        there = {at for at in store.names(folder) if at.endswith(".json")}
        # Of a case with a record, its state came before.
        names = sorted(
            x for x in there if not (x.endswith(STATE) and x.removesuffix(STATE) + ".json" in there)
        )
        for at in range(0, len(names), AT_ONCE):
            some = names[at : at + AT_ONCE]
            for name, text in zip(some, store.read_many(some), strict=True):
                if text is not None and (record := _parsed(name, text)) is not None:
                    yield record


def asked(case: Case, run: Run) -> dict[str, Any]:
    """Everything but its files that determines a case's result, as JSON has it."""
    own = {
        "runtime": run.runtime,
        "precision": run.precision,
        "network": run.network,
        "spatial_registration": case.registration or None,
        "weights": weights.in_use(run.network)[run.network]["sha256"],
    }
    for side, which in (("a", case.which_a), ("b", case.which_b)):
        own |= {f"{what}_{side}": value for what, value in asdict(which).items() if value}
    wanted: dict[str, Any] = json.loads(json.dumps({**asdict(case.options(run.options)), **own}))
    return wanted


def is_done(output: Output, case: Case) -> dict[str, Any] | None:
    """The record of a case that is done and whose outputs exist, with its page if it should have one."""
    record = output.read(case.name)
    if record is None or record["status"] != DONE or not output.lies_there(record):
        return None
    made = [str(file) for file in record["files"]]
    wanted = (output.suffix, *([".html"] if output.page else []))
    # With another format it is another case.
    return record if all(any(x.endswith(end) for x in made) for end in wanted) else None


def difference(record: dict[str, Any], case: Case, run: Run) -> str:
    """How a done case differs from now, as text; empty if it does not."""
    # Versions before the second network named none.
    was, now = {"network": weights.DEFAULT, **(record.get("asked") or {})}, asked(case, run)
    return ", ".join(
        key if isinstance(now.get(key), dict) else f"{key} {was.get(key)}, now {now.get(key)}"
        for key in sorted(was.keys() | now.keys())
        if was.get(key) != now.get(key)
    )


def claim(output: Output, case: Case, owner: Owner, take_over: bool = False) -> dict[str, Any] | None:
    """The record that `owner` works on the case; None if another does. take_over: from whoever claimed it.
    Raises OutputError."""
    while True:
        before = output.read(case.name)
        if before is not None and before["status"] == RUNNING and not take_over and _is_others(before, owner):
            return None
        record = {
            "name": case.name,
            "status": RUNNING,
            "message": "",
            "files": sorted(claimed(output, case.name) - {f"{case.name}.json"} | _own(output, case)),
            "of": output.cases,
            **stamp(owner),
            "began": time.time(),
        }
        if before is not None:
            output.write(
                record
            )  # two that take over at once both make it: the same result, complete, one after the other
        elif not output.store.create(output.state(case.name), _text(record)):
            if output.read(case.name) is None:
                raise OutputError(
                    f"{output.store.where(output.state(case.name))}: no record of this program; expected a "
                    "new name, or move it"
                )
            continue
        return record


def stamp(owner: Owner) -> dict[str, Any]:
    return {"run": owner.token, "process": owner.process.entry()}


def _own(output: Output, case: Case) -> set[str]:
    return {os.path.basename(path) for path in output.files(case.name)[:-1]}


def _is_others(record: dict[str, Any], owner: Owner) -> bool:
    return record.get("run") != owner.token and is_at_work(record)


def is_at_work(record: dict[str, Any]) -> bool:
    """Whether a "running" record's process may still be working."""
    process, token = processes.of(record.get("process")), record.get("run")
    if process is None:
        return False
    if process == processes.this():
        return token in _at_work
    return processes.runs(process, float(record.get("began") or 0))


def claimed(output: Output, name: str) -> set[str]:
    """The base names that a record of ours lists for this case, with its own."""
    record = output.read(name)
    if record is None:
        return set()
    files = record.get("files")
    names = (os.path.basename(str(x)) for x in (files if isinstance(files, list) else ()))
    return {f"{name}.json", *names}


def _text(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, indent=1) + "\n").encode()
