"""DALI's decoding on a card, on the fake one: what `io.dali.decoder` gives for a device, as far as we use it.

Like DALI it decodes ahead, a tensor owns its memory while anybody refers to it, and a file that it cannot
decode ends the pipeline.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from fake_card import ByDlpack, FakeCard

from mmif_trt.io import dali, raster
from mmif_trt.runtimes.trt.device_array import NO_SYNC

NO_PICTURE = b"not for DALI"
Source = Callable[[], tuple[list[Any], list[Any]]]


@dataclass
class Seen:
    """devices: for which pipelines were made; readers: the streams that were named to read a tensor."""

    devices: list[int | None] = field(default_factory=list)
    readers: list[int] = field(default_factory=list)


class Tensor(ByDlpack):
    """nvidia.dali's TensorGPU: [H, W, C], or [H, W] when squeezed."""

    def __init__(self, card: FakeCard, x: np.ndarray, seen: Seen) -> None:
        super().__init__(card, x)
        self.seen = seen

    def shape(self) -> list[int]:
        return list(self.x.shape)

    def squeeze(self, dim: int) -> bool:
        self.x = self.x.squeeze(dim)
        return True

    def __dlpack__(self, *, stream: int) -> Any:
        if stream != NO_SYNC:
            assert stream in self.card.streams, "of this card"
            self.seen.readers.append(stream)
        return super().__dlpack__(stream=stream)

    def as_cpu(self) -> Any:
        raise AssertionError("a copy of an input on the host")

    __array__ = as_cpu


class Pipeline:
    def __init__(self, card: FakeCard, source: Source, seen: Seen) -> None:
        self.card, self.source, self.seen = card, source, seen
        self.flying: deque[tuple[list[Any], list[Any]]] = deque()
        self.ended = False

    def run(self) -> list[list[Tensor]]:
        while len(self.flying) < dali.PREFETCH and not self.ended:
            try:
                self.flying.append(self.source())
            except StopIteration:
                self.ended = True
        if not self.flying:
            raise StopIteration
        streams = self.flying.popleft()
        return [[Tensor(self.card, decoded(bytes(x)), self.seen) for x in side] for side in streams]

    def reset(self) -> None:
        self.ended = False


def decoded(stream: bytes) -> np.ndarray:
    if stream == NO_PICTURE:
        raise RuntimeError("Critical error in pipeline: Error in thread 1: decoders__Image")
    return np.atleast_3d(raster.decode(stream, "").data).copy()


def install(monkeypatch: pytest.MonkeyPatch, card: FakeCard) -> Seen:
    """In place of DALI's pipelines for a device; those for the CPU stay real."""
    real, seen = dali.decoder, Seen()

    def decoder(types: Any, device_id: int | None, threads: int, batch: int, *, source: Source) -> Any:
        seen.devices.append(device_id)
        if device_id is None:
            return real(types, None, threads, batch, source=source)
        return Pipeline(card, source, seen)

    monkeypatch.setattr(dali, "decoder", decoder)
    return seen
