"""The terms of the fusion loss, in plain torch. Every image is [B, 1, H, W] float32 in [0, 1]; every loss is
[B].

a is the MRI, b the luma of the other modality, f the fused image. The choice of terms and weights is our
design.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mmif_trt.ops.fusion_loss import fusion_loss as pixel_terms

FOREGROUND = 2 / 255  # as the function-kept metric takes it
FUNCTION_SIGMA_PX = 3.0


@dataclass(frozen=True)
class LossWeights:
    """One weight a term, for each modality where it must differ.

    CT asks for more intensity and complement and less structure, or bone is dimmed towards the MRI's dark;
    function has no meaning there.
    """

    intensity: float = 1.0
    intensity_ct: float = 1.0
    gradient: float = 1.0
    structure: float = 1.0
    structure_ct: float = 1.0
    complement: float = 0.4
    complement_ct: float = 0.4
    function_pet: float = 0.1
    function_spect: float = 0.25
    rounding: float = 0.0  # the second stage of training sets it

    def per_image(self, modalities: list[str], like: Tensor) -> dict[str, Tensor]:
        """Each modality-dependent term's weight [B]."""
        table = {
            "intensity": {"ct": self.intensity_ct, "pet": self.intensity, "spect": self.intensity},
            "structure": {"ct": self.structure_ct, "pet": self.structure, "spect": self.structure},
            "complement": {"ct": self.complement_ct, "pet": self.complement, "spect": self.complement},
            "function": {"ct": 0.0, "pet": self.function_pet, "spect": self.function_spect},
        }
        return {term: like.new_tensor([weight[m] for m in modalities]) for term, weight in table.items()}


def gaussian(sigma_px: float, radius_px: int) -> Tensor:
    offset = torch.arange(-radius_px, radius_px + 1, dtype=torch.float32)
    kernel = torch.exp(-(offset**2) / (2 * sigma_px**2))
    return kernel / kernel.sum()


def separable_filter(x: Tensor, kernel: Tensor) -> Tensor:
    """The same 1-D kernel along both axes of every channel; valid part only."""
    kernel = kernel.to(x).expand(x.shape[1], 1, 1, -1)
    x = F.conv2d(x, kernel, groups=x.shape[1])
    return F.conv2d(x, kernel.transpose(2, 3), groups=x.shape[1])


def correlation(x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    """Pearson correlation of each image, over the mask where given; 0 where either is constant."""
    mask = torch.ones_like(x) if mask is None else mask
    count = mask.sum((1, 2, 3), keepdim=True).clamp(min=1)
    x = (x - (x * mask).sum((1, 2, 3), keepdim=True) / count) * mask
    y = (y - (y * mask).sum((1, 2, 3), keepdim=True) / count) * mask
    power = (x * x).sum((1, 2, 3)) * (y * y).sum((1, 2, 3))
    return (x * y).sum((1, 2, 3)) / (power + 1e-6).sqrt()


def complement_loss(f: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """1 minus the mean correlation of each source with what the fused image adds to the other one.

    What f has beyond b should be a, and the reverse: the sum of correlations of differences (Aslantas and
    Bendes, AEU 69:1890, 2015) as a loss.
    """
    return 1 - (correlation(a, f - b) + correlation(b, f - a)) / 2


def function_loss(f: Tensor, b: Tensor) -> Tensor:
    """1 minus the correlation of f and b over b's foreground, both blurred: uptake must stay readable in the
    luma."""
    radius_px = int(3 * FUNCTION_SIGMA_PX)
    pair = F.pad(torch.cat([f, b], 1), (radius_px,) * 4, mode="replicate")
    f_low, b_low = separable_filter(pair, gaussian(FUNCTION_SIGMA_PX, radius_px)).split(1, 1)
    return 1 - correlation(f_low, b_low, (b > FOREGROUND).to(b))


def rounding_loss(f: Tensor, f_bf16: Tensor) -> Tensor:
    """Mean of the largest thousandth of |f - f_bf16|: what bfloat16 may change where it changes most.

    The mean difference is a hundred times under one 8-bit level; a few pixels at sharp edges are not, and
    those decide whether a console may run the network in bfloat16.
    """
    difference = (f - f_bf16).abs().flatten(1)
    return difference.topk(max(1, difference.shape[1] // 1000)).values.mean(1)


def fusion_loss(
    f: Tensor, a: Tensor, b: Tensor, modalities: list[str], weights: LossWeights
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum over the terms, mean over the batch, and each unweighted term for the log.

    modalities: one of "ct", "pet", "spect" for each image of the batch.
    """
    intensity, gradient, structure = pixel_terms(f, a, b).unbind(1)
    terms = {
        "intensity": intensity,
        "gradient": gradient,
        "structure": structure,
        "complement": complement_loss(f, a, b),
        "function": function_loss(f, b),
    }
    weight = weights.per_image(modalities, f)
    total = (
        weight["intensity"] * terms["intensity"]
        + weights.gradient * terms["gradient"]
        + weight["structure"] * terms["structure"]
        + weight["complement"] * terms["complement"]
        + weight["function"] * terms["function"]
    )
    return total.mean(), {name: term.mean().detach() for name, term in terms.items()}
