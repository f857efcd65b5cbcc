"""A card without a card: PyCUDA's driver module, the driver library and TensorRT, as far as they are used.

Work on a stream waits until an event behind it is asked for, as on a card: who frees or reuses a buffer too
early is caught, by a RuntimeError or by NaN in the picture. `faults` makes any call fail: name -> what it
returns or raises; "name:tensor" for one tensor. `network` computes what the engine does.
"""

from __future__ import annotations

import ctypes
import itertools
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np


class Error(Exception):
    """pycuda.driver.Error"""


class MemoryFull(Error):
    """pycuda.driver.MemoryError"""


def network(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.maximum(a, b) - np.float32(0.25) * np.minimum(a, b)


class Memory:
    def __init__(self, card: FakeCard, size: int) -> None:
        self.card, self.address = card, next(card.addresses) * 2**32
        self.data: np.ndarray | None = np.full(size // 4, np.nan, np.float32)
        card.memory[self.address] = self

    def __int__(self) -> int:
        return self.address

    def free(self) -> None:
        if self.data is None:
            raise Error("freed twice")
        self.data = None
        self.card.memory.pop(self.address, None)


class Stream:
    def __init__(self, card: FakeCard) -> None:
        self.card, self.handle = card, next(card.addresses)
        self.work: list[Callable[[], None]] = []
        self.capturing: list[Callable[[], None]] | None = None
        card.streams[self.handle] = self

    def put(self, work: Callable[[], None]) -> None:
        (self.work if self.capturing is None else self.capturing).append(work)

    def drain(self, count: int) -> None:
        for _ in range(count):
            self.work.pop(0)()


class Event:
    def __init__(self, card: FakeCard) -> None:
        self.card, self.come = card, True

    def record(self, stream: Stream) -> None:
        self.card.call("record")
        self.stream, self.come = stream, False
        stream.put(lambda: setattr(self, "come", True))

    def query(self) -> bool:
        if self.card.call("query", True) is False:
            return False
        if not self.come:
            self.card.most_in_flight = max(
                self.card.most_in_flight, sum(bool(s.work) for s in self.card.streams.values())
            )
            self.stream.drain(len(self.stream.work))
        return self.come


class FakeCard:
    """Everything that the runner reaches; fake_engine.install puts it in their places."""

    capability = (8, 9)
    version = 13000

    def __init__(self) -> None:
        self.addresses = itertools.count(1)
        self.memory: dict[int, Memory] = {}
        self.streams: dict[int, Stream] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.faults: dict[str, Any] = {}
        self.calls: list[str] = []
        self.depth, self.contexts, self.most_in_flight = 0, 0, 0
        self.clock = 0.0  # ms: a copy to the card takes 1, the network 5, a copy back 2
        self.times: dict[int, float | None] = {}  # of timing events; None: never recorded with a time

    def call(self, name: str, value: Any = None) -> Any:
        self.calls.append(name)
        fault = self.faults.get(name, self)
        if isinstance(fault, BaseException):
            raise fault
        return value if fault is self else fault

    def at(self, address: int) -> np.ndarray:
        """The memory from an address on; a freed one is an error, as a card would (at best) report."""
        base = max((start for start in self.memory if start <= address), default=0)
        memory = self.memory.get(base)
        if memory is None or memory.data is None or (address - base) // 4 >= memory.data.size:
            raise RuntimeError(f"the card touches freed memory at {address:#x}")
        return memory.data[(address - base) // 4 :]

    # pycuda.driver

    def driver(self) -> Any:
        def make(cls: Any, name: str) -> Callable[..., Any]:
            def made(*args: Any) -> Any:
                self.call(name)
                if not self.depth:
                    raise Error("no current context")
                return cls(self, *args)

            return made

        context = SimpleNamespace(push=self._push, detach=self._detach)
        made = SimpleNamespace(Error=Error, MemoryError=MemoryFull)
        made.init = lambda: self.call("init")
        made.Device = lambda index: SimpleNamespace(retain_primary_context=lambda: self._retain(context))
        made.Context = SimpleNamespace(pop=self._pop, synchronize=self._synchronise)
        made.Stream, made.Event = make(Stream, "Stream"), make(Event, "Event")
        made.mem_alloc = make(Memory, "mem_alloc")
        made.pagelocked_empty = lambda shape, dtype: self.call("pinned", np.full(shape, np.nan, dtype))
        made.memcpy_htod_async, made.memcpy_dtoh_async = self._upload, self._download
        return made

    def _retain(self, context: Any) -> Any:
        self.call("retain")
        self.contexts += 1
        return context

    def _push(self) -> None:
        self.depth += 1

    def _pop(self) -> None:
        self.depth -= 1

    def _detach(self) -> None:
        self.contexts -= 1

    def _synchronise(self) -> None:
        self.call("synchronise")
        for stream in self.streams.values():
            stream.drain(len(stream.work))

    def _upload(self, target: int, source: np.ndarray, stream: Stream) -> None:
        self.call("upload")
        address, count, owner = source.ctypes.data, source.size, source
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        alive = weakref.ref(owner)
        del owner

        def copy() -> None:
            if alive() is None:
                raise RuntimeError("the card reads host memory that was freed")
            values = np.ctypeslib.as_array((ctypes.c_float * count).from_address(address))
            self.at(target)[:count] = values
            self.clock += 1

        stream.put(copy)

    def _download(self, target: np.ndarray, source: int, stream: Stream) -> None:
        self.call("download")

        def copy() -> None:
            np.copyto(target, self.at(source)[: target.size])
            self.clock += 2

        stream.put(copy)

    # libcuda

    def cuInit(self, flags: int) -> int:
        return int(self.call("cuInit", 0))

    def cuDriverGetVersion(self, out: Any) -> int:
        out._obj.value = self.version
        return 0

    def cuDeviceGetCount(self, out: Any) -> int:
        out._obj.value = self.call("cuDeviceGetCount", 1)
        return 0

    def cuDeviceGet(self, out: Any, index: int) -> int:
        return int(self.call("cuDeviceGet", 0))

    def cuDeviceGetName(self, out: Any, size: int, device: Any) -> int:
        out.value = b"Fake RTX"
        return 0

    def cuDeviceGetAttribute(self, out: Any, attribute: int, device: Any) -> int:
        out._obj.value = self.capability[attribute - 75]
        return 0

    def cuStreamBeginCapture_v2(self, handle: Any, mode: int) -> int:
        code = int(self.call("cuStreamBeginCapture", 0))
        self.streams[handle.value].capturing = None if code else []
        return code

    def cuStreamEndCapture(self, handle: Any, graph: Any) -> int:
        stream = self.streams[handle.value]
        graph._obj.value = next(self.addresses)
        self.graphs[graph._obj.value], stream.capturing = stream.capturing or [], None
        return int(self.call("cuStreamEndCapture", 0))

    def cuGraphInstantiateWithFlags(self, out: Any, graph: Any, flags: Any) -> int:
        out._obj.value = next(self.addresses)
        self.graphs[out._obj.value] = self.graphs[graph.value]
        return int(self.call("cuGraphInstantiate", 0))

    def cuGraphDestroy(self, graph: Any) -> int:
        del self.graphs[graph.value]
        return 0

    cuGraphExecDestroy = cuGraphDestroy

    def cuGraphLaunch(self, graph: Any, stream: Any) -> int:
        code = int(self.call("cuGraphLaunch", 0))
        self.streams[stream.value].work.extend([] if code else self.graphs[graph.value])
        return code

    def cuEventCreate(self, out: Any, flags: Any) -> int:
        out._obj.value = next(self.addresses)
        self.times[out._obj.value] = None
        return int(self.call("cuEventCreate", 0))

    def cuEventDestroy_v2(self, event: Any) -> int:
        del self.times[event.value]
        return 0

    def cuEventRecordWithFlags(self, event: Any, handle: Any, flags: Any) -> int:
        """As the driver: external in a capture only, and there a plain record carries no time."""
        stream, external = self.streams[handle.value], bool(flags.value)
        if external and stream.capturing is None:
            return 1
        if not external and stream.capturing is not None:
            self.times[event.value] = None
            return 0
        stream.put(lambda: self.times.__setitem__(event.value, self.clock))
        return int(self.call("cuEventRecordWithFlags", 0))

    def cuEventElapsedTime(self, out: Any, start: Any, end: Any) -> int:
        times = [self.times[event.value] for event in (start, end)]
        if times[0] is None or times[1] is None:
            return 400
        out._obj.value = times[1] - times[0]
        return int(self.call("cuEventElapsedTime", 0))

    # TensorRT

    def compile(self, cache: RuntimeCache | None, kernel: str) -> None:
        """What TensorRT-RTX does on the card when a kernel is first wanted; a cache remembers."""
        if cache is None or kernel not in cache.kernels:
            self.call("compile")
        if cache is not None:
            cache.kernels.add(kernel)

    def _make_context(self, config: RuntimeConfig | None = None) -> Any:
        made = Context(self)
        made.cache = config.cache if config else None
        self.compile(made.cache, "load")
        return self.call("create_execution_context", made)

    def tensorrt(self, name: str = "tensorrt_rtx", version: str = "1.0") -> Any:
        class ILogger:
            pass

        engine = SimpleNamespace(num_io_tensors=3, get_tensor_name=lambda i: ("a", "b", "fused")[i])
        engine.device_memory_size_v2 = 1000
        engine.create_execution_context = self._make_context
        if name == "tensorrt_rtx":
            engine.create_runtime_config = lambda: RuntimeConfig(self)

        class Runtime:
            def __init__(runtime, logger: Any) -> None:
                self.logger = logger

            def deserialize_cuda_engine(runtime, data: bytes) -> Any:
                return self.call("deserialize", engine)

        return SimpleNamespace(__name__=name, __version__=version, ILogger=ILogger, Runtime=Runtime)


class RuntimeCache:
    """tensorrt_rtx.IRuntimeCache: the shapes whose kernels were compiled, good for one kind of card."""

    def __init__(self, card: FakeCard) -> None:
        self.card, self.kernels = card, set[str]()

    def serialize(self) -> bytes | None:
        made: bytes | None = self.card.call(
            "cache.serialize", f"{self.card.capability}:{','.join(sorted(self.kernels))}".encode()
        )
        return made

    def deserialize(self, data: bytes) -> bool:
        capability, _, kernels = data.decode().partition(":")
        if not self.card.call("cache.deserialize", capability == str(self.card.capability)):
            return False
        self.kernels |= set(filter(None, kernels.split(",")))
        return True


class RuntimeConfig:
    def __init__(self, card: FakeCard) -> None:
        self.card, self.cache = card, RuntimeCache(card)

    def create_runtime_cache(self) -> RuntimeCache | None:
        made: RuntimeCache | None = self.card.call("create_runtime_cache", RuntimeCache(self.card))
        return made

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return bool(self.card.call("set_runtime_cache", True))


class Context:
    def __init__(self, card: FakeCard) -> None:
        self.card = card
        self.cache: RuntimeCache | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        self.card.compile(self.cache, "x".join(map(str, shape)))
        return bool(self.card.call(f"set_input_shape:{name}", True))

    def infer_shapes(self) -> list[str]:
        missing: list[str] = self.card.call("infer_shapes", [])
        return missing

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.card.call("get_tensor_shape", self.shapes["a"])
        return shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert isinstance(address, int)
        self.addresses[name] = address
        return bool(self.card.call(f"set_tensor_address:{name}", True))

    def execute_async_v3(self, handle: int) -> bool:
        if self.card.call("execute", True) is False:
            return False
        at, shape = dict(self.addresses), self.shapes["a"]
        count = int(np.prod(shape))

        def run() -> None:
            a, b = (self.card.at(at[name])[:count] for name in ("a", "b"))
            self.card.at(at["fused"])[:count] = network(a, b)
            self.card.clock += 5

        self.card.streams[handle].put(run)
        return True
