"""LAGN by TensorRT on an NVIDIA card: taken by "auto" where a card, a module and an engine are there.

The engine lies in a cache of this user, and is built there on first use.
"""

from __future__ import annotations

import importlib.util
import weakref
from pathlib import Path

import numpy as np

from mmif_trt import weights
from mmif_trt.image import InputError
from mmif_trt.runtimes.trt import build as engine_build
from mmif_trt.runtimes.trt import engine_file
from mmif_trt.runtimes.trt.cuda import DeviceError, card
from mmif_trt.runtimes.trt.engine import Engine


def why_not() -> str:
    """Everything that is missing for TensorRT here, in one line; "" where nothing is."""
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


def cached_engine() -> Path:
    """This user's engine for the card and TensorRT here, built where it is missing: once, by one process.

    Raises InputError where it cannot be built or what lies there does not match.
    """
    trt, onnx_sha = (
        engine_build.module(),
        weights.manifest()["models"]["lagn"]["files"]["lagn.onnx"]["sha256"],
    )
    here = card().capability
    name = f"lagn-fp16-{trt.__name__}-{trt.__version__}-sm{here}-{onnx_sha[:12]}{engine_file.SUFFIX}"
    path = engine_file.cache_folder() / name
    if not engine_file.manifest_path(path).is_file():
        with engine_file.locked(path):
            if not engine_file.manifest_path(path).is_file():  # the process that we waited for made it
                engine_build.build(path, "built on first use by mmif_trt.Fuser", capabilities=(here,))
    return path


def load(precision: str, threads: int | None, streams: int = 1) -> TensorRtRuntime:
    """threads, streams: ignored, the card runs one picture at a time."""
    if precision not in ("auto", "fp16"):
        raise InputError(f"precision {precision!r}: runtime 'tensorrt' runs FP16; expected auto, fp16")
    return TensorRtRuntime(Engine(cached_engine()))


class TensorRtRuntime:
    name = "tensorrt"
    precision = "fp16"
    streams = 1

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        # With the last reference, and before the interpreter ends, after Ctrl-C too: the card is given back.
        weakref.finalize(self, engine.close)
        self.device = engine.device.card.name
        self.note = "; ".join(filter(None, [engine.manifest.psnr, engine.kernels.note]))

    def infer(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        pair = (np.ascontiguousarray(x, np.float32) for x in (a, b))
        fused: np.ndarray = self.engine(*pair)
        return fused
