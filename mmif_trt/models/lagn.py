"""LAGN, the local-and-global network that fuses two registered images. The layers and sizes are our design.

The paper (Qu et al., Med Biol Eng Comput 63:2105, 2025) names a local-and-global network; its layers are not
public to us. Ours, for an MRI a [B, 1, H, W] and the CT, PET or SPECT b [B, 2, H, W], both in [0, 1]; b's
planes are its luma and how far its brightest channel lies above that, which tells a colour from grey:

    space-to-depth, 3x3 conv            half resolution, shared by both branches
    local branch                        convolutions at half resolution: edges, texture
    global branch                       shifted-window attention at a quarter or an eighth: structure
    gate                                per pixel and channel, the share of each branch
    decoder, depth-to-space             full resolution: one share r in (-below, 1) per pixel

    f = max(a, b) + r min(a, v),        within [0, 1]; b is the luma here and below

v is the brightest channel of b, the sum of its planes; of a grey b the luma. So f lies between
max(a, b) - below * min(a, v) and max(a, b) + min(a, v), and where one source is 0 the result is the other one
exactly, whatever the weights: bone over black MRI stays as white as in CT. The network decides how the weaker
source shows where both have signal: r = 1 adds it, r = 0 leaves the maximum, r < 0 subtracts it from the
stronger. Where f is brighter than 1 less the second plane, the colour has to fade (`colour.recombine`). That
is why v, and not b, counts: a deep blue has next to no luma, and with min(a, b) a bright MRI over it would
stay bright, and the blue pale, whatever r.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmif_trt.ops import has_block_kernel, has_kernel
from mmif_trt.ops.gated_mix import gated_mix
from mmif_trt.ops.local_block import local_block
from mmif_trt.ops.mlp_block import mlp_block
from mmif_trt.ops.reference import ACTIVATIONS
from mmif_trt.ops.window_attention import window_attention

BRANCHES = ("both", "local", "global")
REACHES = ("luma", "brightest")
PLANES = 3  # one of a, two of b
STRIDE = 4  # pixels per token of the global branch, unless the configuration says otherwise


@dataclass(frozen=True)
class LAGNConfig:
    """Dimensions of the network; stored beside the weights."""

    local_dim: int = 32
    local_depth: int = 3
    global_dim: int = 64
    global_depth: int = 4
    head_dim: int = 32
    window: int = 8
    decoder_depth: int = 2
    branches: str = "both"  # a single branch only to measure its worth
    stride: int = STRIDE  # pixels per token of the global branch, a multiple of the stem's two
    below: float = 1.0  # r of the output formula stays above -below
    activation: str = "gelu"  # of the local blocks, one of ACTIVATIONS
    reach: str = "luma"  # what v is, one of REACHES: b's luma, or its brightest channel (as released)

    @property
    def multiple(self) -> int:
        """Height and width must be a multiple of this: one whole window of the global branch."""
        return self.stride * self.window

    def as_dict(self) -> dict[str, Any]:
        """As stored beside the weights, without the fields that checkpoints of before lack, where they are
        as they were."""
        before = {"branches": "both", "stride": STRIDE, "below": 1.0, "activation": "gelu", "reach": "luma"}
        return {k: v for k, v in asdict(self).items() if before.get(k) != v}


def relative_position_index(window: int) -> Tensor:
    """[N, N] index into the bias table for N = window^2 tokens: one entry per offset (dy, dx), Swin's
    numbering."""
    axis = torch.arange(window)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    yx = torch.stack([y.flatten(), x.flatten()])  # [2, N]
    offset = yx[:, :, None] - yx[:, None, :] + window - 1  # [2, N, N], each 0 .. 2 window - 2
    return offset[0] * (2 * window - 1) + offset[1]


def shift_mask(height: int, width: int, window: int, shift: int) -> Tensor:
    """[nW, 1, N, N] additive mask: after the cyclic shift, tokens from opposite borders must not see each
    other.

    While the ONNX tracer runs, height and width are tensors of one element: plain arithmetic only.
    """

    def regions(length: int) -> Tensor:
        i = torch.arange(length)
        return (i >= length - window).long() + (i >= length - shift).long()

    region = regions(height)[:, None] * 3 + regions(width)[None, :]  # [H, W], 9 regions
    region = region.reshape(height // window, window, width // window, window)
    region = region.permute(0, 2, 1, 3).reshape(-1, window * window)  # [nW, N]
    same = region[:, :, None] == region[:, None, :]
    return torch.where(same, 0.0, -100.0)[:, None]


class WindowAttention(nn.Module):
    """Multi-head attention within windows of a [B, H, W, C] map, cyclically shifted, with relative position
    bias.

    One fused operation where its kernel is built; elsewhere and for export, plain operations with the same
    result.
    """

    index: Tensor  # [N * N] into bias_table

    def __init__(self, dim: int, head_dim: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.head_dim, self.window, self.shift = dim // head_dim, head_dim, window, shift
        self.exportable = False
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, self.heads))
        self.register_buffer("index", relative_position_index(window).flatten(), persistent=False)
        nn.init.trunc_normal_(self.bias_table, std=0.02)

    def bias(self) -> Tensor:
        """[1, heads, N, N] float32."""
        n = self.window**2
        return self.bias_table[self.index].reshape(n, n, self.heads).permute(2, 0, 1)[None]

    def masked_bias(self, B: int, H: int, W: int) -> Tensor:
        """The bias for every window of the shifted map, [B * nW, heads, N, N]; unshifted [1, heads, N, N]."""
        bias = self.bias()
        if not self.shift:
            return bias
        bias = bias + shift_mask(H, W, self.window, self.shift).to(bias)  # [nW, heads, N, N]
        return bias.repeat(B, 1, 1, 1)

    def fused(self, x: Tensor) -> bool:
        supported = self.head_dim in (16, 32) and self.window <= 8
        return supported and not self.exportable and has_kernel(x)

    def forward(self, x: Tensor) -> Tensor:
        if not self.fused(x):
            return self.plain(x)
        qkv = self.qkv(x).unflatten(-1, (3, -1, self.head_dim))
        return self.proj(window_attention(qkv, self.bias_table, self.window, self.shift).flatten(-2))

    def plain(self, x: Tensor) -> Tensor:
        B, H, W, _ = x.shape
        bias = self.masked_bias(B, H, W)
        # Windows are cut before the projection: this moves a third of the bytes of cutting q, k and v.
        return self.joined(self.of_windows(self.cut(x), bias), B, H, W)

    def cut(self, x: Tensor) -> Tensor:
        """[B, H, W, C], shifted -> its windows [B * nW, N, C]."""
        B, H, W, C = x.shape
        window = self.window
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        x = x.reshape(B, H // window, window, W // window, window, C).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(-1, window**2, C)

    def joined(self, x: Tensor, B: int, H: int, W: int) -> Tensor:
        """`cut` undone: [B * nW, N, C] -> [B, H, W, C]."""
        window, C = self.window, x.shape[-1]
        x = x.reshape(B, H // window, W // window, window, window, C).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(B, H, W, C)
        return torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x

    def of_windows(self, x: Tensor, bias: Tensor) -> Tensor:
        """Attention and projection in each window [B * nW, N, C]; bias: [1 or B * nW, heads, N, N]."""
        N, C = x.shape[1:]
        qkv = self.qkv(x).reshape(-1, N, 3, self.heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B * nW, heads, N, D] each
        if self.exportable:
            score = q @ k.transpose(-2, -1) * self.head_dim**-0.5 + bias
            out = score.softmax(-1) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.proj(out.transpose(1, 2).reshape(-1, N, C))


def weights(*layers: nn.Module) -> Any:
    """Weight and bias of each layer in turn: the arguments of the fused operations."""
    return [parameter for layer in layers for parameter in layer.parameters()]


class GlobalBlock(nn.Module):
    """Pre-norm transformer block on a [B, H, W, C] map; its second half is fused where there is a kernel."""

    def __init__(self, dim: int, head_dim: int, window: int, shift: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = WindowAttention(dim, head_dim, window, shift)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        if self.attention.exportable:
            return self.in_windows(x)
        x = x + self.attention(self.norm1(x))
        layers = weights(self.norm2, *self.mlp)
        if not has_block_kernel(x, x.shape[-1], hidden=len(layers[3])):
            return x + self.mlp(self.norm2(x))
        return mlp_block(x, *layers, eps=self.norm2.eps)

    def in_windows(self, x: Tensor) -> Tensor:
        """The same with windows cut around the whole block, for export.

        Between three-dimensional tensors OpenVINO's CPU plugin has no order of memory to choose; given the
        map it converts to its order for images and back around each normalisation, a quarter of the time.
        """
        attention = self.attention
        bias = attention.masked_bias(*x.shape[:3])
        y = attention.cut(x)
        y = y + attention.of_windows(self.norm1(y), bias)
        y = y + self.mlp(self.norm2(y))
        return attention.joined(y, *x.shape[:3])


class LocalBlock(nn.Module):
    """Depthwise 3x3, then a pointwise expansion, on [B, C, H, W]; one fused operation where it has a
    kernel."""

    def __init__(self, dim: int, activation: str = "gelu") -> None:
        super().__init__()
        self.exportable = False
        self.activation = activation
        self.depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.expand = nn.Conv2d(dim, 2 * dim, 1)
        self.reduce = nn.Conv2d(2 * dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.exportable or not has_block_kernel(x, x.shape[1], self.expand.out_channels):
            return x + self.reduce(ACTIVATIONS[self.activation](self.expand(self.depthwise(x))))
        return local_block(x, *weights(self.depthwise, self.expand, self.reduce), activation=self.activation)


def _with_third_plane(model: nn.Module, tensors: dict[str, Any], prefix: str, *_: Any) -> None:
    """A stem of two lumas, as checkpoints of before have it, reads the third plane with weights of 0."""
    key = f"{prefix}stem.weight"
    stem = tensors.get(key)
    if stem is not None and stem.shape[1] == 8:
        tensors[key] = F.pad(stem, (0, 0, 0, 0, 0, 4))


class LAGN(nn.Module):
    """forward(a, b): [B, 1, H, W] and [B, 2, H, W] tensors in [0, 1] -> fused [B, 1, H, W] in [0, 1].

    b's planes are those of `colour.planes`; of one plane, b is grey. H and W must be multiples of
    `config.multiple` (32); `tiling.padded` does that.
    """

    def __init__(self, config: LAGNConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or LAGNConfig()
        self.stem = nn.Conv2d(4 * PLANES, c.local_dim, 3, padding=1)
        self.local = nn.Sequential(*[LocalBlock(c.local_dim, c.activation) for _ in range(c.local_depth)])
        self.pool = c.stride // 2  # of the stem's map
        self.embed = nn.Conv2d(c.local_dim, c.global_dim, self.pool, stride=self.pool)
        self.blocks = nn.Sequential(
            *[
                GlobalBlock(c.global_dim, c.head_dim, c.window, shift=c.window // 2 * (i % 2))
                for i in range(c.global_depth)
            ]
        )
        self.unembed = nn.Conv2d(c.global_dim, self.pool**2 * c.local_dim, 1)
        self.gate = nn.Conv2d(2 * c.local_dim, c.local_dim, 1)
        self.decoder = nn.Sequential(*[LocalBlock(c.local_dim, c.activation) for _ in range(c.decoder_depth)])
        self.head = nn.Conv2d(c.local_dim, 4, 3, padding=1)
        self.exporting = False
        self.register_load_state_dict_pre_hook(_with_third_plane)

    def exportable(self, on: bool = True) -> LAGN:
        """Use plain operations, with attention as matmul-softmax-matmul, which ONNX consumers recognise and
        fuse."""
        self.exporting = on
        for module in self.modules():
            if isinstance(module, WindowAttention | LocalBlock):
                module.exportable = on
        return self

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        b = b if b.shape[1] == 2 else torch.cat([b, torch.zeros_like(b)], 1)
        x = torch.cat([F.pixel_unshuffle(a, 2), F.pixel_unshuffle(b, 2)], 1)  # [B, 12, H/2, W/2]
        return self.fused(self.stem(x), a, b)

    def fused(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The fused image of the stem's map [B, C, H/2, W/2], of a and of both planes of b."""
        x = self.decoder(self.mixed(x))
        r = self.share(F.pixel_shuffle(self.head(x), 2).float())  # [B, 1, H, W]; from here on FP32
        luma = b[:, :1]
        weaker = torch.minimum(a, luma + b[:, 1:] if self.config.reach == "brightest" else luma)
        return (torch.maximum(a, luma) + r * weaker).clamp(0, 1)

    def share(self, x: Tensor) -> Tensor:
        """r in (-below, 1) of the head's output, with slope 1 at 0."""
        below = self.config.below
        if below == 1:
            return torch.tanh(x)
        # Where x < 0, below * tanh(x / below): the larger of x and x / below, the smaller of both results.
        r = torch.tanh(torch.maximum(x, x / below))
        return torch.minimum(r, below * r)

    def mixed(self, x: Tensor) -> Tensor:
        """Both branches over the stem's map, or one of them, [B, C, H/2, W/2] each."""
        if self.config.branches == "local":
            return self.local(x)
        y = self.embed(x).permute(0, 2, 3, 1)  # [B, H/stride, W/stride, C]
        y = self.blocks(y).permute(0, 3, 1, 2)
        glob = F.pixel_shuffle(self.unembed(y), self.pool)
        if self.config.branches == "global":
            return glob
        local = self.local(x)
        if self.exporting or not has_block_kernel(local, local.shape[1], local.shape[1]):
            gate = torch.sigmoid(self.gate(torch.cat([local, glob], 1)))
            return gate * local + (1 - gate) * glob
        return gated_mix(local, glob, *weights(self.gate))
