"""Statistics of paired comparisons: preferences, their certainty, and the reliability of readers.

A tie counts half a win for either side. Repeats count only for a reader's agreement with himself.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import ndarray

BOOTSTRAPS, DRAWS = 1000, 5000
BLOCK = 4_000_000  # sides drawn at once
# Regularisation, as in choix: keeps strengths finite if a method never lost.
ALPHA = 0.01
# Of readers' log-odds of a side: finite if a reader only pressed A. By simulation of 6 readers and 10 cases
# with log-odds of 4, intervals cover in 0.94 of studies, and with an SD of 2 in 0.90.
SIDE_SD = 3.0
Row = dict[str, Any]


@dataclass(frozen=True)
class Comparisons:
    """left, right: methods; reader, case: all [N] indices from 0. won: [N], 1 left, 0 right, 0.5 equal.
    readers: the study's number of each reader."""

    left: ndarray
    right: ndarray
    reader: ndarray
    case: ndarray
    won: ndarray
    methods: list[str]
    readers: list[int]

    @property
    def sides(self) -> ndarray:
        """[N, methods]: 1 for the method on the left, -1 for that on the right."""
        eye = np.eye(len(self.methods))
        return eye[self.left] - eye[self.right]


def comparisons(rows: Sequence[Row], methods: list[str]) -> Comparisons:
    """The rows of `export.rows` that count: paired, final, no training, no repeats."""
    kept = [
        r
        for r in rows
        if r["kind"] == "paired" and r["final"] and not r["training"] and r["repeat_of"] is None
    ]
    readers, cases = sorted({r["reader"] for r in kept}), sorted({r["case"] for r in kept})

    def index(name: str, of: Sequence[Any]) -> ndarray:
        places = {value: i for i, value in enumerate(of)}
        return np.array([places[r[name]] for r in kept], dtype=int)

    won = np.array([{"left": 1.0, "right": 0.0, "equal": 0.5}[r["answer"]] for r in kept])
    return Comparisons(
        index("method_left", methods),
        index("method_right", methods),
        index("reader", readers),
        index("case", cases),
        won,
        methods,
        readers,
    )


def win_matrix(c: Comparisons) -> ndarray:
    """[methods, methods]: how often row beat column, ties half."""
    wins = np.zeros((len(c.methods),) * 2)
    np.add.at(wins, (c.left, c.right), c.won)
    np.add.at(wins, (c.right, c.left), 1 - c.won)
    return wins


def strengths(c: Comparisons, weights: ndarray | None = None) -> tuple[ndarray, ndarray]:
    """([methods] Bradley-Terry log-odds with mean 0, [readers] each reader's log-odds of A). nan if it does
    not converge.

    Davidson and Beaver (1977), a side for each reader: log-odds that reader r prefers i on the left to j =
    strength i - strength j + side r; ties count half a win each. The maximum of the likelihood with a normal
    prior on the sides (SIDE_SD), by scipy. Without sides the strengths are those of choix (I-LSR), whose
    alpha is the penalty ALPHA methods sum(theta - exp theta).
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    weights = np.ones(len(c.won)) if weights is None else weights
    k, readers = len(c.methods), int(c.reader.max()) + 1
    # Equal comparisons are one row: method on the left less that on the right, and the reader's side.
    rows, row = np.unique((c.reader * k + c.left) * k + c.right, return_inverse=True)
    one = np.eye(k + readers)
    design = one[rows // k % k] - one[rows % k] + one[k + rows // k**2]
    total, won = np.bincount(row, weights), np.bincount(row, weights * c.won)

    def loss(x: ndarray) -> tuple[float, ndarray]:
        odds, theta, side = design @ x, x[:k], x[k:]
        prior = ALPHA * k * (np.exp(theta) - theta).sum() + (side**2).sum() / SIDE_SD**2 / 2
        slope = design.T @ (total * expit(odds) - won)
        slope += np.concatenate([ALPHA * k * (np.exp(theta) - 1), side / SIDE_SD**2])
        return float((total * np.logaddexp(0, odds) - won * odds).sum() + prior), slope

    def curve(x: ndarray) -> ndarray:
        p = expit(design @ x)
        prior = np.concatenate([ALPHA * k * np.exp(x[:k]), np.full(readers, SIDE_SD**-2)])
        return design.T @ (design * (total * p * (1 - p))[:, None]) + np.diag(prior)

    start, exact = np.zeros(k + readers), {"gtol": 1e-5}
    found = minimize(loss, start, jac=True, hess=curve, method="trust-exact", options=exact)
    theta, side = found.x[:k], found.x[k:]
    if not found.success:
        return np.full(k, np.nan), np.full(readers, np.nan)
    return theta - theta.mean(), side


def bradley_terry(c: Comparisons, seed: int = 0, bootstraps: int = BOOTSTRAPS) -> dict[str, Any]:
    """Strengths, 95 % intervals, intervals of each difference, and sides: [readers] log-odds of A.

    Bootstrap over readers and over cases at once (Owen, 2007, the pigeonhole bootstrap): it speaks for
    readers and cases like these, and errs towards wide. With one reader or one case only the other is
    resampled.
    """
    rng = np.random.default_rng(seed)
    readers, cases = int(c.reader.max()) + 1, int(c.case.max()) + 1
    drawn = []
    for _ in range(bootstraps):
        weight = _resample(rng, readers)[c.reader] * _resample(rng, cases)[c.case]
        if weight.any():
            drawn.append(strengths(c, weight)[0])
    samples = np.array(drawn)
    samples = samples[np.isfinite(samples).all(1)]
    estimate, sides = strengths(c)
    low, high = np.percentile(samples, [2.5, 97.5], axis=0)
    pairs = {}
    for i, j in itertools.combinations(range(len(c.methods)), 2):
        bounds = np.percentile(samples[:, i] - samples[:, j], [2.5, 97.5])
        pairs[i, j] = (float(estimate[i] - estimate[j]), float(bounds[0]), float(bounds[1]))
    return {
        "strength": estimate,
        "low": low,
        "high": high,
        "differences": pairs,
        "sides": sides,
        "bootstraps": len(samples),
    }


def _resample(rng: np.random.Generator, count: int) -> ndarray:
    return np.ones(1) if count == 1 else rng.multinomial(count, np.full(count, 1 / count))


def randomisation(c: Comparisons, seed: int = 0, draws: int = DRAWS) -> dict[str, Any]:
    """Tests of the hypothesis that sides are interchangeable, by the study's own random sides.

    If no method were better, a reader would have pressed the same key with the sides swapped; the sides were
    drawn independently, so redrawing them gives the exact distribution, whatever the readers, the cases and a
    preference for a side. Statistic: squared net wins, each reader's mean side taken out. Pairs by Holm
    (statsmodels). p counts the observed draw as one. net: pair -> net wins of its first method in the test,
    which may differ in sign from the raw wins.
    """
    from statsmodels.stats.multitest import multipletests

    rng = np.random.default_rng(seed)
    signed = 2 * c.won - 1
    count = np.bincount(c.reader)
    signed = signed - (np.bincount(c.reader, signed) / np.maximum(count, 1))[c.reader]
    pairs = list(itertools.combinations(range(len(c.methods)), 2))
    columns = [signed[:, None] * c.sides]
    for i, j in pairs:
        use = (np.minimum(c.left, c.right) == i) & (np.maximum(c.left, c.right) == j)
        columns.append((use * np.where(c.left == i, signed, -signed))[:, None])
    table = np.hstack(columns)  # [N, methods + pairs]: what each answer adds to the methods, and to the pairs
    block = max(1, BLOCK // len(signed))  # of draws: all at once take gigabytes in a study of 500 cases
    sides = np.array([-1.0, 1.0])
    drawn = np.concatenate(
        [
            rng.choice(sides, (min(block, draws - start), len(signed))) @ table
            for start in range(0, draws, block)
        ]
    )
    observed, k = table.sum(0), len(c.methods)

    def p_value(drawn: ndarray, observed: float) -> float:
        return float((1 + np.sum(drawn >= observed - 1e-9)) / (1 + len(drawn)))

    overall = p_value((drawn[:, :k] ** 2).sum(1), float((observed[:k] ** 2).sum()))
    raw = [p_value(np.abs(drawn[:, n]), float(abs(observed[n]))) for n in range(k, k + len(pairs))]
    holm = multipletests(raw, method="holm")[1] if pairs else []
    return {
        "overall": overall,
        "pairs": {pair: (p, float(h)) for pair, p, h in zip(pairs, raw, holm, strict=True)},
        "net": {pair: float(n) for pair, n in zip(pairs, observed[k:], strict=True)},
    }


def side_bias(c: Comparisons) -> dict[str, Any]:
    """How much A (left) is preferred for its side alone.

    share: of decided answers that said left, with Wilson's interval and the exact binomial p (scipy).
    log_odds: intercept of a binomial regression on the methods (statsmodels), with its 95 % interval; None
    where it cannot be fitted.
    """
    import statsmodels.api as sm
    from scipy.stats import binomtest

    decided = c.won != 0.5
    left, count = int(c.won[decided].sum()), int(decided.sum())
    result: dict[str, Any] = {"left": left, "decided": count, "log_odds": None}
    if not count:
        return result
    test = binomtest(left, count)
    interval = test.proportion_ci(method="wilson")
    result |= {"share": left / count, "low": interval.low, "high": interval.high, "p": float(test.pvalue)}
    design = sm.add_constant(c.sides[decided][:, 1:], has_constant="add")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # separation: shows below as an unbounded interval
        try:
            fit = sm.GLM(c.won[decided], design, family=sm.families.Binomial()).fit()
            low, high = fit.conf_int()[0]
            if np.isfinite([low, high]).all() and high - low < 10:
                result["log_odds"] = (float(fit.params[0]), float(low), float(high))
        except (ValueError, np.linalg.LinAlgError):
            pass
    return result


def agreement(rows: Sequence[Row]) -> dict[str, Any]:
    """Of each reader with himself (repeats) and of readers with each other.

    within: reader -> (same, repeats). kappa: Cohen's over all repeats (statsmodels), None under two
    categories. between: Krippendorff's alpha, ordinal (krippendorff), over cases and pairs; None where
    nothing overlaps.
    """
    final = [r for r in rows if r["kind"] == "paired" and r["final"] and not r["training"]]
    first = {(r["reader"], r["position"]): r for r in final}
    within: dict[int, list[int]] = {}
    pairs: list[tuple[int, int]] = []
    for again in (r for r in final if r["repeat_of"] is not None):
        before = first[again["reader"], again["repeat_of"]]
        pairs.append((_towards(before), _towards(again)))
        counts = within.setdefault(again["reader"], [0, 0])
        counts[0] += pairs[-1][0] == pairs[-1][1]
        counts[1] += 1
    readers = sorted({r["reader"] for r in final})
    units: dict[tuple[Any, ...], list[float]] = {}
    for r in final:
        if r["repeat_of"] is None:
            unit = (r["case"], *sorted((r["method_left"], r["method_right"])))
            units.setdefault(unit, [np.nan] * len(readers))[readers.index(r["reader"])] = _towards(r)
    return {
        "within": {reader: tuple(counts) for reader, counts in sorted(within.items())},
        "kappa": _kappa(pairs),
        "between": alpha(np.array(list(units.values())).T) if units else None,
    }


def _towards(row: Row) -> int:
    """1 for the method whose name comes first, -1 for the other, 0 equal: comparable over swapped sides."""
    if row["preferred"] == "equal":
        return 0
    return 1 if row["preferred"] == min(row["method_left"], row["method_right"]) else -1


def _kappa(pairs: list[tuple[int, int]]) -> float | None:
    from statsmodels.stats.inter_rater import cohens_kappa

    table = np.zeros((3, 3))
    for before, again in pairs:
        table[before + 1, again + 1] += 1
    if len({value for pair in pairs for value in pair}) < 2:
        return None
    return float(cohens_kappa(table, return_results=False))


def alpha(ratings: ndarray) -> float | None:
    """Ordinal Krippendorff alpha of [raters, units], nan where not rated; None where it is not defined."""
    import krippendorff

    pairable = ratings[:, np.isfinite(ratings).sum(0) >= 2]
    if not pairable.size or len(np.unique(pairable[np.isfinite(pairable)])) < 2:
        return None
    return float(krippendorff.alpha(reliability_data=pairable, level_of_measurement="ordinal"))
