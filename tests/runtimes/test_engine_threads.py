"""runtimes/trt: several threads on one engine, and what is freed where, on the fake card."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_card import FakeCard, network
from fake_engine import engine, install
from test_engine import OnCard, pair

from mmif_trt.runtimes.trt import build as engine_build
from mmif_trt.runtimes.trt.cuda import DeviceError
from mmif_trt.runtimes.trt.engine import Engine

LONG_S = 20  # a limit that only a fault reaches


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeCard]:
    made = install(monkeypatch, tmp_path / "cache")
    gc.freeze()  # to skip what other tests left: with torch loaded that takes longer than a test
    yield made
    gc.collect()
    gc.unfreeze()
    assert made.depth == 0 and not made.leaked and not made.blocked


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return engine(tmp_path / "x.engine")


def elsewhere(what: Any) -> Any:
    """Calls `what` in another thread, which then ends."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(what).result(LONG_S)


def test_a_graph_never_holds_fallback_kernels(fake: FakeCard, path: Path) -> None:
    def kernels() -> list[str]:
        with Engine(path) as e:
            for seed in range(4):  # plain, captured, replayed twice
                e(*pair(64, 64, seed=seed))
        return fake.kernels

    assert set(kernels()) == {"special"}
    trt = engine_build.module()
    trt.DynamicShapesKernelSpecializationStrategy.EAGER = "LAZY"
    assert kernels()[-1] == "fallback", (
        "as TensorRT-RTX does by itself, long after the special ones are there"
    )


def test_streams_do_not_wait_for_the_default_stream(fake: FakeCard, path: Path) -> None:
    with Engine(path):
        assert [stream.flags for stream in fake.streams.values()] == [1, 1]


def test_two_threads_have_two_pairs_in_flight(fake: FakeCard, path: Path) -> None:
    both = threading.Barrier(2, timeout=LONG_S)
    fake.hooks["execute"] = lambda: both.wait() and None
    with Engine(path) as e, ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda seed: e(*pair(64, 64, seed=seed)), range(2)))
    for seed, fused in enumerate(results):
        np.testing.assert_array_equal(fused, network(*pair(64, 64, seed=seed)))


def test_many_threads_run_and_call_at_once(fake: FakeCard, path: Path) -> None:
    shapes = [(64, 64), (32, 96), (128, 128)]

    def run(first: int) -> None:
        seeds = range(first, first + 12)
        pairs = (pair(*shapes[seed % 3], seed=seed) for seed in seeds)
        for seed, fused in zip(seeds, e.run(pairs), strict=True):
            np.testing.assert_array_equal(fused, network(*pair(*shapes[seed % 3], seed=seed)))

    def call(first: int) -> None:
        for seed in range(first, first + 12):
            np.testing.assert_array_equal(e(*pair(64, 64, seed=seed)), network(*pair(64, 64, seed=seed)))

    with Engine(path) as e, ThreadPoolExecutor(6) as pool:
        work = [pool.submit(what, 100 * i) for i, what in enumerate((run, call, run, call, run, run))]
        for done in work:
            done.result(LONG_S * 3)
    assert not fake.memory and not fake.graphs and fake.contexts == 0


def test_a_paused_run_leaves_a_slot_to_others(fake: FakeCard, path: Path) -> None:
    with Engine(path) as e:
        run = e.run(pair(64, 64, seed=i) for i in range(9))
        next(run)
        np.testing.assert_array_equal(elsewhere(lambda: e(*pair(64, 64))), network(*pair(64, 64)))
        assert len(list(run)) == 8


def test_results_on_the_card_go_in_any_thread(fake: FakeCard, path: Path) -> None:
    with Engine(path) as e:
        kept = [e(*(OnCard(fake, x) for x in pair(64, 64))) for _ in range(3)]
        before = len(fake.memory)
        elsewhere(kept.pop)
        gc.collect()
        assert len(fake.memory) == before - 1
    assert fake.contexts == 1, "two results are still in it"
    elsewhere(kept.pop)
    assert fake.contexts == 1 and len(fake.memory) == 1
    elsewhere(kept.clear)
    assert fake.contexts == 0 and not fake.memory


def test_a_result_dropped_during_a_capture_is_freed_behind_it(fake: FakeCard, path: Path) -> None:
    with Engine(path) as e:
        kept = [e(*(OnCard(fake, x) for x in pair(64, 64)))]
        e(*pair(64, 64))
        before = len(fake.memory)
        fake.hooks["download"] = kept.clear
        e(*pair(64, 64))
        assert "cuGraphLaunch" in fake.calls and e.graphs and len(fake.memory) == before - 1


def test_another_thread_gives_the_card_back(fake: FakeCard, path: Path) -> None:
    e = Engine(path)
    e(*pair(64, 64))
    elsewhere(e.close)
    assert fake.contexts == 0 and not fake.memory
    e = elsewhere(lambda: Engine(path))
    np.testing.assert_array_equal(e(*pair(64, 64)), network(*pair(64, 64)))
    e.close()
    assert fake.contexts == 0


def test_close_lets_the_calls_of_other_threads_end(fake: FakeCard, path: Path) -> None:
    inside, closing = threading.Event(), threading.Event()

    def slow() -> None:
        inside.set()
        assert closing.wait(LONG_S)

    with ThreadPoolExecutor(3) as pool:
        e = Engine(path)
        fake.hooks["execute"] = slow
        call = pool.submit(e, *pair(64, 64))
        assert inside.wait(LONG_S)
        end = pool.submit(e.close)
        while not e._closed:
            pass
        waiting = pool.submit(e, *pair(64, 64))
        with pytest.raises(DeviceError, match="the engine was closed; expected a new Engine"):
            waiting.result(LONG_S)
        assert not end.done()
        closing.set()
        end.result(LONG_S)
        # Started but not looked at: its result is gone with the engine, and it says so.
        with pytest.raises(DeviceError, match="the engine was closed"):
            call.result(LONG_S)
    assert fake.contexts == 0 and not fake.memory
