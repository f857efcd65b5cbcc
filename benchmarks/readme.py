"""Fill the tables of benchmarks/README.md from benchmarks/results.

    python benchmarks/readme.py [--check]

Writes the text between the markers "<!-- NAME:begin -->" and "<!-- NAME:end -->" of the README, where NAME is
a key of TABLES and the name of results/NAME.json. --check changes nothing and exits 1 if the README is not up
to date.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import card_report
import cluster_tables
import registration
import view_page
from lesions import SHOWN
from report import FOLDER, RESULTS, batch_table, latency_tables, markdown, ops_table

from mmif_trt import weights

README = FOLDER / "README.md"
REPAINTED = ("lesions", "worst", "lost", "detail_top", "colour_top", "washed_top", "readback")


def repainted_tables(result: dict[str, Any]) -> str:
    """Markdown of repainted.py: one table per set, a row for each palette and method."""
    texts = []
    for name, shown in result["sets"].items():
        rows = [
            [
                palette,
                SHOWN.get(method, weights.title(method)),
                *("" if values.get(key) is None else f"{values[key]:.2f}" for key in REPAINTED),
            ]
            for palette, methods in shown.items()
            for method, values in methods.items()
        ]
        texts += [f"**{name}**", markdown(["palette", "method", *REPAINTED], rows)]
    about = f"{result['pairs']} pairs per set, {result['split']} cases, scored at commit {result['commit']}."
    return "\n\n".join([*texts, about])


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "latency_cpu": latency_tables,
    "latency_avx2": latency_tables,
    "batch_cpu": batch_table,
    "ops_cpu": ops_table,
    "card_h200": card_report.tables,
    "card_h100": card_report.tables,
    "cluster_cpu": cluster_tables.cluster_table,
    "scaling_cpu": cluster_tables.scaling_table,
    "plan_cpu": cluster_tables.plan_table,
    "view": view_page.view_table,
    "repainted": repainted_tables,
    "registration": registration.table,
}


def filled(text: str, results: Path = RESULTS) -> str:
    """`text` with the tables of `results` between its markers, "Not measured." for a missing file."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise SystemExit(f"README: the markers {begin} and {end} must stand there once, in this order")
        path = results / f"{name}.json"
        body = table(json.loads(path.read_text())) if path.is_file() else "Not measured."
        text = f"{text[: text.index(begin)]}{begin}\n{body}\n{text[text.index(end) :]}"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if it is not up to date")
    check = parser.parse_args().check
    before = README.read_text()
    after = filled(before)
    if not check:
        README.write_text(after)
    elif before != after:
        print("benchmarks/README.md is not up to date: run python benchmarks/readme.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
