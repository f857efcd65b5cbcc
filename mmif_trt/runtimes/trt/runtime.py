"""LAGN by TensorRT on an NVIDIA GPU: "auto" takes it if a GPU, a module and an engine are there.

The engine is in this user's cache, and is built there on first use.
"""

from __future__ import annotations

import importlib.util
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from mmif_trt import weights
from mmif_trt.image import DTYPE_RANGE, InputError, is_tensor
from mmif_trt.models.pixels import LUMA, Form
from mmif_trt.runtimes import stacked
from mmif_trt.runtimes.trt import build as engine_build
from mmif_trt.runtimes.trt import device_array, engine_file
from mmif_trt.runtimes.trt.cuda import DeviceError, card
from mmif_trt.runtimes.trt.device_array import is_on_device
from mmif_trt.runtimes.trt.engine import Engine, Range
from mmif_trt.runtimes.trt.manifest import Manifest


def why_not() -> str:
    """Everything that TensorRT lacks here, in one line; "" if nothing is missing."""
    missing = []
    found = next((name for name in engine_build.MODULES if importlib.util.find_spec(name)), None)
    try:
        here = card()
        if found:
            engine_build.refuse_old_driver(found, here)
    except DeviceError as error:
        missing.append(str(error))
    if found is None:
        missing.append("no tensorrt or tensorrt_rtx module")
    if importlib.util.find_spec("pycuda") is None:
        missing.append("no PyCUDA (make console)")
    return "; ".join(missing)


def cached_engine(form: Form = LUMA, network: str = weights.DEFAULT) -> Path:
    """This user's engine of `network` for this GPU and TensorRT; built once, by one process, if missing.

    Raises InputError if it cannot be built or the one there does not match.
    """
    trt, onnx_sha = engine_build.module(), weights.onnx_sha256(network)
    here = card().capability
    kind = f"{network}-fp16-" + ("" if form == LUMA else f"{form}-")
    name = f"{kind}{trt.__name__}-{trt.__version__}-sm{here}-{onnx_sha[:12]}{engine_file.SUFFIX}"
    path = engine_file.cache_folder() / name
    if not engine_file.manifest_path(path).is_file():
        with engine_file.locked(path):
            if not engine_file.manifest_path(path).is_file():  # not built by the process that we waited for
                command = "built on first use by mmif_trt.Fuser"
                engine_build.build(path, command, capabilities=(here,), model=network, form=form)
    return path


def _loaded(form: Form, network: str) -> Engine:
    """The cached engine on the GPU. Raises InputError, also where its manifest names another network."""
    engine = Engine(cached_engine(form, network))
    if engine.manifest.model != network:
        received = engine.manifest.model
        engine.close()
        raise InputError(f"{engine.path}: of model {received!r}; expected {network}, by its name")
    return engine


def load(
    precision: str, threads: int | None, streams: int = 1, network: str = weights.DEFAULT
) -> TensorRtRuntime:
    """threads, streams: ignored; the GPU runs one picture at a time."""
    if precision not in ("auto", "fp16"):
        raise InputError(f"precision {precision!r}: runtime 'tensorrt' runs FP16; expected auto, fp16")
    return TensorRtRuntime(_loaded(LUMA, network))


class TensorRtRuntime:
    name = "tensorrt"
    precision = "fp16"
    streams = 1

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._loading = threading.Lock()
        self._engines = {LUMA: engine}
        self._missing: set[Form] = set()  # engines that could not be built or loaded
        # Releases the GPU with the last reference, and before the interpreter ends, after Ctrl-C too.
        weakref.finalize(self, _close, self._engines)
        self.device = engine.device.card.name
        self.note = "; ".join(filter(None, [engine.manifest.psnr, engine.kernels.note]))

    def infer(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        fused: np.ndarray = self.engine(*stacked(a, b))
        return fused.reshape(a.shape)

    def takes_on_card(self, a: tuple[int, ...], b: tuple[int, ...]) -> bool:
        """Does `fuse_on_card` take uint8 pictures of these shapes, [H, W] or [H, W, 3], from 0 to 255? Not
        without the engine for them: `note` says why it cannot be built or loaded."""
        form = Form("uint8", "rgb-last" if is_colour(b) else "grey")
        if is_colour(a) or form in self._missing:
            return False
        try:
            return _fits(a, self._engine(form).manifest)
        except Exception as error:  # whatever a driver or TensorRT raises: the host's way is left
            self._missing.add(form)
            self.note += f"; no engine {form}: {' '.join(str(error).split()) or type(error).__name__}"
            return False

    def fuse_on_card(
        self, a: Any, b: Any, range_a: Range | None, range_b: Range | None, to_host: bool = False
    ) -> Any:
        """From pixels to pixels without passing through the host: a `DeviceArray` in the shape and type of b,
        in a's range; to_host: a NumPy array. None if a or b is not on the GPU, or only the host path can do
        it.

        a: [H, W] or [N, H, W]; b: the same, or RGB [H, W, 3], [N, H, W, 3]; both uint8 from 0 to 255, or both
        float32, not checked for NaN. 16 to 1024 px per side, 8 pairs at most. Raises InputError.
        """
        if not all(is_on_device(x, name) for x, name in ((a, "a"), (b, "b"))):
            return None
        types, shapes = zip(*(_seen(x, name) for x, name in ((a, "a"), (b, "b"))), strict=True)
        if is_colour(shapes[0]):
            raise InputError(f"a has shape {shapes[0]}, in colour; expected a grey MRI on the card")
        by_host = all(is_tensor(x) for x in (a, b))  # the host path works too
        given = [x for x in (range_a, range_b) if x is not None]
        whole = all(tuple(x) == DTYPE_RANGE["uint8"] for x in given)
        if types not in (("uint8", "uint8"), ("float32", "float32")) or (types[0] == "uint8" and not whole):
            if by_host:
                return None
            raise InputError(
                f"a is {types[0]} and b {types[1]} on the card, value ranges {range_a} and {range_b}; "
                "expected both uint8 from 0 to 255, or both float32"
            )
        for x, name in ((range_a, "value_range_a"), (range_b, "value_range_b")):
            if x is not None and not x[0] < x[1]:
                raise InputError(f"{name} {x}; expected (black, white), black < white")
        form = Form(types[0], "rgb-last" if is_colour(shapes[1]) else "grey")
        ranges = (range_a, range_b) if form.ranges else (None, None)
        engine = self._engine(form)
        if by_host and not _fits(shapes[0], engine.manifest):
            return None  # in tiles, or one by one
        return engine(a, b, *ranges, to_host)

    def _engine(self, form: Form) -> Engine:
        with self._loading:
            if form not in self._engines:
                self._engines[form] = _loaded(form, self.engine.manifest.model)
            return self._engines[form]


def _seen(x: Any, name: str) -> tuple[str, tuple[int, ...]]:
    view = device_array.view(x, name, device_array.NO_SYNC, None)
    return view.dtype, view.shape


def is_colour(shape: tuple[int, ...]) -> bool:
    """A last axis of 3 means colour, as everywhere: no side may be under 16."""
    return len(shape) in (3, 4) and shape[-1] == 3


def _fits(shape: tuple[int, ...], manifest: Manifest) -> bool:
    """[H, W] or [N, H, W] within what the engine was built for."""
    counted = shape if len(shape) == 3 else (1, *shape)
    limits = zip(manifest.smallest, counted, manifest.largest, strict=True)
    return len(shape) in (2, 3) and all(low <= n <= high for low, n, high in limits)


def _close(engines: dict[Form, Engine]) -> None:
    for engine in engines.values():
        engine.close()
