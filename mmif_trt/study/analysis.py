"""`mmif-trt study analyse`: the statistics of a study, on one page."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from mmif_trt import __version__
from mmif_trt.about import RESEARCH_USE
from mmif_trt.files import write_atomic
from mmif_trt.report import plots
from mmif_trt.study import paired, power, scales
from mmif_trt.study.config import SCALES
from mmif_trt.study.export import rows as export_rows
from mmif_trt.study.paired import Row
from mmif_trt.study.simulate import ROLE
from mmif_trt.study.store import Store

LIBRARIES = (
    "scipy",
    "statsmodels",
    "scikit-posthocs",
    "krippendorff",
    "pingouin",
    "numpy",
    "matplotlib",
)
LEVEL = 0.05


def analyse(
    rows: Sequence[Row], methods: list[str], scale_names: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """Every figure of the page; "paired" and each scale is None if it has no answers."""
    counted = [row for row in rows if row["final"] and not row["training"]]
    compared = paired.comparisons(rows, methods)
    found: dict[str, Any] = {"readers": _readers(counted), "answers": len(counted), "paired": None}
    if len(compared.won):
        pairs = list(itertools.combinations(range(len(methods)), 2))
        bradley_terry = paired.bradley_terry(compared, seed)
        found["paired"] = {
            "wins": paired.win_matrix(compared),
            "bradley_terry": bradley_terry,
            "sides": dict(zip(compared.readers, bradley_terry["sides"].tolist(), strict=True)),
            "test": paired.randomisation(compared, seed),
            "side": paired.side_bias(compared),
            "agreement": paired.agreement(rows),
            "power": {pair: power.needed(compared, *pair) for pair in pairs},
            "tally": {pair: _tally(compared, *pair) for pair in pairs},
            "answers": len(compared.won),
            "cases": int(compared.case.max()) + 1,
        }
    rated = any(row["kind"] == "scale" and row["repeat_of"] is None for row in counted)
    found["scales"] = {name: scales.analyse(rows, name, methods) for name in scale_names} if rated else {}
    return found


def _readers(counted: Sequence[Row]) -> list[dict[str, Any]]:
    table = []
    for reader in sorted({row["reader"] for row in counted}):
        own = [row for row in counted if row["reader"] == reader]
        said = Counter(row["answer"] for row in own if row["kind"] == "paired")
        table.append(
            {
                "reader": reader,
                "role": own[0]["role"],
                "years": own[0]["years"],
                "answers": len(own),
                "seconds": float(np.median([row["seconds"] for row in own])),
                "too_fast": sum(row["too_fast"] for row in own),
                "left": said["left"],
                "right": said["right"],
                "equal": said["equal"],
            }
        )
    return table


def _tally(c: paired.Comparisons, i: int, j: int) -> tuple[int, int, int]:
    """(i preferred, equal, j preferred)."""
    seen = np.concatenate([c.won[(c.left == i) & (c.right == j)], 1 - c.won[(c.left == j) & (c.right == i)]])
    return int((seen == 1).sum()), int((seen == 0.5).sum()), int((seen == 0).sum())


def sentences(found: dict[str, Any], methods: list[str]) -> list[str]:
    """What the comparisons show, in plain words, and no more."""
    said = []
    readers = found["readers"]
    if simulated := sum(row["role"] == ROLE for row in readers):
        said.append(f"{simulated} of {len(readers)} readers are SIMULATED: no result about methods.")
    p = found["paired"]
    if p is None:
        return [*said, "No comparison has been answered."]
    overall = p["test"]["overall"]
    if overall < LEVEL:
        said.append(f"The methods differ ({p_text(overall)}). {_order(p, methods)}")
    else:
        said.append(
            f"No difference between the methods was shown ({p_text(overall)}); this does not prove equality."
        )
    for (i, j), (_, holm) in p["test"]["pairs"].items():
        wins, equal, losses = p["tally"][i, j]
        if not wins + equal + losses:
            continue
        first = p["test"]["net"][i, j] >= 0  # raw wins may point the other way under a preference for a side
        a, b = (i, j) if first else (j, i)
        more, less = (wins, losses) if first else (losses, wins)
        counts = f"{more} to {less}, {equal} equal; {p_text(holm)} after Holm"
        verdict = "was preferred to" if overall < LEVEL and holm < LEVEL else "was not shown to differ from"
        said.append(f"{methods[a]} {verdict} {methods[b]} ({counts}).")
    side = p["side"]
    if side["decided"]:
        biased = side["p"] < LEVEL
        said.append(
            f"A (left) was chosen in {side['left']} of {side['decided']} decided answers "
            f"({100 * side['share']:.0f} %, 95 % interval {100 * side['low']:.0f} to "
            f"{100 * side['high']:.0f} %): "
            + ("readers preferred a side." if biased else "no common preference for a side was shown.")
        )
        odds = [f"{x:.2f}" for x in np.exp([min(p["sides"].values()), max(p["sides"].values())])]
        said.append(
            f"By reader, the estimated odds of A (left) between equal methods are "
            f"{' to '.join(dict.fromkeys(odds))}; the strengths allow for them."
        )
    same, repeats = (
        (sum(n) for n in zip(*p["agreement"]["within"].values(), strict=True))
        if p["agreement"]["within"]
        else (0, 0)
    )
    if repeats:
        said.append(f"Shown the same pair again, readers gave the same answer {same} of {repeats} times.")
    return said


def _order(p: dict[str, Any], methods: list[str]) -> str:
    """The estimated order, and a best method only where the test supports it against every other."""
    strength, test = p["bradley_terry"]["strength"], p["test"]
    shown = [
        pair if test["net"][pair] > 0 else pair[::-1] for pair, q in test["pairs"].items() if q[1] < LEVEL
    ]
    if not all(strength[a] > strength[b] for a, b in shown):
        return "The estimated strengths and the test disagree on a pair, so no order is given."
    order = np.argsort(-strength)
    best = methods[order[0]] if sum(a == order[0] for a, _ in shown) == len(methods) - 1 else None
    line = f"Estimated order, highest first: {', '.join(methods[i] for i in order)}. "
    return line + (f"Best: {best}." if best else "No single best method was shown.")


def cautions(found: dict[str, Any]) -> list[str]:
    """The limits of this study."""
    readers = found["readers"]
    said = []
    if len(readers) < 3:
        said.append(f"{len(readers)} reader(s): the intervals cannot tell how readers differ.")
    if found["paired"] and found["paired"]["cases"] < 5:
        said.append(f"{found['paired']['cases']} case(s): too few to speak for cases like these.")
    if fast := sum(row["too_fast"] for row in readers):
        said.append(
            f"{fast} answers were given faster than the study's limit; they are counted, and marked in the "
            "export."
        )
    said += [
        "Ratings are ordered categories: they are compared by ranks and never averaged.",
        "The p values speak for these readers and cases; the intervals for readers and cases like them.",
        "A preference is not diagnostic accuracy: a picture may please and mislead.",
    ]
    return said


def p_text(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def page(store: Store, seed: int = 0) -> tuple[str, dict[str, Any]]:
    """(one self-contained HTML page, the figures)."""
    from mmif_trt.study.server import load

    methods, names = store.methods(), store.meta["scales"]
    found = analyse(export_rows(store), methods, names, seed)
    html = load("analysis.html").render(
        meta=store.meta,
        methods=methods,
        found=found,
        sentences=sentences(found, methods),
        cautions=cautions(found),
        plots=_plots(found, methods),
        scales=SCALES,
        power_readers=power.READERS,
        side_sd=f"{paired.SIDE_SD:g}",
        libraries={name: version(name) for name in LIBRARIES},
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        research_use=RESEARCH_USE,
        p_text=p_text,
        seed=seed,
        bootstraps=paired.BOOTSTRAPS,
        draws=paired.DRAWS,
        css=io_text("study.css"),
    )
    return html, found


def io_text(name: str) -> str:
    from importlib import resources

    return resources.files("mmif_trt.study").joinpath("pages", name).read_text(encoding="utf-8")


def _plots(found: dict[str, Any], methods: list[str]) -> dict[str, str]:
    drawn = {}
    if p := found["paired"]:
        bt = p["bradley_terry"]
        order = np.argsort(-bt["strength"])
        rows = [(methods[i], bt["strength"][i], bt["low"][i], bt["high"][i]) for i in order]
        drawn["strength"] = plots.intervals(
            rows,
            "strength (log-odds), 95 % interval",
            "Bradley-Terry strengths: " + ", ".join(r[0] for r in rows),
        )
        tally = {f"{methods[i]} | {methods[j]}": counts for (i, j), counts in p["tally"].items()}
        drawn["tally"] = plots.stacked(
            tally, ("first", "equal", "second"), "Answers of every pair of methods"
        )
    for name, scale in found["scales"].items():
        counts = {method: row.tolist() for method, row in zip(methods, scale["counts"], strict=True)}
        drawn[name] = plots.stacked(counts, ("1", "2", "3", "4", "5"), f"Ratings: {SCALES[name].title}")
    return drawn


def write(store: Store, path: str | Path, seed: int = 0) -> dict[str, Any]:
    """The page under `path`, whole or not at all; returns the figures. Raises OutputError."""
    html, found = page(store, seed)
    write_atomic(path, html.encode())
    return found
