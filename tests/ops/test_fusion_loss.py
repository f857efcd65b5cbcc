"""ops.fusion_loss: the truth at known inputs, then the kernels against the truth, bit for bit where exact."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmif_trt.ops import KERNELS, kernels_available, reference
from mmif_trt.ops import fusion_loss as op

needs_kernel = pytest.mark.skipif(not kernels_available("cpu"), reason=f"kernels: {KERNELS}")
needs_cuda = pytest.mark.skipif(
    not (torch.cuda.is_available() and kernels_available("cuda")),
    reason=f"no CUDA device, or no kernels for it: {KERNELS}",
)
on_each_device = pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=needs_kernel), pytest.param("cuda", marks=needs_cuda)]
)
SHAPES = [(48, 11, 11), (6, 13, 37), (2, 129, 131), (3, 64, 48)]
NAMES = ("f", "a", "b", "wa", "wb")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Inputs:
    f: Tensor
    a: Tensor
    b: Tensor
    wa: Tensor | None
    wb: Tensor | None
    d_terms: Tensor

    def all(self) -> tuple[Tensor | None, ...]:
        return self.f, self.a, self.b, self.wa, self.wb

    def to(self, *where: Any) -> Inputs:
        return Inputs(*(None if x is None else x.to(*where) for x in (*self.all(), self.d_terms)))  # type: ignore


def inputs(shape: tuple[int, int, int], kind: str = "smooth", weighted: bool = True, seed: int = 0) -> Inputs:
    """float32 numbers in [0, 1] of some kind; a quarter of the weights is 0."""
    B, H, W = shape
    make = torch.Generator().manual_seed(seed)
    noise = torch.rand(5, B, 1, H + 4, W + 4, generator=make)
    x = F.avg_pool2d(noise.flatten(0, 1), 5, 1).unflatten(0, (5, B)) * 4 - 1.5  # smooth, of some contrast
    x = x.clamp(0, 1)
    if kind == "noise":
        x = noise[..., 4:, 4:]
    elif kind == "8-bit":
        x[:3] = (x[:3] * 255).round() / 255
    elif kind == "ties":  # sixteenths: exact in binary, so that equal is equal in every precision
        x = (x * 16).round() / 16
    elif kind == "constant":
        x[:3] = torch.tensor([0.25, 0.5, 0.5])[:, None, None, None, None]
    elif kind == "zeros":
        x[:3] = 0
    x[3:] *= torch.rand(2, B, 1, H, W, generator=make) > 0.25
    wa, wb = (x[3], x[4]) if weighted else (None, None)
    return Inputs(x[0], x[1], x[2], wa, wb, torch.rand(B, 3, generator=make) + 0.5)


def with_gradient(function: Any, x: Inputs) -> tuple[Tensor, Tensor]:
    f = x.f.clone().requires_grad_()
    terms = function(f, *x.all()[1:])
    return terms.detach(), torch.autograd.grad(terms, f, x.d_terms)[0]


def error(result: Tensor, true: Tensor) -> float:
    """Relative L2."""
    return float((result.double().cpu() - true).norm() / true.norm().clamp(min=1e-30))


def compare(x: Inputs, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
    """Values and gradient of the operation: error at most twice plain torch's, both against float64."""
    true, true_d = with_gradient(reference.fusion_loss, x.to(torch.float64))
    plain, plain_d = with_gradient(reference.fusion_loss, x.to(dtype))
    result, result_d = with_gradient(op.fusion_loss, x.to(device, dtype))
    unit = torch.finfo(dtype).eps
    assert result.dtype == result_d.dtype == dtype and result.device.type == device
    assert error(result, true) <= max(2 * error(plain, true), 2 * unit)
    if not true_d.any():
        assert result_d.abs().max() <= max(2 * float(plain_d.abs().max()), unit)
        return
    assert error(result_d, true_d) <= max(2 * error(plain_d, true_d), 4 * unit)
    cosine = F.cosine_similarity(result_d.double().cpu().flatten(), true_d.flatten(), 0)
    off = F.cosine_similarity(plain_d.double().flatten(), true_d.flatten(), 0)
    assert 1 - cosine <= max(2 * (1 - off), 8 * unit)
    bias, plain_bias = ((y.double().cpu() - true_d).sum() / true_d.abs().sum() for y in (result_d, plain_d))
    assert abs(bias) <= max(2 * abs(plain_bias), error(plain_d, true_d)), "signed bias"


def compare_all() -> None:
    for kind in ("noise", "8-bit"):
        for shape in SHAPES:
            compare(inputs(shape, kind))


# The truth


def test_intensity_is_the_distance_to_the_brighter_source() -> None:
    x = inputs((2, 24, 24), weighted=False)
    f = torch.maximum(x.a, x.b)
    f[1] -= 0.25
    torch.testing.assert_close(reference.fusion_loss(f, x.a, x.b)[:, 0], torch.tensor([0, 0.25]))


def test_gradient_follows_the_stronger_source_with_its_sign_and_a_where_equal() -> None:
    a = inputs((1, 32, 32), "ties").a
    weak = a * 0.25 + 0.5
    for f, x, y, size in (
        (a, a, weak, 0),
        (a, weak, a, 0),
        (a, a, 1 - a, 0),
        (a * 0, a, weak, 1),
        (1 - a, a, 1 - a, 2),
    ):
        gx, gy = reference.sobel(a)
        expected = size * (gx.abs() + gy.abs()).mean((1, 2, 3))
        torch.testing.assert_close(reference.fusion_loss(f, x, y)[:, 1], expected)


def test_sobel_of_a_ramp() -> None:
    gx, gy = reference.sobel(torch.arange(8.0).repeat(6, 1)[None, None] / 8)
    assert (gx[..., 1:-1] == 1).all() and (gx[..., 0] == 0.5).all() and not gy.any()


def test_structure_is_skimages_ssim() -> None:
    from skimage.metrics import structural_similarity  # type: ignore

    x = inputs((2, 40, 33), weighted=False).to(torch.float64)
    options: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for i in range(2):
        f, a, b = (y[i, 0].numpy() for y in (x.f, x.a, x.b))
        s = [structural_similarity(f, y, data_range=1, **options) for y in (a, b)]
        assert float(reference.fusion_loss(x.f, x.a, x.b)[i, 2]) == pytest.approx(1 - np.mean(s), abs=1e-9)
    assert not reference.fusion_loss(x.a, x.a, x.a).any()


# The kernels' numbers


@on_each_device
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("kind", ["smooth", "noise", "8-bit", "ties", "constant", "zeros"])
@pytest.mark.parametrize("shape", SHAPES)
def test_error_is_at_most_twice_plain_torchs(
    shape: tuple[int, int, int], kind: str, weighted: bool, device: str
) -> None:
    compare(inputs(shape, kind, weighted), device)


@needs_kernel
@pytest.mark.parametrize("shape", SHAPES)
def test_float64_equals_the_truth(shape: tuple[int, int, int]) -> None:
    x = inputs(shape).to(torch.float64)
    for result, true in zip(
        with_gradient(op.fusion_loss, x), with_gradient(reference.fusion_loss, x), strict=True
    ):
        assert error(result, true) < 1e-14


def choices(x: Inputs) -> Tensor:
    """The byte per pixel of csrc/fusion_loss.h, from the reference's own operations in x's precision."""
    wa, wb = (torch.ones_like(x.f) if w is None else w for w in (x.wa, x.wb))
    (ax, ay), (bx, by), (fx, fy) = (reference.sobel(y) for y in (x.a, x.b, x.f))
    first = wa * x.a >= wb * x.b
    second = wa * (ax.abs() + ay.abs()) >= wb * (bx.abs() + by.abs())
    off = x.f - torch.where(first, x.a, x.b)
    off_x, off_y = fx - torch.where(second, ax, bx), fy - torch.where(second, ay, by)
    bits = (off > 0, off < 0, ~first, off_x > 0, off_x < 0, off_y > 0, off_y < 0, ~second)
    return sum(bit.to(torch.uint8) << i for i, bit in enumerate(bits))  # type: ignore[return-value, misc]


@on_each_device
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("kind", ["smooth", "8-bit", "ties", "zeros"])
def test_choices_are_the_truths_bit_by_bit(kind: str, weighted: bool, device: str) -> None:
    for dtype in (torch.float32, torch.float64) if device == "cpu" else (torch.float32,):
        x = inputs((2, 61, 67), kind, weighted).to(dtype)
        result = torch.ops.mmif_trt.fusion_loss(*x.to(device).all())[2]
        assert torch.equal(result.cpu(), choices(x))


@needs_kernel
@pytest.mark.parametrize("weighted", [True, False])
def test_gradcheck(weighted: bool) -> None:
    x = inputs((2, 12, 14), "noise", weighted).to(torch.float64)
    f = x.f.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda f: op.fusion_loss(f, *x.all()[1:]), f, eps=1e-7, atol=1e-7)


# Nasty inputs


@on_each_device
def test_slices_of_larger_buffers(device: str) -> None:
    x = inputs((2, 30, 29)).to(device)
    expected = with_gradient(op.fusion_loss, x)

    def sliced(y: Tensor) -> Tensor:
        buffer = torch.full((4, 3, 40, 50), float("nan"), device=device)
        buffer[1:3, 1:2, 5:35, 7:36] = y
        return buffer[1:3, 1:2, 5:35, 7:36]

    def turned(y: Tensor) -> Tensor:
        return y.transpose(2, 3).contiguous().transpose(2, 3)

    for view in (sliced, turned):
        result = with_gradient(lambda f, *rest, view=view: op.fusion_loss(view(f), *map(view, rest)), x)
        assert all(map(torch.equal, result, expected)), view
    same = replace(x, a=x.a[:1].expand(2, -1, -1, -1), d_terms=x.d_terms[:, :1].expand(2, 3))
    whole = replace(same, a=same.a.contiguous(), d_terms=same.d_terms.contiguous())
    assert all(map(torch.equal, with_gradient(op.fusion_loss, same), with_gradient(op.fusion_loss, whole)))


@on_each_device
def test_one_weight_alone_leaves_the_other_at_1(device: str) -> None:
    x = inputs((2, 20, 21)).to(device)
    for name in ("wa", "wb"):
        ones = replace(x, **{name: torch.ones_like(x.f)})
        none = replace(x, **{name: None})
        assert all(map(torch.equal, with_gradient(op.fusion_loss, none), with_gradient(op.fusion_loss, ones)))


@on_each_device
def test_empty_batch(device: str) -> None:
    x = inputs((0, 16, 16)).to(device)
    terms, d_f = with_gradient(op.fusion_loss, x)
    assert terms.shape == (0, 3) and d_f.shape == (0, 1, 16, 16)


@on_each_device
@pytest.mark.parametrize("name", NAMES)
def test_nan_spreads_as_in_the_truth_and_no_further(name: str, device: str) -> None:
    x = inputs((2, 40, 41))
    spoilt = getattr(x, name).clone()
    spoilt[1, 0, 20, 17] = float("nan")
    x = replace(x, **{name: spoilt})
    true, true_d = with_gradient(reference.fusion_loss, x)
    result, result_d = with_gradient(op.fusion_loss, x.to(device))
    assert true[1].isnan().any() and torch.equal(result.isnan().cpu(), true.isnan())
    assert torch.equal(result_d.isnan().cpu(), true_d.isnan())


@on_each_device
def test_equal_bits_in_every_run_and_with_any_number_of_threads(device: str) -> None:
    x = inputs((3, 150, 70)).to(device)
    expected = with_gradient(op.fusion_loss, x)
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        assert all(map(torch.equal, with_gradient(op.fusion_loss, x), expected)), threads


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_is_taken_as_float(dtype: torch.dtype) -> None:
    x = inputs((2, 20, 20))
    rounded = replace(x, f=x.f.to(dtype).float())
    terms, d_f = with_gradient(op.fusion_loss, replace(x, f=x.f.to(dtype)))
    assert torch.equal(terms, op.fusion_loss(*rounded.all())) and d_f.dtype == dtype  # type: ignore[arg-type]


@on_each_device
def test_other_constants_of_ssim(device: str) -> None:
    """Training uses smaller ones: value and gradient, to a float's rounding of a variance."""
    x, constants = inputs((3, 40, 37)), (1e-5, 1e-4)
    true, true_d = with_gradient(lambda *y: reference.fusion_loss(*y, *constants), x.to(torch.float64))
    plain, plain_d = with_gradient(lambda *y: reference.fusion_loss(*y, *constants), x)
    result, result_d = with_gradient(lambda *y: op.fusion_loss(*y, *constants), x.to(device))
    assert error(result, true) <= max(2 * error(plain, true), 2e-7)
    assert error(result_d, true_d) <= max(2 * error(plain_d, true_d), 5e-7)
    usual, _ = with_gradient(op.fusion_loss, x.to(device))
    assert (result[:, 2] > usual[:, 2]).all() and torch.equal(result[:, :2], usual[:, :2])
    with pytest.raises(RuntimeError, match="c1, c2 is 0, 1; expected: more than 0"):
        op.fusion_loss(*x.to(device).all(), 0.0, 1.0)
