"""The terms of the loss for what a reader needs: colour, MRI detail under uptake, soft tissue, lesions.

Images are [B, 1, H, W] float32 in [0, 1] and colour [B, 3, H, W] gamma-coded RGB; every loss is [B]. They are
differentiable forms of the measures that judge a fused picture; the masks come from the sources alone.
G(x, y) = 2 sum xy / (sum x^2 + sum y^2) is 1 only for x = y: it punishes loss, reversal and amplification
alike, where a correlation sees neither a faint nor an exaggerated copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mmif_trt.measure.colourspace import LMS_OF_RGB, OKLAB_OF_LMS, WHITE_D65, XYZ_OF_RGB
from mmif_trt.stages.colour import LUMA_WEIGHTS
from mmif_trt.train.losses import blur

TOP_UPTAKE = 0.8  # quantile of the uptake over the foreground from which on it is strong
FOREGROUND_RGB, FOREGROUND_UPTAKE = 8 / 255, 0.08
DETAIL_SIGMA_PX = 2.5
SOFT_CT = (20 / 255, 170 / 255)  # grey and white matter, fluid and oedema of a brain window
BONE = SOFT_CT[1]  # from here on
SOFT_MRI, SOFT_SLOPE, SOFT_MARGIN_PX = 10 / 255, 6 / 255, 2
TINY = 1e-6
CHROMA_MIN = 0.04  # Oklab: below it there is no hue to keep
WASHED = 0.65  # of the chroma; the measure takes .5
LINEAR_SRGB, LINEAR_LIGHTNESS = 0.04045, (6 / 29) ** 3  # where the curves of sRGB and CIELAB turn into lines
ACTIVITY_GAIN = 1.05  # over the pixel maximum
LIKENESS_SIDE_PX, LIKENESS_SD = 7, 0.5 / 255  # the window of the SSIM of published tables, and half a level
COLOUR_TOP, DETAIL_TOP = 10.0, 2.0  # how much more a pixel of the strongest fifth counts
VIVID_ENOUGH = 0.7  # of the tracer's saturation
COLOUR_ENOUGH = 0.75  # of the chroma, outside that fifth: the MRI may have the rest for its light


def similarity(x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
    """G of x and y [B, C, H, W] over all but the batch, each pixel weighted: [B]; 0 where both are 0."""
    weight = torch.ones_like(x[:, :1]) if weight is None else weight
    both = (weight * x * y).sum((1, 2, 3))
    return 2 * both / ((weight * (x * x + y * y)).sum((1, 2, 3)) + TINY)


def luma(rgb: Tensor) -> Tensor:
    """BT.601 luma [B, 1, H, W] of [B, 3, H, W]."""
    weights = rgb.new_tensor(LUMA_WEIGHTS)[:, None, None]
    return (rgb * weights).sum(1, keepdim=True)


def colour_share(y: Tensor, rgb: Tensor) -> Tensor:
    """The share s of rgb's chroma that `colour.recombine` keeps under luma y: [B, 1, H, W] in [0, 1]."""
    grey = luma(rgb)
    above = (rgb.amax(1, keepdim=True) - grey).clamp(min=TINY)
    below = (grey - rgb.amin(1, keepdim=True)).clamp(min=TINY)
    return torch.minimum((1 - y) / above, y / below).clamp(0, 1)


def recombined(y: Tensor, rgb: Tensor) -> Tensor:
    """`colour.recombine` in torch: luma y under the chroma of rgb, [B, 3, H, W]."""
    return y + colour_share(y, rgb) * (rgb - luma(rgb))


def linear_light(rgb: Tensor) -> Tensor:
    """Linear light of gamma-coded sRGB in [0, 1]."""
    curved = ((rgb.clamp(min=LINEAR_SRGB) + 0.055) / 1.055) ** 2.4
    return torch.where(rgb <= LINEAR_SRGB, rgb / 12.92, curved)


def cube_root(x: Tensor) -> Tensor:
    """CIELAB's f: the cube root, a line near black."""
    curved = x.clamp(min=LINEAR_LIGHTNESS) ** (1 / 3)
    return torch.where(x <= LINEAR_LIGHTNESS, x * (29 / 6) ** 2 / 3 + 4 / 29, curved)


def lightness(rgb: Tensor) -> Tensor:
    """L* / 100 of sRGB in [0, 1]: [B, 1, H, W]."""
    weights = rgb.new_tensor(XYZ_OF_RGB[1])[:, None, None]
    return 1.16 * cube_root((linear_light(rgb) * weights).sum(1, keepdim=True)) - 0.16


def lab(rgb: Tensor) -> Tensor:
    """CIELAB [B, 3, H, W] of sRGB [B, 3, H, W] in [0, 1]: L* 0 to 100."""
    to_xyz = rgb.new_tensor(XYZ_OF_RGB) / rgb.new_tensor(WHITE_D65)[:, None]
    x, y, z = cube_root(torch.einsum("ij,bjhw->bihw", to_xyz, linear_light(rgb))).unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def uptake_masks(rgb: Tensor, uptake: Tensor, strong: Tensor) -> tuple[Tensor, Tensor]:
    """Foreground of the tracer, and the part of it with the strongest uptake; both [B, 1, H, W] of 0 and 1.

    uptake: the place of each pixel's colour on its palette, [B, 1, H, W] in [0, 1]; its rank is what counts.
    strong: [B], the uptake that the strongest fifth of the whole slice reaches: a crop may have more or less.
    """
    foreground = (rgb.amax(1, keepdim=True) > FOREGROUND_RGB) & (uptake > FOREGROUND_UPTAKE)
    top = foreground & (uptake >= strong[:, None, None, None])
    return foreground.to(rgb), top.to(rgb)


def oklab(rgb: Tensor) -> Tensor:
    """Oklab [B, 3, H, W] of sRGB [B, 3, H, W] in [0, 1] (B. Ottosson, 2020): lightness, a, b."""
    light = linear_light(rgb)
    cone = torch.einsum("ij,bjhw->bihw", rgb.new_tensor(LMS_OF_RGB), light)
    return torch.einsum("ij,bjhw->bihw", rgb.new_tensor(OKLAB_OF_LMS), (cone + TINY) ** (1 / 3))


def along_hue(mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """The share of a chroma that another has along its hue, and how strong it is, 0 where it has no hue to
    keep; both [B, 1, H, W]. mine, theirs: Oklab's a and b, [B, 2, H, W]."""
    power = theirs.square().sum(1, keepdim=True)
    share = (mine * theirs).sum(1, keepdim=True) / power.clamp(min=CHROMA_MIN**2)
    return share, (power + TINY**2).sqrt() * (power > CHROMA_MIN**2)


def colour_loss(coloured: Tensor, rgb: Tensor, foreground: Tensor, top: Tensor) -> Tensor:
    """1 minus the share of the tracer's chroma, along its hue, that the coloured picture has; 0 for none.

    p = ab_F . ab_B / |ab_B|^2 in Oklab; min(p, 1 / p) counts, weighted by |ab_B|, under the top COLOUR_TOP
    times more, outside it up to COLOUR_ENOUGH alone, and a pixel that is nearly washed out (p < WASHED) costs
    twice. A crop without any of the top counts as what it is, the smaller part of a slice.
    """
    share, chroma = along_hue(oklab(coloured)[:, 1:], oklab(rgb)[:, 1:])
    weight = (foreground + COLOUR_TOP * top) * chroma
    usual = (1 + COLOUR_TOP * (1 - TOP_UPTAKE)) * (foreground * chroma).sum((1, 2, 3))
    kept = torch.minimum(share, 1 / share.clamp(min=1))
    lost = torch.where(top > 0, 1 - kept, (COLOUR_ENOUGH - kept).clamp(min=0)) + (WASHED - share).clamp(min=0)
    return (weight * lost).sum((1, 2, 3)) / (torch.maximum(weight.sum((1, 2, 3)), usual) + TINY)


def saturation_loss(coloured: Tensor, rgb: Tensor, uptake: Tensor, strong: Tensor) -> Tensor:
    """How far the saturation of the tracer's colours falls short of VIVID_ENOUGH of what it was; 0 for none.

    Chroma along the hue, by lightness, both in Oklab. A dark red that a bright MRI lights up has all its
    chroma and is pink. Weighted by the tracer's chroma. What a picture must give up for it is light, not
    chroma, so it has a weight of its own.
    """
    foreground, _ = uptake_masks(rgb, uptake, strong)
    (light, mine), (own_light, theirs) = (oklab(x).tensor_split([1], 1) for x in (coloured, rgb))
    kept, chroma = along_hue(mine, theirs)
    vivid = kept * own_light / light.clamp(min=CHROMA_MIN)
    weight = foreground * chroma
    return (weight * (VIVID_ENOUGH - vivid).clamp(min=0)).sum((1, 2, 3)) / (weight.sum((1, 2, 3)) + TINY)


def detail_under_uptake_loss(coloured: Tensor, a: Tensor, weight: Tensor) -> Tensor:
    """1 - G of the fine structure (within 2.5 px) of the coloured picture's lightness and the MRI's."""
    f, mri = lightness(coloured), lightness(a.expand(-1, 3, -1, -1))
    low_f, low_mri = blur(torch.cat([f, mri]), DETAIL_SIGMA_PX).chunk(2)
    return (1 - similarity(f - low_f, mri - low_mri, weight)) * weight.amax((1, 2, 3))


def gradients(x: Tensor) -> Tensor:
    """Central differences [B, 2, H, W] of [B, 1, H, W], 0 across the border."""
    dx = F.pad((x[..., 2:] - x[..., :-2]) / 2, (1, 1, 0, 0))
    dy = F.pad((x[..., 2:, :] - x[..., :-2, :]) / 2, (0, 0, 1, 1))
    return torch.cat([dx, dy], 1)


def soft_tissue(a: Tensor, b: Tensor) -> Tensor:
    """Where a CT b shows soft tissue without an edge of its own and the MRI shows something: [B, 1, H, W]."""
    there = ((b > SOFT_CT[0]) & (b < SOFT_CT[1])).to(b)
    side = 2 * SOFT_MARGIN_PX + 1
    inside = -F.max_pool2d(-there, side, 1, SOFT_MARGIN_PX)
    flat = gradients(blur(b, 1.0)).square().sum(1, keepdim=True) < SOFT_SLOPE**2
    return inside * flat * (a > SOFT_MRI)


def soft_tissue_loss(f: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """1 - G of the gradients of the fused image and the MRI inside the soft tissue of a CT; 0 for none."""
    mask = soft_tissue(a, b)
    return (1 - similarity(gradients(f), gradients(a), mask)) * mask.amax((1, 2, 3))


def bone_loss(f: Tensor, b: Tensor) -> Tensor:
    """Mean distance of the fused image to the CT over bone, in the range's unit; 0 where there is none."""
    bone = (b >= BONE).to(b)
    return ((f - b).abs() * bone).sum((1, 2, 3)) / bone.sum((1, 2, 3)).clamp(min=1)


def outside_loss(f: Tensor, a: Tensor, b: Tensor, foreground: Tensor) -> Tensor:
    """Mean distance of the fused image to the brighter source where the tracer shows nothing, in the range's
    unit; 0 where it shows something all over. The faint noise there is no uptake to mix in."""
    outside = 1 - foreground
    distance = (f - torch.maximum(a, b)).abs() * outside
    return distance.sum((1, 2, 3)) / outside.sum((1, 2, 3)).clamp(min=1)


def uneven_loss(f: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Mean distance of the fused image of flat sources, b as [B, 2, H, W], to what it may be. Grey ones: the
    brighter of them. Where b has a colour, any one level up to that: it may be darker to keep it."""
    luma, above = b.split(1, 1)
    most = torch.maximum(a, luma)
    level = torch.where(above > 0, torch.minimum(f.mean((2, 3), keepdim=True), most), most)
    return (f - level).abs().mean((1, 2, 3))


def activity_loss(f: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """How far the root mean square gradient of f falls short of 1.05 times that of the pixel maximum."""
    mine, most = (gradients(x).square().mean((1, 2, 3)) for x in (f, torch.maximum(a, b)))
    return (ACTIVITY_GAIN - ((mine + TINY) / (most + TINY)).sqrt()).clamp(min=0)


def likeness_loss(f: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """1 minus the mean SSIM of the fused image to both sources, with constants of half a level.

    Unlike `structure`, whose constants are of two levels, it sees the MRI's faint grain where a CT is flat:
    in bone at the end of the window, where the CT alone is right.
    """
    side, c1, c2 = LIKENESS_SIDE_PX, LIKENESS_SD**2 / 9, LIKENESS_SD**2

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, side, 1)

    at_f, power_f = mean(f), mean(f * f)
    total = torch.zeros_like(at_f)
    for x in (a, b):
        at_x = mean(x)
        spread = power_f - at_f**2 + mean(x * x) - at_x**2
        common = mean(f * x) - at_f * at_x
        total = total + (2 * at_f * at_x + c1) * (2 * common + c2) / (
            (at_f**2 + at_x**2 + c1) * (spread.clamp(min=0) + c2)
        )
    return 1 - total.mean((1, 2, 3)) / 2


@dataclass(frozen=True)
class FidelityWeights:
    """One weight per term for the modalities that have it; 0 omits a term. lesion_gain_ct is no weight:
    the gain up to which a lesion of the CT may show, as the MRI's structure hides an exact copy of a faint
    one."""

    colour_pet: float = 0.0
    colour_spect: float = 0.0
    saturation_pet: float = 0.0
    saturation_spect: float = 0.0
    uptake_detail_pet: float = 0.0
    uptake_detail_spect: float = 0.0
    soft_ct: float = 0.0
    bone_ct: float = 0.0
    activity_ct: float = 0.0
    outside_pet: float = 0.0
    outside_spect: float = 0.0
    likeness_ct: float = 0.0
    likeness_pet: float = 0.0
    likeness_spect: float = 0.0
    flat: float = 0.0
    lesion_gain_ct: float = 1.0
    lesion_surprise: float = 0.0  # how much more a lesion counts that the other modality does not explain
    lesions_ct: float = 0.0
    lesions_pet: float = 0.0
    lesions_spect: float = 0.0

    @property
    def lesions(self) -> dict[str, float]:
        return {"ct": self.lesions_ct, "pet": self.lesions_pet, "spect": self.lesions_spect}


def tracer_terms(
    f: Tensor, coloured: Tensor, a: Tensor, b: Tensor, rgb: Tensor, uptake: Tensor, strong: Tensor
) -> dict[str, Tensor]:
    """The terms [B] of PET and SPECT by name; the strongest fifth counts most."""
    foreground, top = uptake_masks(rgb, uptake, strong)
    return {
        "colour": colour_loss(coloured, rgb, foreground, top),
        "uptake_detail": detail_under_uptake_loss(coloured, a, foreground + DETAIL_TOP * top),
        "outside": outside_loss(f, a, b, foreground),
    }
