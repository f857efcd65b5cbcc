"""Fuse many pairs: decode, network and encode of different pairs overlap; one report entry per pair.

A few worker threads each take one pair at a time from file to file: while one waits for the network or the
disk, the others decode and encode (OpenCV and OpenVINO release the interpreter lock). So memory holds as many
pairs as there are workers, however long the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from mmif_trt import io
from mmif_trt.files import disk_is_full, read_regular, sha256_of, write_atomic
from mmif_trt.folders.pairs import Pair
from mmif_trt.image import DTYPE_RANGE, Image, InputError, Picture
from mmif_trt.label import of_other_weights
from mmif_trt.machine import usable_cores
from mmif_trt.running import Stop, explain

Range = tuple[float, float]
Read = Callable[[Pair], tuple[Picture, Picture]]
FOLDER_PAIRS = 8  # from this many on, throughput matters more than the latency of one pair
NEWER = "an input is newer than the output"
OTHER_WEIGHTS = "fused by other weights than those of the network asked for"
MAX_DEFAULT_WORKERS = 16  # each holds a pair in memory


class PairFuser(Protocol):
    """The part of `mmif_trt.Fuser` that a batch needs; several threads call it at once."""

    def fuse_images(self, a: Picture, b: Picture) -> Image: ...

    def takes_on_card(self, a: tuple[int, ...], b: tuple[int, ...]) -> bool: ...


@dataclass(slots=True)
class Result:
    """The outcome of one pair. ms: wall time in the worker; `fuse` includes the wait for the network."""

    pair: Pair
    status: str = "failed"  # done | skipped | failed
    message: str = ""
    sha256: tuple[str, ...] = ()  # of a, b, out, as far as the pair got
    ms: tuple[float, ...] = ()  # decode, fuse, encode

    def entry(self) -> dict[str, Any]:
        """The pair's entry in the JSON report."""
        return {
            "name": self.pair.name,
            "status": self.status,
            "message": self.message,
            "a": self.pair.a,
            "b": self.pair.b,
            "out": self.pair.out,
            "sha256": dict(zip(("a", "b", "out"), self.sha256, strict=False)),
            "ms": dict(zip(("decode", "fuse", "encode"), (round(t, 3) for t in self.ms), strict=False)),
        }


def run_pairs(
    pairs: list[Pair],
    fuser: PairFuser | None,
    *,
    workers: int | None = None,
    range_a: Range | None = None,
    range_b: Range | None = None,
    stop: Stop | None = None,
    on_result: Callable[[Result], None] = lambda result: None,
    decode: str = "auto",
    network: str | None = None,
) -> list[Result]:
    """Process every pair; Results in the order of `pairs`, without those that a stop left untouched.

    fuser: may be None if every pair is finished. workers: pairs at a time; None: `default_workers()`.
    on_result: called in this thread, in order of completion. A full disk sets `stop`: the rest would fail.
    decode: see `reader`. network: the message of a finished pair says if other weights than its made it;
    None: do not look.
    """
    stop = stop or Stop()
    todo = iter(range(len(pairs)))
    turn = threading.Lock()
    results: list[Result | None] = [None] * len(pairs)
    ready: queue.SimpleQueue[Result | None] = queue.SimpleQueue()
    count = min(workers or default_workers(), len(pairs))
    # The engines for pixels on a GPU know one range of 8 bits.
    whole = all(limits in (None, DTYPE_RANGE["uint8"]) for limits in (range_a, range_b))
    read, end_reading = reader(decode, pairs, count, fuser if whole else None)

    def work() -> None:
        while not stop.reason:
            with turn:
                index = next(todo, None)
            if index is None:
                break
            result = results[index] = _settle(pairs[index], fuser, (range_a, range_b), stop, read, network)
            ready.put(result)
        ready.put(None)

    threads = [threading.Thread(target=work, name=f"pair-{i}") for i in range(count)]
    for thread in threads:
        thread.start()
    try:
        for result in _until_all_ended(ready, count):
            on_result(result)
    except BaseException:
        # After an exception in a callback, or Ctrl-C without `stop`, the current pairs still finish.
        stop.reason = stop.reason or "interrupted"
        raise
    finally:
        for thread in threads:
            thread.join()
        end_reading()
    return [result for result in results if result is not None]


def reader(
    decode: str, pairs: list[Pair], workers: int, fuser: PairFuser | None = None
) -> tuple[Read, Callable[[], None]]:
    """What reads the two files of a pair, and what to call at the end. Raises InputError.

    decode: "opencv", in the workers; "dali", ahead of them by DALI: on the GPU for pairs that `fuser` takes
    there, otherwise on the CPU, the same pixels; "auto": OpenCV, which decoded at least as many pictures per
    second on the CPU wherever both were measured.
    """
    if decode in ("auto", "opencv"):
        return lambda pair: (io.read(pair.a), io.read(pair.b)), lambda: None
    if decode != "dali":
        raise InputError(f"decode {decode!r}; expected auto, dali, opencv")
    from mmif_trt.io import dali

    if missing := dali.why_not():
        raise InputError(f"decode 'dali': {missing}")
    todo = [pair for pair in pairs if not pair.finished]
    index = {pair: i for i, pair in enumerate(todo)}
    on_card = fuser.takes_on_card if fuser else None
    files = dali.read_pairs([pair.a for pair in todo], [pair.b for pair in todo], on_card=on_card)
    ahead = dali.Ahead(files, workers + dali.BATCH)
    return lambda pair: ahead.read(index[pair]), ahead.close


def _until_all_ended(ready: queue.SimpleQueue[Result | None], running: int) -> Iterator[Result]:
    while running:
        result = ready.get()
        if result is None:
            running -= 1
        else:
            yield result


def _settle(
    pair: Pair,
    fuser: PairFuser | None,
    ranges: tuple[Range | None, Range | None],
    stop: Stop,
    read: Read,
    network: str | None,
) -> Result:
    """One pair from file to file; any error goes into its Result."""
    result = Result(pair)
    try:
        if pair.finished:
            _look(result, network)
            result.status = "skipped"
        else:
            assert fuser is not None, "an unfinished pair needs a fuser"
            _fuse(result, fuser, ranges, read)
            result.status = "done"
    except Exception as error:
        result.message = explain(error)
        if disk_is_full(error):
            stop.reason = stop.reason or f"the disk of {os.path.dirname(pair.out) or '.'} is full"
    return result


def _look(result: Result, network: str | None) -> None:
    """At a finished pair, which stays as it is: its hashes, and why somebody may want it fused again."""
    pair = result.pair
    newer = max(os.path.getmtime(pair.a), os.path.getmtime(pair.b)) > os.path.getmtime(pair.out)
    fused = read_regular(pair.out)
    other = network is not None and of_other_weights(fused, network)
    result.message = "; ".join(why for why, so in ((NEWER, newer), (OTHER_WEIGHTS, other)) if so)
    result.sha256 = (sha256_of(pair.a), sha256_of(pair.b), hashlib.sha256(fused).hexdigest())


def _fuse(result: Result, fuser: PairFuser, ranges: tuple[Range | None, Range | None], read: Read) -> None:
    pair = result.pair
    clock = [time.perf_counter()]

    def lap() -> None:
        clock.append(time.perf_counter())
        result.ms = tuple((end - start) * 1e3 for start, end in zip(clock, clock[1:], strict=False))

    a, b = (
        image if limits is None else replace(image, value_range=limits)
        for image, limits in zip(read(pair), ranges, strict=True)
    )
    result.sha256 = (a.sha256, b.sha256)
    lap()
    fused = fuser.fuse_images(a, b)
    lap()
    io.write(pair.out, fused)
    lap()
    result.sha256 += (sha256_of(pair.out),)


def default_workers() -> int:
    """One pair in the network per core, and two being read or written, mostly waiting for the disk."""
    return min(MAX_DEFAULT_WORKERS, usable_cores() + 2)


def network_streams(unfinished: int, workers: int, threads: int | None = None) -> int:
    """How many pictures the network should run at a time.

    All threads on one picture give the shortest latency, but wait for each other part of the time; for a
    folder of pairs, one picture per thread is better. threads: of the network; None: all cores.
    """
    return min(workers, threads or usable_cores()) if unfinished >= FOLDER_PAIRS else 1


def totals(results: list[Result], pairs: int, seconds: float) -> dict[str, Any]:
    """Counts and rate of a run over `pairs` pairs; pairs_per_s counts fused pairs, not skipped ones."""
    count = Counter(result.status for result in results)
    return {
        "pairs": pairs,
        **{status: count[status] for status in ("done", "skipped", "failed")},
        "not_started": pairs - len(results),
        "seconds": round(seconds, 3),
        "pairs_per_s": round(count["done"] / seconds, 2) if seconds else 0.0,
    }


def write_report(path: str | Path, head: dict[str, Any], results: list[Result]) -> None:
    """The JSON report, written atomically: `head`, then "pairs" with one line per pair. Raises OSError."""
    text = json.dumps(head, indent=1)
    entries = ",\n".join(json.dumps(result.entry()) for result in results)
    write_atomic(path, f'{text[:-2]},\n "pairs": [\n{entries}\n]\n}}\n'.encode())
