"""One pair in flight: a stream with an execution context, its buffers, and the CUDA graph of the last shape.

A slot belongs to one caller at a time; `Engine` hands it out. Every return value of TensorRT is checked:
False means that it refused the tensor named in the message.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmif_trt.models.pixels import OUTPUT, Form
from mmif_trt.runtimes.trt.cuda import Device, DeviceError, Graph, Marks
from mmif_trt.runtimes.trt.device_array import DeviceArray, View
from mmif_trt.runtimes.trt.manifest import Shape


@dataclass
class Job:
    """A pair that a slot is processing. result: the shape that the caller gets; out: its place on the GPU,
    None: it goes to the host."""

    shape: Shape
    result: tuple[int, ...]
    out: DeviceArray | None = None


class Slot:
    """Use inside `with device.current():`. reason: TensorRT's last message. Raises DeviceError for what
    TensorRT or the driver refuses, Hung if the GPU needs more than timeout_s."""

    def __init__(
        self, device: Device, context: Any, form: Form, timeout_s: float, reason: Callable[[], str]
    ) -> None:
        self.context, self.stream, self.done = context, device.stream(), device.event()
        self.graphs = True  # False once a capture has failed
        self.parts_ms: list[float] = []  # of the last pair from the host, where parts are timed
        self._device, self._form, self._timeout_s, self._reason = device, form, timeout_s, reason
        self._pinned: dict[str, np.ndarray] = {}  # bytes
        self._memory: dict[str, Any] = {}
        self._shape: Shape | None = None  # of the last pair from the host
        self._graph: Graph | None = None
        self._alive: list[Any] = []  # the caller's arrays on the GPU, kept until `done`
        self._marks: Marks | None = None  # around upload, network and download

    @property
    def device_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._pinned.values())

    def time_parts(self) -> None:
        self._forget_graph()
        self._marks = self._marks or self._device.marks(4)

    def start(self, arrays: dict[str, np.ndarray], shape: Shape, result: tuple[int, ...]) -> Job:
        """Starts a pair from the host; `arrays` may be freed at once."""
        self._wait(shape)  # for the work of an interrupted caller
        self._fit(shape)
        for name, x in arrays.items():
            np.copyto(self._pinned[name][: x.nbytes].view(x.dtype).reshape(x.shape), x)
        if self._graph is not None and self._shape == shape:
            self._graph.launch(self.stream)
        else:
            self._first_or_second(shape)
        self.done.record(self.stream)
        return Job(shape, result)

    def start_on_card(
        self,
        views: dict[str, View],
        ranges: dict[str, np.ndarray],
        shape: Shape,
        result: tuple[int, ...],
        to_host: bool,
    ) -> Job:
        """Starts a pair that is on the GPU and keeps it until it is done; copies no pixel of it. to_host: its
        result goes to the host, otherwise it stays too."""
        self._wait(shape)
        if not all(x.ordered for x in views.values()):
            self._device.synchronise()  # no stream was named: whatever writes them must have ended
        self._forget_graph()  # the context's addresses have changed
        addresses = {name: x.pointer for name, x in views.items()}
        for name, x in ranges.items():
            self._buffer(name, x.nbytes)
            np.copyto(self._pinned[name].view(x.dtype), x)
            self._device.upload(self._memory[name], self._pinned[name], self.stream)
            addresses[name] = int(self._memory[name])
        size, out = self._nbytes(OUTPUT, shape), None
        if to_host:
            self._buffer(OUTPUT, size)
        else:
            out = DeviceArray(self._device, size, result, self._form.dtype)
        self._alive = [x.owner for x in views.values()]
        self._set(shape, addresses | {OUTPUT: int(out.memory if out else self._memory[OUTPUT])})
        self._execute()
        if to_host:
            self._device.download(self._pinned[OUTPUT][:size], self._memory[OUTPUT], self.stream)
        self.done.record(self.stream)
        return Job(shape, result, out)

    def finish(self, job: Job) -> Any:
        """The result, which belongs to the caller."""
        self._wait(job.shape)
        if job.out is not None:
            return job.out
        if self._marks and self._shape is not None:  # it came from the host
            self.parts_ms = self._marks.laps_ms()
        fused = self._pinned[OUTPUT][: self._nbytes(OUTPUT, job.shape)]
        return fused.view(self._form.dtype).reshape(job.result).copy()

    def close(self) -> None:
        """Drops everything, the execution context first; the buffers on the GPU go with the device."""
        self.context = None
        self._forget_graph()
        if self._marks:
            self._marks.destroy()
        self._marks = self.stream = self.done = None
        self._alive = []
        self._pinned.clear()
        self._memory.clear()

    def _wait(self, shape: Shape) -> None:
        self._device.wait(self.done, self._timeout_s, said(shape))
        self._alive = []

    def _first_or_second(self, shape: Shape) -> None:
        """Captures a repeated shape: TensorRT must have run it once without capture."""
        again = self._shape == shape
        self._forget_graph()  # it is of another shape
        self._set(shape, {name: int(memory) for name, memory in self._memory.items()})
        if again and self.graphs:
            try:
                self._graph = self._device.capture(self.stream, lambda: self._enqueue(shape, True))
            except (DeviceError, self._device.errors):
                self.graphs = False  # continue without, a little slower
        if self._graph is not None:
            self._graph.launch(self.stream)
        else:
            self._enqueue(shape)
        self._shape = shape

    def _enqueue(self, shape: Shape, captured: bool = False) -> None:
        def mark(i: int) -> None:
            if self._marks:
                self._marks.put(i, self.stream, captured=captured)

        mark(0)
        for name in self._form.inputs:
            source = self._pinned[name][: self._nbytes(name, shape)]
            self._device.upload(self._memory[name], source, self.stream)
        mark(1)
        self._execute()
        mark(2)
        target = self._pinned[OUTPUT][: self._nbytes(OUTPUT, shape)]
        self._device.download(target, self._memory[OUTPUT], self.stream)
        mark(3)

    def _forget_graph(self) -> None:
        if self._graph is not None:
            self._graph.destroy()
        self._graph, self._shape = None, None

    def _set(self, shape: Shape, addresses: dict[str, int]) -> None:
        shapes = self._form.shapes(*shape)
        for name in self._form.inputs:
            if not self.context.set_input_shape(name, shapes[name]):
                raise DeviceError(f"TensorRT: tensor {name!r} does not take shape {shapes[name]}")
        if missing := self.context.infer_shapes():
            raise DeviceError(f"TensorRT: no shape for tensor {', '.join(map(repr, missing))}")
        received = tuple(self.context.get_tensor_shape(OUTPUT))
        if received != shapes[OUTPUT]:
            raise DeviceError(f"TensorRT: tensor {OUTPUT!r} has shape {received}; expected {shapes[OUTPUT]}")
        for name, address in addresses.items():
            if not self.context.set_tensor_address(name, address):
                raise DeviceError(f"TensorRT: tensor {name!r} does not take its buffer")

    def _execute(self) -> None:
        if not self.context.execute_async_v3(self.stream.handle):
            raise DeviceError(f"TensorRT: the engine did not start for tensor {OUTPUT!r}: {self._reason()}")

    def _nbytes(self, name: str, shape: Shape) -> int:
        return int(np.prod(self._form.shapes(*shape)[name])) * np.dtype(self._form.dtype_of(name)).itemsize

    def _fit(self, shape: Shape) -> None:
        for name in (*self._form.inputs, OUTPUT):
            self._buffer(name, self._nbytes(name, shape))

    def _buffer(self, name: str, size: int) -> None:
        """At least `size` bytes on the GPU and page-locked on the host for one tensor; they only grow."""
        if name in self._pinned and self._pinned[name].nbytes >= size:
            return
        self._forget_graph()  # it holds the old addresses
        self._pinned.pop(name, None)
        if name in self._memory:
            self._device.free(self._memory.pop(name))
        self._memory[name] = self._device.alloc(size)
        self._pinned[name] = self._device.pinned(size)


def said(shape: Shape) -> str:
    return f"batch {shape[0]} of {shape[1]} x {shape[2]} px"
