"""Measures of a fused picture against its two sources: those of most published tables, and two of our own.

Everywhere a is the MRI, b the luma of the other source, f the fused luma: [H, W] on 0..255, taken as float64.
Pass f after rounding to 8 bit, as a viewer sees it. Higher is better in every measure.

mask: bool [H, W], the pixels to which a measure is restricted (each says how); None takes all.
Degenerate input gives no warning but these values: a correlation with a flat picture is 0 (nothing shared); a
mean or ratio over nothing (no source content, an empty mask, a picture smaller than the window) is nan,
because there was nothing to preserve, which is neither good nor bad.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy import ndarray

from mmif_trt.image import InputError

RANKED = ("EN", "SD", "SF", "MI", "SCD", "VIF", "Qabf", "SSIM2")  # the eight that published tables rank by
ALL = ("EN", "SD", "SF", "AG", "MI", "SCD", "CC", "VIF", "Qabf", "SSIM2", "SSIM255", "detail", "function")

BACKGROUND_MAX = 2.0  # grey levels: a source counts as foreground above this
FLAT_SD = 1e-9  # grey levels: below this a picture is flat and has no correlation
NAN = float("nan")


def _grey(*pictures: ndarray) -> tuple[ndarray, ...]:
    """float64, as uint8 differences wrap. Raises InputError unless finite, [H, W] and of one size."""
    out = tuple(np.asarray(p, dtype=np.float64) for p in pictures)
    shapes = [p.shape for p in out]
    if len(set(shapes)) != 1 or out[0].ndim != 2 or out[0].size == 0:
        raise InputError(f"metrics: shapes {', '.join(map(str, shapes))}; expected [H, W] of one size")
    if not all(np.isfinite(p).all() for p in out):
        raise InputError("metrics: NaN or infinite pixels; expected finite values on 0 to 255")
    return out


def _pick(x: ndarray, mask: ndarray | None) -> ndarray:
    return x.ravel() if mask is None else x[mask]


def _mean(x: ndarray, mask: ndarray | None = None) -> float:
    picked = _pick(x, mask)
    return float(picked.mean()) if picked.size else NAN


def _correlation(x: ndarray, y: ndarray, mask: ndarray | None = None) -> float:
    """Pearson's correlation; 0 where one side is flat, nan where the mask is empty."""
    x, y = _pick(x, mask), _pick(y, mask)
    if not x.size:
        return NAN
    x, y = x - x.mean(), y - y.mean()
    norms = np.sqrt(x @ x), np.sqrt(y @ y)
    if min(norms) <= FLAT_SD * np.sqrt(x.size):
        return 0.0
    return float(x @ y / (norms[0] * norms[1]))


def _codes(x: ndarray) -> ndarray:
    return np.clip(np.rint(x), 0, 255).astype(np.int64)


def _entropy_nats(codes: ndarray) -> float:
    if not codes.size:
        return NAN
    counts = np.bincount(codes)
    p = counts[counts > 0] / codes.size
    return float(abs(p @ np.log(p)))


def en(f: ndarray, mask: ndarray | None = None) -> float:
    """Entropy of the 256-bin histogram of round(f), bits. Mask: the pixels counted.

    Roberts, van Aardt, Ahmed, J. Appl. Remote Sens. 2 (2008) 023522.
    """
    (f,) = _grey(f)
    return _entropy_nats(_codes(_pick(f, mask))) / float(np.log(2))


def sd(f: ndarray, mask: ndarray | None = None) -> float:
    """Population standard deviation of f, grey levels. Mask: the pixels counted. Plain statistics."""
    (f,) = _grey(f)
    picked = _pick(f, mask)
    return float(picked.std()) if picked.size else NAN


def sf(f: ndarray, mask: ndarray | None = None) -> float:
    """Spatial frequency, grey levels: sqrt(mean(dx^2) + mean(dy^2)), first differences, each with its own
    count.

    Mask: the differences of two pixels that are both in it. nan for a picture one pixel wide or high.
    Eskicioglu, Fisher, IEEE Trans. Commun. 43 (1995) 2959.
    """
    (f,) = _grey(f)
    both_x = None if mask is None else mask[:, 1:] & mask[:, :-1]
    both_y = None if mask is None else mask[1:] & mask[:-1]
    return float(np.sqrt(_mean(np.diff(f, axis=1) ** 2, both_x) + _mean(np.diff(f, axis=0) ** 2, both_y)))


def ag(f: ndarray) -> float:
    """Average gradient, grey levels: mean of sqrt((gx^2 + gy^2) / 2), central differences.

    One-sided at the border; nan for a width or height of one pixel. Cui et al., Opt. Commun. 341 (2015) 199.
    """
    (f,) = _grey(f)
    if min(f.shape) < 2:
        return NAN
    gy, gx = np.gradient(f)
    return _mean(np.sqrt((gx**2 + gy**2) / 2))


def mi(a: ndarray, b: ndarray, f: ndarray, mask: ndarray | None = None) -> float:
    """Mutual information I(f; a) + I(f; b), nats, 256 x 256 joint histograms. Mask: the pixels counted.

    Tools that work in bits show 1.4427 times this. Qu, Zhang, Yan, Electron. Lett. 38 (2002) 313.
    """
    a, b, f = (_codes(_pick(x, mask)) for x in _grey(a, b, f))
    if not f.size:
        return NAN
    h_f = _entropy_nats(f)
    # Clamped at 0: for independent pictures the three entropies cancel only up to rounding.
    return sum(max(_entropy_nats(x) + h_f - _entropy_nats(256 * x + f), 0.0) for x in (a, b))


def scd(a: ndarray, b: ndarray, f: ndarray, mask: ndarray | None = None) -> float:
    """Sum of the correlations of differences, -2..2: corr(a, f - b) + corr(b, f - a). Mask: pixels used.

    Aslantas, Bendes, AEU Int. J. Electron. Commun. 69 (2015) 1890.
    """
    a, b, f = _grey(a, b, f)
    return _correlation(a, f - b, mask) + _correlation(b, f - a, mask)


def cc(a: ndarray, b: ndarray, f: ndarray) -> float:
    """Mean of corr(a, f) and corr(b, f), -1..1. Deshmukh, Bhosale, Int. J. Image Process. 4 (2010) 484."""
    a, b, f = _grey(a, b, f)
    return (_correlation(a, f) + _correlation(b, f)) / 2


def _inner(x: ndarray, radius: int) -> ndarray:
    """x without its border, as a 'valid' filter leaves it; empty if x is smaller than the window."""
    return x[radius : max(x.shape[0] - radius, radius), radius : max(x.shape[1] - radius, radius)]


def _valid_gaussian(x: ndarray, taps: ndarray) -> ndarray:
    return _inner(cv2.sepFilter2D(x, cv2.CV_64F, taps, taps), len(taps) // 2)


def _vif_terms(var_x: ndarray, var_f: ndarray, cov: ndarray) -> tuple[ndarray, ndarray]:
    """Nats per window of x that f carries, and that x holds; only the ratio of their sums matters."""
    eps, noise = 1e-10, 2.0
    gain = cov / (var_x + eps)
    lost = (var_x < eps) | (gain < 0)  # a flat window, or an inverted one: all of f's variance is noise
    residual = np.maximum(np.where(lost, var_f, var_f - gain * cov), eps)
    gain[lost | (var_f < eps)] = 0
    return np.log1p(gain**2 * var_x / (residual + noise)), np.log1p(np.where(var_x < eps, 0, var_x) / noise)


def vif(a: ndarray, b: ndarray, f: ndarray, mask: ndarray | None = None) -> float:
    """Visual information fidelity in the pixel domain, VIF(a -> f) + VIF(b -> f), from 0; 2 for f == a == b.

    Scales s = 1..4, Gaussian window of N = 2^(5-s) + 1 px and sigma N / 5, valid convolution, halved from the
    second scale on, noise variance 2. Mask: the windows summed, by their centre, halved alike.
    nan where a source is flat or the picture is smaller than the 17 px window.
    Sheikh, Bovik, IEEE Trans. Image Process. 15 (2006) 430. Not the VIFF of Han et al. (2013).
    """
    x, y, g = _grey(a, b, f)
    kept, held = np.zeros(2), np.zeros(2)
    for scale in range(1, 5):
        size = 2 ** (5 - scale) + 1
        taps = cv2.getGaussianKernel(size, size / 5, cv2.CV_64F)
        if scale > 1:
            # Contiguous, because cv2 copies a strided view at every call.
            x, y, g = (np.ascontiguousarray(_valid_gaussian(p, taps)[::2, ::2]) for p in (x, y, g))
            mask = None if mask is None else _inner(mask, size // 2)[::2, ::2]
        if min(x.shape) < size:
            break  # no whole window at this scale, and none at the coarser ones
        inside = None if mask is None else _inner(mask, size // 2)
        mu_g = _valid_gaussian(g, taps)
        var_g = np.maximum(_valid_gaussian(g * g, taps) - mu_g**2, 0)
        for i, p in enumerate((x, y)):
            mu_p = _valid_gaussian(p, taps)
            var_p = np.maximum(_valid_gaussian(p * p, taps) - mu_p**2, 0)
            carried, content = _vif_terms(var_p, var_g, _valid_gaussian(p * g, taps) - mu_p * mu_g)
            kept[i] += _pick(carried, inside).sum()
            held[i] += _pick(content, inside).sum()
    return float((kept / held).sum()) if held.min() > 0 else NAN


def _edges(x: ndarray) -> tuple[ndarray, ndarray]:
    """Sobel strength and angle (-pi/2..pi/2, y upwards; pi/2 where there is no x part), zero border."""
    dx = cv2.Sobel(x, cv2.CV_64F, 1, 0, borderType=cv2.BORDER_CONSTANT)
    up = -cv2.Sobel(x, cv2.CV_64F, 0, 1, borderType=cv2.BORDER_CONSTANT)
    slope = np.divide(up, dx, out=np.full_like(dx, np.inf), where=dx != 0)
    return np.sqrt(dx**2 + up**2), np.arctan(slope)


def qabf(a: ndarray, b: ndarray, f: ndarray, mask: ndarray | None = None) -> float:
    """How much edge strength and angle of the sources f keeps, 0..1 (0.975 for f == a == b, not 1).

    Strength ratio G = min / max of the two Sobel strengths (f's strength where equal), angle match
    D = 1 - |angle difference| / (pi/2); 0.9994 / (1 + exp(-15 (G - 0.5))) * 0.9879 / (1 + exp(-22 (D - 0.8)))
    averaged over both sources and all pixels, weighted by the source's strength. Mask: the pixels averaged.
    nan where neither source has an edge. Xydeas, Petrovic, Electron. Lett. 36 (2000) 308.
    """
    a, b, f = _grey(a, b, f)
    strength_f, angle_f = _edges(f)
    kept, weight = 0.0, 0.0
    for source in (a, b):
        strength, angle = _edges(source)
        low, high = np.minimum(strength, strength_f), np.maximum(strength, strength_f)
        ratio = np.divide(low, high, out=strength_f.copy(), where=low != high)
        match = 1 - np.abs(angle - angle_f) / (np.pi / 2)
        quality = 0.9994 * 0.9879 / ((1 + np.exp(-15 * (ratio - 0.5))) * (1 + np.exp(-22 * (match - 0.8))))
        kept += float(_pick(quality * strength, mask).sum())
        weight += float(_pick(strength, mask).sum())
    return kept / weight if weight > 0 else NAN


def ssim(a: ndarray, b: ndarray, f: ndarray, data_range: float = 2.0, mask: ndarray | None = None) -> float:
    """SSIM(f, a) + SSIM(f, b), at most 2: whole uniform 7 x 7 windows, sample covariance, K = 0.01, 0.03.

    data_range 2 is the field's historical slip, a picture on 0..255 passed to a tool that assumed -1..1;
    tables print it. It depends almost only on whether the background stays exactly 0. 255 is the correct
    range.
    Mask: the windows averaged, by their centre. nan for a picture below 7 px per side.
    Wang, Bovik, Sheikh, Simoncelli, IEEE Trans. Image Process. 13 (2004) 600; as scikit-image's defaults.
    """
    a, b, f = _grey(a, b, f)
    size, c1, c2 = 7, (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    inside = None if mask is None else _inner(mask, size // 2)
    to_sample = size**2 / (size**2 - 1)

    def window_mean(x: ndarray) -> ndarray:
        return _inner(cv2.boxFilter(x, cv2.CV_64F, (size, size)), size // 2)

    total = 0.0
    mu_f, m_ff = window_mean(f), window_mean(f * f)
    for source in (a, b):
        mu_s = window_mean(source)
        means, powers = mu_s * mu_f, mu_s**2 + mu_f**2
        variances = to_sample * (window_mean(source * source) + m_ff - powers)
        covariance = to_sample * (window_mean(source * f) - means)
        total += _mean((2 * means + c1) * (2 * covariance + c2) / ((powers + c1) * (variances + c2)), inside)
    return total


def detail_kept(a: ndarray, b: ndarray, f: ndarray) -> float:
    """MRI detail under strong uptake, -1..1: sum(gf . ga) / sqrt(sum(|gf|^2) sum(|ga|^2)), g gradients.

    Strong uptake: the brightest fifth of b's foreground, b > 2, b >= the 80th percentile of those; central
    differences. The maximum keeps almost none. 0 if f or a is flat there, nan without foreground. In CT the
    region is bone, and the value says little. Our own measure; read it together with function_kept.
    """
    a, b, f = _grey(a, b, f)
    there = b > BACKGROUND_MAX
    if not there.any() or min(f.shape) < 2:
        return NAN
    there &= b >= np.percentile(b[there], 80)
    g_f, g_a = (np.concatenate([g[there] for g in np.gradient(x)]) for x in (f, a))
    norm = np.sqrt((g_f @ g_f) * (g_a @ g_a))
    return float(g_f @ g_a / norm) if norm > 0 else 0.0


def function_kept(b: ndarray, f: ndarray) -> float:
    """Correlation of f and b over b's foreground (b > 2), both blurred by a Gaussian of sigma 3 px, -1..1.

    A copy of the MRI keeps little. 0 if one is flat there, nan if b has no foreground. Our own measure;
    read it together with detail_kept.
    """
    b, f = _grey(b, f)
    blurred_b, blurred_f = (cv2.GaussianBlur(x, (25, 25), 3.0, borderType=cv2.BORDER_REFLECT) for x in (b, f))
    return _correlation(blurred_b, blurred_f, b > BACKGROUND_MAX)


def foreground(a: ndarray, b: ndarray) -> ndarray:
    """bool [H, W]: either source above 2. The rest, about half of a brain slice, is background and easy."""
    a, b = _grey(a, b)
    return (a > BACKGROUND_MAX) | (b > BACKGROUND_MAX)


def _maskable(a: ndarray, b: ndarray, f: ndarray, mask: ndarray | None) -> dict[str, float]:
    a, b, f = _grey(a, b, f)
    one = {"EN": en(f, mask), "SD": sd(f, mask), "SF": sf(f, mask), "MI": mi(a, b, f, mask)}
    two = {"SCD": scd(a, b, f, mask), "VIF": vif(a, b, f, mask), "Qabf": qabf(a, b, f, mask)}
    return one | two | {"SSIM2": ssim(a, b, f, 2, mask), "SSIM255": ssim(a, b, f, 255, mask)}


def all_metrics(a: ndarray, b: ndarray, f: ndarray) -> dict[str, float]:
    """Every measure over the whole picture, names and order of ALL. a, b, f: [H, W] on 0..255."""
    values = _maskable(a, b, f, None) | {"AG": ag(f), "CC": cc(a, b, f)}
    values |= {"detail": detail_kept(a, b, f), "function": function_kept(b, f)}
    return {name: values[name] for name in ALL}


def foreground_metrics(a: ndarray, b: ndarray, f: ndarray) -> dict[str, float]:
    """The measures of RANKED, and SSIM255, over foreground(a, b) only; each nan where that is empty.

    Each measure says what the mask restricts. Windows and gradients centred inside still use pixels outside.
    """
    return _maskable(a, b, f, foreground(a, b))
