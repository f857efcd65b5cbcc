"""What can run the network. One small interface, chosen by name."""

from __future__ import annotations

import importlib
import importlib.util
import numbers
from typing import Any, Protocol

import numpy as np

from mmif_trt import weights
from mmif_trt.image import InputError
from mmif_trt.stages import colour
from mmif_trt.stages.tiling import MULTIPLE_PX

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
# In order of preference: (module of ours, module it needs, how to install that).
_TABLE = {
    "tensorrt": ("mmif_trt.runtimes.trt.runtime", "", ""),  # also needs a GPU: checked in that module
    "openvino": ("mmif_trt.runtimes.openvino", "openvino", "pip install openvino"),
    "torch": ("mmif_trt.runtimes.torch", "torch", "pip install 'mmif-trt[train]'"),
}
NAMES = tuple(_TABLE)


class Runtime(Protocol):
    """A loaded network. `infer` may be called from several threads at once."""

    name: str
    precision: str  # "fp32", "bf16" or "fp16": what runs, not what was requested
    device: str
    note: str  # why this precision
    streams: int  # pictures at a time, sharing the threads; 1: all threads on one

    def infer(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """a [H, W] or a batch [B, H, W], b [2, H, W] or [B, 2, H, W] as `colour.planes` makes it, or grey in
        the shape of a; float32 in [0, 1], sides multiples of 32 -> fused in the shape of a, float32 in
        [0, 1]."""
        ...


def available() -> dict[str, str]:
    """Each runtime's name, and "" if it is usable, otherwise one line that says why not."""
    return {name: _why_not(name) for name in _TABLE}


def _why_not(name: str) -> str:
    ours, needs, remedy = _TABLE[name]
    if not needs:
        missing: str = importlib.import_module(ours).why_not()
        return missing
    return "" if importlib.util.find_spec(needs) is not None else f"not installed: {remedy}"


def load(
    name: str, precision: str, threads: int | None, streams: int = 1, network: str = weights.DEFAULT
) -> Runtime:
    """The runtime `name`, or for "auto" the first usable one with this precision; its note says why no
    better one.

    streams: pictures to run at a time, at most one per thread; a runtime that cannot do that runs one.
    network: which of the shipped ones.
    Raises InputError for an unknown name, precision or network, for a runtime that is not installed, and for
    less than one thread or stream.
    """
    usable = available()
    if name != "auto" and name not in usable:
        raise InputError(f"runtime {name!r}; expected auto, {', '.join(usable)}")
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r}; expected {', '.join(PRECISIONS)}")
    for what, count in (("threads", 1 if threads is None else threads), ("streams", streams)):
        if not isinstance(count, numbers.Integral) or count < 1:
            raise InputError(f"{what} {count!r}; expected a whole number, 1 or more")
    weights.refuse_unknown(network)
    how = (precision, threads, streams, network)
    if name != "auto":
        return _load(name, usable[name], *how)
    passed_over = ""
    if precision in ("auto", "fp16"):
        try:
            return _load("tensorrt", usable["tensorrt"], *how)
        except Exception as error:  # whatever a driver or TensorRT raises: fall back to the CPU
            if precision == "fp16":  # no other runtime has it
                raise InputError(f"precision 'fp16' is TensorRT's alone: {error}") from error
            passed_over = f"; {' '.join(str(error).split()) or type(error).__name__}"
    name = next((n for n, why_not in usable.items() if not why_not and n != "tensorrt"), "openvino")
    runtime = _load(name, usable[name], *how)
    runtime.note += passed_over
    return runtime


def _load(
    name: str, why_not: str, precision: str, threads: int | None, streams: int, network: str
) -> Runtime:
    if why_not:
        raise InputError(f"runtime {name!r} is {'not usable: ' if name == 'tensorrt' else ''}{why_not}")
    runtime: Runtime = importlib.import_module(_TABLE[name][0]).load(precision, threads, streams, network)
    return runtime


def golden(network: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The golden pairs of `network` as `Runtime.infer` takes them, and the fused [n, H, W]."""
    a, b, fused = weights.golden(network)
    return a, colour.planes(b), fused


def stacked(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What `Runtime.infer` is given, as the network reads it: [B, 1, H, W] and [B, 2, H, W] float32. Raises
    InputError for shapes that do not match, and for sides off the grid of windows."""
    planes = b.shape[:-2] == (*a.shape[:-2], 2)
    if b.shape[-2:] != a.shape[-2:] or not (planes or b.shape == a.shape):
        raise InputError(
            f"a has shape {a.shape} and b {b.shape}; expected b as a, or with two planes [2, H, W]"
        )
    if any(side % MULTIPLE_PX or not side for side in a.shape[-2:]):
        raise InputError(
            f"a has shape {a.shape}; expected sides that are multiples of {MULTIPLE_PX}, or mmif_trt.fuse, "
            "which pads"
        )
    a = np.ascontiguousarray(a, np.float32).reshape(-1, 1, *a.shape[-2:])
    b = np.ascontiguousarray(b, np.float32).reshape(len(a), 2 if planes else 1, *b.shape[-2:])
    return a, b if planes else np.concatenate([b, np.zeros_like(b)], 1)


def describe(runtime: Runtime) -> dict[str, Any]:
    """What runs the network; `note` says why in this precision, `streams` how many at once."""
    said = {name: str(getattr(runtime, name)) for name in ("name", "precision", "device", "note")}
    return said | {"streams": runtime.streams}
