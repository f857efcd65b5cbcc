"""Fair timing of torch code on the CPU or a CUDA device: rivals take turns, warm, each by its own clock.

On a CUDA device events on the current stream are read; on the CPU the clock. Inputs rotate, so that no rival
finds its inputs in a cache that real work would have emptied.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import torch

Phases = Callable[[Any, Callable[[], None]], None]  # runs all phases on one input; calls back after each


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


def take_turns(
    rivals: dict[str, Phases], inputs: Sequence[Any], rounds: int, warmup: int, calls: int = 1
) -> dict[str, list[list[float]]]:
    """ms of each phase: rival -> phase -> samples, one a round and call. A rival that raises while it warms
    up is left out with its error in the place of the samples: {"rival": [["error text"]]}.
    """
    device = inputs[0][0].device
    samples: dict[str, list[list[Any]]] = {}
    running = {}
    for name, rival in rivals.items():
        try:
            for _ in range(warmup):
                rival(inputs[0], lambda: None)
            running[name] = rival
        except Exception as error:  # a rival of another package, another torch: the others still count
            samples[name] = [[f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"]]
    turn = cycle(inputs)
    for _ in range(rounds):
        for name, rival in running.items():
            for _ in range(calls):
                clock = Clock(device)
                clock.mark()
                rival(next(turn), clock.mark)
                for phase, ms in enumerate(clock.laps_ms()):
                    samples.setdefault(name, [])
                    if len(samples[name]) <= phase:
                        samples[name].append([])
                    samples[name][phase].append(ms)
    return samples


def peak_mib(call: Callable[[], object], device: torch.device) -> float:
    """The most memory that tensors made inside `call` held at one time, MiB, beyond what was there before."""
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
    """Bytes read and written a second by a large copy on the device, in GB/s: the roof for moving bytes."""
    source = torch.ones(mib * 2**18, device=device)
    target = torch.empty_like(source)

    def phases(pair: Any, mark: Callable[[], None]) -> None:
        pair[1].copy_(pair[0])
        mark()

    times = sorted(take_turns({"copy": phases}, [(source, target)], rounds=20, warmup=3)["copy"][0])
    return 2 * source.nbytes / times[len(times) // 2] / 1e6
