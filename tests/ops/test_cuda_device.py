"""What only a CUDA device can show: streams, device guard, graphs, addresses.

compute-sanitizer runs over benchmarks/check_kernels.py, in steps of benchmarks/gpu_suite.sh."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmif_trt.ops import KERNELS, kernels_available, reference
from mmif_trt.ops.window_attention import window_attention

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(not kernels_available("cuda"), reason=f"kernels: {KERNELS}"),
]
TYPES = [torch.float32, torch.float16, torch.bfloat16]


def inputs(dtype: torch.dtype, device: str = "cuda") -> tuple[Tensor, Tensor, Tensor]:
    """qkv, bias_table, d_out"""
    rng = torch.Generator().manual_seed(0)
    sizes = ((2, 13, 19, 3, 2, 32), (225, 2), (2, 13, 19, 2, 32))
    qkv, bias, d_out = (torch.randn(size, generator=rng).to(device) for size in sizes)
    return qkv.to(dtype).requires_grad_(), bias.requires_grad_(), d_out.to(dtype)


def run(qkv: Tensor, bias: Tensor, d_out: Tensor) -> tuple[Tensor, ...]:
    out = window_attention(qkv, bias, 8, 4)
    return (out.detach(), *torch.autograd.grad(out, (qkv, bias), d_out))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_runs_on_the_current_stream(dtype: torch.dtype) -> None:
    """Inputs that a slow side stream is still making: a launch on another stream would read the old ones."""
    given = inputs(dtype)
    expected = run(*given)
    late = [torch.zeros_like(x).requires_grad_(x.requires_grad) for x in given]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        with torch.no_grad():
            for x, y in zip(late, given, strict=True):
                x.copy_(y)
        result = run(*late)
    side.synchronize()
    for x, y in zip(result, expected, strict=True):
        assert torch.equal(x, y)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_runs_on_the_device_of_its_tensors() -> None:
    expected = run(*inputs(torch.float16, "cuda:0"))
    with torch.cuda.device(0):
        result = run(*inputs(torch.float16, "cuda:1"))
    for x, y in zip(result, expected, strict=True):
        assert x.device == torch.device("cuda:1")
        assert torch.equal(x.cpu(), y.cpu())


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_forward_and_backward_in_a_graph(dtype: torch.dtype) -> None:
    given = inputs(dtype)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(*given)  # warm-up: allocations, the shared memory of the float kernel
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(*given)
    with torch.no_grad():
        given[0].mul_(-0.5)
    graph.replay()
    torch.cuda.synchronize()
    for x, y in zip(captured, run(*given), strict=True):
        assert torch.equal(x, y)


def test_double_takes_the_reference() -> None:
    """The kernels refuse it, so the function must not ask them."""
    qkv, bias, _ = (x.detach().double() for x in inputs(torch.float32))
    assert torch.equal(window_attention(qkv, bias, 8, 4), reference.window_attention(qkv, bias, 8, 4))
    with pytest.raises(RuntimeError, match="expected: float32, float16, bfloat16 on CUDA"):
        torch.ops.mmif_trt.window_attention(qkv, bias, 8, 4)


def shifted(x: Tensor) -> Tensor:
    """A copy that begins one element into its buffer, in the same order of memory."""
    flat = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)[1:]
    view = flat.as_strided(x.shape, x.stride(), flat.storage_offset()).copy_(x)
    assert view.data_ptr() % 16
    return view


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_tensors_at_any_address(dtype: torch.dtype) -> None:
    """The raw operation, given tensors one element into their buffers: a fault there would be sticky."""
    qkv, bias, d_out = (x.detach() for x in inputs(dtype))
    out, lse = torch.ops.mmif_trt.window_attention(qkv, bias, 8, 4)
    expected = torch.ops.mmif_trt.window_attention_bwd(d_out, qkv, bias, out, lse, 8, 4)

    again = torch.ops.mmif_trt.window_attention(shifted(qkv), bias, 8, 4)
    result = torch.ops.mmif_trt.window_attention_bwd(
        shifted(d_out), shifted(qkv), bias, shifted(out), lse, 8, 4
    )
    torch.cuda.synchronize()
    for x, y in zip((*again, *result), (out, lse, *expected), strict=True):
        assert torch.equal(x, y)


def test_the_losss_tensors_at_any_address() -> None:
    """Images whose rows are whole vectors but do not begin at one, and moments alike; in either order."""
    f, a, b = torch.rand(3, 2, 1, 40, 64, device="cuda").unbind(0)
    terms, moments, choices = torch.ops.mmif_trt.fusion_loss(f, a, b, None, None)
    d_terms = torch.rand(2, 3, device="cuda")
    d_f = torch.ops.mmif_trt.fusion_loss_bwd(d_terms, f, a, b, None, None, moments, choices)
    images = [shifted(x) for x in (f, a, b)]
    for x, y in zip(
        torch.ops.mmif_trt.fusion_loss(*images, None, None), (terms, moments, choices), strict=True
    ):
        assert torch.equal(x, y)
    for m in (shifted(moments), moments.contiguous()):
        given = (d_terms, *images, None, None, m, shifted(choices))
        assert torch.equal(torch.ops.mmif_trt.fusion_loss_bwd(*given), d_f)
