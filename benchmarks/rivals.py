"""What bench_latency.py can time beside the package's own runtimes: the network in other engines, and peers.

Each is a Runtime: `infer(a, b)` over float32 arrays on the host, so copies to and from a GPU are included.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mmif_trt import runtimes, weights
from mmif_trt.image import InputError
from mmif_trt.runtimes.torch import TorchRuntime, float_products

NAMES = ("torch-compile", "cuda-graph", "onnxruntime")


class TorchRival(TorchRuntime):
    """A torch module: our network compiled or as a CUDA graph, or a peer, which takes two lumas [B, 1, H, W]
    and returns one."""

    note = "a rival, for comparison"

    def __init__(self, name: str, module: Any, threads: int | None) -> None:
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cuda-graph" and device != "cuda":
            raise InputError("runtime 'cuda-graph': no CUDA device; expected one")
        module = module.eval().to(device) if hasattr(module, "eval") else module
        if name == "torch-compile":
            from compiled import compiled

            module = compiled(module)
        super().__init__(module, device)
        self.name = name
        self._graphs: dict[tuple[int, ...], Any] = {}

    def network(self, a: Any, b: Any) -> Any:
        if self.name == "cuda-graph":
            return self._replay([a, b])
        return super().network(a, b if self.name in NAMES else b[:, :1])

    def _replay(self, pair: list[Any]) -> Any:
        import torch

        with torch.inference_mode(), float_products():
            shape = tuple(pair[0].shape)
            if shape not in self._graphs:
                kept = [x.clone() for x in pair]
                self._module(*kept)  # its one-time allocations must not be captured
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    out = self._module(*kept)
                self._graphs[shape] = graph, kept, out
            graph, kept, out = self._graphs[shape]
            for x, y in zip(kept, pair, strict=True):
                x.copy_(y)
            graph.replay()
        return out


class OnnxRuntimeRival:
    name, precision, device, streams = "onnxruntime", "fp32", "CPU", 1
    note = "a rival, for comparison"

    def __init__(self, threads: int | None, network: str) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise InputError("runtime 'onnxruntime' is not installed; try pip install onnxruntime") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        path = str(weights.verified_path(network, "onnx"))
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def infer(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        pair = dict(zip("ab", runtimes.stacked(a, b), strict=True))
        fused: np.ndarray = self._session.run(None, pair)[0].reshape(a.shape)
        return fused


def load(name: str, precision: str, threads: int | None, network: str = weights.DEFAULT) -> runtimes.Runtime:
    """The rival `name` with our `network`, or a peer "path/file.py:callable". Raises InputError."""
    if precision not in ("auto", "fp32"):
        raise InputError(f"precision {precision!r}: runtime {name!r} runs FP32; expected auto, fp32")
    if name == "onnxruntime":
        return OnnxRuntimeRival(threads, network)
    if importlib.util.find_spec("torch") is None:
        raise InputError(f"runtime {name!r} needs torch; try pip install 'mmif-trt[train]'")
    if name in NAMES:
        from mmif_trt.models import load_model

        return TorchRival(name, load_model(network), threads)
    return TorchRival(name, peer(name)(), threads)


def peer(given: str) -> Any:
    """The callable of "path/file.py:callable"; called without arguments it returns a torch module. It is the
    user's own code and is executed."""
    path, _, attribute = given.rpartition(":")
    if not path or not Path(path).is_file():
        raise InputError(f"--peer {given}: no file {path or given!r}; expected PATH:CALLABLE")
    spec = importlib.util.spec_from_file_location(f"peer_{Path(path).stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(Path(path).resolve().parent))  # its neighbours
    try:
        spec.loader.exec_module(module)
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(Path(path).resolve().parent))
    if not callable(found := getattr(module, attribute, None)):
        raise InputError(f"--peer {given}: no callable {attribute!r} in it; expected PATH:CALLABLE")
    return found
