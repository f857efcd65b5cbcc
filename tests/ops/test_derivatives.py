"""What torch asks of the kernels beyond backward: done by plain operations or refused, never a silent 0."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mmif_trt.ops import KERNELS, kernels_available, plain_operations
from mmif_trt.ops.fusion_loss import fusion_loss
from mmif_trt.ops.gated_mix import gated_mix
from mmif_trt.ops.local_block import local_block
from mmif_trt.ops.mlp_block import mlp_block
from mmif_trt.ops.window_attention import window_attention

pytestmark = pytest.mark.skipif(not kernels_available("cpu"), reason=f"kernels: {KERNELS}")

Op = Callable[[Tensor], Tensor]
C, E = 16, 32


def normal(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size)), dtype=torch.float64) / 2


IMAGE = (1, C, 5, 3)
LOCAL = (normal(C, 1, 3, 3), normal(C), normal(E, C, 1, 1), normal(E), normal(C, E, 1, 1), normal(C))
MLP = (normal(C), normal(C), normal(E, C), normal(E), normal(C, E), normal(C))
MIX, BIAS = (normal(*IMAGE), normal(C, 2 * C, 1, 1), normal(C)), normal(49, 2)
A, B = normal(1, 1, 12, 13).sigmoid(), normal(1, 1, 13, 12).sigmoid().mT
CASES: dict[str, tuple[Op, Tensor]] = {
    "window_attention": (lambda x: window_attention(x, BIAS, 4, 2), normal(1, 5, 3, 3, 2, 16)),
    "fusion_loss": (lambda x: fusion_loss(x, A, B), normal(1, 1, 12, 13)),
    "local_block": (lambda x: local_block(x, *LOCAL), normal(*IMAGE)),
    "mlp_block": (lambda x: mlp_block(x, *MLP), normal(3, C)),
    "gated_mix": (lambda x: gated_mix(x, *MIX), normal(*IMAGE)),
}
on_each_op = pytest.mark.parametrize(("op", "x"), CASES.values(), ids=CASES)


@on_each_op
def test_a_second_derivative_is_refused(op: Op, x: Tensor) -> None:
    """As a gradient penalty asks for; torch's own default is a warning and a zero."""
    x = x.clone().requires_grad_()
    (d_x,) = torch.autograd.grad(op(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative; expected: .*plain_operations"):
        d_x.square().sum().backward()


@on_each_op
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own, in its forward AD
def test_forward_mode_and_transforms_are_plain_operations(op: Op, x: Tensor) -> None:
    """Each against backward, which is the kernel's."""
    along = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    y, tangent = torch.func.jvp(op, (x,), (along,))
    leaf = x.clone().requires_grad_()
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    (op(leaf) * weight).sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close((tangent * weight).sum(), (leaf.grad * along).sum())
    with torch.autograd.forward_ad.dual_level():
        dual = op(torch.autograd.forward_ad.make_dual(x, along))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, tangent)
    torch.testing.assert_close(torch.func.grad(lambda x: (op(x) * weight).sum())(x), leaf.grad)
    each = torch.func.vmap(op)(torch.stack([x, x / 2]))
    torch.testing.assert_close(each, torch.stack([op(x), op(x / 2)]))


def test_second_derivatives_of_plain_operations() -> None:
    x = normal(1, 4, 4, 3, 1, 16).requires_grad_()
    with plain_operations():
        assert torch.autograd.gradgradcheck(
            lambda x: window_attention(x, normal(9, 1), 2, 1), x, fast_mode=True
        )
