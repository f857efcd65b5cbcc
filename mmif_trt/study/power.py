"""How many readers and cases a new study needs to distinguish two methods at the observed effect."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import ndarray

from mmif_trt.study.paired import Comparisons

READERS = (2, 3, 5, 8, 12, 16, 24)
POWER, LEVEL, MOST_CASES = 0.8, 0.05, 2000


def preference(c: Comparisons, i: int, j: int) -> ndarray:
    """[readers, cases]: 1 where i was preferred to j, 0 where j, 0.5 equal, nan where not compared."""
    out = np.full((int(c.reader.max()) + 1, int(c.case.max()) + 1), np.nan)
    for left, right, won in ((i, j, c.won), (j, i, 1 - c.won)):
        use = (c.left == left) & (c.right == right)
        out[c.reader[use], c.case[use]] = won[use]
    return out


def needed(c: Comparisons, i: int, j: int) -> dict[str, Any] | None:
    """Observed share of i over j, and for each number of readers the cases that give 80 % power at 5 %.

    The variance of the share is var_reader / R + var_case / C + var_rest / (R C), its parts from a two-way
    analysis of variance (negative parts taken as 0); normal approximation (scipy). Returns None with fewer
    than two readers or cases, or if some reader did not compare some case; `cases` has None for "no number
    suffices".
    """
    from scipy.stats import norm

    seen = preference(c, i, j)
    readers, cases = seen.shape
    if readers < 2 or cases < 2 or not np.isfinite(seen).all():
        return None
    share = float(seen.mean())
    by_reader, by_case = seen.mean(1), seen.mean(0)
    rest = seen - by_reader[:, None] - by_case + share
    var_rest = float((rest**2).sum() / ((readers - 1) * (cases - 1)))
    var_reader = max(0.0, float(by_reader.var(ddof=1)) - var_rest / cases)
    var_case = max(0.0, float(by_case.var(ddof=1)) - var_rest / readers)
    # If all answers are the same, there is no variance to plan with: use at least that of the share itself.
    var_rest = max(var_rest, share * (1 - share), 0.01)
    reach = norm.ppf(1 - LEVEL / 2) + norm.ppf(POWER)
    allowed = ((share - 0.5) / reach) ** 2
    cases_of: dict[int, int | None] = {}
    for count in READERS:
        room = allowed - var_reader / count
        wanted = np.inf if room <= 0 else (var_case + var_rest / count) / room
        cases_of[count] = None if wanted > MOST_CASES else max(2, int(np.ceil(wanted)))
    return {"share": share, "cases": cases_of, "variance": (var_reader, var_case, var_rest)}
