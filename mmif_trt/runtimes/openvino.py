"""LAGN on the CPU by OpenVINO: the default. bfloat16 where the CPU has it and the result stays that of
float32."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np

from mmif_trt import weights
from mmif_trt.image import InputError

BF16_TOLERANCE = 1 / 255  # largest difference from FP32 on the golden pairs, else FP32 runs
# A graph of fixed size is a fifth faster, but takes 0.2 s to compile, and in bfloat16 rounds otherwise than
# the one that all other sizes share. So the size alone decides: not what came before, nor which thread was first.
STATIC_SIZES = {(256, 256), (512, 512), (1024, 1024)}


def load(precision: str, threads: int | None) -> OpenVinoRuntime:
    return OpenVinoRuntime(precision, threads or os.cpu_count() or 1)


class OpenVinoRuntime:
    name = "openvino"
    device = "CPU"

    def __init__(self, precision: str, threads: int) -> None:
        import openvino

        self._core = openvino.Core()
        self._path = str(weights.verified_path("lagn", "onnx"))
        self._threads = threads
        self._lock = threading.Lock()
        self._local = threading.local()
        self._graphs: dict[tuple[int, int] | None, Any] = {}
        has_bf16 = "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bf16" and not has_bf16:
            raise InputError(
                "precision 'bf16': this CPU has no bfloat16 instructions; accepted are auto, fp32"
            )
        self.precision = "bf16" if precision != "fp32" and has_bf16 else "fp32"
        self.note = (
            "asked for"
            if precision != "auto"
            else "this CPU has bfloat16"
            if has_bf16
            else "no bfloat16 here"
        )
        if precision == "auto" and has_bf16:
            self._fall_back_if_inexact()

    def _fall_back_if_inexact(self) -> None:
        a, b, expected = weights.golden("lagn")
        error = max(float(np.abs(self.infer(a[i], b[i]) - expected[i]).max()) for i in range(len(a)))
        self.note = f"bfloat16 is within {error * 255:.2f}/255 of FP32 on the golden pairs"
        if not error <= BF16_TOLERANCE:
            self.precision, self.note = (
                "fp32",
                f"bfloat16 is off by {error * 255:.2f}/255 on the golden pairs",
            )
            self._graphs.clear()
            self._local = threading.local()

    def _compile(self, size: tuple[int, int] | None) -> Any:
        model = self._core.read_model(self._path)
        if size is not None:
            model.reshape({"a": [1, 1, *size], "b": [1, 1, *size]})
        options = {
            "INFERENCE_PRECISION_HINT": {"bf16": "bf16", "fp32": "f32"}[self.precision],
            "INFERENCE_NUM_THREADS": self._threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        return self._core.compile_model(model, "CPU", options)

    def _request(self, size: tuple[int, int]) -> Any:
        """This thread's own inference request for this size."""
        requests = self._local.__dict__.setdefault("requests", {})
        key = size if size in STATIC_SIZES else None
        with self._lock:
            if key not in self._graphs:
                self._graphs[key] = self._compile(key)
        if key not in requests:
            requests[key] = self._graphs[key].create_infer_request()
        return requests[key]

    def infer(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        request = self._request((a.shape[0], a.shape[1]))
        request.infer([np.ascontiguousarray(x, np.float32)[None, None] for x in (a, b)], share_inputs=True)
        fused: np.ndarray = request.get_output_tensor(0).data[0, 0].copy()
        return fused
