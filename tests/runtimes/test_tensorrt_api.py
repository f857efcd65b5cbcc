"""The real Python APIs that the adapter calls: TensorRT-RTX, and the full TensorRT 11 by its bindings' wheel.

No wheel has the full TensorRT's libraries. One has its bindings, which need only a few entry points of the
libraries. Stubs that make nothing stand in for these, so the classes and signatures are NVIDIA's own, and
every attempt to make something fails as on a machine without a card.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO

# What the adapter calls, and what must stand in the docstring of the real one.
CALLS = {
    "Builder.create_network": "flags",
    "Builder.create_builder_config": "IBuilderConfig",
    "Builder.create_optimization_profile": "IOptimizationProfile",
    "Builder.build_serialized_network": "IHostMemory",
    "OnnxParser.parse": "-> bool",
    "OnnxParser.get_error": "index",
    "OnnxParser.num_errors": "",
    "IOptimizationProfile.set_shape": "input: str, min",
    "IBuilderConfig.add_optimization_profile": "-> int",
    "IBuilderConfig.profiling_verbosity": "",
    "ProfilingVerbosity.DETAILED": "",
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": "",
    "Runtime.deserialize_cuda_engine": "-> ",
    "ICudaEngine.num_io_tensors": "",
    "ICudaEngine.get_tensor_name": "-> str",
    "ICudaEngine.create_execution_context": "IRuntimeConfig",
    "ICudaEngine.create_runtime_config": "IRuntimeConfig",
    "ICudaEngine.device_memory_size_v2": "",
    "IExecutionContext.set_input_shape": "shape: tuple) -> bool",
    "IExecutionContext.infer_shapes": "-> list[str]",
    "IExecutionContext.get_tensor_shape": "-> ",
    "IExecutionContext.set_tensor_address": "-> bool",
    "IExecutionContext.execute_async_v3": "stream_handle: typing.SupportsInt) -> bool",
}
OF_RTX = {
    "IBuilderConfig.num_compute_capabilities": "",
    "IBuilderConfig.set_compute_capability": "-> bool",
    "ComputeCapability.SM89": "",
    "IRuntimeConfig.create_runtime_cache": "IRuntimeCache",
    "IRuntimeConfig.set_runtime_cache": "-> bool",
    "IRuntimeCache.serialize": "IHostMemory",
    "IRuntimeCache.deserialize": "-> bool",
}
STUBS = """
#define NONE(name) void *name(void) { return 0; }
NONE(createInferBuilder_INTERNAL) NONE(createInferRefitter_INTERNAL) NONE(createInferRuntime_INTERNAL)
NONE(createNvOnnxParserRefitter_INTERNAL) NONE(createNvOnnxParser_INTERNAL)
NONE(getBuilderPluginRegistry) NONE(getPluginRegistry)
int getNvOnnxParserVersion(void) { return 0; }
int initLibNvInferPlugins(void) { return 0; }
"""
CHILD = """
import ctypes, importlib, json, sys
for library in sys.argv[2:]:
    ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
from mmif_trt import InputError
from mmif_trt.runtimes.trt import build as engine_build
from mmif_trt.runtimes.trt.half import half, static
import onnx
from mmif_trt import weights
engine_build.MODULES = ("tensorrt_bindings",)
trt, said = engine_build.module(), {"version": None, "calls": {}}
said["version"] = trt.__version__
for path in json.loads(sys.argv[1]):
    found = trt
    for name in path.split("."):
        found = getattr(found, name, None)
    said["calls"][path] = None if found is None else str(found.__doc__)
logger = engine_build.make_logger(trt)
logger.log(trt.ILogger.Severity.ERROR, "a\\nmessage")
said["error"] = engine_build.last_error(logger)
graph = static(half(onnx.load(weights.verified_path("lagn", "onnx"))), 1, 256, 256)
try:
    engine_build.compile_graph(trt, graph, ((1, 256, 256),) * 3, None)
except InputError as error:
    said["builder"] = str(error)
try:
    engine_build.made(lambda: trt.Runtime(logger), "Runtime", logger)
except InputError as error:
    said["runtime"] = str(error)
print(json.dumps(said))
"""


def test_tensorrt_rtx() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
    for path, words in (CALLS | OF_RTX).items():
        found: Any = trt
        for name in path.split("."):
            found = getattr(found, name)
        assert words in str(found.__doc__), path


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    spec = importlib.util.find_spec("tensorrt_bindings")
    if spec is None or spec.origin is None:
        pytest.skip("tensorrt-cu13-bindings is not installed")
    if not (compiler := shutil.which("gcc")):
        pytest.skip("no gcc")
    folder = tmp_path_factory.mktemp("stubs")
    (folder / "stubs.c").write_text(STUBS)
    module = (Path(spec.origin).parent / "tensorrt.so").read_bytes()
    major = module.split(b"libnvinfer.so.")[1].split(b"\0")[0].decode()
    libraries = []
    for name in ("libnvinfer", "libnvonnxparser", "libnvinfer_plugin"):
        library = folder / f"{name}.so.{major}"
        command = [compiler, "-shared", "-fPIC", "-o", str(library), str(folder / "stubs.c")]
        subprocess.run([*command, f"-Wl,-soname,{library.name}"], check=True)
        libraries.append(str(library))
    command = [sys.executable, "-c", CHILD, json.dumps(list(CALLS | OF_RTX)), *libraries]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_the_full_tensorrt(full: dict[str, Any]) -> None:
    assert int(full["version"].split(".")[0]) >= 11
    for path, words in CALLS.items():
        assert full["calls"][path] is not None and words in full["calls"][path], path
    assert not any(full["calls"][path] for path in OF_RTX if not path.startswith("ComputeCapability")), (
        "told apart by these: it builds for the card that is present, and compiles nothing at run time"
    )
    assert full["error"] == "a message"


def test_where_the_full_tensorrt_makes_nothing_it_gives_one_line(full: dict[str, Any]) -> None:
    """pybind11 raises TypeError for a null pointer; a user sees what failed."""
    assert full["builder"] == "TensorRT: Builder failed: no reason given"
    assert full["runtime"] == "TensorRT: Runtime failed: a message"
