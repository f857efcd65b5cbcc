"""The terms of the fusion loss, in plain torch. Every image is [B, 1, H, W] float32 in [0, 1]; every loss is
[B].

a is the MRI, b the luma of the other modality, f the fused image. Three relations link them and the images
that the diffusion model generates: `surprise` (generated and original), `original_fused_loss`, and
`generated_fused_loss`. The choice of terms and weights is our design.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from mmif_trt.ops import reference
from mmif_trt.ops.fusion_loss import fusion_loss as pixel_terms

PIXEL_TERMS = ("intensity", "gradient", "structure")  # of one operation, ops/fusion_loss.py
# SSIM's constants for structure, so small that contrast counts from two 8-bit levels up: with the usual ones
# (a standard deviation of 8 levels) the grey and white matter of a CT are flat.
FAINT_SD = 2 / 255
C1, C2 = FAINT_SD**2 / 9, FAINT_SD**2
EDGE_SLOPE, EDGE_MIDDLE = 15.0, 0.5  # Xydeas and Petrovic, Electron. Lett. 36:308, 2000: strength kept
ANGLE_SLOPE, ANGLE_MIDDLE = 22.0, 0.8  # and direction kept
FOREGROUND = 2 / 255  # as the function-kept metric takes it
FUNCTION_SIGMA_PX = 3.0
SURPRISE_SIGMA_PX, SURPRISE_LEVEL = 2.0, 0.1
STRONG_UPTAKE = 0.8  # as the detail-kept metric takes it: this quantile of the foreground and above


@dataclass(frozen=True)
class LossWeights:
    """One weight per term, and per modality where it must differ.

    Chosen on training pairs. CT is better off without the gradient of the stronger source: it paid for edges
    with the faint contrast of the brain. It has no function, and under its brightest fifth there is bone.
    A term with weight 0 throughout a batch is not computed, except for the three that are one operation.
    """

    intensity: float = 1.0
    intensity_ct: float = 1.0
    gradient: float = 2.0
    gradient_ct: float = 0.0
    structure: float = 1.5
    structure_ct: float = 2.5
    edge: float = 0.5
    edge_ct: float = 0.8
    complement: float = 0.4
    complement_ct: float = 0.2
    function_pet: float = 0.2
    function_spect: float = 1.0
    detail_pet: float = 0.2
    detail_spect: float = 0.1
    predictability: float = 0.0  # how much more a pixel weighs that the other modality does not explain
    generated_fused: float = 0.0  # gradient and structure of the generated pair
    rounding: float = 0.0  # a further forward pass, in the other precision
    repainted: float = 1.0  # share of them, less rounding, for crops in another palette or of no patient

    def per_image(self, modalities: list[str], like: Tensor) -> dict[str, Tensor]:
        """Each term's weight [B]."""
        ct = {"gradient": self.gradient_ct, "structure": self.structure_ct}
        ct |= {"intensity": self.intensity_ct, "complement": self.complement_ct, "edge": self.edge_ct}
        other = {term: getattr(self, term) for term in ct}
        table = {
            "ct": ct | {"function": 0.0, "detail": 0.0},
            "pet": other | {"function": self.function_pet, "detail": self.detail_pet},
            "spect": other | {"function": self.function_spect, "detail": self.detail_spect},
        }
        return {term: like.new_tensor([table[m][term] for m in modalities]) for term in table["ct"]}


@cache
def blur_matrix(length: int, sigma_px: float, device: torch.device) -> Tensor:
    """[length, length] float32: row y takes the Gaussian mean around y, cut at 3 sigma, border replicated.

    Two products with such matrices blur a [H, W] image, on the CPU in a fifth of the time of convolutions.
    Kept, because on a GPU to make and send it costs more than the blur.
    """
    radius_px = int(3 * sigma_px)
    offset = torch.arange(-radius_px, radius_px + 1)
    taps = torch.exp(-(offset.double() ** 2) / (2 * sigma_px**2))
    taps = (taps / taps.sum()).float().expand(length, -1)
    place = (torch.arange(length)[:, None] + offset).clamp(0, length - 1)
    return torch.zeros(length, length).scatter_add_(1, place, taps).to(device)


def blur(x: Tensor, sigma_px: float) -> Tensor:
    """Gaussian blur of [B, 1, H, W], border replicated."""
    down, across = (blur_matrix(length, sigma_px, x.device).to(x.dtype) for length in x.shape[2:])
    return down @ x @ across.T


def edge_loss(f: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """1 minus the share of both sources' edges that f has, in strength and direction, weighted by strength.

    The edge preservation of Xydeas and Petrovic with angles by |cos|, so that it has a gradient everywhere.
    """
    fx, fy = reference.sobel(f)
    f_strength = (fx * fx + fy * fy + 1e-8).sqrt()
    kept, there = torch.zeros_like(f), torch.zeros_like(f)
    for x, y in (reference.sobel(a), reference.sobel(b)):
        strength = (x * x + y * y + 1e-8).sqrt()
        ratio = torch.minimum(strength, f_strength) / torch.maximum(strength, f_strength)
        cosine = ((x * fx + y * fy).abs() / (strength * f_strength)).clamp(max=0.9999)
        along = 1 - torch.acos(cosine) / (math.pi / 2)
        keep = torch.sigmoid(EDGE_SLOPE * (ratio - EDGE_MIDDLE))
        kept = kept + strength * keep * torch.sigmoid(ANGLE_SLOPE * (along - ANGLE_MIDDLE))
        there = there + strength
    return 1 - kept.mean((1, 2, 3)) / there.mean((1, 2, 3))


def correlation(x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    """Pearson correlation of each image, over the mask if given; 0 if either is constant."""
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
    f_low, b_low = blur(torch.cat([f, b]), FUNCTION_SIGMA_PX).chunk(2)
    return 1 - correlation(f_low, b_low, (b > FOREGROUND).to(b))


def strong_uptake(foreground: Tensor) -> Tensor:
    """The lowest of these values that reaches their STRONG_UPTAKE quantile; 2, above every pixel, for
    none."""
    if not len(foreground):
        return foreground.new_tensor(2.0)
    return foreground.kthvalue(math.ceil(STRONG_UPTAKE * (len(foreground) - 1)) + 1).values


def detail_loss(f: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """1 minus the cosine between the gradients of f and a under strong uptake, the brightest fifth of b.

    The MRI's detail must stay readable where the tracer outshines it; 1 where b has no foreground.
    """
    threshold = torch.stack([strong_uptake(x[x > FOREGROUND]) for x in b])
    there = (b >= threshold[:, None, None, None]).to(b)
    (fx, fy), (ax, ay) = reference.sobel(f), reference.sobel(a)

    def inside(x: Tensor) -> Tensor:
        return (x * there).sum((1, 2, 3))

    power = inside(fx * fx + fy * fy) * inside(ax * ax + ay * ay)
    return 1 - inside(fx * ax + fy * ay) / (power + 1e-6).sqrt()


def rounding_loss(f: Tensor, f_bf16: Tensor) -> Tensor:
    """Mean of the largest thousandth of |f - f_bf16|: what bfloat16 may change where it changes most.

    The mean difference is a hundred times under one 8-bit level; a few pixels at sharp edges are not, and
    those decide whether a console may run the network in bfloat16.
    """
    difference = (f - f_bf16).abs().flatten(1)
    return difference.topk(max(1, difference.shape[1] // 1000)).values.mean(1)


def surprise(original: Tensor, generated: Tensor) -> Tensor:
    """Generated and original: what of an image the other modality does not explain, [B, 1, H, W] in [0, 1).

    The blurred distance to what the diffusion model made of it from the other image, one half at
    SURPRISE_LEVEL. Blurred, because a generated edge a pixel aside is no surprise.
    """
    distance = blur((original - generated).abs(), SURPRISE_SIGMA_PX)
    return distance / (distance + SURPRISE_LEVEL)


def original_fused_loss(f: Tensor, a: Tensor, b: Tensor, wa: Tensor | None, wb: Tensor | None) -> Tensor:
    """Original and fused: the three pixel terms [B, 3], each pixel of either source weighted."""
    return pixel_terms(f, a, b, wa, wb, C1, C2)


def generated_fused_loss(f: Tensor, generated_a: Tensor, generated_b: Tensor) -> Tensor:
    """Generated and fused: gradient plus structure [B] to the pair that the diffusion model expects.

    SSIM has its usual constants here, with which the faint noise of a generated image has no structure.
    """
    terms = pixel_terms(f, generated_a, generated_b)
    return terms[:, 1] + terms[:, 2]


def predictability_weights(
    a: Tensor, b: Tensor, generated: tuple[Tensor, Tensor], strength: float
) -> tuple[Tensor, Tensor]:
    """Weights of both sources' pixels: 1 + strength * surprise, over their common mean, so that the loss
    keeps its size."""
    wa, wb = (1 + strength * surprise(*x) for x in zip((a, b), generated, strict=True))
    mean = (wa + wb).mean((1, 2, 3), keepdim=True) / 2
    return wa / mean, wb / mean


def fusion_loss(
    f: Tensor,
    a: Tensor,
    b: Tensor,
    modalities: list[str],
    weights: LossWeights,
    generated: tuple[Tensor, Tensor] | None = None,
    known: Tensor | None = None,
    repainted: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum over the terms, mean over the batch, and each unweighted term for the log.

    modalities: one of "ct", "pet", "spect" for each image of the batch. generated: what the diffusion model
    made of a from b, and of b from a; needed where weights.predictability or weights.generated_fused is not
    0. known: [B] bool, for which images generated is that, and not the sources again; None: for all.
    repainted: [B] bool, which are in another palette than their archive's, or of no patient; None: none.
    """
    weight = weights.per_image(modalities, f)
    wa, wb = None, None
    if generated is not None and weights.predictability:
        wa, wb = predictability_weights(a, b, generated, weights.predictability)
    terms = dict(zip(PIXEL_TERMS, original_fused_loss(f, a, b, wa, wb).unbind(1), strict=True))
    if generated is not None and weights.generated_fused:
        terms["generated_fused"] = generated_fused_loss(f, *generated)
        weight["generated_fused"] = f.new_full((len(f),), weights.generated_fused)
        if known is not None:
            weight["generated_fused"] = weight["generated_fused"] * known
    compute: dict[str, Callable[[], Tensor]] = {
        "edge": lambda: edge_loss(f, a, b),
        "complement": lambda: complement_loss(f, a, b),
        "function": lambda: function_loss(f, b),
        "detail": lambda: detail_loss(f, a, b),
    }
    terms |= {name: compute[name]() for name in compute if weight[name].any()}
    total = sum((weight[name] * term for name, term in terms.items()), f.new_zeros(len(f)))
    if repainted is not None:
        total = total * torch.where(repainted, weights.repainted, 1.0)
    return total.mean(), {name: term.mean().detach() for name, term in terms.items()}
