"""Fair timing of torch code on the CPU or a CUDA device: rivals take turns, warm, each by its own clock.

On the CPU the clock is read. On a CUDA device each call is timed twice. By the device: a sleep precedes the
call, so that the host has enqueued all of it before the device starts, and events around its phases say how
long the device worked; a call that outlasts the sleep is repeated after a longer one, and a call in which the
host waits for the device has no such time. As called: events without a sleep, where a short kernel takes as
long as the host needs to launch it. Before each call, twice the size of the second-level cache is written,
and inputs rotate, so that no rival finds its inputs in a cache that real work would have emptied.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import torch

Phases = Callable[[Any, Callable[[], None]], None]  # runs all phases on one input; calls back after each

WARMUP_S = 1.0  # of all rivals together on a GPU, until its clocks have risen
CYCLES_PER_MS = 2e6  # of torch.cuda._sleep: no GPU's clock is much faster
LONGEST_SLEEP_MS = 200.0


class Clock:
    """Milliseconds between marks on one device."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.marks: list[Any] = []

    def mark(self) -> None:
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def laps_ms(self) -> list[float]:
        pairs = list(zip(self.marks, self.marks[1:], strict=False))
        if not self.cuda:
            return [(end - start) * 1e3 for start, end in pairs]
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in pairs]


@dataclass
class Samples:
    """One rival's phase -> ms. On the CPU `device` and `as_called` are the same numbers."""

    device: list[list[float]] = field(
        default_factory=list
    )  # empty: the host waits for the device during the call
    as_called: list[list[float]] = field(default_factory=list)
    refused: str | None = None  # what it raised during warm-up

    def phases(self) -> list[list[float]]:
        return self.device or self.as_called


def add(samples: list[list[float]], laps: list[float]) -> None:
    samples += [[] for _ in laps[len(samples) :]]
    for phase, ms in enumerate(laps):
        samples[phase].append(ms)


def take_turns(
    rivals: dict[str, Phases], inputs: Sequence[Any], rounds: int, warmup: int
) -> dict[str, Samples]:
    """The samples of each rival, one per round. A rival that raises during warm-up has the reason instead."""
    device = inputs[0][0].device
    samples = {name: Samples() for name in rivals}
    running = {}
    for name, rival in rivals.items():
        try:
            for _ in range(warmup):
                rival(inputs[0], lambda: None)
            running[name] = rival
        except Exception as error:  # a rival from another package or torch: the others still run
            told = str(error).splitlines()[0] if str(error) else ""
            samples[name].refused = f"{type(error).__name__}: {told}"
    turn = cycle(inputs)
    take = (_CardTurns(running, turn) if device.type == "cuda" else _CpuTurns()).take
    for _ in range(rounds):
        for name, rival in running.items():
            take(name, rival, next(turn), samples[name])
    return samples


class _CpuTurns:
    def take(self, name: str, rival: Phases, given: Any, samples: Samples) -> None:
        clock = Clock(torch.device("cpu"))
        clock.mark()
        rival(given, clock.mark)
        add(samples.device, clock.laps_ms())
        samples.as_called = samples.device


class _CardTurns:
    """Turns on the current CUDA device, after a warm-up of a second."""

    def __init__(self, rivals: dict[str, Phases], turn: Any) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        cache = torch.cuda.get_device_properties(self.device).L2_cache_size
        self.flush = torch.empty(max(2 * cache, 1 << 20), dtype=torch.uint8, device=self.device)
        self.sleep_ms = dict.fromkeys(rivals, 0.2)
        end = time.perf_counter() + (WARMUP_S if rivals else 0)
        while time.perf_counter() < end:
            for rival in rivals.values():
                rival(next(turn), lambda: None)
            torch.cuda.synchronize()

    def take(self, name: str, rival: Phases, given: Any, samples: Samples) -> None:
        self.flush.zero_()
        torch.cuda.synchronize()
        clock = Clock(self.device)
        clock.mark()
        rival(given, clock.mark)
        add(samples.as_called, clock.laps_ms())
        while self.sleep_ms[name] <= LONGEST_SLEEP_MS:
            self.flush.zero_()
            torch.cuda.synchronize()
            torch.cuda._sleep(int(self.sleep_ms[name] * CYCLES_PER_MS))
            clock = Clock(self.device)
            clock.mark()
            rival(given, clock.mark)
            asleep = not clock.marks[0].query()  # the device has not started yet, and all is enqueued
            laps = clock.laps_ms()
            if asleep:
                add(samples.device, laps)
                return
            self.sleep_ms[name] *= 2
        samples.device.clear()  # too long, or it waits for the device: if in one turn, then in all


def card_state() -> dict[str, str] | None:
    """Clocks, temperature and power of the GPU now, by nvidia-smi; None without it."""
    names = ("clocks.sm", "clocks.max.sm", "clocks.mem", "temperature.gpu", "power.draw", "pstate")
    query = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    first = done.stdout.splitlines()[:1] if done.returncode == 0 else []
    return dict(zip(names, map(str.strip, first[0].split(",")), strict=False)) if first else None


def peak_mib(call: Callable[[], object], device: torch.device) -> float:
    """Peak memory of tensors made inside `call`, MiB, beyond the memory in use before."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 2**20


def copy_gb_per_s(device: torch.device, mib: int = 512) -> float:
    """Bytes read and written per second by a large copy on the device, in GB/s: the bandwidth roof."""
    source = torch.ones(mib * 2**18, device=device)
    target = torch.empty_like(source)

    def phases(pair: Any, mark: Callable[[], None]) -> None:
        pair[1].copy_(pair[0])
        mark()

    times = sorted(take_turns({"copy": phases}, [(source, target)], rounds=20, warmup=3)["copy"].phases()[0])
    return 2 * source.nbytes / times[len(times) // 2] / 1e6
