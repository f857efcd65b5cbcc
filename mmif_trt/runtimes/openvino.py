"""LAGN on the CPU by OpenVINO: the default; in bfloat16 if the CPU has it and the result stays near
FP32's."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import weakref
from functools import cache
from typing import Any

import numpy as np

from mmif_trt import weights
from mmif_trt.image import InputError
from mmif_trt.machine import usable_cores
from mmif_trt.runtimes import golden, stacked

BF16_TOLERANCE = 1 / 255  # largest difference from FP32 on the golden pairs; beyond it FP32 runs
# A graph of fixed size is a fifth faster, but takes 0.2 s to compile and, in bfloat16, rounds differently
# from the one that all other sizes share. So the size alone decides, never earlier calls or which thread was
# first.
STATIC_SIZES = {(256, 256), (512, 512), (1024, 1024)}
# OpenVINO 2026.4 can hang if several threads make a process's first inference at once (3 of 110 starts):
# until one has finished, they run one by one.
_one_by_one = threading.Lock()
_one_has_run = threading.Event()
# Measured once per process and network: whether bfloat16 stays within the tolerance, and the words for it.
# Threads and streams change no number. A lock per process: a fork may copy one that another thread holds.
_verdicts: dict[tuple[int, str], tuple[bool, str]] = {}
_measuring: dict[int, threading.Lock] = {}
_made: weakref.WeakSet[Any] = weakref.WeakSet()  # cores, and runtimes with their graphs
_freed_in: set[int] = set()  # processes that freed a runtime


@cache
def core_of(process: int) -> Any:
    """OpenVINO's core, one per process and never freed.

    Each core gives its thread a stack for signal handlers and, when freed, puts back the one it found. Two of
    them, freed in the order in which they were made, leave a stack that is gone, and the next signal that
    Python handles (Ctrl-C, the end of a child) ends the process.
    """
    import openvino

    core = openvino.Core()
    _made.add(core)
    return core


def _keep_the_parents() -> None:
    """In a forked child: never free what the parent loaded, not even at exit.

    To free it waits for the parent's threads, which the child does not have: it hung, or ended by a signal.
    """
    for kept in list(_made):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_keep_the_parents)


def load(
    precision: str, threads: int | None, streams: int = 1, network: str = weights.DEFAULT
) -> OpenVinoRuntime:
    """Raises InputError in a child of a process that freed a runtime: OpenVINO keeps the threads of a freed
    one for the next, and the child would wait for the parent's for ever."""
    if _freed_in - {os.getpid()}:
        raise InputError(
            "runtime 'openvino' in a process forked from one that has freed a Fuser; expected "
            "multiprocessing's start method 'spawn'"
        )
    cores = usable_cores()
    return OpenVinoRuntime(precision, threads or cores, min(streams, threads or cores), network)


class OpenVinoRuntime:
    name = "openvino"
    device = "CPU"

    def __init__(self, precision: str, threads: int, streams: int, network: str) -> None:
        self._core = core_of(os.getpid())
        _made.add(self)
        weakref.finalize(self, _freed_in.add, os.getpid())
        self._path = str(weights.verified_path(network, "onnx"))
        self._threads, self.streams = threads, streams
        self._lock = threading.Lock()
        self._local = threading.local()
        self._graphs: dict[tuple[int, int] | None, Any] = {}
        has_bf16 = "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "fp16":
            raise InputError("precision 'fp16': runtime 'tensorrt' has it; expected auto, fp32, bf16")
        if precision == "bf16" and not has_bf16:
            raise InputError("precision 'bf16': this CPU has no bfloat16 instructions; expected auto, fp32")
        self.precision = "bf16" if precision != "fp32" and has_bf16 else "fp32"
        self.note = "no bfloat16 on this CPU" if precision == "auto" else "asked for"
        if precision == "auto" and has_bf16:
            self._fall_back_if_inexact(network)

    def _fall_back_if_inexact(self, network: str) -> None:
        process = os.getpid()
        with _measuring.setdefault(process, threading.Lock()):
            if (process, network) not in _verdicts:
                _verdicts[process, network] = self._measure(golden(network))
        is_exact, self.note = _verdicts[process, network]
        if not is_exact:
            self.precision = "fp32"
            self._graphs.clear()
            self._local = threading.local()

    def _measure(self, pairs: tuple[np.ndarray, np.ndarray, np.ndarray]) -> tuple[bool, str]:
        """Both graphs on the golden pairs: the one of fixed size, and the one that all other sizes share."""
        error = 0.0
        try:
            for a, b, expected in zip(*pairs, strict=True):
                for size in (a.shape, None):
                    error = max(error, float(np.abs(self._run(size, a, b) - expected).max()))
        except InputError:  # of _compile
            return False, "OpenVINO does not compile bfloat16 here"
        if error <= BF16_TOLERANCE:
            return True, f"bfloat16 is within {error * 255:.2f}/255 of FP32 on the golden pairs"
        return False, f"bfloat16 is off by {error * 255:.2f}/255 on the golden pairs"

    def _compile(self, size: tuple[int, int] | None) -> Any:
        model = self._core.read_model(self._path)
        if size is not None:
            model.reshape({"a": [1, 1, *size], "b": [1, 2, *size]})
        options = {
            "INFERENCE_PRECISION_HINT": {"bf16": "bf16", "fp32": "f32"}[self.precision],
            "INFERENCE_NUM_THREADS": self._threads,
            # One stream: all threads on one picture. More: that many pictures at once, sharing the threads.
            # No sum is split between threads, so the numbers are the same.
            "PERFORMANCE_HINT": "LATENCY" if self.streams == 1 else "THROUGHPUT",
            "NUM_STREAMS": str(self.streams),
            # Else a process with one thread computes on the first core, which all such processes share.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            return self._core.compile_model(model, "CPU", options)
        except RuntimeError as error:
            if self.precision != "bf16":
                raise
            # This happens when ONEDNN_MAX_CPU_ISA disables instructions that OpenVINO detected in the
            # processor.
            reason = str(error).strip().splitlines()[-1].strip()
            raise InputError(
                f"precision 'bf16': OpenVINO does not compile it here ({reason}); expected auto, fp32"
            ) from None

    def _request(self, key: tuple[int, int] | None) -> Any:
        """This thread's own inference request for a fixed size, or for any size (None)."""
        requests = self._local.__dict__.setdefault("requests", {})
        with self._lock:
            if key not in self._graphs:
                self._graphs[key] = self._compile(key)
        if key not in requests:
            requests[key] = self._graphs[key].create_infer_request()
        return requests[key]

    def infer(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        size = a.shape if a.ndim == 2 else None  # batches share the graph of any shape
        return self._run(size if size in STATIC_SIZES else None, a, b)

    def _run(self, key: tuple[int, int] | None, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        request = self._request(key)
        with contextlib.nullcontext() if _one_has_run.is_set() else _one_by_one:
            request.infer(list(stacked(a, b)), share_inputs=True)
        _one_has_run.set()
        fused: np.ndarray = request.get_output_tensor(0).data.reshape(a.shape).copy()
        return fused
