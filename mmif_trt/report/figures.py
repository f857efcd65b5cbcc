"""The figures of a report: every method's measures on every case, ranks, and the extreme cases."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmif_trt.image import InputError
from mmif_trt.measure.metrics import ALL, RANKED, all_metrics
from mmif_trt.measure.scores import (
    BASELINES,
    Measure,
    Ranges,
    Table,
    evaluate,
    match_folders,
    mean_rank,
    means,
    source_folders,
)

EXTREMES = 3  # best and worst cases shown of each measure


@dataclass(frozen=True)
class Case:
    """name, and its files: "mri", "other", then each method's; a baseline has none, it is computed."""

    name: str
    paths: dict[str, str]


@dataclass(frozen=True)
class Figures:
    """values: method -> case -> measure -> value, nan if undefined. rank: mean over RANKED. warnings: see
    Scores."""

    modality: str
    cases: list[Case]
    methods: list[str]
    values: dict[str, dict[str, dict[str, float]]]
    means: Table
    rank: dict[str, float]
    warnings: list[str] = field(default_factory=list)

    @property
    def baselines(self) -> list[str]:
        return [method for method in self.methods if method in BASELINES]


def gather(
    sources: Path,
    methods: Mapping[str, Path],
    *,
    baselines: bool = True,
    measure: Measure = all_metrics,
    ranges: Ranges | None = None,
) -> Figures:
    """Scores every method by `evaluate`; for ranges and for InputError see there."""
    if not methods and not baselines:
        raise InputError(
            "--method: none, with --no-baselines; expected NAME=FOLDER or NAME=COMMAND, once or more"
        )
    for name, folder in methods.items():
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; expected the folder of {name}'s fused pictures")
    a, b = source_folders(sources)
    matched = match_folders([a, b, *methods.values()])
    keys = ("mri", "other", *methods)
    cases = [Case(name, dict(zip(keys, paths, strict=True))) for name, *paths in matched]
    how: dict[str, Any] = {"measure": measure, "fidelity": True, "ranges": ranges}
    scores = [evaluate(sources, folder, method=name, **how) for name, folder in methods.items()]
    if baselines:
        scores.append(evaluate(sources, None, baselines=True, **how))
    rows = [row for one in scores for row in one.rows]
    values: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        values.setdefault(row.method, {})[row.name] = row.values
    table = means(rows)
    warnings = list(dict.fromkeys(line for one in scores for line in one.warnings))
    return Figures(b.name, cases, list(values), values, table, mean_rank(table), warnings)


def extremes(figures: Figures) -> dict[str, dict[str, list[tuple[str, str, float]]]]:
    """measure -> "worst" and "best" -> (case, method, value), over the methods other than baselines.

    If only baselines were scored, over these.
    """
    own = [method for method in figures.methods if method not in BASELINES] or figures.methods
    found = {}
    for key in ALL:
        values = [
            (case.name, method, figures.values[method][case.name][key])
            for method in own
            for case in figures.cases
        ]
        ordered = sorted((v for v in values if not math.isnan(v[2])), key=lambda v: v[2])
        found[key] = {"worst": ordered[:EXTREMES], "best": ordered[::-1][:EXTREMES]}
    return found


def ranked_order(figures: Figures) -> list[str]:
    return sorted(figures.methods, key=lambda method: figures.rank[method])


def folder_hash(paths: list[str]) -> str:
    """SHA-256 over the SHA-256 of each file, in the order of the cases: one hash for a method's folder."""
    whole = hashlib.sha256()
    for path in paths:
        whole.update(hashlib.sha256(Path(path).read_bytes()).digest())
    return whole.hexdigest()


__all__ = ["ALL", "RANKED", "Case", "Figures", "extremes", "folder_hash", "gather", "ranked_order"]
