"""An engine on an NVIDIA GPU: `with Engine(path) as engine: fused = engine(a, b)`.

Two slots, each a stream with its own execution context and buffers, so that the copies of one pair overlap
with the kernels of another, in one caller's `run` or in several threads. A repeated shape is replayed as a
CUDA graph.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

from mmif_trt.image import DTYPE_RANGE, InputError
from mmif_trt.models.pixels import OUTPUT, Form
from mmif_trt.runtimes.trt import build as engine_build
from mmif_trt.runtimes.trt import device_array, engine_file
from mmif_trt.runtimes.trt.cuda import Device, DeviceError, Hung, keep_for_ever
from mmif_trt.runtimes.trt.kernel_cache import KernelCache, path_of
from mmif_trt.runtimes.trt.manifest import Shape
from mmif_trt.runtimes.trt.slot import Job, Slot, said

SLOTS = 2
TIMEOUT_S = 60.0
Range = tuple[float, float]


class Engine:
    """An engine file on the GPU, checked against its manifest. Several threads may call it.

    engine(a, b): arrays of the engine's form (models.pixels.Form); a batch or channel of 1 may be omitted;
    both on the host (NumPy, or DLPack: torch) or both on the GPU (DLPack or `__cuda_array_interface__`). The
    network alone takes float32 in [0, 1]: a [H, W], [B, H, W] or [B, 1, H, W], and b [2, H, W] or
    [B, 2, H, W]. The result has b's shape, that of the network alone a's: a NumPy array or a `DeviceArray`,
    the caller's own. Forms with ranges also take range_a, range_b: (black, white) each; default: the whole
    range of the type. to_host: the result is a NumPy array wherever a and b lie.
    `run` keeps two pairs in flight.
    Raises InputError for arrays that do not match, DeviceError (an InputError) if the GPU fails.
    """

    def __init__(self, path: str | Path, timeout_s: float = TIMEOUT_S) -> None:
        self.path, self._timeout_s = Path(path), timeout_s
        self._changed = threading.Condition()  # guards what follows
        self._free: list[Slot] = []
        self._working = 0  # threads that use the GPU now
        self._inside: set[int] = set()  # threads inside `run`
        self._broken = ""
        self._closed = False
        self._slots: list[Slot] = []
        self.kernels: Any = None
        self.parts_ms: list[float] = []  # of the last call from host arrays, see `time_parts`
        self._logger = self._runtime = self._engine = None
        trt = engine_build.module()
        engine_file.read_manifest(self.path)  # before the GPU, so that a missing file is reported as such
        self.device = Device()
        try:
            engine_build.refuse_old_driver(trt.__name__, self.device.card)
            self.data, self.manifest = engine_file.load_checked(
                self.path, trt.__name__, trt.__version__, self.device.card.capability
            )
            self.form = Form.named(self.manifest.form)
            with self.device.current(), self._said(self.manifest.largest):
                self._load(trt)
        except BaseException:  # Ctrl-C too: the GPU is released
            self.close()
            raise

    def _load(self, trt: Any) -> None:
        self._logger = engine_build.make_logger(trt)
        self._runtime = engine_build.made(lambda: trt.Runtime(self._logger), "Runtime", self._logger)
        runtime: Any = self._runtime
        self._engine = engine = runtime.deserialize_cuda_engine(self.data)
        if engine is None:
            raise DeviceError(f"{self.path}: TensorRT does not load this engine: {self._reason()}")
        names = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
        if names != (expected := {*self.form.inputs, OUTPUT}):
            raise DeviceError(f"{self.path}: tensors {sorted(names)}; expected {sorted(expected)}")
        self.kernels = KernelCache(trt, engine, path_of(self.manifest, self.device.card))
        for _ in range(SLOTS):
            context = self.kernels.context()
            if context is None:
                raise DeviceError(f"{self.path}: no execution context: {self._reason()}")
            self._slots.append(Slot(self.device, context, self.form, self._timeout_s, self._reason))
        self._free = list(self._slots)
        self.kernels.save()  # now, because a killed process never closes

    def _reason(self) -> str:
        return engine_build.last_error(self._logger)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Releases the GPU after the calls of other threads; a second call does nothing."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: not self._working, self._timeout_s):
                self._broken = self._broken or f"{self.path}: a call did not end"
                self._abandon()
        device = self.device
        if not self._broken:
            with contextlib.suppress(device.errors), device.current():
                if self._slots:
                    device.synchronise()  # nothing is freed that the GPU still writes
                    self.kernels.save()  # with those of the shapes received
                for slot in self._slots:
                    slot.close()
                self.kernels = self._engine = self._runtime = None
        device.close()

    @property
    def graphs(self) -> bool:
        """False where capturing one failed."""
        return all(slot.graphs for slot in self._slots)

    def time_parts(self) -> None:
        """From now on `parts_ms` holds the GPU times of the last call from host arrays: upload, network,
        download. For a profiler: events in stream and graph cost about a microsecond each."""
        for slot in self._slots:
            with self._work(), self.device.current():
                slot.time_parts()

    @property
    def device_bytes(self) -> int:
        """GPU memory that this engine requested: its plan, the contexts' activations, the buffers."""
        assert self._engine is not None
        contexts = len(self._slots) * int(self._engine.device_memory_size_v2)
        return len(self.data) + contexts + sum(slot.device_bytes for slot in self._slots)

    def __call__(
        self,
        a: Any,
        b: Any,
        range_a: Range | None = None,
        range_b: Range | None = None,
        to_host: bool = False,
    ) -> Any:
        (fused,) = self.run([(a, b, range_a, range_b, to_host)])
        return fused

    def run(self, pairs: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Yields the fused array of each pair in order; while one is computed, the next is uploaded.

        pairs: (a, b), and what a call takes after them. The results belong to the caller; no later pair
        overwrites them. A break ends what is in flight.
        """
        thread = threading.get_ident()
        if thread in self._inside:
            raise InputError(f"{self.path}: called inside its own `run`; expected calls one after the other")
        self._inside.add(thread)
        flying: list[tuple[Slot, Job]] = []
        try:
            for pair in pairs:
                # A holder of a slot never waits for another slot: two threads would deadlock.
                while (slot := self._take(wait=not flying)) is None:
                    yield self._finish(*flying.pop(0))
                flying.append((slot, self._start(slot, *pair)))
            while flying:
                yield self._finish(*flying.pop(0))
        finally:
            while flying:  # an error, a break or Ctrl-C: no slot is left with work
                with contextlib.suppress(DeviceError):
                    self._finish(*flying.pop())
            self._inside.discard(thread)

    def _take(self, wait: bool) -> Slot | None:
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._free or self._broken or self._closed)
            self._refuse_unusable()
            return self._free.pop(0) if self._free else None

    def _refuse_unusable(self) -> None:
        if self._broken or self._closed:
            reason = self._broken or f"{self.path}: the engine was closed"
            raise DeviceError(f"{reason}; expected a new Engine")

    @contextmanager
    def _work(self) -> Iterator[None]:
        """Wraps every use of the GPU: `close` waits for its end."""
        with self._changed:
            self._refuse_unusable()
            self._working += 1
        try:
            yield
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()

    def _give_back(self, slot: Slot) -> None:
        with self._changed:
            self._free.insert(0, slot)  # the next pair of this size reuses its graph
            self._changed.notify()

    def _start(
        self,
        slot: Slot,
        a: Any,
        b: Any,
        range_a: Range | None = None,
        range_b: Range | None = None,
        to_host: bool = False,
    ) -> Job:
        """Starts one pair; returns the slot if that fails."""
        try:
            ranges = self._ranges(range_a, range_b)
            on_card = [device_array.is_on_device(x, name) for x, name in ((a, "a"), (b, "b"))]
            if on_card[0] != on_card[1]:
                raise InputError(
                    "a and b: only one is on the card; expected both on the card or both on the host"
                )
            if not on_card[0]:
                hosts = [device_array.host_array(x, n, self.form.dtype) for x, n in ((a, "a"), (b, "b"))]
                shape = self._shape(*(x.shape for x in hosts))
                full = self.form.shapes(*shape)
                arrays = {name: x.reshape(full[name]) for name, x in zip("ab", hosts, strict=True)}
                with self._work(), self.device.current(), self._said(shape):
                    return slot.start(arrays | ranges, shape, self._result(*(x.shape for x in hosts)))
            with self._work():
                to = slot.stream.handle
                views = {n: device_array.view(x, n, to, self.form.dtype) for x, n in ((a, "a"), (b, "b"))}
                shapes = views["a"].shape, views["b"].shape
                shape = self._shape(*shapes)
                with self.device.current(), self._said(shape):
                    return slot.start_on_card(views, ranges, shape, self._result(*shapes), to_host)
        except BaseException as error:
            self._give_back(slot)
            if isinstance(error, Hung):
                raise self._hung(error) from None
            raise

    def _finish(self, slot: Slot, job: Job) -> Any:
        try:
            with self._work(), self.device.current(), self._said(job.shape):
                fused = slot.finish(job)
                self.parts_ms = slot.parts_ms
                return fused
        except Hung as error:
            raise self._hung(error) from None
        finally:
            self._give_back(slot)

    def _hung(self, error: Hung) -> Hung:
        """After a timeout nothing may be freed: a destructor would wait for the GPU, perhaps for ever."""
        self._broken = f"{self.path}, {error}"
        self._abandon()
        return Hung(self._broken)

    def _abandon(self) -> None:
        keep_for_ever(self.kernels, self._engine, self._runtime, *self._slots)
        self.device.abandon()

    def _ranges(self, *given: Range | None) -> dict[str, np.ndarray]:
        names = self.form.ranges
        if not names and any(given):
            raise InputError(f"{self.path}: a value range; form {self.form} has a fixed one, expected none")
        default = DTYPE_RANGE[self.form.dtype]
        return {n: np.array(x or default, np.float32) for n, x in zip(names, given, strict=False)}

    def _result(self, a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
        return a if self.form.layout == "luma" else b

    def _shape(self, a: tuple[int, ...], b: tuple[int, ...]) -> Shape:
        shape = cast(Shape, (1 if len(a) == 2 else a[0], *a[-2:]) if a else (0, 0, 0))
        one_channel = self.form.layout == "grey"
        usual = 2 <= len(a) <= 4 and (len(a) < 4 or a[1] == 1)
        if usual and one_channel:
            fits = a == b
        elif usual:
            full = self.form.shapes(*shape)["b"]
            fits = b == full or (len(a) == 2 and b == full[1:])
        if not usual or not fits:
            expected = "equal [H, W], [B, H, W] or [B, 1, H, W]"
            if not one_channel:
                of_b = {"luma": "[B, 2, H, W]", "rgb": "[B, 3, H, W]"}.get(self.form.layout, "[B, H, W, 3]")
                expected = f"[H, W], [B, H, W] or [B, 1, H, W] with {of_b}, for one picture also without B"
            raise InputError(f"a has shape {a} and b {b}; expected {expected}")
        self.manifest.refuse_shape("a and b", shape)
        return shape

    @contextmanager
    def _said(self, shape: Shape) -> Iterator[None]:
        """What PyCUDA raises, as one line that names batch and size if memory was full."""
        try:
            yield
        except self.device.memory_error:
            name = self.device.card.name
            raise DeviceError(
                f"{name}: out of memory for {said(shape)}; use a smaller batch or size"
            ) from None
        except self.device.errors as error:
            raise DeviceError(f"{self.device.card.name}: {' '.join(str(error).split())}") from None
