"""The driver on an engine made up in this file: whatever dies, and whenever, each item has one result."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

import pytest

from mmif_trt.cluster import driver
from mmif_trt.cluster.driver import DIED, DONE, READY, USELESS, Driver, Event
from mmif_trt.running import Stop


class FakeEngine:
    """Takes no time: each `wait` does one thing, drawn from a seed: a worker starts, ends a job, or dies.

    poison: items that kill their worker. deaths: how often a worker dies through no fault of an item.
    """

    def __init__(self, seed: int = 0, poison: set[Any] = frozenset(), deaths: int = 0) -> None:  # type: ignore[assignment]
        self.draw, self.poison, self.deaths = random.Random(seed), poison, deaths
        self.starting: deque[int] = deque()
        self.in_hand: dict[int, dict[int, tuple[Any, ...]]] = {}
        self.most = self.items_most = self.starts = 0
        self.given = Counter[Any]()

    def start(self, worker: int) -> None:
        self.starting.append(worker)
        self.starts += 1

    def give(self, worker: int, ticket: int, items: tuple[Any, ...]) -> None:
        held = self.in_hand[worker]
        held[ticket] = items
        self.given.update(items)
        self.most = max(self.most, len(held))
        self.items_most = max(self.items_most, sum(map(len, self.in_hand[worker].values())))

    def wait(self, seconds: float) -> list[Event]:
        if self.starting and (not any(self.in_hand.values()) or self.draw.random() < 0.5):
            worker = self.starting.popleft()
            self.in_hand[worker] = {}
            return [Event(READY, worker)]
        busy = [worker for worker, held in self.in_hand.items() if held]
        if not busy:
            return []
        worker = self.draw.choice(busy)
        if self.deaths and self.draw.random() < 0.3:
            self.deaths -= 1
            return self.died(worker)
        ticket = self.draw.choice(list(self.in_hand[worker]))
        if self.poison & set(self.in_hand[worker][ticket]):
            return self.died(worker)
        items = self.in_hand[worker].pop(ticket)
        return [Event(DONE, worker, ticket, tuple(f"{item} done" for item in items))]

    def died(self, worker: int) -> list[Event]:
        del self.in_hand[worker]
        return [Event(DIED, worker)]


def carried(engine: Any, items: Any, workers: int = 3, stop: Stop | None = None, **more: int) -> list[str]:
    results: list[str] = []
    Driver(engine, workers, results.append, lambda item: f"{item} lost", stop or Stop(), **more).run(items)
    return results


@pytest.mark.parametrize("seed", range(20))
def test_each_item_has_one_result_whatever_dies(seed: int) -> None:
    poison = {7, 8, 40}
    engine = FakeEngine(seed, poison, deaths=5)
    results = carried(engine, range(50), workers=1 + seed % 4, chunk=1 + seed % 3)
    assert sorted(results) == sorted(f"{i} {'lost' if i in poison else 'done'}" for i in range(50))
    assert engine.most <= 3


def test_a_poisonous_item_is_tried_three_times_alone() -> None:
    engine = FakeEngine(1, {5})
    results = carried(engine, range(30))
    assert results.count("5 lost") == 1 and len(results) == 30
    assert engine.given[5] in (3, 4), "once in company, for which nobody is charged, and thrice alone"
    assert max(engine.given[i] for i in range(30) if i != 5) <= 2, "its company is run again once"


def test_deaths_that_are_no_items_fault_charge_no_item() -> None:
    """Thirty machines are lost one after another while each worker holds several items."""

    class Lossy(FakeEngine):
        def died(self, worker: int) -> list[Event]:
            if len(self.in_hand[worker]) < 2:  # alone: let it end
                ticket = next(iter(self.in_hand[worker]))
                items = self.in_hand[worker].pop(ticket)
                return [Event(DONE, worker, ticket, tuple(f"{item} done" for item in items))]
            return super().died(worker)

    assert sorted(carried(Lossy(3, deaths=30), range(200))) == sorted(f"{i} done" for i in range(200))


def test_in_flight_is_bounded_and_the_cases_are_streamed() -> None:
    engine, taken, results = FakeEngine(2), Counter[str](), list[str]()

    def cases() -> Iterator[int]:
        for number in range(500):
            taken["cases"] += 1
            assert taken["cases"] - len(results) <= 2 * 3 * 4 + 4, (
                "no more than the workers hold, and one job"
            )
            yield number

    Driver(engine, 2, results.append, str, Stop(), chunk=4, in_flight=3).run(cases())
    assert len(results) == 500 and engine.most == 3 and engine.items_most == 12


def test_a_stop_takes_no_new_item(monkeypatch: pytest.MonkeyPatch) -> None:
    stop, engine = Stop(), FakeEngine(4)
    seen: list[str] = []

    def on_result(result: str) -> None:
        seen.append(result)
        if len(seen) == 10:
            stop.reason = "interrupted (SIGTERM)"

    Driver(engine, 2, on_result, str, stop).run(range(1000))
    assert 10 <= len(seen) <= 16 and sum(engine.given.values()) <= 17

    class Stuck(FakeEngine):
        def wait(self, seconds: float) -> list[Event]:
            return [] if stop.reason else super().wait(seconds)

        def give(self, worker: int, ticket: int, items: tuple[Any, ...]) -> None:
            super().give(worker, ticket, items)
            stop.reason = "interrupted"

    stop.reason = ""
    monkeypatch.setattr(driver, "GRACE_S", 0.01)
    assert carried(Stuck(), range(5), stop=stop) == [], "who does not end in time is left"


def test_a_result_may_stop_the_run() -> None:
    class Full(FakeEngine):
        def wait(self, seconds: float) -> list[Event]:
            return [Event(e.kind, e.worker, e.ticket, e.results, "full") for e in super().wait(seconds)]

    stop = Stop()
    assert len(carried(Full(), range(100), stop=stop)) < 10 and stop.reason == "full"


def test_workers_that_never_start_end_the_run() -> None:
    class Dead(FakeEngine):
        kind = DIED

        def wait(self, seconds: float) -> list[Event]:
            return [Event(self.kind, self.starting.popleft(), why="no bfloat16")]

    stop, engine = Stop(), Dead()
    assert carried(engine, range(10), stop=stop) == [] and "died at their start" in stop.reason
    assert engine.starts <= 2 * driver.FAILED_STARTS
    stop, engine = Stop(), Dead()
    engine.kind = USELESS
    assert carried(engine, range(10), stop=stop) == [] and stop.reason == "no bfloat16" and engine.starts == 3


def test_nothing_from_a_dead_worker_counts() -> None:
    class Late(FakeEngine):
        def died(self, worker: int) -> list[Event]:
            late = [Event(DONE, worker, ticket, ("late",)) for ticket in self.in_hand[worker]]
            return [*super().died(worker), *late]

    results = carried(Late(5, deaths=10), range(60))
    assert "late" not in results and len(results) == 60


def test_without_items_no_worker_need_be_ready() -> None:
    assert carried(FakeEngine(), []) == []
