"""The fake card in place of the driver, PyCUDA and TensorRT, and engine files with manifests for it."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import sys
from datetime import datetime
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_card import FakeCard

from mmif_trt import weights
from mmif_trt.models.pixels import LUMA, Form
from mmif_trt.runtimes.trt import build as engine_build
from mmif_trt.runtimes.trt import cuda, engine_file
from mmif_trt.runtimes.trt import runtime as tensorrt
from mmif_trt.runtimes.trt.manifest import Manifest


def install(monkeypatch: pytest.MonkeyPatch, cache: Path) -> FakeCard:
    """cache: for engines and kernels, in place of this user's."""
    monkeypatch.setenv("MMIF_ENGINES", str(cache))
    made = FakeCard()
    real, driver = ctypes.CDLL, cuda.LIBRARY
    monkeypatch.setattr(
        cuda.ctypes, "CDLL", lambda name, *a, **k: made if name == driver else real(name, *a, **k)
    )
    package = type(sys)("pycuda")
    package.__spec__ = ModuleSpec("pycuda", None)
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", made.driver())
    trt = made.tensorrt()
    monkeypatch.setattr(engine_build, "module", lambda: trt)
    return made


def usable_modules(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Makes the modules found and replaces the builder; returns the list of the engines that it builds."""
    here, find = (*engine_build.MODULES, "pycuda"), importlib.util.find_spec
    monkeypatch.setattr(
        tensorrt.importlib.util, "find_spec", lambda name, *a: object() if name in here else find(name, *a)
    )
    built: list[Path] = []

    def build(path: Path, command: str, capabilities: tuple[str, ...], model: str, form: Form) -> None:
        low, high = (1, 32 if form == LUMA else 16, 32 if form == LUMA else 16), (8, 1024, 1024)
        shapes = {"smallest": low, "largest": high, "form": str(form)}
        built.append(engine(path, model, compute_capabilities=capabilities, **shapes))

    monkeypatch.setattr(engine_build, "build", build)
    return built


def engine(path: Path, model: str = weights.DEFAULT, **changes: Any) -> Path:
    data = f"not a real engine {changes.get('form', LUMA)}".encode()
    files = weights.manifest()["models"][model]["files"]
    facts: dict[str, Any] = {
        "model": model,
        "precision": "fp16",
        "engine_sha256": hashlib.sha256(data).hexdigest(),
        "onnx_sha256": files[f"{model}.onnx"]["sha256"],
        "weights_sha256": files[f"{model}.safetensors"]["sha256"],
        "flavour": "tensorrt_rtx",
        "version": "1.0",
        "compute_capabilities": ("8.6", "8.9"),
        "smallest": (1, 32, 32),
        "typical": (1, 64, 64),
        "largest": (4, 128, 128),
        "attention_blocks": 4,
        "fused_attention": 4,
        "float_convolutions": (),
        "psnr_db": 60.0,
        "psnr_of": "a test",
        "build_s": 1.0,
        "command": "a test",
        "built": datetime.now().isoformat(),
        "bytes": len(data),
    }
    engine_file.save(path, data, Manifest(**(facts | changes)))
    return path


class Light:
    """In place of OpenVINO, which takes a second to load, where a test is only about the choice of it."""

    name, precision, device, streams = "openvino", "fp32", "CPU", 1

    def __init__(self) -> None:
        self.note = "light"

    def infer(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        fused: np.ndarray = np.maximum(a, b[..., 0, :, :])
        return fused


class Full:
    """The builder of the full TensorRT, which builds for the card that is present and takes no compute
    capabilities. `asked` keeps what was set."""

    def __init__(self, made: FakeCard, version: str = "11.4") -> None:
        self.asked: dict[str, Any] = {}
        self.module = made.tensorrt("tensorrt", version)
        parts = {"Builder": self._builder, "OnnxParser": self._parser}
        parts["NetworkDefinitionCreationFlag"] = SimpleNamespace(STRONGLY_TYPED=1)
        parts["ProfilingVerbosity"] = SimpleNamespace(DETAILED="detailed")
        for name, part in parts.items():
            setattr(self.module, name, part)

    def _builder(self, logger: Any) -> Any:
        def create_network(flags: int) -> str:
            self.asked["flags"] = flags
            return "network"

        def add_optimization_profile(profile: Any) -> int:
            self.asked["profile"] = profile.shapes
            return 0

        config = SimpleNamespace(add_optimization_profile=add_optimization_profile)
        shapes: dict[str, Any] = {}
        profile = SimpleNamespace(shapes=shapes, set_shape=lambda name, *x: shapes.update({name: x}))
        return SimpleNamespace(
            create_network=create_network,
            create_builder_config=lambda: config,
            create_optimization_profile=lambda: profile,
            build_serialized_network=lambda network, config: b"a plan",
        )

    def _parser(self, network: Any, logger: Any) -> Any:
        return SimpleNamespace(parse=lambda data: bool(data), num_errors=0)
