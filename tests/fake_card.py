"""A card without a card: PyCUDA's driver module, the driver library and TensorRT, as far as they are used.

Work on a stream waits until an event behind it is asked for, as on a card: freeing or reusing a buffer too
early shows, as a RuntimeError or as NaN in the picture. `faults` makes any call fail: name -> what it returns
or raises; "name:tensor" for one tensor. `hooks` run where their call is made. `network` is what the engine
computes, between the real host stages where its form is from pixels to pixels.

Like PyCUDA, it frees a dropped object only where its context is current or in the thread that made it
(`leaked` otherwise), and on a `hung` card a destructor would not return (`blocked`).
"""

from __future__ import annotations

import ctypes
import itertools
import threading
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from mmif_trt.models.pixels import LUMA, OUTPUT, Form
from mmif_trt.runtimes.trt import device_array
from mmif_trt.stages import colour, normalise


class Error(Exception):
    """pycuda.driver.Error"""


class MemoryFull(Error):
    """pycuda.driver.MemoryError"""


def network(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """In the shape of a; b [..., 2, H, W] as `colour.planes` has it."""
    luma, above = b[..., 0, :, :], b[..., 1, :, :]
    x = a.reshape(luma.shape)
    fused: np.ndarray = np.maximum(x, luma) - np.float32(0.25) * np.minimum(x, luma) - above / np.float32(8)
    return np.maximum(fused, 0).reshape(a.shape)


def fused(form: Form, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """What the engine of `form` makes of its inputs, in the shapes of the form."""
    if form == LUMA:
        return network(arrays["a"], arrays["b"])
    default = np.array([0, 255], np.float32)
    low_high = [tuple(arrays.get(f"range_{x}", default)) for x in "ab"]
    a, b = (normalise.unit(arrays[x], limits) for x, limits in zip("ab", low_high, strict=True))
    first = np.moveaxis(b, 1, -1) if form.layout == "rgb" else b
    if form.layout == "grey":
        shown = network(a, colour.planes(b[:, 0]))
    else:
        shown = colour.recombine(network(a[:, 0], colour.planes(first)), first)
    shown = np.moveaxis(shown, -1, 1) if form.layout == "rgb" else shown
    return normalise.from_unit(shown, np.dtype(form.dtype), low_high[0])


class Dropped:
    """What a destructor of PyCUDA or TensorRT would do, in whatever thread it runs."""

    def __init__(self, card: FakeCard) -> None:
        self.card, self.thread = card, threading.get_ident()

    def __del__(self) -> None:
        self.card.dropped(type(self).__name__, self.thread)


class Memory(Dropped):
    def __init__(self, card: FakeCard, size: int) -> None:
        super().__init__(card)
        self.address = next(card.addresses) * 2**32
        card.memory[self.address] = np.full(size, 0xFF, np.uint8)  # as float32 that is NaN

    def __int__(self) -> int:
        return self.address

    @property
    def data(self) -> np.ndarray:
        """As float32."""
        return self.card.memory[self.address].view(np.float32)

    def free(self) -> None:
        if any(stream.capturing is not None for stream in self.card.streams.values()):
            raise Error("operation not permitted when stream is capturing")
        if self.card.memory.pop(self.address, None) is None:
            raise Error("freed twice")
        if self.card.hung:
            self.card.blocked.append("free")

    def __del__(self) -> None:
        if self.address in self.card.memory and self.card.dropped("Memory", self.thread):
            del self.card.memory[self.address]


class OnCard:
    """An array of another library, like PyCUDA's GPUArray: it has only the interface, and takes its memory
    with it."""

    def __init__(self, card: FakeCard, x: np.ndarray) -> None:
        self.memory = Memory(card, x.nbytes)
        card.memory[int(self.memory)][:] = np.frombuffer(x.tobytes(), np.uint8)
        self.__cuda_array_interface__ = {
            "shape": x.shape,
            "typestr": x.dtype.newbyteorder("<").str,
            "data": (int(self.memory), False),
            "version": 3,
        }

    def __del__(self) -> None:
        self.memory.free()


class ByDlpack:
    """An array of another library by DLPack: a real capsule of NumPy's, its pointer changed to the card's."""

    def __init__(self, card: FakeCard, x: np.ndarray) -> None:
        self.card, self.x, self.address = card, x, next(card.addresses) * 2**32
        card.memory[self.address] = np.frombuffer(x.tobytes(), np.uint8).copy()
        self.streams: list[int] = []  # that were named as those that will read

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0  # CUDA, the first

    def __dlpack__(self, *, stream: int) -> Any:
        self.streams.append(stream)
        capsule = self.x.__dlpack__()
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        tensor = device_array._Tensor.from_address(get(capsule, b"dltensor"))
        tensor.data, tensor.byte_offset = self.address - 256, 256
        return capsule

    def __del__(self) -> None:
        del self.card.memory[self.address]  # to its library's pool: no call of the driver


class Stream(Dropped):
    def __init__(self, card: FakeCard, flags: int = 0) -> None:
        super().__init__(card)
        self.handle, self.flags = next(card.addresses), flags
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
    """Everything that the runner uses; fake_engine.install puts it in place."""

    capability = (8, 9)
    version = 13000

    def __init__(self) -> None:
        self.addresses = itertools.count(1)
        self.memory: dict[int, np.ndarray] = {}  # bytes
        self.streams: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.faults: dict[str, Any] = {}
        self.hooks: dict[str, Callable[[], None]] = {}
        self.hung = False
        self.blocked: list[str] = []
        self.leaked: list[str] = []
        self.kernels: list[str] = []  # that ran: "special", or "fallback" until a shape was specialised
        self._here = threading.local()
        self.calls: list[str] = []
        self.depth, self.contexts, self.most_in_flight = 0, 0, 0
        self.clock = 0.0  # ms: a copy to the card takes 1, the network 5, a copy back 2
        self.times: dict[int, float | None] = {}  # of timing events; None: never recorded with a time

    def call(self, name: str, value: Any = None) -> Any:
        self.calls.append(name)
        if name in self.hooks:
            self.hooks[name]()
        fault = self.faults.get(name, self)
        if isinstance(fault, BaseException):
            raise fault
        return value if fault is self else fault

    def dropped(self, what: str, thread: int) -> bool:
        """Is it freed?"""
        if self.hung:
            self.blocked.append(what)
        elif not getattr(self._here, "depth", 0) and thread != threading.get_ident():
            self.leaked.append(what)
        else:
            return True
        return False

    def at(self, address: int) -> np.ndarray:
        """The bytes from an address on; freed ones are an error, as a card would report at best."""
        base = max((start for start in self.memory if start <= address), default=0)
        memory = self.memory.get(base)
        if memory is None or address - base >= memory.size:
            raise RuntimeError(f"the card touches freed memory at {address:#x}")
        return memory[address - base :]

    def array(self, address: int, shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.at(address)[:size].view(dtype).reshape(shape)

    # pycuda.driver

    def driver(self) -> Any:
        def make(cls: Any, name: str) -> Callable[..., Any]:
            def made(*args: Any) -> Any:
                self.call(name)
                if not getattr(self._here, "depth", 0):
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
        made.pagelocked_empty = self._pinned
        made.memcpy_htod_async, made.memcpy_dtoh_async = self._upload, self._download
        return made

    def _pinned(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        made: np.ndarray = np.full(shape, 0xFF, dtype)
        weakref.finalize(made, self.dropped, "pinned", threading.get_ident())
        return self.call("pinned", made)  # type: ignore[no-any-return]

    def _retain(self, context: Any) -> Any:
        self.call("retain")
        self.contexts += 1
        return context

    def _push(self) -> None:
        self._here.depth = getattr(self._here, "depth", 0) + 1
        self.depth += 1

    def _pop(self) -> None:
        self._here.depth -= 1
        self.depth -= 1

    def _detach(self) -> None:
        """PyCUDA's, from a thread where it is not current, may release nothing and say nothing."""
        assert not self.hung, "the release would not return"
        if getattr(self._here, "depth", 0):
            self.contexts -= 1

    def cuCtxPopCurrent_v2(self, out: Any) -> int:
        self._pop()
        return 0

    def _synchronise(self) -> None:
        self.call("synchronise")
        for stream in self.streams.values():
            stream.drain(len(stream.work))

    def _upload(self, target: int, source: np.ndarray, stream: Stream) -> None:
        self.call("upload")
        address, count, owner = source.ctypes.data, source.nbytes, source
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        alive = weakref.ref(owner)
        del owner

        def copy() -> None:
            if alive() is None:
                raise RuntimeError("the card reads host memory that was freed")
            values = np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(address))
            self.at(target)[:count] = values
            self.clock += 1

        stream.put(copy)

    def _download(self, target: np.ndarray, source: int, stream: Stream) -> None:
        self.call("download")

        def copy() -> None:
            np.copyto(target, self.at(source)[: target.nbytes])
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
        """Like the driver: external only in a capture, where a plain record carries no time."""
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
        """What TensorRT-RTX does on the card when a kernel is first needed; a cache remembers it."""
        if cache is None or kernel not in cache.kernels:
            self.call("compile")
        if cache is not None:
            cache.kernels.add(kernel)

    def _make_context(self, form: Form, config: RuntimeConfig | None = None) -> Any:
        made = Context(self, form)
        made.cache = config.cache if config else None
        made.eager = config is None or config.eager
        self.compile(made.cache, "load")
        return self.call("create_execution_context", made)

    def tensorrt(self, name: str = "tensorrt_rtx", version: str = "1.0") -> Any:
        class ILogger:
            pass

        class Runtime:
            def __init__(runtime, logger: Any) -> None:
                self.logger = logger

            def deserialize_cuda_engine(runtime, data: bytes) -> Any:
                return self.call("deserialize", self._engine(name, data))

        made = SimpleNamespace(__name__=name, __version__=version, ILogger=ILogger, Runtime=Runtime)
        made.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="EAGER", LAZY="LAZY")
        return made

    def _engine(self, flavour: str, data: bytes) -> Any:
        """Of the form that fake_engine.engine wrote into the file."""
        form = Form.named(data.decode().split()[-1]) if data.startswith(b"not a real engine") else LUMA
        names = (*form.inputs, OUTPUT)
        engine = SimpleNamespace(num_io_tensors=len(names), get_tensor_name=lambda i: names[i])
        engine.device_memory_size_v2 = 1000
        engine.create_execution_context = lambda config=None: self._make_context(form, config)
        if flavour == "tensorrt_rtx":
            engine.create_runtime_config = lambda: RuntimeConfig(self)
        return engine


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
    dynamic_shapes_kernel_specialization_strategy: Any = "LAZY"

    def __init__(self, card: FakeCard) -> None:
        self.card = card
        self.cache: RuntimeCache | None = None

    @property
    def eager(self) -> bool:
        return "EAGER" in str(self.dynamic_shapes_kernel_specialization_strategy)

    def create_runtime_cache(self) -> RuntimeCache | None:
        made: RuntimeCache | None = self.card.call("create_runtime_cache", RuntimeCache(self.card))
        return made

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        taken = bool(self.card.call("set_runtime_cache", True))
        self.cache = cache if taken else None
        return taken


class Context(Dropped):
    def __init__(self, card: FakeCard, form: Form) -> None:
        super().__init__(card)
        self.form, self.eager = form, True
        self.cache: RuntimeCache | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.runs: dict[tuple[int, ...], int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        if name == "a":  # kernels are for a batch and size, which it has
            self.card.compile(self.cache, "x".join(map(str, shape)))
        return bool(self.card.call(f"set_input_shape:{name}", True))

    def infer_shapes(self) -> list[str]:
        missing: list[str] = self.card.call("infer_shapes", [])
        return missing

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Of the output: the engine asks for no other."""
        of_result = self.shapes["a" if self.form == LUMA else "b"]
        shape: tuple[int, ...] = self.card.call("get_tensor_shape", of_result)
        return shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert isinstance(address, int)
        self.addresses[name] = address
        return bool(self.card.call(f"set_tensor_address:{name}", True))

    def execute_async_v3(self, handle: int) -> bool:
        if self.card.call("execute", True) is False:
            return False
        at, shapes = dict(self.addresses), dict(self.shapes)
        before = self.runs.get(shapes["a"], 0)
        self.runs[shapes["a"]] = before + 1
        kernel = "special" if self.eager or before > 1 else "fallback"

        def run() -> None:
            card, form = self.card, self.form
            given = {x: card.array(at[x], shapes[x], form.dtype_of(x)) for x in form.inputs}
            result = fused(form, given)
            card.array(at[OUTPUT], result.shape, form.dtype)[:] = result
            card.kernels.append(kernel)
            card.clock += 5

        self.card.streams[handle].put(run)
        return True
