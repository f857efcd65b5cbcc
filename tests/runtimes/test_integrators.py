"""docs/guides/integrators.md: the Triton configuration and the C++ name what the exported graph has."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from conftest import REPO

from mmif_trt.models.pixels import Form, released
from mmif_trt.runtimes.trt.build import ANY_PIXELS

onnx = pytest.importorskip("onnx")
PAGE = (REPO / "docs" / "guides" / "integrators.md").read_text()


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


def tensors(kind: str) -> dict[str, tuple[str, list[int]]]:
    """Name -> type and dimensions without the batch, as Triton's configuration states them."""
    part = re.findall(rf"^{kind} \[\n(.*?)^\]", block("protobuf"), re.DOTALL | re.MULTILINE)[0]
    rows = re.findall(r'name: "(\w+)" data_type: (\w+) dims: \[ (.*?) \]', part)
    return {name: (of, [int(size) for size in dims.split(", ")]) for name, of, dims in rows}


def test_the_configuration_of_triton_matches_the_graph() -> None:
    types = {"TYPE_UINT8": onnx.TensorProto.UINT8}
    graph = released(Form("uint8", "rgb")).graph
    for kind, values in (("input", graph.input), ("output", graph.output)):
        stated = tensors(kind)
        assert list(stated) == [value.name for value in values]
        for value in values:
            batch, *dims = value.type.tensor_type.shape.dim
            assert batch.dim_param == "batch"
            expected = [-1 if dim.dim_param else dim.dim_value for dim in dims]
            of, sizes = stated[value.name]
            assert (types[of], sizes) == (value.type.tensor_type.elem_type, expected), value.name
    largest = re.search(r"max_batch_size: (\d+)", block("protobuf"))
    assert largest and int(largest[1]) == ANY_PIXELS[2][0], "the largest batch of an engine for any size"


def test_the_program_names_the_tensors_and_parses(tmp_path: Path) -> None:
    code = block("cpp")
    names = re.search(r"names\[\] = \{(.*?)\}", code)
    assert names and re.findall(r'"(\w+)"', names[1]) == ["a", "b", "fused"]
    for name, channels in (("a", 1), ("b", 3)):
        assert f'setInputShape("{name}", nvinfer1::Dims4{{1, {channels}, height, width}})' in code
    (tmp_path / "NvInfer.h").write_text(STAND_IN)
    (tmp_path / "cuda_runtime_api.h").write_text("")
    (tmp_path / "fuse.cpp").write_text(code)
    try:
        done = subprocess.run(
            [
                "g++",
                "-std=c++17",
                "-Wall",
                "-Werror",
                "-fsyntax-only",
                f"-I{tmp_path}",
                tmp_path / "fuse.cpp",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("no g++")
    assert done.returncode == 0, done.stderr


# The signatures of TensorRT 10 and 11 and of the CUDA runtime that the program calls.
STAND_IN = """
#pragma once
#include <cstddef>
#include <cstdint>
typedef struct Stream* cudaStream_t;
enum cudaError_t { cudaSuccess };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
constexpr unsigned cudaStreamNonBlocking = 1;
cudaError_t cudaStreamCreateWithFlags(cudaStream_t*, unsigned);
cudaError_t cudaStreamSynchronize(cudaStream_t);
cudaError_t cudaStreamDestroy(cudaStream_t);
cudaError_t cudaMalloc(void**, size_t);
cudaError_t cudaFree(void*);
cudaError_t cudaMemcpyAsync(void*, const void*, size_t, cudaMemcpyKind, cudaStream_t);
namespace nvinfer1 {
struct Dims64 { int32_t nbDims; int64_t d[8]; };
struct Dims4 : Dims64 { Dims4(int64_t, int64_t, int64_t, int64_t); };
struct ILogger {
  enum class Severity : int32_t { kINTERNAL_ERROR, kERROR, kWARNING, kINFO, kVERBOSE };
  virtual void log(Severity, const char*) noexcept = 0;
  virtual ~ILogger() = default;
};
struct IExecutionContext {
  bool setInputShape(const char*, const Dims64&) noexcept;
  bool setTensorAddress(const char*, void*) noexcept;
  bool enqueueV3(cudaStream_t) noexcept;
};
struct ICudaEngine { IExecutionContext* createExecutionContext() noexcept; };
struct IRuntime { ICudaEngine* deserializeCudaEngine(const void*, size_t) noexcept; };
IRuntime* createInferRuntime(ILogger&) noexcept;
}
"""
