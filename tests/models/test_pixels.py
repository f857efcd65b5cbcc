"""models/pixels: the graph from pixels to pixels gives what `fuse` gives, in ONNX Runtime and OpenVINO."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mmif_trt import InputError, runtimes, sample, weights
from mmif_trt.image import Image
from mmif_trt.models import pixels as module
from mmif_trt.models.pixels import TYPES, Form, pixels, released
from mmif_trt.runtimes import openvino as openvino_runtime
from mmif_trt.samples import PAIRS
from mmif_trt.stages import colour, normalise, tiling

onnx = pytest.importorskip("onnx")
pytest.importorskip("torch")
TOLERANCE = 1e-4  # of white less black: what runtimes in FP32 may differ by, see test_runtimes

Run = Callable[[Any, dict[str, np.ndarray]], np.ndarray]
Range = tuple[float, float]


def by_onnxruntime(model: Any, feed: dict[str, np.ndarray]) -> np.ndarray:
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    fused: np.ndarray = session.run(None, feed)[0]
    return fused


def by_openvino(model: Any, feed: dict[str, np.ndarray]) -> np.ndarray:
    core = openvino_runtime.core_of(os.getpid())
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", options)
    fused: np.ndarray = compiled(feed)[0]
    return fused


RUNS = {"onnxruntime": by_onnxruntime, "openvino": by_openvino}


def expected(a: Image, b: Image) -> np.ndarray:
    """What `fuse_images` computes before it rounds, by torch in FP32: [H, W] or [H, W, 3] float32, in a's
    range."""
    assert a.value_range is not None
    low, high = a.value_range
    network = runtimes.load("torch", "fp32", 1).infer
    x, y = normalise.to_unit(a), normalise.to_unit(b)
    fused = tiling.run(network, x, colour.planes(y))
    return (colour.recombine(fused, y) if b.is_colour else fused) * np.float32(high - low) + np.float32(low)


def feed(form: Form, a: Image, b: Image) -> dict[str, np.ndarray]:
    y = b.data[None] if form.layout == "rgb-last" else np.moveaxis(np.atleast_3d(b.data), -1, 0)[None]
    given = {"a": a.data[None, None], "b": np.ascontiguousarray(y)}
    if form.ranges:
        given |= {"range_a": np.float32(a.value_range), "range_b": np.float32(b.value_range)}
    return given


def plain(form: Form, fused: np.ndarray) -> np.ndarray:
    """[1, ...] of the form -> [H, W] or [H, W, 3]."""
    first = fused[0] if form.layout == "rgb-last" else np.moveaxis(fused[0], 0, -1)
    return first[..., 0] if form.layout == "grey" else first


def check(form: Form, a: Image, b: Image, run: Run, model: Any = None) -> None:
    """Rounded to the nearest level; where the exact value lies halfway between two, either will do."""
    result = plain(form, run(model or released(form), feed(form, a, b)))
    exact = expected(a, b)
    assert result.shape == exact.shape and result.dtype == np.dtype(form.dtype)
    low, high = a.value_range or (0, 0)
    limit = TOLERANCE * (high - low) + (0 if form.dtype == "float32" else 0.5)
    assert np.abs(result.astype(np.float64) - exact).max() <= limit
    dark = [x.data <= (x.value_range or (0, 0))[0] for x in (a, b)]
    black = dark[0] & (dark[1].all(axis=-1) if b.is_colour else dark[1])
    assert (result[black] == low).all(), "black is exactly black"


def pair(form: Form, height: int, width: int) -> tuple[Image, Image]:
    """Noise with a black border of a third, in ranges that cut some of it off."""
    rng = np.random.default_rng(height * width)
    shapes = (height, width), (height, width) if form.layout == "grey" else (height, width, 3)
    if form.dtype == "float32":
        x, y = (rng.random(shape, np.float32) * np.float32(1.2) for shape in shapes)
        ranges: tuple[Range, Range] = ((0.0, 1.0), (0.0, 0.9))
    else:
        top = 255 if form.dtype == "uint8" else 4095
        x, y = (rng.integers(0, top, shape, endpoint=True).astype(form.dtype) for shape in shapes)
        ranges = ((0, 255), (0, 255)) if form.dtype == "uint8" else ((0, 4000), (0, 3000))
    for data in (x, y):
        data[: height // 3] = 0
    return Image(x, ranges[0]), Image(y, ranges[1])


@pytest.mark.parametrize("runtime", RUNS)
@pytest.mark.parametrize("name", PAIRS)
def test_samples(name: str, runtime: str) -> None:
    a, b = sample(name)
    form = Form(a.data.dtype.name, "rgb" if b.is_colour else "grey")
    check(form, a, b, RUNS[runtime])


@pytest.mark.parametrize("runtime", RUNS)
@pytest.mark.parametrize(
    "form", [Form(x, y) for x, y in zip(TYPES, ("rgb", "grey", "rgb-last"), strict=True)], ids=str
)
def test_sizes(form: Form, runtime: str) -> None:
    model = released(form)
    for height, width in ((16, 16), (17, 45), (64, 96), (33, 16)):
        check(form, *pair(form, height, width), RUNS[runtime], model)


def test_what_runtimes_do_below_the_smallest_size() -> None:
    """As docs/guides/integrators.md says. Not OpenVINO under 9 px: with one thread it may crash."""
    model = released(Form("uint8", "grey"))
    for side in (1, 8, 9, 15):
        x = np.zeros((1, 1, side, side), np.uint8)
        for run in RUNS.values() if side >= 9 else [by_onnxruntime]:
            with contextlib.nullcontext() if side >= 9 else pytest.raises(Exception, match="Pad reflect"):
                assert run(model, {"a": x, "b": x}).shape == x.shape


def test_a_range_that_does_not_begin_at_zero() -> None:
    form = Form("float32", "grey")
    a, b = pair(form, 33, 40)
    a = a.with_data(a.data * 400 - 200, value_range=(-200.0, 100.0))
    result = plain(form, by_onnxruntime(released(form), feed(form, a, b)))
    assert np.abs(result - expected(a, b)).max() <= TOLERANCE * 300
    assert result.min() == -200, "black, in a's range"


def test_a_batch_is_its_pairs() -> None:
    form = Form("uint8", "rgb")
    one, two = (feed(form, *pair(form, 40, 33)), feed(form, *sample_part()))
    model = released(form)
    both = by_onnxruntime(model, {x: np.concatenate([one[x], two[x]]) for x in ("a", "b")})
    for alone, result in zip((one, two), both, strict=True):
        difference = by_onnxruntime(model, alone)[0].astype(int) - result
        assert np.abs(difference).max() <= 1 and (difference != 0).mean() < 1e-3


def sample_part() -> tuple[Image, Image]:
    a, b = sample("mri-spect")
    return a.with_data(a.data[100:140, 100:133]), b.with_data(b.data[100:140, 100:133])


def test_mixed_precision_is_within_two_levels() -> None:
    from mmif_trt.runtimes.trt.half import half

    form = Form("uint8", "rgb")
    a, b = sample("mri-pet")
    model = pixels(half(onnx.load(weights.verified_path("lagn", "onnx"))), form)
    result = plain(form, by_onnxruntime(model, feed(form, a, b))).astype(int)
    assert np.abs(result - np.rint(expected(a, b))).max() <= 2
    assert {x.type.tensor_type.elem_type for x in model.graph.output} == {onnx.TensorProto.UINT8}


def test_the_comparison_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    form = Form("uint8", "rgb")
    a, b = pair(form, 16, 17)
    changes = [
        ("_COLOUR_PLANES", "Mul (red_weight, red_over)", "Mul (blue_weight, red_over)"),
        ("_COLOUR_PLANES", "(grey_b, above_zero)", "(grey_b, grey_b)"),
        ("_RECOMBINE", "Min (share_both, one)", "Identity (share_both)"),
        ("_PADDING", '<mode = "reflect"> (unit_a, pads_first)', '<mode = "edge"> (unit_a, pads_first)'),
    ]
    for name, right, wrong in changes:
        with monkeypatch.context() as changed:
            text = getattr(module, name)
            assert right in text
            changed.setattr(module, name, text.replace(right, wrong))
            with pytest.raises(AssertionError):
                check(form, a, b, by_onnxruntime)


def test_forms_and_what_the_file_says_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("uint8-rgb", "uint16-grey", "float32-rgb-last"):
        assert str(Form.named(name)) == name
    for name in ("uint8", "int8-rgb", "rgb-uint8", ""):
        with pytest.raises(InputError, match="expected TYPE-LAYOUT of uint8, uint16, float32 and grey, rgb,"):
            Form.named(name)
    for network in weights.NAMES:
        model = released(Form("uint16", "rgb"), network)
        assert [x.name for x in model.graph.input] == ["a", "b", "range_a", "range_b"]
        said = {x.key: x.value for x in model.metadata_props}
        assert said["sha256"] == weights.onnx_sha256(network) and "research" in said["use"]
        assert (said["form"], said["derived_from"]) == ("uint16-rgb", f"{network}.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match="onnx is not installed; expected pip install"):
        released(Form())
