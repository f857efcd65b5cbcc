"""Statistics of five-point scales. Ratings are ordered, not measured: they are ranked, never averaged."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy import ndarray

from mmif_trt import privacy
from mmif_trt.study.paired import Row, alpha


def ratings(rows: Sequence[Row], scale: str, methods: list[str]) -> ndarray:
    """[readers, cases, methods] float64, nan where not rated: final first showings, without training."""
    kept = [
        r
        for r in rows
        if r["kind"] == "scale" and r["final"] and not r["training"] and r["repeat_of"] is None
    ]
    readers, cases = sorted({r["reader"] for r in kept}), sorted({r["case"] for r in kept})
    out = np.full((len(readers), len(cases), len(methods)), np.nan)
    for r in kept:
        out[readers.index(r["reader"]), cases.index(r["case"]), methods.index(r["method_left"])] = r[scale]
    return out


def analyse(rows: Sequence[Row], scale: str, methods: list[str]) -> dict[str, Any]:
    """Distribution, Friedman or Wilcoxon, Nemenyi, Kendall's W, agreement and odds ratios of one scale.

    Blocks are cases, each with its readers' median: ratings of one case by several readers are not
    independent. A figure without enough answers is None.
    """
    found = ratings(rows, scale, methods)
    counts = np.array(
        [[int((found[..., m] == step).sum()) for step in range(1, 6)] for m in range(len(methods))]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cases without a rating: empty medians are dropped below
        blocks = np.nanmedian(found, axis=0)
    blocks = blocks[np.isfinite(blocks).all(1)]
    units = found.reshape(len(found), -1)
    return {
        "counts": counts,
        "medians": [
            float(np.nanmedian(found[..., m])) if counts[m].any() else None for m in range(len(methods))
        ],
        "blocks": len(blocks),
        "test": _test(blocks, methods),
        "alpha": alpha(units),
        "icc": _icc(units),
        "odds": _odds(found, methods),
        "within": _within(rows, scale),
    }


def _test(blocks: ndarray, methods: list[str]) -> dict[str, Any] | None:
    """Friedman with Nemenyi (scikit-posthocs) and W = chi2 / (n (k - 1)); Wilcoxon for two methods
    (scipy).
    """
    from scipy.stats import friedmanchisquare, wilcoxon

    n, k = blocks.shape
    if n < 2 or (blocks == blocks[:, :1]).all():
        return None
    if k == 2:
        return {"name": "Wilcoxon signed-rank", "p": float(wilcoxon(blocks[:, 0], blocks[:, 1]).pvalue)}
    import scikit_posthocs

    chi2, p = friedmanchisquare(*blocks.T)
    nemenyi = scikit_posthocs.posthoc_nemenyi_friedman(blocks).to_numpy()
    result = {"name": "Friedman", "p": float(p), "chi2": float(chi2), "w": float(chi2 / (n * (k - 1)))}
    return {**result, "nemenyi": nemenyi}


def _icc(units: ndarray) -> tuple[float, float, float] | None:
    """ICC(2,1), absolute agreement, with its 95 % interval (pingouin), over units that all readers rated."""
    import pandas

    privacy.font_list_off()
    import pingouin  # imports matplotlib

    whole = units[:, np.isfinite(units).all(0)]
    if whole.shape[0] < 2 or whole.shape[1] < 5 or np.ptp(whole) == 0:
        return None
    rater, unit = np.indices(whole.shape)
    table = pandas.DataFrame({"unit": unit.ravel(), "rater": rater.ravel(), "rating": whole.ravel()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pingouin.intraclass_corr(table, targets="unit", raters="rater", ratings="rating")
    row = found[found["Type"].isin(["ICC2", "ICC(A,1)"])].iloc[0]
    low, high = row[next(name for name in found.columns if name.startswith("CI95"))]
    return float(row["ICC"]), float(low), float(high)


def _odds(found: ndarray, methods: list[str]) -> list[tuple[str, float, float, float]] | None:
    """Odds of a higher step against the first method, 95 % intervals: proportional odds (statsmodels),
    readers as fixed effects. No maintained Python library fits the mixed model, so this applies to
    these readers only.
    """
    from statsmodels.miscmodels.ordinal_model import OrderedModel

    reader, _, method = np.nonzero(np.isfinite(found))
    rating = found[np.isfinite(found)]
    if len(np.unique(rating)) < 2 or len(rating) < 10 * len(methods):
        return None
    design = np.column_stack(
        [method == m for m in range(1, len(methods))] + [reader == r for r in range(1, len(found))]
    ).astype(float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            fit = OrderedModel(rating.astype(int), design, distr="logit").fit(method="bfgs", disp=False)
            bounds = np.exp(np.asarray(fit.conf_int())[: len(methods) - 1])
        except (ValueError, np.linalg.LinAlgError):
            return None
    ratio = np.exp(np.asarray(fit.params)[: len(methods) - 1])
    if not fit.mle_retvals["converged"] or not np.isfinite(bounds).all():
        return None
    return [
        (m, float(r), float(b[0]), float(b[1])) for m, r, b in zip(methods[1:], ratio, bounds, strict=True)
    ]


def _within(rows: Sequence[Row], scale: str) -> tuple[int, int, int]:
    """Repeats: (same step, at most one step apart, all)."""
    final = {(r["reader"], r["position"]): r for r in rows if r["kind"] == "scale" and r["final"]}
    apart = [
        abs(again[scale] - final[again["reader"], again["repeat_of"]][scale])
        for again in final.values()
        if again["repeat_of"] is not None and not again["training"]
    ]
    return sum(a == 0 for a in apart), sum(a <= 1 for a in apart), len(apart)
