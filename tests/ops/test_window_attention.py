"""Window attention against the reference in double: numbers, gradients, nasty shapes, torch's machinery."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mmif_trt.models.lagn import WindowAttention
from mmif_trt.ops import KERNELS, kernels_available, plain_operations, reference
from mmif_trt.ops.window_attention import window_attention

pytestmark = pytest.mark.skipif(not kernels_available("cpu"), reason=f"kernels: {KERNELS}")

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]
TYPES = [torch.float32, torch.float16, torch.bfloat16]
# B, H, W, heads, D, window, shift
SHAPES = [
    (2, 16, 24, 2, 32, 8, 0),
    (1, 32, 32, 2, 32, 8, 4),
    (2, 13, 19, 3, 16, 8, 3),
    (1, 9, 8, 1, 32, 8, 7),
    (2, 5, 3, 2, 16, 4, 1),
    (1, 8, 8, 2, 16, 8, 4),
    (3, 7, 7, 1, 16, 5, 2),
    (1, 4, 6, 2, 16, 1, 0),
    (2, 1, 1, 2, 32, 8, 4),
]
FLOOR = 1e-7  # a relative error that always passes: half an ulp of float32


def inputs(shape: tuple[int, ...], device: str = "cpu", seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """qkv, bias_table and a gradient, in double."""
    B, H, W, heads, D, window, _ = shape
    rng = torch.Generator().manual_seed(seed)
    sizes = ((B, H, W, 3, heads, D), ((2 * window - 1) ** 2, heads), (B, H, W, heads, D))
    qkv, bias, d_out = (torch.randn(size, generator=rng, dtype=torch.float64) for size in sizes)
    return qkv.to(device), bias.to(device), d_out.to(device)


def run(
    op: Callable[..., Tensor], qkv: Tensor, bias: Tensor, d_out: Tensor, window: int, shift: int
) -> tuple[Tensor, Tensor, Tensor]:
    """out, d_qkv, d_bias"""
    qkv, bias = qkv.detach().requires_grad_(), bias.detach().requires_grad_()
    out = op(qkv, bias, window, shift)
    out.backward(d_out)
    assert qkv.grad is not None and bias.grad is not None
    return out.detach(), qkv.grad, bias.grad


def relative(x: Tensor, truth: Tensor) -> float:
    return float((x.double() - truth).norm() / truth.norm().clamp(min=1e-30))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_is_at_most_twice_plain_torchs(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    qkv, bias, d_out = inputs(shape, device)
    qkv, d_out, bias = qkv.to(dtype), d_out.to(dtype), bias.float()
    truth = run(reference.window_attention, qkv.double(), bias.double(), d_out.double(), *shape[5:])
    plain = run(reference.window_attention, qkv, bias.to(dtype), d_out, *shape[5:])
    ours = run(window_attention, qkv, bias, d_out, *shape[5:])
    for name, x, y, t in zip(("out", "d_qkv", "d_bias"), ours, plain, truth, strict=True):
        if t.norm() < 1e-12:  # one token per window: the softmax is 1, and no score has a gradient
            # Except for what remains of d_out . v - d_out . out: on CUDA, tensor cores compute the first sum
            # of half types, plain multiply-adds the second.
            cores = device == "cuda" and dtype != torch.float32
            assert x.abs().max() < (2e-5 * float(d_out.abs().max()) if cores else 1e-6), name
            continue
        assert relative(x, t) <= 2 * relative(y, t) + FLOOR, name
        assert torch.cosine_similarity(x.double().flatten(), t.flatten(), 0) > 1 - 1e-4, name
        bias_of_error = float((x.double() - t).mean() / t.abs().mean())
        assert abs(bias_of_error) <= (1e-6 if dtype == torch.float32 else 2e-3), name


@pytest.mark.parametrize("shape", [(1, 5, 6, 2, 16, 4, 2), (1, 9, 8, 1, 32, 8, 3)], ids=str)
def test_gradcheck(shape: tuple[int, ...]) -> None:
    qkv, bias, _ = inputs(shape)
    qkv, bias = qkv.requires_grad_(), bias.requires_grad_()

    def op(x: Tensor, b: Tensor) -> Tensor:
        return window_attention(x, b, *shape[5:])

    assert torch.autograd.gradcheck(op, (qkv, bias), fast_mode=True)


def test_is_the_layer_of_swin() -> None:
    """The plane's cut equals the cyclic shift with its mask, which LAGN runs without the kernel."""
    for shift in (0, 4):
        layer = WindowAttention(64, 32, 8, shift).double()
        torch.nn.init.normal_(layer.bias_table)
        x = torch.randn(2, 16, 24, 64, dtype=torch.float64)
        assert layer.fused(x)
        torch.testing.assert_close(layer(x), layer.plain(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_slices_of_larger_buffers(dtype: torch.dtype, device: str) -> None:
    """The neighbours of a slice are not read, and its strides do not matter."""
    shape = (2, 10, 11, 2, 16, 8, 3)
    qkv, bias, d_out = (x.to(device) for x in inputs(shape))
    qkv, d_out, bias = qkv.to(dtype), d_out.to(dtype), bias.float()
    expected = run(window_attention, qkv, bias, d_out, 8, 3)
    wide = torch.full((2, 12, 17, 3, 3, 24), float("nan"), dtype=dtype, device=device)
    inside = wide[:, 1:11, 5:16, :, 1:, 3:19]
    inside.copy_(qkv)
    for view in (inside, qkv.transpose(1, 2).contiguous().transpose(1, 2), strided_last(qkv)):
        assert not view.is_contiguous()
        for x, y in zip(run(window_attention, view, bias, strided_last(d_out), 8, 3), expected, strict=True):
            assert torch.equal(x, y)


def strided_last(x: Tensor) -> Tensor:
    return torch.stack([x, torch.full_like(x, float("nan"))], -1)[..., 0]


@pytest.mark.parametrize("device", DEVICES)
def test_expanded_gradient(device: str) -> None:
    """What sum() sends back has stride 0 everywhere."""
    qkv, bias, _ = (x.float() for x in inputs(SHAPES[0], device))
    qkv.requires_grad_()
    window_attention(qkv, bias, 8, 0).sum().backward()
    truth = qkv.detach().double().requires_grad_()
    reference.window_attention(truth, bias.double(), 8, 0).sum().backward()
    assert qkv.grad is not None and truth.grad is not None
    torch.testing.assert_close(qkv.grad.double(), truth.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_empty(device: str) -> None:
    for shape in ((0, 8, 8, 2, 16, 8, 4), (2, 0, 8, 2, 16, 8, 4)):
        qkv, bias, d_out = (x.float() for x in inputs(shape, device))
        out, d_qkv, d_bias = run(window_attention, qkv, bias, d_out, 8, 4)
        assert out.shape == d_out.shape and d_qkv.shape == qkv.shape
        assert (d_bias == 0).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_constant_and_extreme_inputs(dtype: torch.dtype, device: str) -> None:
    shape = (1, 12, 9, 2, 16, 8, 4)
    bias = torch.zeros(225, 2, device=device)
    flat = torch.full(shape[:3] + (3, 2, 16), 0.5, dtype=dtype, device=device)
    assert torch.equal(window_attention(flat, bias, 8, 4), flat[:, :, :, 2])
    # Scores of 16 * 60000 * 1000 / 4 lie far beyond half: the softmax must still be a clean choice.
    large = flat.clone()
    large[:, :, :, 0], large[:, :, :, 1] = 60000.0, 0.0
    large[:, ::8, ::8, 1] = 1000.0
    large[:, ::8, ::8, 2] = 2.0
    out = window_attention(large, bias, 8, 0)
    assert torch.isfinite(out).all() and (out == 2).all()
    _, d_qkv, d_bias = run(window_attention, large, bias, torch.ones_like(out), 8, 0)
    assert torch.isfinite(d_qkv).all() and torch.isfinite(d_bias).all()


@pytest.mark.parametrize("device", DEVICES)
def test_nan_stays_in_its_window(device: str) -> None:
    qkv, bias, _ = (x.float() for x in inputs((1, 16, 16, 1, 16, 8, 0), device))
    qkv[0, 3, 3, 1] = float("nan")
    out = window_attention(qkv, bias, 8, 0)
    assert torch.isnan(out[:, :8, :8]).all()
    assert torch.isfinite(out[:, 8:]).all() and torch.isfinite(out[:, :, 8:]).all()


def compare_all() -> None:
    test_nan_stays_in_its_window("cpu")
    for dtype in TYPES:
        test_constant_and_extreme_inputs(dtype, "cpu")
        for shape in SHAPES:
            test_error_is_at_most_twice_plain_torchs(shape, dtype, "cpu")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_same_bits_in_every_run(dtype: torch.dtype, device: str) -> None:
    qkv, bias, d_out = inputs((4, 24, 40, 2, 32, 8, 4), device)
    arguments = (qkv.to(dtype), bias.float(), d_out.to(dtype), 8, 4)
    first = run(window_attention, *arguments)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for x, y in zip(run(window_attention, *arguments), first, strict=True):
                assert torch.equal(x, y)
    finally:
        torch.set_num_threads(threads)


GOOD = dict(qkv=(1, 8, 8, 3, 2, 16), bias=(225, 2), window=8, shift=0)
BAD = [
    (dict(qkv=(1, 8, 8, 2, 2, 16)), r"qkv is \[1, 8, 8, 2, 2, 16\]; expected: \[B, H, W, 3, heads, D\]"),
    (dict(qkv=(1, 8, 8, 3, 2, 24)), "with D 16 or 32"),
    (dict(window=9, bias=(289, 2)), "window is 9; expected: 1 to 8"),
    (dict(window=0), "window is 0; expected: 1 to 8"),
    (dict(shift=8), "shift is 8; expected: 0 to window - 1"),
    (dict(shift=-1), "shift is -1; expected: 0 to window - 1"),
    (dict(bias=(224, 2)), r"bias_table is \[224, 2\]; expected: \[\(2 window - 1\)\^2, heads\]"),
    (dict(bias=(225, 1)), "bias_table is"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_arguments(change: dict[str, object], message: str) -> None:
    given = GOOD | change
    with pytest.raises(RuntimeError, match="mmif_trt::window_attention: .*" + message):
        window_attention(
            torch.zeros(given["qkv"]), torch.zeros(given["bias"]), given["window"], given["shift"]
        )


def test_bad_types() -> None:
    with pytest.raises(RuntimeError, match="qkv is Int; expected: float32, float64, float16, bfloat16"):
        window_attention(torch.zeros(1, 8, 8, 3, 2, 16, dtype=torch.int32), torch.zeros(225, 2), 8, 0)
    with pytest.raises(RuntimeError, match="bias_table is Float; expected: float32, or float64 beside"):
        window_attention(torch.zeros(1, 8, 8, 3, 2, 16).double(), torch.zeros(225, 2), 8, 0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype: torch.dtype, device: str) -> None:
    qkv, bias, _ = inputs((2, 9, 12, 2, 16, 8, 3), device)
    qkv, bias = qkv.to(dtype).requires_grad_(), bias.float().requires_grad_()
    torch.library.opcheck(torch.ops.mmif_trt.window_attention.default, (qkv, bias, 8, 3))


def test_compile_and_export() -> None:
    class Layer(torch.nn.Module):
        def forward(self, qkv: Tensor, bias: Tensor) -> Tensor:
            return window_attention(2 * qkv, bias, 8, 3) + 1

    qkv, bias, d_out = (x.float() for x in inputs((2, 9, 12, 2, 16, 8, 3)))
    layer = Layer()
    # Traced and differentiated; what inductor makes of it is torch's, takes a minute, and is in bench_ops.py.
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for x, y in zip(
        run(lambda q, b, *_: compiled(q, b), qkv, bias, d_out, 8, 3),
        run(lambda q, b, *_: layer(q, b), qkv, bias, d_out, 8, 3),
        strict=True,
    ):
        torch.testing.assert_close(x, y)
    program = torch.export.export(layer, (qkv, bias))
    assert "mmif_trt.window_attention" in str(program.graph)
    torch.testing.assert_close(program.module()(qkv, bias), layer(qkv, bias))


def test_a_compiled_layer_sees_plain_operations() -> None:
    """A graph traced with the kernel is not used within plain_operations, nor the other way round, and
    neither is traced twice; what another thread does changes nothing."""
    graphs: list[bool] = []

    def backend(module: torch.fx.GraphModule, example: list[Tensor]) -> Callable[..., Any]:
        graphs.append("mmif_trt.window_attention" in module.code)
        return module.forward

    torch._dynamo.reset()
    qkv, bias, _ = inputs((1, 9, 12, 2, 16, 8, 3))
    compiled = torch.compile(lambda q, b: window_attention(q, b, 8, 3), fullgraph=True, backend=backend)
    with plain_operations():
        compiled(qkv, bias)
        elsewhere = threading.Thread(target=compiled, args=(qkv, bias))
        elsewhere.start()
        elsewhere.join()
        compiled(qkv, bias)
    compiled(qkv, bias)
    assert graphs == [False, True]


def test_autocast_keeps_half_projections() -> None:
    layer = WindowAttention(64, 32, 8, 4)
    x = torch.randn(1, 16, 16, 64)
    with torch.autocast("cpu", torch.bfloat16):
        fused, plain = layer(x), layer.plain(x)
    assert fused.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(fused.float(), plain.float(), rtol=0.03, atol=0.01)


def test_plain_operations_take_over() -> None:
    qkv, bias, _ = inputs((1, 9, 12, 2, 16, 8, 3))
    fused = window_attention(qkv, bias, 8, 3)
    with plain_operations():
        plain = window_attention(qkv, bias, 8, 3)
    torch.testing.assert_close(plain, fused, rtol=1e-10, atol=1e-12)
