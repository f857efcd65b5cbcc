"""LAGN by torch, float32, on the CPU or a CUDA device: the reference that other runtimes are compared
with."""

from __future__ import annotations

import numpy as np

from mmif_trt.image import InputError


def load(precision: str, threads: int | None, streams: int = 1) -> TorchRuntime:
    """streams: ignored, the layers of one picture run at a time."""
    return TorchRuntime(precision, threads)


class TorchRuntime:
    name = "torch"
    precision = "fp32"
    streams = 1

    def __init__(self, precision: str, threads: int | None) -> None:
        import torch

        from mmif_trt.models import load_model

        if precision in ("bf16", "fp16"):
            raise InputError(
                f"precision {precision!r}: runtime 'torch' is the FP32 reference; accepted are auto, fp32"
            )
        if threads is not None:
            torch.set_num_threads(threads)
        self.note = "the reference"
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = load_model("lagn", self.device)

    def infer(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            pair = [torch.from_numpy(np.ascontiguousarray(x, np.float32)).to(self.device) for x in (a, b)]
            fused: np.ndarray = self._model(*(x[None, None] for x in pair))[0, 0].cpu().numpy()
        return fused
