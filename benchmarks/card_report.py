"""What gpu_suite.sh measured on a card, kept and shown.

    python benchmarks/card_report.py keep FIRST.tar.gz SECOND.tar.gz [STEP.json ...] [--before FIRST.tar.gz]
        -o benchmarks/results/card_h200.json

`keep` makes one file of the archives that both parts of the suite left: the rows of every step as they are,
and ncu's figures of each launch. STEP.json: a step run by itself, in the place of that in an archive.
--before: the first part with earlier kernels on the same card. `tables` is what benchmarks/README.md shows of
it (readme.py).
"""

from __future__ import annotations

import argparse
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report
from suite_summary import NCU, launches

OPS = ("attention", "attention_batch", "loss", "step", "compiled", "compiled_loss")
NETWORK = ("network", "network_512", "network_compile")


def read_part(archive: Path) -> dict[str, Any]:
    """index: the steps; results: of each step that left some, by its name; launches: ncu's."""
    if archive.suffix == ".json":
        return {"index": {"steps": []}, "results": {archive.stem: json.loads(archive.read_text())}}
    with tarfile.open(archive) as tar:
        files = {m.name: file.read() for m in tar.getmembers() if (file := tar.extractfile(m)) is not None}
    index = json.loads(files["index.json"])
    steps = {s["name"]: json.loads(files[s["json"]]) for s in index["steps"] if s["json"]}
    part = {"index": index, "results": steps}
    if "ncu_rows.log" in files:
        part["launches"] = figures(files["ncu_rows.log"].decode())
    return part


def figures(log: str) -> list[dict[str, str]]:
    """Kernel and the figures of NCU, with their units, of each launch in ncu's raw page."""
    units, rows = launches(log)
    return [
        {"kernel": row["Kernel Name"]} | {NCU[c]: f"{row[c]} {units[c]}".strip() for c in NCU if c in units}
        for row in rows
    ]


def correct(result: dict[str, Any]) -> str:
    rows = result["rows"]
    passing = sum(row["passes"] for row in rows)
    worst: dict[tuple[str, ...], tuple[float, float]] = {}
    for row in rows:
        key = (row["op"], row["dtype"], row["output"])
        worst[key] = max(worst.get(key, (0.0, 0.0)), (row["error"], row["plain_error"]))
    head = ["op", "type", "output", "relative error", "plain torch's"]
    table = [[*key, f"{error:.1e}", f"{plain:.1e}"] for key, (error, plain) in worst.items()]
    said = f"Against float64, on fresh random inputs: {passing} of {len(rows)} outputs within their limits."
    said += " The worst case of each:"
    return f"{said}\n\n{report.markdown(head, table)}"


def kernel_times(results: dict[str, Any]) -> dict[tuple[str, ...], tuple[float, float]]:
    """Forward and backward ms of our kernels, by op, shape, type and shift."""
    found: dict[tuple[str, ...], tuple[float, float]] = {}
    for name in ("attention", "attention_batch", "loss"):
        for row in results.get(name, {"rows": []})["rows"]:
            if row["rival"] == "kernel" and row["status"] == "measured":
                shape = "x".join(map(str, row["shape"]))
                key = (row["op"], shape, row["dtype"], "" if row["shift"] is None else str(row["shift"]))
                found[key] = (row["ms"]["forward"]["p50"], row["ms"]["backward"]["p50"])
    return found


def before_and_now(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The kernels of two commits on one kind of card, each in a run of its own."""
    earlier, later = kernel_times(before), kernel_times(now)
    head = ["op", "shape", "type", "shift", "forward before ms", "now", "ratio", "backward before ms", "now"]
    rows = []
    for key in (key for key in later if key in earlier):
        cells = []
        for then, here in zip(earlier[key], later[key], strict=True):
            cells += [f"{then:.4f}", f"{here:.4f}", f"{then / here:.2f} x"]
        rows.append([*key, *cells])
    return report.markdown([*head, "ratio"], rows)


def network(results: list[dict[str, Any]]) -> str:
    head = ["size px", "batch", "mode", "device ms", "as called ms", "pairs/s", "GFLOP/s", "peak MiB"]
    rows = []
    for row in (row for result in results for row in result["rows"]):
        title = [row["size_px"], row["batch"], row["rival"]]
        if row["status"] != "measured":
            rows.append([*title, f"refused: {row['reason']}", "", "", "", ""])
            continue
        times = [f"{row[clock]['p50']:.3f}" for clock in ("ms", "as_called_ms")]
        rows.append([*title, *times, row["pairs_per_s"], row.get("gflop_per_s", ""), row["peak_mib"]])
    return report.markdown(head, rows)


def training(result: dict[str, Any]) -> str:
    rows = [
        [
            row["kernels"],
            row.get("captured", False),
            row["step_ms"]["p50"],
            row["step_ms"]["p95"],
            row["loss"][0],
            row["loss"][-1],
        ]
        for row in result["rows"]
        if row["status"] == "measured"
    ]
    table = report.markdown(["kernels", "captured", "step p50 ms", "p95", "first loss", "last loss"], rows)
    gap = result.get("gap")
    said = "" if gap is None else f"\n\nThe smoothed curves part by at most {100 * gap:.1f} % of the fall."
    title = f"{result['settings']['steps']} steps by the host's clock, data and optimiser included:"
    return f"{title}\n\n{table}{said}"


def diffusion(result: dict[str, Any]) -> str:
    head = ["what", "rival", "device ms", "as called ms"]
    rows = []
    for row in result["rows"]:
        if row["status"] != "measured":
            rows.append([row["what"], row["rival"], f"refused: {row['reason']}", ""])
            continue
        device = f"{row['ms']['p50']:.3f}" if row["clock"] == "device" else "the host waits within"
        rows.append([row["what"], row["rival"], device, f"{row['as_called_ms']['p50']:.3f}"])
    return report.markdown(head, rows)


def profile(found: list[dict[str, str]]) -> str:
    columns = [name for name in NCU.values() if name in found[0]]
    return report.markdown(
        ["kernel", *columns], ([short(row["kernel"]), *(row[c] for c in columns)] for row in found)
    )


def short(kernel: str) -> str:
    """The kernel's own name and its template's arguments."""
    return kernel.split("(WindowA")[0].split("(FusionL")[0].split("(const")[0].split("::", 1)[-1].strip()


def aims(results: dict[str, Any]) -> list[str]:
    """The bars that were set before any card was there, beside what was measured; nothing for a run without
    the step that they ask for."""
    if "network" not in results:
        return []
    rows = [row for name in NETWORK for row in results.get(name, {"rows": []})["rows"]]
    rows = [row for row in rows if row["status"] == "measured" and row["size_px"] == 256]
    one = min((row for row in rows if row["batch"] == 1), key=lambda row: row["ms"]["p50"], default=None)
    many = max(rows, key=lambda row: row["pairs_per_s"], default=None)
    told = ["not measured"] * 2
    if one is not None and many is not None:
        told = [f"{one['ms']['p50']:.3f} ms ({one['rival']})"]
        told += [f"{many['pairs_per_s']:,.0f} pairs/s ({many['rival']}, batch {many['batch']})"]
    head = ["aim", "bar", "measured"]
    table = [
        ["network of one 256 x 256 pair, p50", "under 0.5 ms", told[0]],
        ["network alone, 256 x 256, large batch", "at least 10,000 pairs/s", told[1]],
        ["files to encoded bytes", "within 10 % of the slower of decode and network", "not measured"],
    ]
    return [report.markdown(head, table)]


def ended(parts: list[dict[str, Any]]) -> str:
    """Every step that did not end well: nothing that failed is left out of the page."""
    bad = []
    for step in (step for part in parts for step in part["index"]["steps"]):
        if step["exit"] != 0:
            how = "not begun" if step["exit"] is None else f"exit {step['exit']}"
            bad.append(f"{step['name']} ({how})")
    return f"Steps that did not end well: {', '.join(bad) or 'none'}."


def tables(kept: dict[str, Any]) -> str:
    """Markdown of both parts."""
    results: dict[str, Any] = {}
    found: list[dict[str, str]] = []
    for part in kept["parts"]:
        results |= part["results"]
        found += part.get("launches", [])
    shown: list[tuple[str, tuple[str, ...], Callable[..., str]]] = [
        ("Correctness", ("correct",), correct),
        *((f"`{name}`", (name,), report.ops_table) for name in OPS),
        ("Network, on tensors of the card", NETWORK, lambda *r: network(list(r))),
        ("Latency, files in and out", ("latency",), report.latency_tables),
        ("Training", ("training",), training),
        ("Diffusion", ("diffusion",), diffusion),
    ]
    texts = [*aims(results), ended(kept["parts"])]
    for title, names, show in shown:
        there = [results[name] for name in names if name in results]
        if there:
            texts += [f"#### {title}", show(*there)]
    if "before" in kept:
        commits = [r["attention"]["conditions"]["commit"] for r in (kept["before"], results)]
        title = f"#### Kernels of commit {commits[0]} and of {commits[1]}"
        texts += [title, before_and_now(kept["before"], results)]
    if found:
        texts += ["#### Nsight Compute, one launch of each kernel", profile(found)]
    return "\n\n".join(texts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    keep = commands.add_parser("keep", help="one file of the archives of both parts")
    keep.add_argument("archives", type=Path, nargs="+", help="of both parts, and steps of their own")
    keep.add_argument("--before", type=Path, help="the first part's archive with earlier kernels")
    keep.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    parts = [read_part(path) for path in args.archives]
    kept: dict[str, Any] = {"what": "gpu_suite.sh", "parts": parts}
    if args.before:
        earlier = read_part(args.before)["results"]
        kept["before"] = {name: earlier[name] for name in ("attention", "attention_batch", "loss")}
    report.write_json(args.out, kept)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
