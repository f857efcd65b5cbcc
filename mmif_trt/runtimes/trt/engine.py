"""An engine on an NVIDIA card: `with Engine(path) as engine: fused = engine(a, b)`.

Two slots, each a stream with an execution context and buffers of its own, so that the copies of one pair hide
behind the kernels of another. A shape that was run before is replayed as a CUDA graph. Every return value of
TensorRT is looked at: False means that the tensor named in the message was not taken.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmif_trt.image import InputError
from mmif_trt.runtimes.trt import build as engine_build
from mmif_trt.runtimes.trt import device_array, engine_file
from mmif_trt.runtimes.trt.cuda import Device, DeviceError, Graph, Marks
from mmif_trt.runtimes.trt.device_array import DeviceArray
from mmif_trt.runtimes.trt.engine_file import Shape
from mmif_trt.runtimes.trt.kernel_cache import KernelCache, path_of

INPUTS, OUTPUT = ("a", "b"), "fused"
SLOTS = 2
TIMEOUT_S = 60.0


@dataclass
class Slot:
    """What one pair in flight needs. alive: the caller's arrays, kept until `done` has fired."""

    context: Any
    stream: Any
    done: Any
    count: int = 0  # elements that the buffers hold
    pinned: dict[str, np.ndarray] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    shape: Shape | None = None  # of the last call from host arrays
    graph: Graph | None = None
    alive: list[Any] = field(default_factory=list)
    marks: Marks | None = None  # before, between and behind copy, network and copy, where they are timed


class Engine:
    """An engine file on the card, after its manifest was compared with it. May be called by several threads.

    engine(a, b): two float32 arrays [H, W], [B, H, W] or [B, 1, H, W] in [0, 1], both on the host (NumPy, or
    DLPack: torch) or both on the card (DLPack or `__cuda_array_interface__`); the result has the shape that
    came, a NumPy array or a `DeviceArray`, the caller's own. `run` keeps two pairs in flight.
    Raises InputError for what does not match, DeviceError (an InputError) where the card fails.
    """

    def __init__(self, path: str | Path, timeout_s: float = TIMEOUT_S) -> None:
        self.path, self._timeout_s = Path(path), timeout_s
        self._lock = threading.Lock()
        self._slots: list[Slot] = []
        self._broken = ""
        self._closed = False
        self._owner = 0  # the thread inside `run`
        self.graphs = True  # False where capture failed once
        self.kernels: Any = None
        self.parts_ms: list[float] = []  # of the last call from host arrays, see `time_parts`
        trt = engine_build.module()
        engine_file.read_manifest(self.path)  # before the card: a missing file is said as such
        self.device = Device()
        try:
            engine_build.refuse_old_driver(trt.__name__, self.device.card)
            self.data, self.manifest = engine_file.load_checked(
                self.path, trt.__name__, trt.__version__, self.device.card.capability
            )
            with self.device.current(), self._said(self.manifest.largest):
                self._load(trt)
        except BaseException:  # Ctrl-C too: the card is given back
            self.close()
            raise

    def _load(self, trt: Any) -> None:
        self._logger = engine_build.make_logger(trt)
        self._runtime = engine_build.made(lambda: trt.Runtime(self._logger), "Runtime", self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(self.data)
        if self._engine is None:
            raise DeviceError(
                f"{self.path}: TensorRT takes no such engine: {engine_build.last_error(self._logger)}"
            )
        names = {self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)}
        if names != {*INPUTS, OUTPUT}:
            raise DeviceError(f"{self.path}: tensors {sorted(names)}; expected {[*INPUTS, OUTPUT]}")
        self.kernels = KernelCache(self._engine, path_of(self.manifest, self.device.card))
        for _ in range(SLOTS):
            context = self.kernels.context()
            if context is None:
                raise DeviceError(
                    f"{self.path}: no execution context: {engine_build.last_error(self._logger)}"
                )
            self._slots.append(Slot(context, self.device.stream(), self.device.event()))
        self.kernels.save()  # now, for a process that is killed never closes

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the card back; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        device, slots = self.device, self._slots
        with contextlib.suppress(device.errors), device.current():
            if not self._broken and slots:
                device.synchronise()  # nothing is freed that the card still writes
                self.kernels.save()  # with those of the shapes that were run
            for slot in slots:
                for made in (slot.graph, slot.marks):
                    if made:
                        made.destroy()
            slots.clear()
            self.kernels = self._engine = self._runtime = None
        device.close(abandon=bool(self._broken))

    def time_parts(self) -> None:
        """From now on `parts_ms` holds what the last call from host arrays took on the card: copies to it,
        network, copy back. For a profiler: events in stream and graph cost about a microsecond each."""
        with self._lock, self.device.current():
            for slot in self._slots:
                self._forget_graph(slot)
                slot.marks = slot.marks or self.device.marks(4)

    @property
    def device_bytes(self) -> int:
        """What this engine asked of the card: its plan, the contexts' activations, the buffers."""
        buffers = sum(4 * slot.count * (len(INPUTS) + 1) for slot in self._slots)
        return len(self.data) + len(self._slots) * int(self._engine.device_memory_size_v2) + buffers

    def __call__(self, a: Any, b: Any) -> Any:
        (fused,) = self.run([(a, b)])
        return fused

    def run(self, pairs: Iterable[tuple[Any, Any]]) -> Iterator[Any]:
        """The fused of each pair in order; while one is computed, the next is on its way.

        The results are the caller's own, none is overwritten by a later pair. A break ends what is in flight.
        """
        if self._owner == threading.get_ident():
            raise InputError(f"{self.path}: called inside its own `run`; expected one after the other")
        with self._lock:
            self._owner = threading.get_ident()
            flying: list[tuple[Slot, Any]] = []
            try:
                for i, (a, b) in enumerate(pairs):
                    if len(flying) == SLOTS:
                        yield self._finish(*flying.pop(0))
                    slot = self._slot(i % SLOTS)
                    flying.append((slot, self._start(slot, a, b)))
                while flying:
                    yield self._finish(*flying.pop(0))
            finally:
                for slot, waiting in flying:  # an error, a break or Ctrl-C: no slot is left with work
                    with contextlib.suppress(DeviceError):
                        self._finish(slot, waiting)
                self._owner = 0

    def _slot(self, i: int) -> Slot:
        if self._broken or self._closed:
            reason = self._broken or "the engine was closed"
            raise DeviceError(f"{self.path}: {reason}; expected a new Engine")
        return self._slots[i]

    def _start(self, slot: Slot, a: Any, b: Any) -> Any:
        """Puts one pair on its way; returns what `_finish` needs."""
        on_device = [device_array.is_on_device(x, name) for x, name in zip((a, b), INPUTS, strict=True)]
        if on_device[0] != on_device[1]:
            raise InputError(
                "a and b: one on the card, one not; expected both on the card or both on the host"
            )
        if on_device[0]:
            return self._start_on_device(slot, a, b)
        arrays = [device_array.host_array(x, name) for x, name in zip((a, b), INPUTS, strict=True)]
        shape = self._shape(*(x.shape for x in arrays))
        with self.device.current(), self._said(shape):
            self._fit(slot, shape)
            for name, x in zip(INPUTS, arrays, strict=True):
                np.copyto(slot.pinned[name][: x.size], x.reshape(-1))
            if slot.graph is not None and slot.shape == shape:
                slot.graph.launch(slot.stream)
            else:
                self._first_or_second(slot, shape)
            slot.done.record(slot.stream)
        return arrays[0].shape, shape, None

    def _first_or_second(self, slot: Slot, shape: Shape) -> None:
        """A shape that was run before is captured: TensorRT must have run it once without."""
        again = slot.shape == shape
        self._forget_graph(slot)  # of another shape
        addresses = {name: int(memory) for name, memory in slot.memory.items()}
        self._set(slot, shape, addresses)
        if again and self.graphs:
            try:
                slot.graph = self.device.capture(slot.stream, lambda: self._enqueue(slot, shape, True))
            except (DeviceError, self.device.errors):
                self.graphs = False  # continues without graphs, a little slower
        if slot.graph is not None:
            slot.graph.launch(slot.stream)
        else:
            self._enqueue(slot, shape)
        slot.shape = shape

    def _enqueue(self, slot: Slot, shape: Shape, captured: bool = False) -> None:
        def mark(i: int) -> None:
            if slot.marks:
                slot.marks.put(i, slot.stream, captured=captured)

        count = int(np.prod(shape))
        mark(0)
        for name in INPUTS:
            self.device.upload(slot.memory[name], slot.pinned[name][:count], slot.stream)
        mark(1)
        self._execute(slot)
        mark(2)
        self.device.download(slot.pinned[OUTPUT][:count], slot.memory[OUTPUT], slot.stream)
        mark(3)

    @staticmethod
    def _forget_graph(slot: Slot) -> None:
        if slot.graph is not None:
            slot.graph.destroy()
        slot.graph, slot.shape = None, None

    def _start_on_device(self, slot: Slot, a: Any, b: Any) -> Any:
        views = [
            device_array.view(x, name, slot.stream.handle) for x, name in zip((a, b), INPUTS, strict=True)
        ]
        shape = self._shape(*(x.shape for x in views))
        with self.device.current(), self._said(shape):
            if not all(x.ordered for x in views):
                self.device.synchronise()  # no stream is named: whatever writes them must have ended
            out = DeviceArray(self.device.lend(4 * int(np.prod(shape))), views[0].shape)
            addresses = {name: x.pointer for name, x in zip(INPUTS, views, strict=True)}
            slot.alive = [x.owner for x in views]
            slot.shape = None  # the context's addresses are others now
            self._set(slot, shape, addresses | {OUTPUT: int(out.memory)})
            self._execute(slot)
            slot.done.record(slot.stream)
        return views[0].shape, shape, out

    def _set(self, slot: Slot, shape: Shape, addresses: dict[str, int]) -> None:
        batch, height, width = full = shape
        for name in INPUTS:
            if not slot.context.set_input_shape(name, (batch, 1, height, width)):
                raise DeviceError(f"TensorRT: tensor {name!r} does not take shape {full}")
        if missing := slot.context.infer_shapes():
            raise DeviceError(f"TensorRT: no shape for tensor {', '.join(map(repr, missing))}")
        received = tuple(slot.context.get_tensor_shape(OUTPUT))
        if received != (batch, 1, height, width):
            raise DeviceError(
                f"TensorRT: tensor {OUTPUT!r} has shape {received}; expected that of the inputs"
            )
        for name, address in addresses.items():
            if not slot.context.set_tensor_address(name, address):
                raise DeviceError(f"TensorRT: tensor {name!r} does not take its buffer")

    def _execute(self, slot: Slot) -> None:
        if not slot.context.execute_async_v3(slot.stream.handle):
            reason = engine_build.last_error(self._logger)
            raise DeviceError(f"TensorRT: the engine did not start for tensor {OUTPUT!r}: {reason}")

    def _finish(self, slot: Slot, waiting: Any) -> Any:
        received, shape, out = waiting
        with self.device.current(), self._said(shape):
            try:
                self.device.wait(slot.done, self._timeout_s, f"{self.path}, {_text(shape)}")
            except DeviceError as error:
                self._broken = str(error)
                raise
            slot.alive = []
            if out is not None:
                return out
            if slot.marks:
                self.parts_ms = slot.marks.laps_ms()
        return slot.pinned[OUTPUT][: int(np.prod(shape))].reshape(received).copy()

    def _fit(self, slot: Slot, shape: Shape) -> None:
        """Buffers for at least this shape; they only grow."""
        count = int(np.prod(shape))
        if count <= slot.count:
            return
        self._forget_graph(slot)  # it holds the old addresses
        slot.count = 0
        for name in (*INPUTS, OUTPUT):
            if name in slot.memory:
                self.device.free(slot.memory.pop(name))
            slot.memory[name] = self.device.alloc(4 * count)
            slot.pinned[name] = self.device.pinned((count,))
        slot.count = count

    def _shape(self, a: tuple[int, ...], b: tuple[int, ...]) -> Shape:
        if a != b or not 2 <= len(a) <= 4 or (len(a) == 4 and a[1] != 1):
            raise InputError(f"a has shape {a} and b {b}; expected equal [H, W], [B, H, W] or [B, 1, H, W]")
        shape = (1 if len(a) == 2 else a[0], a[-2], a[-1])
        self.manifest.refuse_shape("a and b", shape)
        return shape

    @contextmanager
    def _said(self, shape: Shape) -> Iterator[None]:
        """What PyCUDA raises, as one line that names batch and size where the memory was full."""
        try:
            yield
        except self.device.memory_error:
            name = self.device.card.name
            raise DeviceError(
                f"{name}: out of memory for {_text(shape)}; take a smaller batch or size"
            ) from None
        except self.device.errors as error:
            raise DeviceError(f"{self.device.card.name}: {' '.join(str(error).split())}") from None


def _text(shape: Shape) -> str:
    return f"batch {shape[0]} of {shape[1]} x {shape[2]} px"
