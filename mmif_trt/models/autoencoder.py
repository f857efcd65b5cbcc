"""KL-regularised autoencoders, one per modality, into one latent shape at a quarter of the resolution.

Our design, after latent diffusion (Rombach et al., CVPR 2022). Modalities share no weights: the diffusion
model should find what MRI and PET have in common; a shared encoder would assume it. Eight channels, because
four cannot hold these slices: a linear code of 4, 6 or 8 numbers per 4x4 block reproduces MRI with 24.6, 28.1
and 31.0 dB.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmif_trt.image import MODALITIES

KINDS = MODALITIES
STRIDE = 4  # pixels per latent position


@dataclass(frozen=True)
class AutoencoderConfig:
    """Dimensions of every encoder and decoder; stored beside the weights."""

    dim: int = 48
    depth: int = 3
    channels: int = 8  # of the latent of one image

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a GELU, on [B, C, H, W]; no normalisation, which would change grey
    levels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(dim, dim, 3, padding=1)
        self.second = nn.Conv2d(dim, dim, 3, padding=1)
        nn.init.zeros_(self.second.weight)  # starts as the identity

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.gelu(self.first(x)))


class ImageAutoencoder(nn.Module):
    """One modality: [B, 1, H, W] in [0, 1] <-> latent [B, channels, H/4, W/4]; H and W multiples of 4."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        dim, depth = config.dim, config.depth
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(STRIDE),
            nn.Conv2d(STRIDE**2, dim, 3, padding=1),
            *[ResidualBlock(dim) for _ in range(depth)],
            nn.Conv2d(dim, 2 * config.channels, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(config.channels, dim, 3, padding=1),
            *[ResidualBlock(dim) for _ in range(depth)],
            nn.Conv2d(dim, 2 * dim, 1),
            nn.PixelShuffle(2),
            *[ResidualBlock(dim // 2) for _ in range(depth)],
            nn.Conv2d(dim // 2, 4, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latent's distribution, float32."""
        mean, log_variance = self.encoder(x).float().chunk(2, 1)
        return mean, log_variance.clamp(-20, 4)

    def decode(self, z: Tensor) -> Tensor:
        """Not clamped: training needs the gradient outside [0, 1]."""
        return self.decoder(z).float()


class Autoencoder(nn.Module):
    """`encode(kind, x)` and `decode(kind, z)` for each of KINDS.

    `encode` returns the mean of the latent divided by `scale[kind]`, its standard deviation over the training
    foreground, so that the diffusion model sees unit variance.
    """

    scale: Tensor  # [len(KINDS)]

    def __init__(self, config: AutoencoderConfig | None = None) -> None:
        super().__init__()
        self.config = config or AutoencoderConfig()
        self.images = nn.ModuleDict({kind: ImageAutoencoder(self.config) for kind in KINDS})
        self.register_buffer("scale", torch.ones(len(KINDS)))

    def encode(self, kind: str, x: Tensor) -> Tensor:
        """x [B, 1, H, W] in [0, 1] -> [B, channels, H/4, W/4] of about unit variance."""
        mean, _ = self.images[kind].moments(x)  # type: ignore[operator, union-attr]
        return mean / self.scale[KINDS.index(kind)]

    def decode(self, kind: str, z: Tensor) -> Tensor:
        """z [B, channels, H/4, W/4] -> [B, 1, H, W] in [0, 1]."""
        x: Tensor = self.images[kind].decode(z * self.scale[KINDS.index(kind)])  # type: ignore
        return x.clamp(0, 1)
