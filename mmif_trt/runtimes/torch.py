"""LAGN by torch, float32, on the CPU or a CUDA device: the reference that other runtimes are compared with.
So it turns off TF32 in convolutions, which torch allows by default."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from mmif_trt import weights
from mmif_trt.image import InputError
from mmif_trt.machine import usable_cores
from mmif_trt.runtimes import stacked

if TYPE_CHECKING:
    from torch import Tensor

_ran_in: int | None = None  # the process, or the one that it is a fork of, that first ran a network


def load(
    precision: str, threads: int | None, streams: int = 1, network: str = weights.DEFAULT
) -> TorchRuntime:
    """streams: ignored; pictures run one after another. Raises InputError where several threads are asked for
    in a child of a process that ran a network: OpenMP's threads exist only in the parent, and the child would
    wait for them for ever."""
    if precision in ("bf16", "fp16"):
        raise InputError(
            f"precision {precision!r}: runtime 'torch' is the FP32 reference; expected auto, fp32"
        )
    import torch

    from mmif_trt.models import load_model

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if threads is None and usable_cores() < torch.get_num_threads():  # a quota, which torch ignores
        threads = usable_cores()
    if _ran_in not in (None, os.getpid()) and (threads or torch.get_num_threads()) > 1:
        raise InputError(
            "runtime 'torch' in a process forked from one that has used it; expected threads=1, or "
            "multiprocessing's start method 'spawn'"
        )
    return TorchRuntime(load_model(network, device), device, threads)


@contextmanager
def float_products(tf32: bool = False) -> Iterator[None]:
    """Within it, float32 convolutions and products on CUDA are IEEE float32, or TF32 if requested. The
    previous setting is restored."""
    import torch

    cudnn, before = torch.backends.cudnn, torch.get_float32_matmul_precision()
    kept = {"enabled": cudnn.enabled, "benchmark": cudnn.benchmark, "deterministic": cudnn.deterministic}
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        with cudnn.flags(**kept, allow_tf32=tf32):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


class TorchRuntime:
    """A module from [B, 1, H, W] and [B, 2, H, W] tensors to [B, 1, H, W], and the three parts of `infer`,
    which a profiler times separately: upload, network, download."""

    name, precision, streams, note = "torch", "fp32", 1, "the reference"

    def __init__(self, module: Any, device: str, threads: int | None = None) -> None:
        self._module, self.device, self._threads = module, device, threads

    def upload(self, a: np.ndarray, b: np.ndarray) -> list[Tensor]:
        """What `infer` is given -> [B, 1, H, W] and [B, 2, H, W] on the device."""
        import torch

        return [torch.from_numpy(x).to(self.device) for x in stacked(a, b)]

    def network(self, a: Tensor, b: Tensor) -> Tensor:
        import torch

        global _ran_in
        _ran_in = _ran_in or os.getpid()
        before = torch.get_num_threads()
        if self._threads is not None:  # the setting is the process's: the caller's is restored afterwards
            torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode(), float_products():
                fused: Tensor = self._module(a, b)
            return fused
        finally:
            torch.set_num_threads(before)

    def download(self, fused: Tensor) -> np.ndarray:
        """[B, 1, H, W] on the host."""
        host: np.ndarray = fused.float().cpu().numpy()
        return host

    def infer(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return self.download(self.network(*self.upload(a, b))).reshape(a.shape)
