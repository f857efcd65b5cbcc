"""The parts of a network call on a GPU, by the GPU's own clock, and the memory it takes there.

On the CPU these stages do not exist: `card_of` returns None, and the whole call is the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmif_trt.runtimes import stacked

STAGES = ("host_to_device", "network", "device_to_host")
OVERHEAD = "call_overhead"  # the part of the call outside the GPU: launching, staging, waiting


def split(call_ms: float, calls: Sequence[Sequence[float]]) -> dict[str, float]:
    """call_ms: by the host's clock, of all calls together; calls: the three laps in ms of each of them.

    -> ms of STAGES summed over the calls, and OVERHEAD, so that their sum is call_ms.
    """
    laps = {name: float(sum(x)) for name, x in zip(STAGES, zip(*calls, strict=True), strict=True)}
    return laps | {OVERHEAD: call_ms - sum(laps.values())}


class TorchCard:
    """A runtime of torch (upload, network, download) between CUDA events on the current stream."""

    def __init__(self, runtime: Any) -> None:
        import torch

        self._runtime, self._device = runtime, torch.device(runtime.device)
        self.laps: list[list[float]] = []

    def infer(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        from timing import Clock

        clock, runtime = Clock(self._device), self._runtime
        clock.mark()
        pair = runtime.upload(a, b)
        clock.mark()
        fused = runtime.network(*pair)
        clock.mark()
        host: np.ndarray = runtime.download(fused).reshape(a.shape)
        clock.mark()
        self.laps.append(clock.laps_ms())
        return host

    def forget_peak(self) -> None:
        import torch

        torch.cuda.reset_peak_memory_stats()

    def peak_mib(self) -> float:
        """Peak memory of torch's tensors since `forget_peak`, including those of other rows."""
        import torch

        return torch.cuda.max_memory_allocated() / 2**20


class EngineCard:
    """The TensorRT runner, with events between the parts of its call and in its CUDA graph."""

    def __init__(self, runtime: Any) -> None:
        self._engine = runtime.engine
        self._engine.time_parts()
        self.laps: list[list[float]] = []

    def infer(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        fused: np.ndarray = self._engine(*stacked(a, b))
        self.laps.append(self._engine.parts_ms)
        return fused.reshape(a.shape)

    def forget_peak(self) -> None:
        """An engine keeps the memory it requested."""

    def peak_mib(self) -> float:
        """Buffers, activations of both contexts, and the plan."""
        held: int = self._engine.device_bytes
        return held / 2**20


Card = TorchCard | EngineCard


def card_of(runtime: Any) -> Card | None:
    if runtime.name == "tensorrt":
        return EngineCard(runtime)
    return TorchCard(runtime) if str(runtime.device).startswith("cuda") else None
