"""The slow reference of every operation in `mmif_trt.ops`, in plain torch: what a kernel must reproduce.

Written to be read, and to be differentiated by autograd in double; nothing here is meant to be fast.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SSIM_WINDOW, SSIM_SIGMA_PX = 11, 1.5  # Wang et al., IEEE TIP 13:600, 2004
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2  # from the same paper, for a data range of 1

# GELU takes the error function, longer than the convolution before it on a CPU; hard swish (Howard et al.,
# MobileNetV3, ICCV 2019), u clamp(u + 3, 0, 6) / 6, has nearly its shape for four operations.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "hardswish": F.hardswish}


def window_attention(qkv: Tensor, bias_table: Tensor, window: int, shift: int) -> Tensor:
    """Attention within the windows of a map: [B, H, W, 3, heads, D] -> [B, H, W, heads, D].

    The plane is cut at y = shift + k window (k any integer), x likewise; the tokens of the image that lie in
    one rectangle attend to each other only. For a map of whole windows that is Swin's cyclic shift
    with its region mask (Liu et al., ICCV 2021), without the roll; an incomplete last window just holds
    fewer tokens. The score of a query and a key is D^-1/2 q.k + bias_table[row, head] with
    row = (dy + window - 1)(2 window - 1) + dx + window - 1, where (dy, dx) is the query's position minus the
    key's; so bias_table is [(2 window - 1)^2, heads].
    """
    B, H, W, _, heads, D = qkv.shape
    out = qkv.new_zeros(B, H, W, heads, D)
    for y in spans(H, window, shift):
        for x in spans(W, window, shift):
            place = torch.cartesian_prod(torch.arange(H)[y], torch.arange(W)[x])  # [n, 2]
            offset = place[:, None] - place[None, :] + window - 1
            bias = bias_table[(offset[..., 0] * (2 * window - 1) + offset[..., 1]).to(bias_table.device)]
            q, k, v = qkv[:, y, x].flatten(1, 2).permute(2, 0, 3, 1, 4)  # [B, heads, n, D] each
            score = q @ k.transpose(-2, -1) * D**-0.5 + bias.permute(2, 0, 1)
            inside = (score.softmax(-1) @ v).permute(0, 2, 1, 3)
            out[:, y, x] = inside.reshape(out[:, y, x].shape)
    return out


def spans(length: int, window: int, shift: int) -> list[slice]:
    """The windows of one axis, cut to the image: the first begins at shift - window, or at 0 unshifted."""
    begins = range(shift - window if shift else 0, length, window)
    return [slice(max(begin, 0), min(begin + window, length)) for begin in begins]


def local_block(
    x: Tensor,
    depthwise: Tensor,
    depthwise_bias: Tensor,
    expand: Tensor,
    expand_bias: Tensor,
    reduce: Tensor,
    reduce_bias: Tensor,
    activation: str = "gelu",
) -> Tensor:
    """x + reduce(activation(expand(depthwise(x)))), all in x's dtype: LAGN's local block on [B, C, H, W].

    depthwise is [C, 1, 3, 3] with a border of 0, expand [E, C, 1, 1], reduce [C, E, 1, 1], the biases [C],
    [E], [C]; activation is one of ACTIVATIONS. GELU is the exact one, u Phi(u); the slope of hard swish jumps
    at -3, where it is 0, and at 3, where it is 1.
    """
    weights = (depthwise, depthwise_bias, expand, expand_bias, reduce, reduce_bias)
    depthwise, depthwise_bias, expand, expand_bias, reduce, reduce_bias = (w.to(x.dtype) for w in weights)
    t = F.conv2d(x, depthwise, depthwise_bias, padding=1, groups=x.shape[1])
    h = ACTIVATIONS[activation](F.conv2d(t, expand, expand_bias))
    return x + F.conv2d(h, reduce, reduce_bias)


def mlp_block(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    expand: Tensor,
    expand_bias: Tensor,
    reduce: Tensor,
    reduce_bias: Tensor,
    eps: float = 1e-5,
) -> Tensor:
    """x + reduce(gelu(expand(norm(x)))) on [..., C]: the second half of LAGN's global block.

    The norm is over C, with weight and bias [C]; expand is [E, C], reduce [C, E], their biases [E], [C]. The
    layers' weights are converted to x's dtype, the norm's are not. GELU is the exact one, u Phi(u).
    """
    expand, expand_bias, reduce, reduce_bias = (
        w.to(x.dtype) for w in (expand, expand_bias, reduce, reduce_bias)
    )
    wide = x.to(torch.promote_types(x.dtype, norm_weight.dtype))
    t = F.layer_norm(wide, (x.shape[-1],), norm_weight, norm_bias, eps).to(x.dtype)
    return x + F.linear(F.gelu(F.linear(t, expand, expand_bias)), reduce, reduce_bias)


def gated_mix(local: Tensor, glob: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """s local + (1 - s) glob with s = sigmoid(weight [local, glob] + bias): the share of each branch.

    local and glob are [B, C, H, W], weight [C, 2 C, 1, 1] and bias [C], converted to their dtype.
    """
    both = torch.cat([local, glob], 1)
    share = torch.sigmoid(F.conv2d(both, weight.to(local.dtype), bias.to(local.dtype)))
    return share * local + (1 - share) * glob


def fusion_loss(
    f: Tensor,
    a: Tensor,
    b: Tensor,
    wa: Tensor | None = None,
    wb: Tensor | None = None,
    c1: float = SSIM_C1,
    c2: float = SSIM_C2,
) -> Tensor:
    """The three terms of the fusion loss for each image: f, a, b, wa, wb [B, 1, H, W] -> [B, 3].

    f is the fused image, a and b its sources, all in [0, 1]; wa, wb >= 0 weight each pixel of a
    source (None: 1). The columns, each a mean over the pixels:

    intensity  w |f - t|, where t is the source with the larger weighted value, w its weight
    gradient   w (|f_x - t_x| + |f_y - t_y|), where t is the source with the larger weighted |t_x| + |t_y|
    structure  (wa (1 - SSIM(f, a)) + wb (1 - SSIM(f, b))) / 2, over the pixels whose SSIM window is whole

    c1, c2 are SSIM's constants: means and standard deviations well below their roots count little.
    Where both sources weigh the same, a is chosen. The gradient flows to f only; at |0| it is 0.
    """
    wa, wb = (torch.ones_like(f) if w is None else w for w in (wa, wb))
    take_a = wa * a >= wb * b
    intensity = torch.where(take_a, wa, wb) * (f - torch.where(take_a, a, b)).abs()
    (ax, ay), (bx, by), (fx, fy) = sobel(a), sobel(b), sobel(f)
    take_a = wa * (ax.abs() + ay.abs()) >= wb * (bx.abs() + by.abs())
    off = (fx - torch.where(take_a, ax, bx)).abs() + (fy - torch.where(take_a, ay, by)).abs()
    gradient = torch.where(take_a, wa, wb) * off
    edge = SSIM_WINDOW // 2
    inner = (..., slice(edge, -edge), slice(edge, -edge))
    structure = (wa[inner] * (1 - ssim_map(f, a, c1, c2)) + wb[inner] * (1 - ssim_map(f, b, c1, c2))) / 2
    return torch.stack([x.mean((1, 2, 3)) for x in (intensity, gradient, structure)], 1)


def sobel(x: Tensor) -> tuple[Tensor, Tensor]:
    """Horizontal and vertical Sobel derivative of [B, 1, H, W], replicated border.

    Sums in a fixed order, outer taps first, so that a kernel in the same precision chooses the same source
    where two are almost equally strong.
    """
    p = F.pad(x, (1, 1, 1, 1), mode="replicate")
    dx = p[..., 2:] - p[..., :-2]  # [B, 1, H + 2, W]
    dy = p[..., 2:, :] - p[..., :-2, :]  # [B, 1, H, W + 2]
    horizontal = (dx[..., :-2, :] + dx[..., 2:, :]) + 2 * dx[..., 1:-1, :]
    vertical = (dy[..., :-2] + dy[..., 2:]) + 2 * dy[..., 1:-1]
    return horizontal, vertical


def ssim_map(x: Tensor, y: Tensor, c1: float = SSIM_C1, c2: float = SSIM_C2) -> Tensor:
    """SSIM of each pixel with a whole Gaussian window: [B, 1, H, W] -> [B, 1, H - 10, W - 10]."""
    offset = torch.arange(SSIM_WINDOW, dtype=x.dtype, device=x.device) - SSIM_WINDOW // 2
    kernel = torch.exp(-(offset**2) / (2 * SSIM_SIGMA_PX**2))
    kernel = (kernel / kernel.sum()).expand(5, 1, 1, SSIM_WINDOW)
    moments = F.conv2d(torch.cat([x, y, x * x, y * y, x * y], 1), kernel, groups=5)
    mx, my, xx, yy, xy = F.conv2d(moments, kernel.transpose(2, 3), groups=5).split(1, 1)
    vx, vy, vxy = xx - mx * mx, yy - my * my, xy - mx * my
    over = (2 * mx * my + c1) * (2 * vxy + c2)
    return over / ((mx * mx + my * my + c1) * (vx + vy + c2))
