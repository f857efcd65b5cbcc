"""ops.fusion_loss as PyTorch sees it: registration, compile, export, refusals and messages."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_fusion_loss import NAMES, inputs, needs_kernel, on_each_device, with_gradient
from torch import Tensor

from mmif_trt.ops import fusion_loss as op
from mmif_trt.ops import kernels_available


@on_each_device
@pytest.mark.parametrize("weighted", [True, False])
def test_opcheck(weighted: bool, device: str) -> None:
    x = inputs((2, 17, 19), weighted=weighted).to(device)
    f = x.f.clone().requires_grad_()
    torch.library.opcheck(torch.ops.mmif_trt.fusion_loss.default, (f, *x.all()[1:]))
    _, moments, bits = torch.ops.mmif_trt.fusion_loss(*x.all())
    torch.library.opcheck(torch.ops.mmif_trt.fusion_loss_bwd.default, (x.d_terms, *x.all(), moments, bits))


@on_each_device
def test_compile_keeps_it_whole(device: str) -> None:
    x = inputs((2, 24, 25)).to(device)
    compiled = torch.compile(op.fusion_loss, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, with_gradient(compiled, x), with_gradient(op.fusion_loss, x)))


@on_each_device
def test_export_keeps_it_whole(device: str) -> None:
    class Loss(torch.nn.Module):
        def forward(self, *x: Tensor) -> Tensor:
            return op.fusion_loss(*x)

    x: Any = inputs((2, 24, 25)).to(device).all()
    exported = torch.export.export(Loss(), x)
    assert "mmif_trt.fusion_loss" in str(exported.graph)
    assert torch.equal(exported.module()(*x), op.fusion_loss(*x))


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_gradient_to_anything_but_f_is_refused(name: str) -> None:
    x = inputs((1, 12, 12))
    wanted = replace(x, **{name: getattr(x, name).clone().requires_grad_()})
    for call in (
        (op.fusion_loss, torch.ops.mmif_trt.fusion_loss) if kernels_available("cpu") else (op.fusion_loss,)
    ):
        with pytest.raises(
            RuntimeError, match=f"fusion_loss: {name} requires a gradient; expected: only f does"
        ):
            call(*wanted.all())
    with torch.no_grad():
        assert torch.equal(op.fusion_loss(*wanted.all()), op.fusion_loss(*x.all()))  # type: ignore[arg-type]


@needs_kernel
def test_a_second_derivative_is_refused() -> None:
    x = inputs((1, 12, 12))
    f = x.f.clone().requires_grad_()
    (d_f,) = torch.autograd.grad(op.fusion_loss(f, x.a, x.b).sum(), f, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        d_f.sum().backward()


WRONG: list[tuple[str, Any, str]] = [
    ("f", lambda x: x[0], r"f is \[1, 16, 16\]; expected: \[B, 1, H, W\]"),
    ("f", lambda x: x.expand(2, 3, 16, 16), r"f is \[2, 3, 16, 16\]; expected: \[B, 1, H, W\]"),
    ("f", lambda x: x[..., :10], r"f is \[2, 1, 16, 10\]; expected: H and W of at least 11, the SSIM window"),
    ("f", lambda x: x.int(), "f is .*[iI]nt.*; expected: float32 and float64"),
    ("a", lambda x: x[:1], r"a is \[1, 1, 16, 16\]; expected: f's shape, \[2, 1, 16, 16\]"),
    ("b", lambda x: x.double(), "b is .*(Double|float64); expected: f's dtype, .*(Float|float32)"),
    ("wa", lambda x: x[..., 1:], r"wa is \[2, 1, 16, 15\]; expected: f's shape, \[2, 1, 16, 16\]"),
    ("wb", lambda x: x.to("meta"), "wb is on meta; expected: f's device, cpu"),
]


@pytest.mark.parametrize("plain", [True, pytest.param(False, marks=needs_kernel)])
@pytest.mark.parametrize(("name", "spoil", "message"), WRONG)
def test_a_wrong_argument_is_named(
    name: str, spoil: Any, message: str, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if plain:
        monkeypatch.setattr(op, "has_kernel", lambda x: False)
    x = inputs((2, 16, 16))
    x = replace(x, **{name: spoil(getattr(x, name))})
    with pytest.raises(RuntimeError, match=f"mmif_trt::fusion_loss: {message}"):
        op.fusion_loss(*x.all())  # type: ignore[arg-type]


@on_each_device
@pytest.mark.parametrize(
    ("place", "name", "expected"),
    [(0, "d_terms", r"\[2, 3\]"), (6, "moments", r"\[2, 4, 6, 6\]"), (7, "choices", r"\[2, 1, 16, 16\]")],
)
def test_backward_names_a_wrong_argument(place: int, name: str, expected: str, device: str) -> None:
    x = inputs((2, 16, 16)).to(device)
    arguments = [x.d_terms, *x.all(), *torch.ops.mmif_trt.fusion_loss(*x.all())[1:]]
    right = arguments[place]
    for wrong, message in ((right[:1], expected), (right.short(), "Byte" if place == 7 else "Float")):
        arguments[place] = wrong
        with pytest.raises(
            RuntimeError, match=f"mmif_trt::fusion_loss_bwd: {name} is .*; expected: {message}"
        ):
            torch.ops.mmif_trt.fusion_loss_bwd(*arguments)
