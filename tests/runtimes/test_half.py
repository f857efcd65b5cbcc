"""trt/half: the mixed-precision graph is within 2/255 and 55 dB of FP32 torch, and typed as it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mmif_trt import InputError, load_model, runtimes, weights
from mmif_trt.runtimes.trt.build import golden_psnr
from mmif_trt.runtimes.trt.half import half, static
from mmif_trt.stages import colour

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
onnxruntime = pytest.importorskip("onnxruntime")
TWO_LEVELS, LOWEST_PSNR_DB = 2 / 255, 55.0
VAL_PAIRS = {"ct": 10, "pet": 20, "spect": 20}

Compare = Callable[[np.ndarray, np.ndarray], tuple[float, float]]


@pytest.fixture(scope="module")
def model() -> Any:
    return onnx.load(weights.verified_path("lagn", "onnx"))


@pytest.fixture(scope="module")
def compare(model: Any) -> Compare:
    """(PSNR in dB, largest difference) between the half graph in ONNX Runtime and FP32 torch. Where its CPU
    kernels know no half, ONNX Runtime computes in float and rounds every stored result to half."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(
        half(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    network = load_model("lagn")

    def run(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
        pair = dict(zip("ab", runtimes.stacked(a, b), strict=True))
        (fused,) = session.run(None, pair)
        with torch.inference_mode():
            expected = network(*map(torch.from_numpy, pair.values())).numpy()
        assert fused.dtype == np.float32 and np.isfinite(fused).all()
        error = np.abs(fused.astype(np.float64) - expected)
        return float(-10 * np.log10(max(1e-20, float((error**2).mean())))), float(error.max())

    return run


def val_pairs(harvard: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for modality, count in VAL_PAIRS.items():
        files = sorted((harvard / f"mri-{modality}" / "val" / "mri").glob("*.png"))
        for file in files[:: len(files) // count][:count]:
            other = file.parent.parent / modality / file.name
            a = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255
            b = cv2.imread(str(other), cv2.IMREAD_COLOR).astype(np.float32)[..., ::-1] / 255
            yield a, colour.planes(b)


@pytest.mark.parametrize("name", weights.NAMES)
def test_golden_pairs_of_each_network(name: str) -> None:
    psnr, _ = golden_psnr(half(onnx.load(weights.verified_path(name, "onnx"))), name)
    assert psnr is not None and psnr >= LOWEST_PSNR_DB


def test_fifty_val_pairs(harvard: Path, compare: Compare) -> None:
    found = [compare(a, b) for a, b in val_pairs(harvard)]
    assert len(found) == 50
    assert min(psnr for psnr, _ in found) >= LOWEST_PSNR_DB
    assert max(error for _, error in found) <= TWO_LEVELS


def hard_inputs(side: int = 128) -> dict[str, np.ndarray]:
    y, x = np.mgrid[:side, :side]
    hot = np.zeros((side, side))
    hot[side // 3, side // 2 + 1] = 1
    ramp = np.arange(side * side).reshape(side, side) / 65535
    inputs = {"black": hot * 0, "white": hot * 0 + 1, "checkerboard": (x + y) % 2, "hot pixel": hot}
    inputs |= {"ramp": ramp, "ramp down": ramp.T, "top ramp": 1 - ramp}
    return {name: image.astype(np.float32) for name, image in inputs.items()}


def test_adversarial_inputs(compare: Compare) -> None:
    inputs = hard_inputs()
    for (name_a, a), (name_b, b) in product(inputs.items(), repeat=2):
        vivid = np.stack([0.3 * b, 0.7 * b])  # as of a red
        for planes in (b, vivid):
            psnr, error = compare(a, planes)
            assert psnr >= LOWEST_PSNR_DB and error <= TWO_LEVELS, (name_a, name_b, planes.ndim, psnr, error)


def test_a_source_of_zeros_leaves_the_other_exactly(compare: Compare, model: Any) -> None:
    ramp = hard_inputs()["top ramp"]  # 16-bit levels near white: half has 2,048 steps there, the ramp more
    session = onnxruntime.InferenceSession(half(model).SerializeToString())
    for above in (0 * ramp, 1 - ramp):
        (fused,) = session.run(None, {"a": 0 * ramp[None, None], "b": np.stack([ramp, above])[None]})
        np.testing.assert_array_equal(fused[0, 0], ramp)


def types(model: Any) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    found = {x.name: x.type.tensor_type.elem_type for x in (*graph.value_info, *graph.input, *graph.output)}
    return found | {x.name: x.data_type for x in graph.initializer}


def test_each_operation_has_the_type_it_says(model: Any) -> None:
    mixed = half(model)
    of = types(mixed)
    expected = {"Conv": 20, "MatMul": 24, "Softmax": 4, "LayerNormalization": 8, "Tanh": 1, "Clip": 1}
    for op, count in expected.items():
        nodes = [node for node in mixed.graph.node if node.op_type == op]
        kind = onnx.TensorProto.FLOAT16 if op in ("Conv", "MatMul") else onnx.TensorProto.FLOAT
        assert len(nodes) == count
        assert all(of[name] == kind for node in nodes for name in (*node.input, *node.output) if name), op
    assert {of[name] for name in ("a", "b", "fused")} == {onnx.TensorProto.FLOAT}
    assert types(model)["stem.weight"] == onnx.TensorProto.FLOAT, "the graph passed in must stay as it was"


def test_static_fixes_the_shape(model: Any) -> None:
    fixed = static(half(model), 2, 64, 96)
    session = onnxruntime.InferenceSession(fixed.SerializeToString())
    assert [x.shape for x in session.get_inputs()] == [[2, 1, 64, 96], [2, 2, 64, 96]]
    zeros = np.zeros((2, 2, 64, 96), np.float32)
    assert session.run(None, {"a": zeros[:, :1], "b": zeros})[0].shape == (2, 1, 64, 96)


def test_other_graphs_are_refused(model: Any) -> None:
    other = onnx.ModelProto()
    other.CopyFrom(model)
    other.graph.input[0].name = "x"
    with pytest.raises(InputError, match=r"inputs \('x', 'b'\); expected \('a', 'b'\)"):
        half(other)
    other.CopyFrom(model)
    tanh = next(node for node in other.graph.node if node.op_type == "Tanh")
    tanh.op_type = "Sigmoid"
    with pytest.raises(InputError, match="0 ends of Cast and Tanh; expected LAGN's one"):
        half(other)
    other.CopyFrom(model)
    weight = other.graph.initializer[0]
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) + 1e5, weight.name))
    with pytest.raises(InputError, match="beyond 65504; expected values that half can hold"):
        half(other)
