"""Lesions planted in training crops, in one source only, and the loss that asks the fused image for them.

Shapes and sizes are a separate family from that of the measure (`measure/shapes.py`), so that nothing is
fitted to the measure. A lesion of the tracer is a change of uptake, shown through the palette.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from mmif_trt.measure.reader import MARGIN_PX, NOISE_DELTA_E, REACH_PX, SHIFTS_PX
from mmif_trt.train.fidelity_losses import lab
from mmif_trt.train.losses import surprise
from mmif_trt.train.randomise import Crop, through

WINDOW_PX = 2 * REACH_PX + 1  # holds a lesion and all that the loss uses
MOST = {"a": 2, "b": 3}  # lesions per crop, by source
RADIUS_PX = (1.5, 8.0)
MRI_CONTRAST, CT_CONTRAST = (0.08, 0.6), (0.04, 0.3)  # of the range, log-uniform
UPTAKE_CONTRAST = (0.08, 0.45)  # of the palette
STRONG_UPTAKE = 0.8
SOFT, BONE = (0.08, 0.65), 0.78  # CT
BONE_REACH_PX = 13
MIN_CHANGE = 0.02  # a lesion that clipping almost removed does not count
JUST_SEEN, SEEN_SPREAD = 4.0, 0.7  # d' in the source of the lesions that count most, and its spread in logs
AT_RISK = 0.4  # a share under it costs twice: a lesion that fades is lost to the reader
TINY = 1e-5


@dataclass(frozen=True)
class Site:
    """One lesion: index of its crop within the originals, centre in px, and its source, "a" or "b"."""

    index: int
    y: int
    x: int
    source: str


def shape(rng: np.random.Generator) -> ndarray:
    """[WINDOW_PX, WINDOW_PX] float32 in [0, 1], 1 in the middle of the lesion: a blob with a wavy outline, a
    ring, a streak or a cluster, its border soft or sharp."""
    c = WINDOW_PX // 2
    y, x = np.mgrid[-c : c + 1, -c : c + 1].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    radius = np.exp(rng.uniform(*np.log(RADIUS_PX)))
    kind = rng.integers(4)
    if kind == 0:  # wavy blob
        turn, waves = np.arctan2(v, u), rng.uniform(0, 0.25, 2)
        outline = 1 + waves[0] * np.cos(2 * turn + 1) + waves[1] * np.cos(3 * turn)
        distance = np.hypot(u, v * rng.uniform(1, 2)) - radius * outline
    elif kind == 1:  # ring
        radius = max(radius, 3.5)
        distance = np.abs(np.hypot(u, v * rng.uniform(1, 1.4)) - radius) - rng.uniform(1.0, 1.8)
    elif kind == 2:  # streak, slightly bent
        bend = rng.uniform(-0.04, 0.04)
        distance = np.maximum(np.abs(v - bend * u * u) - rng.uniform(0.8, 2.0), np.abs(u) - 1.5 * radius)
    else:  # cluster
        distance = np.full_like(u, WINDOW_PX)
        for _ in range(int(rng.integers(2, 6))):
            at = rng.uniform(-5, 5, 2)
            distance = np.minimum(distance, np.hypot(u - at[0], v - at[1]) - rng.uniform(1.0, 2.8))
    softness = rng.uniform(0.4, 0.35 * radius + 0.6)
    out = 1 / (1 + np.exp(np.clip(distance / softness, -30, 30)))
    out *= np.clip((c + 0.5 - np.hypot(y, x)) / 2, 0, 1)
    return (out / max(out.max(), 1e-3)).astype(np.float32)


def planted(crop: Crop, rng: np.random.Generator, index: int) -> tuple[Crop, list[Site]]:
    """The crop with lesions that do not meet, and where they are; none if no place is found."""
    a, rgb = crop.a.copy(), crop.rgb.copy()
    uptake = None if crop.uptake is None else crop.uptake.copy()
    free = np.ones(a.shape, bool)
    sites: list[Site] = []
    for source in "ba" if rng.random() < 0.5 else "ab":  # the first gets the better places
        for _ in range(MOST[source]):
            where = _places(crop, source, rng)
            spot = _spot(where & free, rng)
            if spot is None:
                break
            window = (slice(spot[0] - 14, spot[0] + 15), slice(spot[1] - 14, spot[1] + 15))
            lesion = shape(rng)
            if source == "a":
                changed = _in_grey(a[window], lesion, rng, MRI_CONTRAST)
                found = float(np.abs(changed - a[window]).max())
                a[window] = changed
            elif uptake is not None and crop.palette is not None:
                before = uptake[window]
                after = np.clip(before + _contrast(rng, UPTAKE_CONTRAST, before[14, 14]) * lesion, 0.02, 1)
                after = np.where(before > 0, after, before)
                step = through(crop.palette, after) - through(crop.palette, before)
                found = float(np.abs(after - before).max())
                uptake[window], rgb[window] = after, np.clip(rgb[window] + step, 0, 1)
            else:
                before = rgb[window][..., 0]
                changed = _in_grey(before, lesion, rng, CT_CONTRAST)
                found = float(np.abs(changed - before).max())
                rgb[window] = changed[..., None]
            if found > MIN_CHANGE:
                sites.append(Site(index, spot[0], spot[1], source))
            free[max(0, spot[0] - 28) : spot[0] + 29, max(0, spot[1] - 28) : spot[1] + 29] = False
    return replace(crop, a=a, rgb=rgb, uptake=uptake), sites


def _contrast(rng: np.random.Generator, span: tuple[float, float], level: float) -> float:
    """Signed; darker is likelier the brighter the place."""
    size = float(np.exp(rng.uniform(*np.log(span))))
    return -size if rng.random() < 0.2 + 0.6 * level else size


def _in_grey(
    before: ndarray, lesion: ndarray, rng: np.random.Generator, span: tuple[float, float]
) -> ndarray:
    """before [29, 29] with the lesion: added, or drawn toward its own level, which flattens the tissue."""
    change = _contrast(rng, span, float(before[14, 14]))
    if rng.random() < 0.3:
        level = np.clip(before[lesion > 0.3].mean() + change, 0.02, 1)
        after = before + rng.uniform(0.5, 1.0) * lesion * (level - before)
    else:
        after = before + change * lesion
    out: ndarray = np.clip(after, 0, 1)
    return out


def _places(crop: Crop, source: str, rng: np.random.Generator) -> ndarray:
    """bool [H, W]: one of the kinds of places where a lesion of this source matters, drawn at random."""
    grey = np.maximum(np.maximum(crop.rgb[..., 0], crop.rgb[..., 1]), crop.rgb[..., 2])
    if crop.uptake is not None:
        inside = (crop.uptake > 0.08) & (grey > 8 / 255)
        if source == "b":
            return inside
        if rng.random() < 0.6 and inside.any():
            return inside & (crop.uptake >= np.quantile(crop.uptake[inside], STRONG_UPTAKE)) & (crop.a > 0.02)
        return crop.a > 0.06
    bone = (grey > BONE).astype(np.uint8)
    near = cv2.dilate(bone, np.ones((2 * BONE_REACH_PX + 1,) * 2, np.uint8)) > 0
    soft = (grey > SOFT[0]) & (grey < SOFT[1])
    if source == "b":
        return soft & (crop.a > 0.02)
    if rng.random() < 0.5:
        return near & (bone == 0) & (crop.a > 0.06)
    return soft & (crop.a > 0.06)


def _spot(where: ndarray, rng: np.random.Generator) -> tuple[int, int] | None:
    """A place (y, x) whose window lies inside, or None."""
    inner = where[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]
    found = np.flatnonzero(inner)
    if not len(found):
        return None
    y, x = divmod(int(found[rng.integers(len(found))]), inner.shape[1])
    return y + MARGIN_PX, x + MARGIN_PX


class Windows:
    """Cuts the squares around every site out of images, all at once: a slice each would launch hundreds of
    kernels on a GPU."""

    def __init__(self, sites: list[Site], device: torch.device) -> None:
        place = torch.tensor([(s.index, s.y, s.x) for s in sites]).to(device)
        self._index, self._y, self._x = place.unbind(1)

    def __call__(self, images: Tensor, reach_px: int = REACH_PX) -> Tensor:
        """[L, C, 2 reach + 1, 2 reach + 1] around each site in [n, C, H, W]."""
        offset = torch.arange(-reach_px, reach_px + 1, device=images.device)
        rows = (self._y[:, None] + offset)[:, None, :, None]
        columns = (self._x[:, None] + offset)[:, None, None, :]
        channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
        return images[self._index[:, None, None, None], channel, rows, columns]


def lesion_loss(
    coloured: Tensor, a: Tensor, rgb: Tensor, sites: list[Site], gain_most: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What is lost of each lesion, [L], 0 to 3.4, and how much the lesion counts, [L] with mean 1.

    Half of 1 - G of the change that the lesion makes in the fused picture and in its own source, plus the
    share of its detectability that is lost, a share under AT_RISK twice; a reversed lesion costs more than a
    lost one. coloured: the fused picture in its colours, rgb: the other source, [2 n, 3, H, W]; a:
    [2 n, 1, H, W]; the second n with lesions. G asks for the right sign and size, the reader of
    `detectability` for as much more as the other source's structure hides. gain_most [L]: up to this gain, at
    least 1, G takes more of the lesion for the right size; None: no more than the source has. Lesions that
    the source barely shows, or that nothing could hide, count less than those of a d' near JUST_SEEN.
    """
    n = len(a) // 2
    from_a = torch.tensor([s.source == "a" for s in sites]).to(a.device)[:, None, None, None]
    windows = Windows(sites, a.device)

    def both(images: Tensor) -> tuple[Tensor, Tensor]:
        return windows(images[:n], MARGIN_PX), windows(images[n:])

    fused = both(coloured)
    source = tuple(
        torch.where(from_a, x.expand(-1, 3, -1, -1), y) for x, y in zip(both(a), both(rgb), strict=True)
    )
    x, y = (_zero_mean(with_it - _middle(without)) for without, with_it in (fused, source))
    if gain_most is not None:
        gain = (x * y).sum((1, 2, 3)) / ((y * y).sum((1, 2, 3)) + TINY)
        y = y * torch.minimum(gain.detach().clamp(min=1), gain_most)[:, None, None, None]
    power = (x * x + y * y).sum((1, 2, 3))
    agreement = 2 * (x * y).sum((1, 2, 3)) / (power + TINY)
    seen = detectability(*source).clamp(min=TINY)
    share = (detectability(*fused) / seen).clamp(max=1) * agreement.detach().sign()
    lost = (1 - agreement) / 2 + 1 - share + (AT_RISK - share).clamp(0, AT_RISK)
    counts = torch.exp(-((seen / JUST_SEEN).log() ** 2) / (2 * SEEN_SPREAD**2)) + TINY
    return lost, counts / counts.mean()


def surprise_of(
    sites: list[Site], a: Tensor, b: Tensor, generated: tuple[Tensor, Tensor], known: Tensor, strength: float
) -> Tensor:
    """How much each lesion counts by what the other modality does not explain of it, [L] with mean 1.

    1 + strength * surprise in the middle of the lesion, of its own source; 1 where nothing is expected. a, b:
    [2 n, 1, H, W], generated: what the diffusion model expects them to be, known [2 n] where it does.
    """
    maps = [surprise(*x) for x in zip((a, b), generated, strict=True)]
    n = len(a) // 2
    at = [maps["ab".index(s.source)][n + s.index, 0, s.y, s.x] * known[s.index].to(a) for s in sites]
    counts = 1 + strength * torch.stack(at)
    return counts / counts.mean()


def detectability(without: Tensor, with_it: Tensor) -> Tensor:
    """d' [L] of a reader who knows what the lesion does to the picture, in CIELAB, with noise of his own.

    without [L, 3, 33, 33], with_it [L, 3, 29, 29], in [0, 1]. Template w: the change less its mean, within
    14 px; d' = w . change / sqrt(variance of w's answer to the lesion-free picture at 25 shifts + 9 w . w),
    as `measure/reader.py` has it.
    """
    around, change = lab(without), lab(with_it)
    change = change - _middle(around)
    y, x = torch.meshgrid(*[torch.arange(-REACH_PX, REACH_PX + 1.0)] * 2, indexing="ij")
    inside = (torch.hypot(y, x) <= REACH_PX).to(change)
    template = (change - (change * inside).sum((2, 3), keepdim=True) / inside.sum()) * inside
    answers = []
    for down in SHIFTS_PX:
        for across in SHIFTS_PX:
            top, left = SHIFTS_PX[-1] + down, SHIFTS_PX[-1] + across
            shifted = around[..., top : top + WINDOW_PX, left : left + WINDOW_PX]
            answers.append((template * shifted).sum((1, 2, 3)))
    power = template.square().sum((1, 2, 3))
    noise = torch.stack(answers).var(0, correction=0) + NOISE_DELTA_E**2 * power
    signal = (template * change).sum((1, 2, 3))
    return signal / (noise + TINY).sqrt()


def _middle(x: Tensor) -> Tensor:
    """The inner 29 x 29 px of [L, C, 33, 33]."""
    least = MARGIN_PX - REACH_PX
    return x[..., least:-least, least:-least]


def _zero_mean(x: Tensor) -> Tensor:
    return x - x.mean((2, 3), keepdim=True)
