"""What can run the network. One small interface, chosen by name."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Protocol

import numpy as np

from mmif_trt.image import InputError

PRECISIONS = ("auto", "fp32", "bf16")
# In order of preference on a machine without a GPU: (module of ours, module it needs, how to get that one).
_TABLE = {
    "openvino": ("mmif_trt.runtimes.openvino", "openvino", "pip install openvino"),
    "torch": ("mmif_trt.runtimes.torch", "torch", "pip install 'mmif-trt[train]'"),
}
NAMES = tuple(_TABLE)


class Runtime(Protocol):
    """A loaded network. `infer` may be called from several threads at once."""

    name: str
    precision: str  # "fp32" or "bf16": what runs, not what was asked for
    device: str
    note: str  # why this precision
    streams: int  # pictures side by side, the threads shared out; 1: all threads on one

    def infer(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """a, b [H, W] float32 in [0, 1], sides multiples of 32 -> fused [H, W] float32 in [0, 1]."""
        ...


def available() -> dict[str, str]:
    """Each runtime's name, and "" where it can be used, else one line that says why not."""
    found = {name: importlib.util.find_spec(needs) is not None for name, (_, needs, _) in _TABLE.items()}
    return {name: "" if found[name] else f"not installed: {_TABLE[name][2]}" for name in _TABLE}


def load(name: str, precision: str, threads: int | None, streams: int = 1) -> Runtime:
    """The runtime `name`, or the first usable one for "auto".

    streams: pictures to run side by side, at most one a thread; where a runtime cannot, it runs one.
    Raises InputError for an unknown name or precision, for one that is not installed, and for less than one
    thread.
    """
    usable = available()
    if name != "auto" and name not in usable:
        raise InputError(f"runtime {name!r}; accepted are auto, {', '.join(usable)}")
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r}; accepted are {', '.join(PRECISIONS)}")
    if threads is not None and threads < 1:
        raise InputError(f"threads {threads}; accepted are 1 and more")
    if name == "auto":
        name = next((candidate for candidate, why_not in usable.items() if not why_not), NAMES[0])
    if usable[name]:
        raise InputError(f"runtime {name!r} is {usable[name]}")
    runtime: Runtime = importlib.import_module(_TABLE[name][0]).load(precision, threads, streams)
    return runtime
