"""LAGN's fused blocks on the CPU (local_block, mlp_block, gated_mix) against their references in double."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmif_trt.models.lagn import LAGN, LAGNConfig
from mmif_trt.ops import CPU_OPS, KERNELS, kernels_available, plain_operations, reference
from mmif_trt.ops.gated_mix import gated_mix
from mmif_trt.ops.local_block import local_block
from mmif_trt.ops.mlp_block import mlp_block

pytestmark = pytest.mark.skipif(not kernels_available("cpu"), reason=f"kernels: {KERNELS}")

OPS: dict[str, Callable[..., Tensor]] = {
    "local_block": local_block,
    "local_block hardswish": partial(local_block, activation="hardswish"),
    "mlp_block": mlp_block,
    "gated_mix": gated_mix,
}
REFERENCES: dict[str, Callable[..., Tensor]] = {
    "local_block": reference.local_block,
    "local_block hardswish": partial(reference.local_block, activation="hardswish"),
    "mlp_block": reference.mlp_block,
    "gated_mix": reference.gated_mix,
}
EXTRA: dict[str, tuple[Any, ...]] = {  # what the operation of torch.ops takes after the tensors
    "local_block": ("gelu",),
    "local_block hardswish": ("hardswish",),
    "mlp_block": (1e-5,),
    "gated_mix": (),
}
TYPES = [torch.float32, torch.float16, torch.bfloat16]
# B, C, E, H, W: a tile is 64 pixels of a row, or of the tokens of a chunk; a chunk is a 32nd of all
SHAPES = [
    (2, 32, 64, 13, 37),
    (6, 32, 64, 24, 20),
    (1, 16, 48, 1, 1),
    (3, 48, 16, 1, 70),
    (1, 64, 128, 67, 3),
]


@dataclass(frozen=True)
class Case:
    name: str
    tensors: tuple[Tensor, ...]  # the operation's arguments, the maps first
    d_y: Tensor

    def to(self, dtype: torch.dtype, weights: torch.dtype | None = None) -> Case:
        maps = 2 if self.name == "gated_mix" else 1
        kinds = [dtype] * maps + [weights or dtype] * (len(self.tensors) - maps)
        moved = (x.to(kind) for x, kind in zip(self.tensors, kinds, strict=True))
        return Case(self.name, tuple(moved), self.d_y.to(dtype))

    def run(self, op: Callable[..., Tensor] | None = None) -> list[Tensor]:
        """y and the gradients to all tensors."""
        leaves = [x.detach().requires_grad_() for x in self.tensors]
        y = (op or OPS[self.name])(*leaves)
        return [y.detach(), *torch.autograd.grad(y, leaves, self.d_y)]

    def truth(self) -> Callable[..., Tensor]:
        return REFERENCES[self.name]

    def operation(self) -> str:
        return self.name.split()[0]


def case(name: str, shape: tuple[int, ...], seed: int = 0) -> Case:
    """Numbers in double, with layers that keep the size of what goes through them."""
    B, C, E, H, W = shape
    make = torch.Generator().manual_seed(seed)

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return torch.randn(size, generator=make, dtype=torch.float64) * scale

    image = (B, C, H, W)
    layers = [normal(E, C, scale=C**-0.5), normal(E), normal(C, E, scale=E**-0.5), normal(C)]
    if name == "gated_mix":
        tensors = [normal(*image), normal(*image), normal(C, 2 * C, 1, 1, scale=C**-0.5), normal(C)]
        return Case(name, tuple(tensors), normal(*image))
    if name == "mlp_block":
        return Case(
            name, (normal(B, H, W, C) + 0.5, 1 + normal(C, scale=0.3), normal(C), *layers), normal(B, H, W, C)
        )
    layers[0], layers[2] = layers[0][..., None, None], layers[2][..., None, None]
    return Case(name, (normal(*image), normal(C, 1, 3, 3, scale=1 / 3), normal(C), *layers), normal(*image))


def relative(x: Tensor, truth: Tensor) -> float:
    return float((x.double() - truth).norm() / truth.norm().clamp(min=1e-30))


def compare(x: Case) -> None:
    """Values and gradients: relative L2, direction, signed bias at most twice plain torch's, from float64."""
    true = x.to(torch.float64).run(x.truth())
    ours, plain = x.run(), x.run(x.truth())
    unit = torch.finfo(x.d_y.dtype).eps
    for i, (result, other, truth) in enumerate(zip(ours, plain, true, strict=True)):
        assert result.shape == other.shape and result.dtype == other.dtype, i
        assert relative(result, truth) <= max(2 * relative(other, truth), (4 if i else 2) * unit), i
        cosine, off = (F.cosine_similarity(y.double().flatten(), truth.flatten(), 0) for y in (result, other))
        assert 1 - cosine <= max(2 * (1 - off), 8 * unit**2), i
        bias, its = ((y.double() - truth).sum().abs() / truth.abs().sum() for y in (result, other))
        assert bias <= max(2 * its, relative(other, truth), 2 * unit), i


def compare_all() -> None:
    for name in OPS:
        for shape in SHAPES:
            for dtype in TYPES:
                compare(case(name, shape).to(dtype))


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


on_each_op = pytest.mark.parametrize("name", OPS)


def test_these_are_all() -> None:
    assert {name.split()[0] for name in OPS} == set(CPU_OPS)
    local = [EXTRA[name][0] for name in OPS if name.startswith("local_block")]
    assert local == list(reference.ACTIVATIONS)


@on_each_op
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_is_at_most_twice_plain_torchs(shape: tuple[int, ...], dtype: torch.dtype, name: str) -> None:
    compare(case(name, shape).to(dtype))


@on_each_op
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_double_is_the_reference(shape: tuple[int, ...], name: str) -> None:
    x = case(name, shape)
    for result, truth in zip(x.run(), x.run(x.truth()), strict=True):
        torch.testing.assert_close(result, truth, rtol=1e-11, atol=1e-11)


@on_each_op
def test_gradcheck(name: str) -> None:
    x = case(name, (2, 16, 16, 3, 2))
    leaves = [t.requires_grad_() for t in x.tensors]
    assert torch.autograd.gradcheck(OPS[name], leaves, fast_mode=True)


@on_each_op
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_any_strides_give_the_same_bits(dtype: torch.dtype, name: str) -> None:
    x = case(name, (2, 32, 64, 5, 7)).to(dtype)

    def spread(t: Tensor) -> Tensor:
        """The same numbers as a slice of a larger buffer, its dimensions stored in reverse order."""
        room = torch.full([2 * n + 1 for n in reversed(t.shape)], torch.nan, dtype=t.dtype)
        view = room.permute(*reversed(range(t.dim())))[tuple(slice(1, None, 2) for _ in t.shape)]
        return view.copy_(t)

    strided = Case(name, tuple(map(spread, x.tensors)), spread(x.d_y))
    assert not strided.tensors[0].is_contiguous() and strided.tensors[0].stride(-1) != 1
    assert all(map(torch.equal, strided.run(), x.run()))


@on_each_op
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_two_runs_and_any_number_of_threads_give_equal_bits(dtype: torch.dtype, name: str) -> None:
    x = case(name, (3, 32, 64, 21, 33)).to(dtype)
    first = x.run()
    torch.set_num_threads(1)
    assert all(map(torch.equal, x.run(), first))


@on_each_op
@pytest.mark.parametrize("shape", [(0, 32, 64, 4, 4), (2, 32, 64, 0, 4)], ids=str)
def test_empty(shape: tuple[int, ...], name: str) -> None:
    y, *gradients = case(name, shape).to(torch.float32).run()
    assert y.numel() == 0 and not any(g.any() for g in gradients)


@on_each_op
@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_constant_images(value: float, name: str) -> None:
    x = case(name, (2, 32, 64, 6, 40))
    maps = 2 if name == "gated_mix" else 1
    tensors = [torch.full_like(t, value) if i < maps else t for i, t in enumerate(x.tensors)]
    flat = Case(name, tuple(tensors), x.d_y)
    true, plain, ours = (
        flat.run(flat.truth()),
        *(flat.to(torch.float32).run(op) for op in (flat.truth(), None)),
    )
    for result, other, truth in zip(ours, plain, true, strict=True):
        torch.testing.assert_close(
            result.double(), truth, rtol=1e-4, atol=max(1e-4, 2 * float((other - truth).abs().max()))
        )


@on_each_op
def test_large_half_numbers_stay_finite_where_the_result_is(name: str) -> None:
    x = case(name, (1, 32, 64, 5, 5))
    big = Case(name, (x.tensors[0] / x.tensors[0].abs().max() * 3e4, *x.tensors[1:]), x.d_y).to(torch.float16)
    true = big.to(torch.float64).run(big.truth())
    fits = [t.abs() < 6e4 for t in true]
    for result, truth, inside in zip(big.run(), true, fits, strict=True):
        assert result[inside].isfinite().all()
        assert relative(result[inside], truth[inside]) < 2e-2


def test_gelu_over_all_sizes() -> None:
    """y - x = gelu(x) where depthwise, expand and reduce change nothing."""
    u = torch.cat([torch.linspace(-14, 14, 4001), torch.tensor([1e4, 1e38, -1e4, -1e38, 0.0])])
    u = F.pad(u, (0, -len(u) % 16)).view(1, 16, -1, 1).contiguous()
    depthwise = torch.zeros(16, 1, 3, 3)
    depthwise[:, :, 1, 1] = 1
    eye, none = torch.eye(16)[..., None, None], torch.zeros(16)
    y, h = torch.ops.mmif_trt.local_block(u, depthwise, none, eye, none, eye, none, "gelu")
    assert torch.equal(h.permute(0, 3, 1, 2), u)
    truth = F.gelu(u.double())
    error = (y.double() - u.double() - truth).abs()
    assert (error <= 4e-7 * (1 + u.double().abs())).all()
    leaf = u.clone().requires_grad_()
    local_block(leaf, depthwise, none, eye, none, eye, none).sum().backward()
    assert leaf.grad is not None
    near = u.abs() < 20
    deep = u.double().requires_grad_()
    F.gelu(deep).sum().backward()
    assert deep.grad is not None
    assert (leaf.grad.double() - 1 - deep.grad)[near].abs().max() < 2e-6


@pytest.mark.parametrize("dtype", [*TYPES, torch.float64], ids=str)
def test_hardswish_over_all_sizes(dtype: torch.dtype) -> None:
    """y and its gradient where x is 0, the depthwise bias is u, and expand and reduce change nothing."""
    unit = torch.finfo(dtype).eps
    special = torch.tensor([3.0, 3 * (1 + unit), 3 * (1 - unit), 1e4, 0.0], dtype=torch.float64)
    u = torch.cat([torch.linspace(-8, 8, 246, dtype=torch.float64), special, -special])  # 256
    u = u.to(dtype).requires_grad_()
    size = len(u)
    x, depthwise = torch.zeros(1, size, 1, 1, dtype=dtype), torch.zeros(size, 1, 3, 3, dtype=dtype)
    eye, none = torch.eye(size, dtype=dtype)[..., None, None], torch.zeros(size, dtype=dtype)
    y = local_block(x, depthwise, u, eye, none, eye, none, activation="hardswish").flatten()
    slope = torch.autograd.grad(y.sum(), u)[0]
    deep = u.detach().double().requires_grad_()
    truth = F.hardswish(deep)
    true_slope = torch.autograd.grad(truth.sum(), deep)[0]
    torch.testing.assert_close(y.double(), truth, rtol=unit, atol=2 * unit)
    torch.testing.assert_close(slope.double(), true_slope, rtol=unit, atol=2 * unit)
    straight = u.abs() >= 3
    assert straight.sum() > 100 and (u.abs() == 3).sum() == 2
    assert torch.equal(y[straight], u[straight].relu())
    assert torch.equal(slope[straight], (u[straight] > 0).to(dtype))


@on_each_op
def test_nan_stays_nan(name: str) -> None:
    x = case(name, (1, 16, 16, 5, 5)).to(torch.float32)
    image = x.tensors[0].clone()
    image.view(-1)[7] = torch.nan
    broken = Case(name, (image, *x.tensors[1:]), x.d_y)
    ours, plain = broken.run()[0], broken.run(x.truth())[0]
    assert torch.equal(ours.isnan(), plain.isnan()) and ours.isnan().any() and not ours.isnan().all()


@on_each_op
def test_float32_weights_beside_a_half(name: str) -> None:
    """As under autocast: rounded to the half on the way in, float32 gradients on the way out."""
    x = case(name, (2, 32, 64, 5, 9)).to(torch.bfloat16).to(torch.bfloat16, torch.float32)
    narrow = x.to(torch.bfloat16)
    result, other = x.run(), narrow.run()
    assert torch.equal(result[0], other[0])
    for wide, low in zip(result, other, strict=True):
        torch.testing.assert_close(wide.to(torch.bfloat16), low, rtol=0, atol=0)
    assert result[-1].dtype == torch.float32


@on_each_op
def test_autocast_takes_float32(name: str) -> None:
    x = case(name, (2, 32, 64, 5, 9)).to(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = OPS[name](*x.tensors)
    halves = x.to(torch.bfloat16, torch.float32)
    assert y.dtype == torch.bfloat16 and torch.equal(y, OPS[name](*halves.tensors))


# What PyTorch sees


@on_each_op
def test_opcheck(name: str) -> None:
    x = case(name, (2, 16, 32, 3, 5)).to(torch.float32)
    extra, op = EXTRA[name], x.operation()
    forward, backward = (getattr(torch.ops.mmif_trt, n).default for n in (op, f"{op}_bwd"))
    leaves = [t.clone().requires_grad_() for t in x.tensors]
    torch.library.opcheck(forward, (*leaves, *extra))
    saved = forward(*x.tensors, *extra)[1]
    torch.library.opcheck(backward, (x.d_y, *x.tensors, saved, *extra))


@on_each_op
def test_compile_and_export_keep_it_whole(name: str) -> None:
    class Model(nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return OPS[name](*tensors)

    x = case(name, (2, 16, 32, 4, 6)).to(torch.float32)
    compiled = torch.compile(OPS[name], fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, x.run(compiled), x.run()))
    exported = torch.export.export(Model(), x.tensors)
    assert f"mmif_trt.{x.operation()}" in str(exported.graph)
    assert torch.equal(exported.module()(*x.tensors), OPS[name](*x.tensors))
    # The same with any batch, height and width: a fake kernel must not make numbers of them.
    maps, sizes = (
        (2, (0, 2, 3)) if name == "gated_mix" else (1, (0, 1, 2) if name == "mlp_block" else (0, 2, 3))
    )
    free = {i: torch.export.Dim(f"n{i}", min=1, max=64) for i in sizes}
    shapes = tuple(free if i < maps else None for i in range(len(x.tensors)))
    anywhere = torch.export.export(Model(), x.tensors, dynamic_shapes=(shapes,)).module()
    y = case(name, (3, 16, 32, 5, 9)).to(torch.float32)
    other = (*y.tensors[:maps], *x.tensors[maps:])
    assert torch.equal(anywhere(*other), OPS[name](*other))


@on_each_op
def test_refusals_name_the_argument(name: str) -> None:
    x = case(name, (1, 16, 16, 4, 4)).to(torch.float32)
    extra, name = EXTRA[name], x.operation()
    op: Any = getattr(torch.ops.mmif_trt, name)
    bias = x.tensors[-1]
    last = "bias" if name == "gated_mix" else "reduce_bias"
    with pytest.raises(RuntimeError, match=rf"{name}: {last} is \[8\]; expected: \[16\]"):
        op(*x.tensors[:-1], bias[:8], *extra)
    with pytest.raises(RuntimeError, match=rf"{name}: {last} is Half; expected: the dtype of x, or float32"):
        op(*x.tensors[:-1], bias.half(), *extra)
    with pytest.raises(RuntimeError, match=f"{name}: .* expected: .*float32, float64, float16, bfloat16"):
        op(*(t.long() for t in x.tensors), *extra)
    with pytest.raises(RuntimeError, match="multiple of 16"):
        op(*case(name, (1, 8, 16, 4, 4)).tensors, *extra)


def test_an_unknown_activation_is_refused() -> None:
    tensors = case("local_block", (1, 16, 16, 4, 4)).tensors
    said = "local_block: activation is 'relu'; expected: gelu, hardswish"
    with pytest.raises(ValueError, match=said):
        local_block(*tensors, activation="relu")
    with plain_operations(), pytest.raises(ValueError, match=said):
        local_block(*tensors, activation="relu")
    with pytest.raises(RuntimeError, match=said.replace("'", "")):
        torch.ops.mmif_trt.local_block(*tensors, "relu")


# In the network


def gradients(model: LAGN, a: Tensor, b: Tensor) -> list[Tensor]:
    model.zero_grad()
    f = model(a, b)
    (f * torch.linspace(0, 1, f.shape[-1])).sum().backward()  # no two pixels alike
    return [f.detach().clone(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize(
    ("branches", "activation"),
    [("both", "gelu"), ("both", "hardswish"), ("local", "gelu"), ("global", "gelu")],
)
def test_the_network_is_the_same_with_and_without_kernels(branches: str, activation: str) -> None:
    torch.manual_seed(0)
    model = LAGN(LAGNConfig(branches=branches, activation=activation)).double()
    a, b = torch.rand(2, 2, 1, 64, 32, dtype=torch.float64).unbind(0)
    ours = gradients(model, a, b)
    with plain_operations():
        plain = gradients(model, a, b)
    for x, y in zip(ours, plain, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)


def test_the_network_runs_them_but_for_export_and_odd_widths() -> None:
    a = torch.rand(1, 1, 32, 32)

    def fused(model: LAGN) -> set[str]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as record:
            model(a, a)
        return {e.key.removeprefix("mmif_trt::") for e in record.key_averages() if "mmif_trt::" in e.key}

    model = LAGN()
    assert fused(model) == {*CPU_OPS, "window_attention"}
    assert not fused(model.exportable())
    assert fused(model.exportable(False)) == {*CPU_OPS, "window_attention"}
    assert fused(LAGN(LAGNConfig(activation="hardswish"))) == {*CPU_OPS, "window_attention"}
    assert fused(LAGN(LAGNConfig(local_dim=24))) == {"mlp_block", "window_attention"}
