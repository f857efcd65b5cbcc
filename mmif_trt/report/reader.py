"""The first table of a report: what a reader needs; lesions if they were scored, then fidelity."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmif_trt import weights
from mmif_trt.image import InputError
from mmif_trt.measure.fidelity import LOWER_IS_BETTER, NEITHER, names_for
from mmif_trt.measure.scores import BASELINES
from mmif_trt.report.figures import Figures, ranked_order
from mmif_trt.running import why

LESIONS = ("mean", "worst", "lost")
OURS = ("fused", *map(weights.title, weights.NAMES))  # rows of `mmif-trt eval --lesions`
# Heading and what it means; a name with an arrow says which way is better.
HEADS = {
    "mean": ("lesions ↑", "planted lesions: share of detectability kept, mean over the kinds"),
    "worst": ("worst kind ↑", "planted lesions: share kept of the worst kind"),
    "lost": ("lost ↓", "planted lesions: those that keep less than a quarter"),
    "bone_edge": ("bone edge ↑", "agreement of the edges of bone with the CT's"),
    "bone_error": ("bone error ↓", "mean difference from the CT over bone, in levels of 255"),
    "soft": ("soft tissue ↑", "agreement of MRI detail in soft tissue"),
    "soft_gain": ("soft gain", "gain of MRI detail in soft tissue; 1 is right"),
    "detail_top": ("detail, top ↑", "agreement of MRI detail under the hottest fifth of the uptake"),
    "detail_all": ("detail ↑", "agreement of MRI detail under all uptake"),
    "readback": ("read-back ↑", "rank correlation of uptake with its reading from the fused colours"),
    "colour_top": ("colour, top ↑", "share of the colour kept under the hottest fifth"),
    "washed_top": ("washed, top ↓", "pixels there that lost more than half of their colour"),
}


@dataclass(frozen=True)
class Cell:
    text: str
    best: bool


@dataclass(frozen=True)
class ReaderTable:
    """heads: (heading, meaning); rows: (method, whether a baseline, its cells)."""

    heads: list[tuple[str, str]]
    rows: list[tuple[str, bool, list[Cell]]]
    has_lesions: bool


def read_lesions(given: Mapping[str, Path]) -> dict[str, dict[str, float]]:
    """Lesion summaries by method: from a method's table, which `mmif-trt eval --lesions -o` wrote as JSON,
    its row "fused", otherwise that of our network; for baselines their own rows. Raises InputError for any
    other file.
    """
    found: dict[str, dict[str, float]] = {}
    for name, path in given.items():
        try:
            methods = json.loads(path.read_text(encoding="utf-8"))["methods"]
            own = methods[next((key for key in OURS if key in methods), OURS[0])]
            rows = {name: own} | {key: methods[key] for key in BASELINES if key in methods}
            found |= {key: {k: float(row[k]) for k in LESIONS} for key, row in rows.items()}
        except (OSError, ValueError, KeyError, TypeError) as error:
            how = "expected JSON of `mmif-trt eval PLANTED FUSED --lesions -o TABLE.json`"
            raise InputError(f"--lesions {name}={path}: {why(error)}; {how}") from error
    return found


def reader_table(figures: Figures, lesions: Mapping[str, Mapping[str, float]]) -> ReaderTable:
    """Best lesions first, then methods without lesion scores; by mean rank if none were scored."""
    keys = [*(LESIONS if lesions else ()), *names_for(figures.modality)]
    values = {m: figures.means[m] | dict(lesions.get(m, {})) for m in ranked_order(figures)}
    best: dict[str, float] = {}
    for key in keys:
        column = [row[key] for row in values.values() if not math.isnan(row.get(key, math.nan))]
        if column and key not in NEITHER:
            lower = key in (*LOWER_IS_BETTER, "lost")
            best[key] = min(column) if lower else max(column)
    order = sorted(values, key=lambda m: -values[m].get("mean", -1.0))  # stable: ties by mean rank
    rows = []
    for method in order:
        cells = []
        for key in keys:
            value = values[method].get(key, math.nan)
            text = "–" if math.isnan(value) else f"{value:.{1 if key == 'bone_error' else 3}f}"
            cells.append(Cell(text, value == best.get(key)))
        rows.append((method, method in BASELINES, cells))
    return ReaderTable([HEADS[key] for key in keys], rows, bool(lesions))
