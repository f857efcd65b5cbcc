"""What the benchmarks share: conditions, percentiles, rows as JSON, and the tables of several."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from conditions import card_facts as card_facts
from conditions import conditions as conditions
from conditions import device_facts as device_facts
from conditions import load_average as load_average

import mmif_trt
from mmif_trt import weights

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results"


def environment() -> dict[str, str]:
    """For another process: the same mmif_trt as here, installed or not."""
    package = str(Path(mmif_trt.__file__).parents[1])
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])),
    }


def percentiles(values: Iterable[float], digits: int = 3) -> dict[str, float]:
    """p50, p95, p99 (linear between samples), min, mean and the count n of one or more samples."""
    array = np.asarray(list(values), np.float64)
    p50, p95, p99 = np.percentile(array, (50, 95, 99))
    named = {"p50": p50, "p95": p95, "p99": p99, "min": array.min(), "mean": array.mean()}
    return {**{name: round(float(value), digits) for name, value in named.items()}, "n": len(array)}


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Writes atomically: a benchmark that is ended at its limit leaves the rows written so far."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(temporary, path)


def write_so_far(path: Path | None, result: dict[str, Any]) -> None:
    """The rows of an unfinished run; the last write has no "unfinished"."""
    if path:
        write_json(path, {**result, "unfinished": True, "load_average_end": load_average()})


def markdown(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def sentence(result: dict[str, Any]) -> str:
    """The conditions under which a table holds, as one paragraph."""
    at, set_ = result["conditions"], result["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in at["versions"].items() if version)
    load = " to ".join(
        f"{x[0]:g}" if x else "unknown" for x in (at["load_average"], result["load_average_end"])
    )
    commit = (at["commit"] or "unknown") + (" with uncommitted changes" if at["uncommitted_changes"] else "")
    device = at.get("device", {}).get("name", "cpu")
    on = (
        ""
        if device == "cpu"
        else f"{device} (driver {at['device']['driver']}, CUDA {at['device']['cuda']}), "
    )
    hashes = ", ".join(f"{file} {sha[:12]}" for file, sha in at["weights_sha256"].items())
    settings = ", ".join(f"{name} {_plain(value)}" for name, value in set_.items())
    return (
        f"Measured {at['date']} on {on}{at['cpu']['model']} ({at['cpu']['cores']} cores usable), {at['os']}, "
        f"Python {at['python']}, load average {load}; {settings}; {versions}; commit {commit}; "
        f"weights {hashes}."
    )


def _plain(value: Any) -> str:
    return (
        " ".join(map(str, value)) if isinstance(value, list) else "all cores" if value is None else str(value)
    )


def latency_tables(result: dict[str, Any]) -> str:
    """Markdown of bench_latency.py's result: network and end to end, then every stage, then cold start."""
    measured = [row for row in result["rows"] if row["status"] == "measured"]
    marks = ("p50", "p95", "p99", "min")
    head = ["runtime", "precision", "asked", "size px", "batch"]
    head += ["network p50 ms", "p95", "p99", "min", "end to end p50 ms", "p95", "p99", "min"]
    head += ["pairs/s", "network pairs/s", "GMAC", "GFLOP/s", "matmul GFLOP/s", "share"]
    on_card = any("device_mib" in row for row in measured)
    head += ["device MiB"] if on_card else []
    several = other_networks(result["rows"])
    head[1:1] = ["network"] if several else []
    main = []
    for row in result["rows"]:
        network = [row.get("network", "")] if several else []
        if row["status"] == "refused":
            known = [row["runtime"], *network, row.get("precision", "none"), row["asked"]]
            known += [row.get("size_px", ""), f"refused: {row['reason']}"]
            main.append([*known, *[""] * (len(head) - len(known))])
            continue
        ms = row["ms"]
        known = [f"{row['runtime']} on {row['device']}", *network, row["precision"], row["asked"]]
        known += [row["size_px"]]
        times = [_ms(ms[stage][mark]) for stage in ("network", "end_to_end") for mark in marks]
        rates = [f"{row['pairs_per_s']:.1f}", f"{row['batch'] * 1e3 / ms['network']['p50']:.1f}"]
        rates += [f"{row['gmac']:.3f}", f"{row['gflop_per_s']:.0f}"] if "gmac" in row else ["", ""]
        rates += (
            [f"{row['matmul_gflop_per_s']:.0f}", f"{100 * row['matmul_share']:.0f} %"]
            if "matmul_share" in row
            else ["", ""]
        )
        rates += [row.get("device_mib", "")] if on_card else []
        main.append([*known, row["batch"], *times, *rates])
    parts = [sentence(result), markdown(head, main)]
    if measured:
        parts += ["Every stage, p50 / p95 / p99 / min in ms:", _stages(measured, marks)]
    parts += _cold_start(result["cold_start"])
    return "\n\n".join(parts)


def other_networks(rows: list[dict[str, Any]]) -> bool:
    """Whether a row is of another network than the default, which older results do not name."""
    return any(row.get("network", weights.DEFAULT) != weights.DEFAULT for row in rows)


def _stages(rows: list[dict[str, Any]], marks: Sequence[str]) -> str:
    """One column per stage of any row, in the order of the row with most stages: only GPU rows have those of
    a GPU."""
    names: list[str] = max((list(row["ms"]) for row in rows), key=len)
    several = ["network"] if other_networks(rows) else []
    lines = []
    for row in rows:
        times = [
            " / ".join(_ms(row["ms"][name][mark]) for mark in marks) if name in row["ms"] else ""
            for name in names
        ]
        known = [f"{row['runtime']} on {row['device']}", *(row.get(name, "") for name in several)]
        lines.append([*known, row["precision"], row["size_px"], row["batch"], *times])
    return markdown(["runtime", *several, "precision", "size px", "batch", *names], lines)


def _ms(x: float) -> str:
    """Hundredths; all digits below a tenth of a millisecond, as for copies on a GPU."""
    return f"{x:.2f}" if x >= 0.1 or x == 0 else f"{x:.4f}"


def _cold_start(cold: dict[str, Any]) -> list[str]:
    if cold["status"] != "measured":
        return [f"Cold start not measured: {cold['reason']}"]
    rows = [
        [name.replace("_", " "), f"{s['p50']:.3f}", f"{s['min']:.3f}", s["n"]]
        for name, s in cold["s"].items()
    ]
    table = markdown(["seconds", "p50", "min", "n"], rows)
    return ["Cold start, new processes, files in the page cache:", table]


def batch_table(result: dict[str, Any]) -> str:
    """Markdown of bench_batch.py's result."""
    head = [
        "pairs",
        "runtime",
        "decode",
        "workers",
        "folder pairs/s",
        "with start-up",
        "network pairs/s, 1 caller",
        "all callers",
    ]
    head += ["ratio to 1 caller", "ratio to all callers", "peak MiB"]
    rows = []
    for row in result["rows"]:
        network = row["network_only_pairs_per_s"]
        peak = row["peak_rss_mib"]
        rows.append(
            [row["pairs"], f"{row['runtime']['name']} {row['runtime']['precision']}"]
            + [row.get("decode", "auto"), row["workers"]]
            + [f"{row[key]:.1f}" for key in ("pairs_per_s", "pairs_per_s_with_start")]
            + [f"{network[key]:.1f}" for key in ("one_caller", "all_callers")]
            + [f"{100 * row[key]:.0f} %" for key in ("ratio", "ratio_all_callers")]
            + ["not measured" if peak is None else f"{peak:.0f}"]
        )
    growth = result["peak_growth"]
    last = (
        [f"Peak memory of the most pairs against the fewest: {100 * growth - 100:+.1f} %."] if growth else []
    )
    return "\n\n".join([sentence(result), markdown(head, rows), *last])


PHASES = ("forward", "backward", "both")


def ops_table(result: dict[str, Any]) -> str:
    """Markdown of bench_ops.py's result: one row per rival, the kernel's first."""
    head = [
        "op",
        "shape",
        "type",
        "shift",
        "rival",
        "forward ms",
        "backward ms",
        "both p50",
        "p95",
        "peak MiB",
    ]
    head += ["kernel is faster", "forward / floor", "backward / floor"]
    on_card = any("as_called_ms" in row for row in result["rows"])
    head += ["forward / designed", "backward / designed", "both as called ms"] if on_card else []
    rows = []
    for row in result["rows"]:
        shape = "x".join(str(n) for n in row["shape"])
        title = [row["op"], shape, row["dtype"], "" if row["shift"] is None else row["shift"], row["rival"]]
        if row["status"] == "refused":
            rows.append([*title, f"refused: {row['reason']}", *[""] * (len(head) - 6)])
            continue
        ms = row["ms"]
        times = [_ms(ms[phase]["p50"]) if on_card else f"{ms[phase]['p50']:.2f}" for phase in PHASES]
        ratio = row.get("kernel_is_faster")
        over = _over(row, "floor_ms") + (_over(row, "designed_ms") if on_card else [])
        over += [f"{row['as_called_ms']['both']['p50']:.3f}"] if "as_called_ms" in row else []
        faster = "" if row["rival"] == "kernel" or ratio is None else f"{ratio:.2f} x"
        rows.append([*title, *times, f"{ms['both']['p95']:.2f}", row["peak_mib"], faster, *over])
    return "\n\n".join([sentence(result), markdown(head, rows)])


def _over(row: dict[str, Any], floor: str) -> list[str]:
    """Forward and backward relative to one of the floors; empty if the row has none."""
    return [
        f"{row['ms'][phase]['p50'] / row[floor][phase]:.1f}" if row.get(floor) else ""
        for phase in ("forward", "backward")
    ]
