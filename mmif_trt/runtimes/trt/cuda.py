"""One NVIDIA GPU: what the driver says about it, and through PyCUDA its context, streams, buffers and graphs.

Queries use only the driver library (ctypes), so that `mmif-trt info` needs no PyCUDA. PyCUDA 2026.1 has no
CUDA graphs, so these use the same library. The context is the device's primary one,
which torch, CuPy and DALI use too: their pointers are valid in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmif_trt.image import InputError

LIBRARY = "libcuda.so.1"
OLDEST_DRIVER = 12000  # CUDA 12.0
NO_DEVICE, DRIVER_TOO_OLD = 100, (35, 803)
CAPTURE_THREAD_LOCAL = 1
RECORD_EXTERNAL = 1  # CU_EVENT_RECORD_EXTERNAL: a node of the graph that records at every replay
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream, which torch uses
SPIN_S = 0.002  # a fused pair takes less, so no sleep adds to its latency


class DeviceError(InputError):
    """The GPU or its driver failed; a one-line message, and the run may continue on another runtime."""


class Hung(DeviceError):
    """The GPU did not finish in time. Nothing on it may be freed: that would wait for it."""


@dataclass(frozen=True)
class Card:
    name: str
    capability: str  # such as "8.9"
    driver: str  # the newest CUDA that it supports, such as "13.0"


def library() -> Any:
    """The driver, initialised. Raises DeviceError for no driver, an old one, or no GPU."""
    try:
        cuda = ctypes.CDLL(LIBRARY)
    except OSError:
        raise DeviceError(f"no NVIDIA driver ({LIBRARY} cannot be loaded)") from None
    version = ctypes.c_int()
    code = cuda.cuInit(0)
    if code == NO_DEVICE:
        raise DeviceError("an NVIDIA driver, but no card")
    cuda.cuDriverGetVersion(ctypes.byref(version))
    if code in DRIVER_TOO_OLD or (not code and version.value < OLDEST_DRIVER):
        found = f"{version.value // 1000}.{version.value % 1000 // 10}"
        raise DeviceError(f"the NVIDIA driver is too old: it supports CUDA {found}; expected 12.0 or newer")
    if code:
        raise DeviceError(f"the NVIDIA driver does not start (cuInit returned {code})")
    return cuda


def card(index: int = 0) -> Card:
    """Raises DeviceError, see `library`."""
    cuda = library()
    count, device, number = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    _ok(cuda.cuDeviceGetCount(ctypes.byref(count)), "cuDeviceGetCount")
    if not index < count.value:
        raise DeviceError("an NVIDIA driver, but no card")
    _ok(cuda.cuDeviceGet(ctypes.byref(device), index), "cuDeviceGet")
    _ok(cuda.cuDeviceGetName(name, len(name), device), "cuDeviceGetName")
    capability = []
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        _ok(cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device), "cuDeviceGetAttribute")
        capability.append(str(number.value))
    cuda.cuDriverGetVersion(ctypes.byref(number))
    driver = f"{number.value // 1000}.{number.value % 1000 // 10}"
    return Card(name.value.decode(errors="replace"), ".".join(capability), driver)


def keep_for_ever(*objects: Any) -> None:
    """Prevents these destructors from running, even when the interpreter ends: on a hung GPU they would not
    return."""
    for thing in objects:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _ok(code: int, call: str) -> None:
    if code:
        raise DeviceError(f"{call} failed (CUDA error {code})")


class Graph:
    """A captured sequence of copies and kernels, replayed in one call; `destroy` it before its context."""

    def __init__(self, cuda: Any, handle: ctypes.c_void_p) -> None:
        self._cuda, self._handle = cuda, handle

    def launch(self, stream: Any) -> None:
        _ok(self._cuda.cuGraphLaunch(self._handle, ctypes.c_void_p(stream.handle)), "cuGraphLaunch")

    def destroy(self) -> None:
        self._cuda.cuGraphExecDestroy(self._handle)


class Marks:
    """`count` events between the parts of a call, by the GPU's own clock; also in a captured graph, where a
    plain record only orders the nodes and has no time. Use inside `with device.current():`."""

    def __init__(self, cuda: Any, count: int) -> None:
        self._cuda, self._events = cuda, [ctypes.c_void_p() for _ in range(count)]
        for event in self._events:
            _ok(cuda.cuEventCreate(ctypes.byref(event), ctypes.c_uint(0)), "cuEventCreate")

    def put(self, i: int, stream: Any, *, captured: bool) -> None:
        flags = ctypes.c_uint(RECORD_EXTERNAL if captured else 0)
        code = self._cuda.cuEventRecordWithFlags(self._events[i], ctypes.c_void_p(stream.handle), flags)
        _ok(code, "cuEventRecordWithFlags")

    def laps_ms(self) -> list[float]:
        """Milliseconds between neighbours; all events must have happened."""
        lap, laps = ctypes.c_float(), []
        for start, end in zip(self._events, self._events[1:], strict=False):
            _ok(self._cuda.cuEventElapsedTime(ctypes.byref(lap), start, end), "cuEventElapsedTime")
            laps.append(lap.value)
        return laps

    def destroy(self) -> None:
        for event in self._events:
            self._cuda.cuEventDestroy_v2(event)


class Device:
    """The GPU's context and what was made in it. Use inside `with device.current():`, in any thread.

    `errors` is what PyCUDA raises, `memory_error` its error for full memory. PyCUDA frees nothing in a thread
    other than the one that made it, unless its context is current there: so here it always is.
    """

    def __init__(self, index: int = 0) -> None:
        self.card = card(index)
        try:
            self.driver = importlib.import_module("pycuda.driver")
        except ImportError as error:
            reason = " ".join(str(error).split())
            raise DeviceError(f"PyCUDA cannot be imported ({reason}); try `make console`") from None
        self.errors, self.memory_error = self.driver.Error, self.driver.MemoryError
        self._library = library()
        try:
            self.driver.init()
            self._context = self.driver.Device(index).retain_primary_context()
        except self.errors as error:
            raise DeviceError(f"{self.card.name}: no context ({error})") from None
        # Used by several threads and the garbage collector: only single operations on a dict.
        self._allocations: dict[int, Any] = {}
        self._lent: dict[int, Any] = {}
        self._held = {0: self._context}  # empty once the context is released
        self._capturing: dict[int, list[Any]] = {}  # thread -> what was given back while it captured
        self._closed = self._abandoned = False

    @contextmanager
    def current(self) -> Iterator[None]:
        self._context.push()
        try:
            yield
        finally:
            self.driver.Context.pop()

    def stream(self) -> Any:
        return self.driver.Stream(NON_BLOCKING)

    def event(self) -> Any:
        return self.driver.Event()

    def marks(self, count: int) -> Marks:
        return Marks(self._library, count)

    def alloc(self, size: int) -> Any:
        """Device memory, int() is its address; freed by `free` or with the device."""
        memory = self.driver.mem_alloc(size)
        self._allocations[id(memory)] = memory
        return memory

    def free(self, memory: Any) -> None:
        self._allocations.pop(id(memory), None)
        memory.free()

    def lend(self, size: int) -> Any:
        """Device memory that outlives the device until `give_back`."""
        memory = self.driver.mem_alloc(size)
        self._lent[id(memory)] = memory
        return memory

    def give_back(self, memory: Any) -> None:
        """Frees memory from `lend`, in any thread and outside `current`, also after `close`."""
        if self._abandoned:
            return None
        late = self._capturing.get(threading.get_ident())
        if late is not None:  # called by the garbage collector during a capture: freeing would break it
            late.append(memory)
            return None
        with contextlib.suppress(self.errors), self.current():
            memory.free()
        self._lent.pop(id(memory), None)
        return self._release()

    def pinned(self, size: int) -> np.ndarray:
        """`size` bytes of page-locked memory, so that copies overlap with kernels."""
        pinned: np.ndarray = self.driver.pagelocked_empty((size,), np.uint8)
        return pinned

    def upload(self, target: Any, source: np.ndarray, stream: Any) -> None:
        self.driver.memcpy_htod_async(int(target), source, stream)

    def download(self, target: np.ndarray, source: Any, stream: Any) -> None:
        self.driver.memcpy_dtoh_async(target, int(source), stream)

    def synchronise(self) -> None:
        self.driver.Context.synchronize()

    def wait(self, event: Any, seconds: float, what: str) -> None:
        """Returns when `event` has happened. Ctrl-C interrupts it. Raises Hung after `seconds`."""
        start = time.monotonic()
        while not event.query():
            waited = time.monotonic() - start
            if waited > seconds:
                raise Hung(f"{what}: {self.card.name} did not finish within {seconds:g} s")
            if waited > SPIN_S:
                time.sleep(0.0002)

    def capture(self, stream: Any, enqueue: Callable[[], None]) -> Graph:
        """Captures what `enqueue` puts on `stream` as a graph, without running it. Raises DeviceError."""
        cuda, handle = self._library, ctypes.c_void_p(stream.handle)
        graph, runnable = ctypes.c_void_p(), ctypes.c_void_p()
        thread = threading.get_ident()
        late: list[Any] = []
        self._capturing[thread] = late
        try:
            _ok(cuda.cuStreamBeginCapture_v2(handle, CAPTURE_THREAD_LOCAL), "cuStreamBeginCapture")
            try:
                enqueue()
            finally:  # otherwise the stream would stay in capture for ever
                code = cuda.cuStreamEndCapture(handle, ctypes.byref(graph))
        finally:
            del self._capturing[thread]
            for memory in late:
                self.give_back(memory)
        _ok(code, "cuStreamEndCapture")
        code = cuda.cuGraphInstantiateWithFlags(ctypes.byref(runnable), graph, ctypes.c_ulonglong(0))
        cuda.cuGraphDestroy(graph)
        _ok(code, "cuGraphInstantiate")
        return Graph(cuda, runnable)

    def abandon(self) -> None:
        """After a timeout: frees nothing from now on, because that would wait for the hung GPU."""
        self._abandoned = True
        keep_for_ever(self._context, *self._allocations.values(), *self._lent.values())

    def close(self) -> None:
        """Frees what is left; the context is released with the last lent memory."""
        self._closed = True
        if not self._abandoned:
            with contextlib.suppress(self.errors), self.current():
                for memory in self._allocations.values():
                    with contextlib.suppress(self.errors):
                        memory.free()
        self._allocations = {}
        self._release()

    def _release(self) -> None:
        """Detaches while current: in a thread that did not retain it, PyCUDA would not release it."""
        if not self._closed or self._abandoned or self._lent or not self._held.pop(0, None):
            return
        with contextlib.suppress(self.errors):
            self._context.push()
            try:
                self._context.detach()
            finally:  # PyCUDA does not track its own push
                self._library.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
