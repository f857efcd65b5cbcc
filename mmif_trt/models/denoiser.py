"""The denoiser of the latent diffusion: a small U-Net over the joined latents of both modalities.

Our design. Each half of z = (z_MRI, z_other) has its own time, after UniDiffuser (Bao et al., ICML 2023):
equal times denoise both, time 0 makes a half the condition, and full time drops a half. So one network models
p(z_MRI, z_other), both conditionals and both marginals.

    latent 2x2 to depth, place, 3x3 conv  1/8 of the picture's resolution
    two blocks, down                      each: convolutions told the times and the modality, window attention
    a block, down                         1/16
    two blocks, up, added                 1/32: one 8 x 8 window sees a whole slice of 256 x 256
    a block, up, joined with the skip
    two blocks, 3x3 conv, depth to 2x2    the clean latent, and from it v

The coarsest level and the position channels are needed: without them silhouettes did not look like heads.

The network predicts the clean latent, not the noise: a small picture fits through 64 channels, 64 channels of
noise do not (a first version, which predicted v, generated grainy images after 2,500 steps).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmif_trt import image
from mmif_trt.models.lagn import WindowAttention

MODALITIES = image.MODALITIES[1:]  # of the second half
TIMES = 1000  # training steps of the diffusion
MIN_SIGMA = 0.05  # below this share of noise v is computed as at it


@dataclass(frozen=True)
class DenoiserConfig:
    """Dimensions of the network; stored beside the weights."""

    channels: int = 8  # of each half
    dim: int = 64
    deep_dim: int = 128
    embedding: int = 128
    head_dim: int = 32
    window: int = 8

    @property
    def multiple(self) -> int:
        """Height and width of the latent must be a multiple of this: one whole window at the lowest level."""
        return 8 * self.window

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def alpha_sigma(t: Tensor) -> tuple[Tensor, Tensor]:
    """Share of signal and of noise at time t in [0, TIMES]: the cosine schedule, alpha^2 + sigma^2 = 1.

    Nichol and Dhariwal (ICML 2021) without their offset: alpha is 1 at time 0 and 0 at TIMES exactly, so
    that a given half is clean and a dropped half carries no signal.
    """
    angle = t.float() / TIMES * (math.pi / 2)
    return torch.cos(angle), torch.sin(angle)


def both_halves(z: Tensor, t_a: Tensor, t_b: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma of every channel of z, [B, 2 channels, 1, 1] in its type."""
    half = z.shape[1] // 2
    pairs = zip(alpha_sigma(t_a), alpha_sigma(t_b), strict=True)
    alpha, sigma = (torch.cat([s[:, None].expand(-1, half) for s in pair], 1) for pair in pairs)
    return alpha[..., None, None].to(z), sigma[..., None, None].to(z)


def time_features(t: Tensor, size: int) -> Tensor:
    """[B] in [0, TIMES] -> [B, size]: sines and cosines of geometrically spaced rates."""
    rate = torch.exp(torch.linspace(0, -math.log(TIMES), size // 2, device=t.device))
    angle = t.float()[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], 1)


def places(x: Tensor) -> Tensor:
    """[B, 4, h, w]: the position in [B, C, h, w], down and across in (-1, 1), and its squares."""
    height, width = x.shape[-2:]
    down, across = (((torch.arange(n, device=x.device) + 0.5) * 2 / n - 1).to(x) for n in (height, width))
    down, across = torch.broadcast_tensors(down[:, None], across[None])
    return torch.stack([down, across, down**2, across**2]).expand(len(x), -1, -1, -1)


class Block(nn.Module):
    """Two 3x3 convolutions, scaled and shifted by the embedding, then window attention: [B, C, H, W]."""

    def __init__(self, into: int, dim: int, config: DenoiserConfig, shift: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, into), nn.GroupNorm(8, dim)
        self.first = nn.Conv2d(into, dim, 3, padding=1)
        self.second = nn.Conv2d(dim, dim, 3, padding=1)
        self.told = nn.Linear(config.embedding, 2 * dim)
        self.skip = nn.Conv2d(into, dim, 1) if into != dim else nn.Identity()
        self.norm3 = nn.LayerNorm(dim)
        self.attention = WindowAttention(dim, config.head_dim, config.window, shift)
        for layer in (self.second, self.attention.proj):  # starts as the skip
            nn.init.zeros_(layer.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.told(embedding)[:, :, None, None].chunk(2, 1)
        y = self.first(F.silu(self.norm1(x)))
        y = self.norm2(y) * (1 + scale) + shift
        x = self.skip(x) + self.second(F.silu(y))
        tokens = x.permute(0, 2, 3, 1)
        return x + self.attention(self.norm3(tokens)).permute(0, 3, 1, 2)


class Denoiser(nn.Module):
    """forward(z, t_a, t_b, modality) -> v of both halves, shaped as z.

    z [B, 2 channels, h, w]: the noisy latents of MRI and other; h and w multiples of config.multiple.
    t_a, t_b [B] in [0, TIMES]: time of either half. modality [B] int64: index into MODALITIES.
    """

    def __init__(self, config: DenoiserConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or DenoiserConfig()
        self.modality = nn.Embedding(len(MODALITIES), c.embedding)
        self.times = nn.Sequential(
            nn.Linear(2 * c.embedding, c.embedding), nn.SiLU(), nn.Linear(c.embedding, c.embedding)
        )
        half = c.window // 2
        self.stem = nn.Conv2d(8 * c.channels + 4, c.dim, 3, padding=1)
        self.down = nn.ModuleList([Block(c.dim, c.dim, c, 0), Block(c.dim, c.dim, c, half)])
        self.shrink = nn.Conv2d(c.dim, c.deep_dim, 2, stride=2)
        self.deep = nn.ModuleList(
            [Block(c.deep_dim, c.deep_dim, c, 0), Block(c.deep_dim, c.deep_dim, c, half)]
        )
        self.shrink_again = nn.Conv2d(c.deep_dim, c.deep_dim, 2, stride=2)
        self.deepest = nn.ModuleList([Block(c.deep_dim, c.deep_dim, c, 0) for _ in range(2)])
        self.grow_again = nn.Conv2d(c.deep_dim, 4 * c.deep_dim, 1)
        self.grow = nn.Conv2d(c.deep_dim, 4 * c.dim, 1)
        self.up = nn.ModuleList([Block(2 * c.dim, c.dim, c, 0), Block(c.dim, c.dim, c, half)])
        self.norm = nn.GroupNorm(8, c.dim)
        self.head = nn.Conv2d(c.dim, 8 * c.channels, 3, padding=1)
        nn.init.zeros_(self.head.weight)

    def forward(self, z: Tensor, t_a: Tensor, t_b: Tensor, modality: Tensor) -> Tensor:
        size = self.config.embedding
        told = self.times(torch.cat([time_features(t_a, size), time_features(t_b, size)], 1))
        told = F.silu(told + self.modality(modality))
        x = F.pixel_unshuffle(z, 2)
        x = self.stem(torch.cat([x, places(x)], 1))
        for block in self.down:
            x = block(x, told)
        y = self.deep[0](self.shrink(x), told)
        w = self.shrink_again(y)
        for block in self.deepest:
            w = block(w, told)
        y = self.deep[1](y + F.pixel_shuffle(self.grow_again(w), 2), told)
        x = torch.cat([x, F.pixel_shuffle(self.grow(y), 2)], 1)
        for block in self.up:
            x = block(x, told)
        clean = F.pixel_shuffle(self.head(F.silu(self.norm(x))), 2).float()
        alpha, sigma = both_halves(z, t_a, t_b)
        return (alpha * z - clean) / sigma.clamp(min=MIN_SIGMA)
