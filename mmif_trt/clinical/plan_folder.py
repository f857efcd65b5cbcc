"""A plan in files: made once, by one process or several, and read by all that make its cases.

PLAN/plan-I-of-N.json says how many cases part I has, the SHA-256 of their files and how they are fused, and
is written last; PLAN/cases-I-of-N-NUMBER.jsonl.gz hold CHUNK cases each, one per line;
PLAN/left-I-of-N.txt.gz lists what is left out.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from mmif_trt import weights
from mmif_trt.about import VERSION
from mmif_trt.clinical.case import Case, is_name
from mmif_trt.clinical.records import Run
from mmif_trt.clinical.spill import Spill, case_of, entry_of
from mmif_trt.image import InputError
from mmif_trt.running import why
from mmif_trt.storage import Store
from mmif_trt.volume import Options

FORMAT, CHUNK = 2, 256
EARLIER = 1  # names no network: it was the default
HEAD = re.compile(r"plan-(\d{1,6})-of-(\d{1,6})\.json")
BODY = re.compile(r"cases-\d{1,6}-of-\d{1,6}-\d{6,}\.jsonl\.gz")


def is_plan(store: Store) -> bool:
    """Raises InputError for one without a head."""
    is_begun = False
    for name in store.names():
        if HEAD.fullmatch(name):
            return True
        is_begun = is_begun or BODY.fullmatch(name) is not None
    if is_begun:
        raise InputError(
            f"{store.where('')}: an unfinished plan; expected it written: run the same plan again"
        )
    return False


def refuse(store: Store, part: tuple[int, int]) -> None:
    """Raises InputError if the folder holds this part of a plan, or a plan of another number of parts. Call
    before headers are read: that takes long."""
    name, (_, count) = "plan-{}-of-{}.json".format(*part), part
    for there in store.names():
        found = HEAD.fullmatch(there)
        if there == name or found and int(found[2]) != count:
            raise InputError(f"{store.where(there)}: exists; expected a new folder for a plan")


def write(store: Store, spill: Spill, run: Run, part: tuple[int, int]) -> None:
    """Writes one part of a plan, its head last. run: resolved. Raises InputError if the part exists."""
    refuse(store, part)
    name, hashes = "{}-of-{}".format(*part), []
    for number, lines in enumerate(_chunks(json.dumps(entry_of(case)) for case in spill.cases())):
        packed = _packed(lines)
        store.write(_cases(name, number), packed)
        hashes.append(hashlib.sha256(packed).hexdigest())
    store.write(f"left-{name}.txt.gz", _packed(spill.left()))
    head = {"mmif_trt": VERSION, "format": FORMAT, "bids": spill.bids, "run": asdict(run)}
    head |= {"cases": len(spill), "chunk": CHUNK, "sha256": hashes}
    store.write(f"plan-{name}.json", (json.dumps(head, indent=1) + "\n").encode())


def _cases(part: str, number: int) -> str:
    return f"cases-{part}-{number:06}.jsonl.gz"


def _chunks(lines: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(lines)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk


def _packed(lines: Iterable[str]) -> bytes:
    return gzip.compress("".join(f"{line}\n" for line in lines).encode(errors="replace"), 6, mtime=0)


@dataclass(frozen=True)
class Part:
    """sha256: of each file of cases. bids: see PlanFolder."""

    name: str
    cases: int
    chunk: int
    sha256: tuple[str, ...]
    run: Run
    bids: str


class PlanFolder:
    """A whole plan. run: how its cases are fused. bids: the BIDS data set that they are of, or "". Memory
    holds one chunk. Raises InputError for a folder that is not a plan or lacks a part, and for what `write`
    did not write."""

    def __init__(self, store: Store) -> None:
        self._store = store
        heads = [found for name in store.names() if (found := HEAD.fullmatch(name))]
        if not heads:
            raise InputError(f"{store.where('')}: no plan; expected a folder written by mmif-trt plan")
        counts = {int(head[2]) for head in heads}
        missing = sorted(set(range(1, max(counts) + 1)) - {int(head[1]) for head in heads})
        if len(counts) > 1 or missing:
            what = f"parts of {sorted(counts)}" if len(counts) > 1 else f"part {missing[0]} is missing"
            raise InputError(f"{store.where('')}: {what}; expected all parts of one plan")
        self._parts = [self._head(head[0]) for head in sorted(heads, key=lambda head: int(head[1]))]
        self.run, self.bids = self._parts[0].run, self._parts[0].bids
        if any((part.run, part.bids) != (self.run, self.bids) for part in self._parts):
            raise InputError(f"{store.where('')}: its parts differ in options; expected the same for all")

    def _head(self, name: str) -> Part:
        try:
            head = json.loads(self._store.read(name))
            if head["format"] not in (FORMAT, EARLIER):
                where = self._store.where(name)
                raise InputError(f"{where}: format {head['format']}; expected {FORMAT}, of this version")
            part = name.removeprefix("plan-").removesuffix(".json")
            cases, chunk, hashes = int(head["cases"]), int(head["chunk"]), tuple(head["sha256"])
            if len(hashes) != -(-cases // chunk):
                raise self._damaged(name, f"{len(hashes)} files for {cases} cases")
            run = _run_of(head["run"])
            weights.refuse_unknown(run.network, f"{self._store.where(name)}: network")
            return Part(part, cases, chunk, hashes, run, str(head["bids"]))
        except InputError:
            raise
        except (OSError, ArithmeticError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise self._damaged(name, why(error)) from None

    def _damaged(self, name: str, reason: str) -> InputError:
        return InputError(
            f"{self._store.where(name)}: damaged or edited ({reason}); expected what plan wrote"
        )

    def __len__(self) -> int:
        return sum(part.cases for part in self._parts)

    def cases(self, index: int = 1, count: int = 1) -> Iterator[Case]:
        """The index-th of `count` shares, consecutive in the plan: a share reads only its own files."""
        total = len(self)
        yield from self._between(total * (index - 1) // count, total * index // count)

    def _between(self, first: int, end: int) -> Iterator[Case]:
        before = 0
        for part in self._parts:
            for at in range(0, part.cases, part.chunk):
                size = min(part.chunk, part.cases - at)
                begin, stop = max(first - before - at, 0), min(end - before - at, size)
                if begin < stop:
                    number = at // part.chunk
                    lines = self._lines(_cases(part.name, number), part.sha256[number])
                    if len(lines) != size:
                        raise self._damaged(_cases(part.name, number), f"{len(lines)} cases of {size}")
                    for line in lines[begin:stop]:
                        yield self._case(_cases(part.name, number), line)
            before += part.cases

    def _lines(self, name: str, sha256: str = "") -> list[str]:
        try:
            packed = self._store.read(name)
            if sha256 and hashlib.sha256(packed).hexdigest() != sha256:
                raise self._damaged(name, "another SHA-256")
            return gzip.decompress(packed).decode().splitlines()
        except InputError:
            raise
        except (gzip.BadGzipFile, EOFError, zlib.error):
            raise self._damaged(name, "not a whole gzip file") from None
        except (OSError, ValueError) as error:
            raise self._damaged(name, why(error)) from None

    def _case(self, name: str, line: str) -> Case:
        try:
            case = case_of(json.loads(line))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise self._damaged(name, why(error)) from None
        if not is_name(case.name):
            raise self._damaged(name, "the name of a case")
        return case

    def left(self) -> Iterator[str]:
        for part in self._parts:
            yield from self._lines(f"left-{part.name}.txt.gz")


def _run_of(entry: Any) -> Run:
    options = entry["options"].items()
    stated: dict[str, Any] = {key: tuple(x) if isinstance(x, list) else x for key, x in options}
    network = str(entry.get("network", weights.DEFAULT))
    return Run(Options(**stated), str(entry["runtime"]), str(entry["precision"]), network)
