"""The driver of a run on many machines: work goes to idle workers, and survives their death.

It is independent of the engine. Items in flight are bounded, with one result per item. If a worker dies with
several items, these are returned without a charge, each to be run alone from then on; if it had one item, the
item is charged an attempt, and set aside after ATTEMPTS of them. So an item that kills its worker harms no
other, and a lost machine harms none.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

from mmif_trt.running import Stop

ATTEMPTS = 3
FAILED_STARTS = 5  # in a row, of all workers, without a result in between
WAIT_S, GRACE_S = 0.5, 4.0
READY, DONE, DIED, USELESS = "ready", "done", "died", "useless"


@dataclass(frozen=True)
class Event:
    """kind: READY; DONE, of `ticket`, with its results, and why the run should stop where it should; DIED,
    all that the worker had in hand is lost; USELESS, it cannot work, for `why`, and nobody takes its
    place."""

    kind: str
    worker: int
    ticket: int = 0
    results: tuple[Any, ...] = ()
    why: str = ""


class Engine(Protocol):
    """Starts workers and brings items to them. Only `wait` blocks."""

    def start(self, worker: int) -> None:
        """Requests a worker, in place of a dead one with this number."""

    def give(self, worker: int, ticket: int, items: tuple[Any, ...]) -> None: ...

    def wait(self, seconds: float) -> list[Event]:
        """The events; empty after `seconds` without one."""
        ...


@dataclass(frozen=True)
class _Job:
    """alone: its worker may have no other item."""

    items: tuple[Any, ...]
    alone: bool = False
    attempts: int = 0


@dataclass
class _Worker:
    is_ready: bool = False
    in_hand: dict[int, _Job] = field(default_factory=dict)


class Driver:
    """on_result: what came of each item, in order of completion. lost: the result of one that is set aside.

    chunk: items per job. in_flight: jobs per worker, so that reading, network and writing overlap in it.
    """

    def __init__(
        self,
        engine: Engine,
        workers: int,
        on_result: Callable[[Any], object],
        lost: Callable[[Any], Any],
        stop: Stop,
        chunk: int = 1,
        in_flight: int = 3,
    ) -> None:
        self._engine, self._on_result, self._lost, self._stop = engine, on_result, lost, stop
        self._chunk, self._in_flight = chunk, in_flight
        self._workers = {number: _Worker() for number in range(workers)}
        self._suspects: deque[_Job] = deque()
        self._todo: Iterator[Any] = iter(())
        self._next: tuple[Any, ...] = ()
        self._tickets = self._failed_starts = 0

    def run(self, items: Iterable[Any]) -> None:
        """Until every item has its result, or `stop` has a reason: then running items have GRACE_S to end."""
        self._todo = iter(items)
        self._advance()
        for number in self._workers:
            self._engine.start(number)
        while not self._stop.reason:
            self._hand_out()
            if not (self._next or self._suspects or self._busy()):
                return
            self._take(self._engine.wait(WAIT_S))
        end = time.monotonic() + GRACE_S
        while self._busy() and time.monotonic() < end:
            self._take(self._engine.wait(WAIT_S))

    def _advance(self) -> None:
        self._next = tuple(islice(self._todo, self._chunk))

    def _busy(self) -> bool:
        return any(worker.in_hand for worker in self._workers.values())

    def _hand_out(self) -> None:
        """To idle workers first. While suspects wait, no worker gets a second job, so that one is idle
        sooner."""
        for number, worker in sorted(self._workers.items(), key=lambda item: len(item[1].in_hand)):
            while worker.is_ready and (self._suspects or self._next) and self._has_room(worker):
                if self._suspects:
                    self._give(number, self._suspects.popleft())
                else:
                    self._give(number, _Job(self._next))
                    self._advance()

    def _has_room(self, worker: _Worker) -> bool:
        if self._suspects or any(job.alone for job in worker.in_hand.values()):
            return not worker.in_hand
        return len(worker.in_hand) < self._in_flight

    def _give(self, number: int, job: _Job) -> None:
        self._tickets += 1
        self._workers[number].in_hand[self._tickets] = job
        self._engine.give(number, self._tickets, job.items)

    def _take(self, events: list[Event]) -> None:
        for event in events:
            worker = self._workers.get(event.worker)
            if worker is None:
                continue
            if event.kind == READY:
                worker.is_ready = True
            elif event.kind != DONE:
                self._replace(event, worker)
            elif worker.in_hand.pop(event.ticket, None) is not None:
                self._failed_starts = 0
                for result in event.results:
                    self._on_result(result)
                self._stop.reason = self._stop.reason or event.why

    def _replace(self, event: Event, worker: _Worker) -> None:
        jobs = list(worker.in_hand.values())
        ran_alone = len(jobs) == 1 and len(jobs[0].items) == 1
        for job in jobs:
            if ran_alone and job.attempts + 1 >= ATTEMPTS:
                self._on_result(self._lost(job.items[0]))
            else:
                charged = job.attempts + ran_alone
                self._suspects += (_Job((item,), True, charged) for item in job.items)
        self._failed_starts += not worker.is_ready
        if event.kind == USELESS:
            del self._workers[event.worker]
            if not self._workers:
                self._stop.reason = self._stop.reason or event.why
            return
        self._workers[event.worker] = _Worker()
        if self._failed_starts >= FAILED_STARTS:
            why = f"{FAILED_STARTS} workers in a row died at their start: see the engine's logs"
            self._stop.reason = self._stop.reason or why
        elif not self._stop.reason:
            self._engine.start(event.worker)
