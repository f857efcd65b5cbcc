"""The results of gpu_suite.sh so far, as text: python benchmarks/suite_summary.py FOLDER

FOLDER holds index.json, the steps' logs and their rows. Imports neither torch nor the package: this runs
after every step, and must not fail if the package does.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

# Of ncu's raw page: its column, ours.
NCU = {
    "gpu__time_duration.sum": "time",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "compute %",
    "gpu__compute_memory_throughput.avg.pct_of_peak_sustained_elapsed": "memory %",
    "dram__bytes_read.sum": "DRAM read",
    "dram__bytes_write.sum": "DRAM written",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy %",
    "launch__registers_per_thread": "registers",
    "smsp__inst_executed.sum": "instructions",
}


def table(head: list[str], rows: Iterable[list[Any]]) -> str:
    lines = [head, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def p50(row: dict[str, Any], *keys: str) -> str:
    at: Any = row
    for key in keys:
        at = at.get(key) if isinstance(at, dict) else None
    return f"{at['p50']:.4f}" if at else ""


def ops(result: dict[str, Any]) -> str:
    head = [
        "op",
        "shape",
        "type",
        "shift",
        "rival",
        "forward",
        "backward",
        "as called",
        "/ floor",
        "/ designed",
    ]
    rows = []
    for row in result["rows"]:
        shape = "x".join(map(str, row["shape"]))
        title = [row["op"], shape, row["dtype"], "" if row["shift"] is None else row["shift"], row["rival"]]
        if row["status"] != "measured":
            rows.append([*title, f"refused: {row['reason']}", "", "", "", ""])
            continue
        over = [
            " ".join(f"{row['ms'][k]['p50'] / row[floor][k]:.2f}" for k in row.get(floor) or ())
            for floor in ("floor_ms", "designed_ms")
        ]
        times = [p50(row, "ms", "forward"), p50(row, "ms", "backward"), p50(row, "as_called_ms", "both")]
        rows.append([*title, *times, *over])
    return table(head, rows) + f"\ncopy {result['settings']['copy GB/s']} GB/s"


def correct(result: dict[str, Any]) -> str:
    bad = [row for row in result["rows"] if not row["passes"]]
    head = ["op", "type", "case", "output", "error", "plain torch's"]
    rows = [
        [r["op"], r["dtype"], r["case"], r["output"], f"{r['error']:.2e}", f"{r['plain_error']:.2e}"]
        for r in bad or result["rows"][:6]
    ]
    told = f"{len(bad)} of {len(result['rows'])} outputs fail" + ("" if bad else "; the first")
    return f"{told}\n{table(head, rows)}"


def network(result: dict[str, Any]) -> str:
    head = ["size", "batch", "rival", "ms", "as called", "pairs/s", "MiB"]
    rows = [
        [
            r["size_px"],
            r["batch"],
            r["rival"],
            p50(r, "ms"),
            p50(r, "as_called_ms"),
            r["pairs_per_s"],
            r["peak_mib"],
        ]
        if r["status"] == "measured"
        else [r["size_px"], r["batch"], r["rival"], f"refused: {r['reason']}", "", "", ""]
        for r in result["rows"]
    ]
    return table(head, rows)


def latency(result: dict[str, Any]) -> str:
    head = ["runtime", "batch", "network", "end to end"]
    return table(
        head,
        (
            [r["runtime"], r["batch"], p50(r, "ms", "network"), p50(r, "ms", "end_to_end")]
            if r["status"] == "measured"
            else [r["runtime"], r.get("batch", ""), f"refused: {r['reason']}", ""]
            for r in result["rows"]
        ),
    )


def training(result: dict[str, Any]) -> str:
    lines = [
        f"kernels {r['kernels']}, captured {r['captured']}: {p50(r, 'step_ms')} ms, "
        f"loss {r['loss'][0]} to {r['loss'][-1]}"
        if r["status"] == "measured"
        else f"kernels {r['kernels']}: refused: {r['reason']}"
        for r in result["rows"]
    ]
    return "\n".join([*lines, f"largest gap of the curves: {result.get('gap', 'unknown')} of the fall"])


def diffusion(result: dict[str, Any]) -> str:
    head = ["what", "rival", "ms", "clock", "as called"]
    return table(
        head,
        (
            [r["what"], r["rival"], p50(r, "ms"), r["clock"], p50(r, "as_called_ms")]
            if r["status"] == "measured"
            else [r["what"], r["rival"], f"refused: {r['reason']}", "", ""]
            for r in result["rows"]
        ),
    )


def launches(log: str) -> tuple[dict[str, str], list[dict[str, str]]]:
    """ncu's raw page, a CSV behind its talk: the units of the columns, then a row per launch."""
    units, *rows = csv.DictReader(io.StringIO(log[log.index('"ID"') :]))
    return units, rows


def ncu(log: str) -> str:
    units, rows = launches(log)
    there = [column for column in NCU if column in units]
    head = ["kernel", *(f"{NCU[c]} {units[c]}".strip() for c in there)]
    return table(head, ([r["Kernel Name"][:60], *(r[c] for c in there)] for r in rows))


SHOWN: dict[str, Callable[[dict[str, Any]], str]] = {
    "correct.json": correct,
    **dict.fromkeys(("attention.json", "attention_batch.json", "loss.json", "step.json"), ops),
    **dict.fromkeys(("compiled.json", "compiled_loss.json"), ops),
    **dict.fromkeys(("network.json", "network_512.json", "network_compile.json"), network),
    "latency.json": latency,
    "training.json": training,
    "diffusion.json": diffusion,
}


def section(path: Path, show: Callable[[], str]) -> str:
    try:
        return f"\n-- {path.name}\n{show()}"
    except Exception as error:  # a truncated log must not cost the other tables
        return f"\n-- {path.name}\nnot shown: {type(error).__name__}: {error}"


def summary(folder: Path) -> str:
    index = json.loads((folder / "index.json").read_text())
    head = ["step", "exit", "seconds", "limit"]
    steps = [[s["name"], "not begun" if s["exit"] is None else s["exit"], s["seconds"], s["limit_s"]]
             for s in index["steps"]]  # fmt: skip
    parts = [f"gpu_suite.sh {index['part']}, {index['device']} {index['card']}, {index['seconds']} s"]
    parts.append(table(head, steps))
    for name, show in SHOWN.items():
        if (path := folder / name).is_file():
            parts.append(section(path, lambda path=path, show=show: show(json.loads(path.read_text()))))  # type: ignore[misc]
    if (path := folder / "ncu_rows.log").is_file():
        parts.append(section(path, lambda: ncu(path.read_text())))
    return "\n".join(parts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what gpu_suite.sh wrote")
    print(summary(parser.parse_args().folder))
