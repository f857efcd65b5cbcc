"""Fusion quality on the validation pairs: score a method, take in the peers, make the pages' tables.

    python benchmarks/quality.py score --data HARVARD [--fused DIR --name LAGN] [--made-by TEXT]
    python benchmarks/quality.py score --data HARVARD --network lagn-quality
    python benchmarks/quality.py import-peers PEERS.json
    python benchmarks/quality.py table [--write [PAGE ...]]

HARVARD holds SET/val/{mri,ct|pet|spect}/NAME.png, DIR holds SET/NAME.png; SET is mri-ct, mri-pet, mri-spect.
Each command works on --out (benchmarks/results/quality.json), where rows of other methods stay unchanged.
`score` also measures both baselines, on the 8-bit luma of the files. With --network it first fuses the pairs,
in FP32, with that installed network, and names the row after it. `table --write` alone writes all of PAGES:
the README shows six rows per set, docs/benchmarks.md every row and column.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import results_command
from conditions import source

from mmif_trt import cli, weights
from mmif_trt.files import write_atomic
from mmif_trt.image import InputError
from mmif_trt.measure.metrics import ALL, RANKED, foreground_metrics
from mmif_trt.measure.scores import BASELINES, Table, evaluate, mean_rank, source_folders

REPO = Path(__file__).resolve().parent.parent
SETS = ("mri-ct", "mri-pet", "mri-spect")
SPLIT = "val"
COLUMNS = RANKED + tuple(key for key in ALL if key not in RANKED)
# The markers say which tables a page shows: all of them, or the brief ones.
MARKERS = {name: (f"<!-- {name}:begin -->", f"<!-- {name}:end -->") for name in ("quality", "quality-brief")}
PAGES = (REPO / "README.md", REPO / "docs/benchmarks.md")
BRIEF_ROWS = 6  # ours, the two baselines, and as many of the best peers as there is room for
DECIMALS = 3  # like the peers' figures: more would break their ties
NOT_COMPARED = {
    "mri-ct": ("detail", "function")
}  # in CT the brightest fifth is bone: shown, but no best value marked


def load(path: Path) -> dict[str, Any]:
    """{"conditions": {method: {...}}, "sets": {set: {"n": pairs, "rows": {method: {metric: value}}}}}.

    Sets that were scored here have "foreground" rows too.
    """
    if not path.exists():
        return {"conditions": {}, "sets": {}}
    report: dict[str, Any] = json.loads(path.read_text())
    return report


def save(path: Path, report: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())


def merge(report: dict[str, Any], name: str, pairs: int, rows: Table) -> None:
    """Add a set's rows to the others. Raises InputError if those are from another number of pairs."""
    entry = report["sets"].setdefault(name, {"n": pairs, "rows": {}})
    if entry["n"] != pairs:
        raise InputError(f"{name}: {pairs} pairs; expected the {entry['n']} of the rows already there")
    for method, values in rows.items():
        entry["rows"][method] = {
            key: None if math.isnan(values[key]) else round(values[key], DECIMALS) for key in COLUMNS
        }


def merge_foreground(report: dict[str, Any], name: str, rows: Table) -> None:
    entry = report["sets"][name].setdefault("foreground", {})
    for method, values in rows.items():
        entry[method] = {key: None if math.isnan(x) else round(x, DECIMALS) for key, x in values.items()}


def score(args: argparse.Namespace) -> None:
    if (args.fused is None) != (args.name is None):
        raise InputError("score: --fused or --name alone; expected both, or neither for the baselines only")
    if args.network is None:
        return score_folder(args)
    if args.fused is not None:
        raise InputError("score: --network with --fused; expected one of them")
    with tempfile.TemporaryDirectory() as folder:
        args.fused, args.name = Path(folder), weights.title(args.network)
        args.made_by = args.made_by or fuse_all(args.data, args.fused, args.network)
        score_folder(args)


def fuse_all(data: Path, folder: Path, network: str) -> str:
    """Every pair as a user fuses it, into folder/SET; returns the command without its paths."""
    how = ["--precision", "fp32", *([] if network == weights.DEFAULT else ["--network", network])]
    for name in SETS:
        sources = map(str, source_folders(data / name / SPLIT))
        if cli.main(["fuse", *sources, "-o", str(folder / name), *how, "--quiet"]):
            raise InputError(f"score: {name} was not fused; expected pairs that mmif-trt fuse takes")
    return shlex.join(["mmif-trt", "fuse", *how])


def score_folder(args: argparse.Namespace) -> None:
    report = load(args.out)
    for name in SETS:
        fused = None if args.fused is None else args.fused / name
        pairs, method = args.data / name / SPLIT, args.name or "fused"
        scores = evaluate(pairs, fused, method=method, baselines=True)
        merge(report, name, scores.pairs, scores.means)
        inside = evaluate(pairs, fused, method=method, baselines=True, measure=foreground_metrics)
        merge_foreground(report, name, inside.means)
    made = {"commit": commit(), "date": f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}"}
    made |= {"command": command(args), "split": SPLIT}
    for method in BASELINES:
        report["conditions"][method] = {"kind": "baseline", **made}
    if args.name is not None:
        report["conditions"][args.name] = {"kind": "ours", "made_by": args.made_by, **made}
    save(args.out, report)


def commit() -> str:
    """The commit the figures were made at, with -dirty if the tree differs from it in more than results."""
    told = source()
    return (told["commit"] or "unknown") + ("-dirty" if told["uncommitted_changes"] else "")


def command(args: argparse.Namespace) -> str:
    """The command, paths relative to the repository: a committed file contains no absolute path."""
    words = ["python", "benchmarks/quality.py", "score", "--data", os.path.relpath(args.data, REPO)]
    if args.network is not None:
        words += ["--network", args.network]
    elif args.fused is not None:
        words += ["--fused", os.path.relpath(args.fused, REPO), "--name", args.name]
    return shlex.join(words)


def import_peers(args: argparse.Namespace) -> None:
    """Rows measured elsewhere, {set: {method: {metric: value, "n": pairs}}, "note": how}, no baselines."""
    try:
        peers: dict[str, Any] = json.loads(args.peers.read_text())
        note = peers["note"]
        found = {name: {m: v for m, v in peers[name].items() if m not in BASELINES} for name in SETS}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        received = f"{type(error).__name__} {error}"
        raise InputError(
            f"{args.peers}: {received}; expected JSON with a note and the sets {SETS}"
        ) from error
    report = load(args.out)
    for name, rows in found.items():
        for method, values in rows.items():
            if lacking := [key for key in (*COLUMNS, "n") if key not in values]:
                raise InputError(f"{args.peers}: {name} {method} lacks {lacking}; expected whole rows")
            merge(report, name, values["n"], {method: values})
            report["conditions"][method] = {"kind": "peer", "split": SPLIT}
    report["peers_note"] = note
    save(args.out, report)


def tables(report: dict[str, Any], brief: bool = False) -> str:
    """One Markdown table per set, best mean rank first, and a line on what the rows are.

    brief: only ours, the baselines and the best peers, and only the columns of the mean rank, which is still
    computed over all rows.
    """
    parts = []
    for name in (name for name in SETS if name in report["sets"]):
        entry = report["sets"][name]
        heading = f"{name.upper().replace('-', ' and ')}, {entry['n']} pairs"
        parts += [f"**{heading}**" if brief else f"### {heading}", ""]
        parts += [*table(name, entry["rows"], report["conditions"], brief), ""]
    parts.append(
        "Best of all rows in bold, where it is among these."
        if brief
        else "Best of a column in bold; the columns from AG on do not count for the mean rank. "
        "Each of our networks is ranked without the other, and the other rows beside the default."
    )
    if not brief and (inside := foreground_table(report)):
        parts += ["", *inside, ""]
    if any(entry["kind"] == "peer" for entry in report["conditions"].values()):
        parts.append("Peers ran from their released weights; they may have seen these pairs in training.")
    for method, made in report["conditions"].items():
        if made["kind"] == "ours":
            how = f", {made['made_by']}" if made["made_by"] else ""
            parts.append(f"{method}: scored at commit {made['commit']} on {made['date']}{how}.")
    return "\n".join(parts)


def table(
    name: str, rows: dict[str, dict[str, float | None]], conditions: dict[str, Any], brief: bool = False
) -> list[str]:
    columns = RANKED if brief else COLUMNS
    values = {m: {k: math.nan if v is None else v for k, v in row.items()} for m, row in rows.items()}
    ranks = ranks_of(values, [method for method in rows if conditions[method]["kind"] == "ours"])
    best = {
        key: max((v[key] for v in values.values() if not math.isnan(v[key])), default=None) for key in columns
    }
    best |= dict.fromkeys(NOT_COMPARED.get(name, ()))
    lines = ["| method | mean rank | " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) + 1)]
    order = sorted(ranks, key=lambda m: (ranks[m], m))
    peers = [method for method in order if conditions[method]["kind"] == "peer"]
    for method in order:
        kind = conditions[method]["kind"]
        if brief and method in peers[BRIEF_ROWS - (len(order) - len(peers)) :]:
            continue
        cells = [method if kind == "peer" else f"{method} ({kind})"]
        cells.append(emphasise(f"{ranks[method]:.2f}", ranks[method] == min(ranks.values())))
        for key in columns:
            value = values[method][key]
            text = "-" if math.isnan(value) else f"{value:.{DECIMALS}f}"
            cells.append(emphasise(text, value == best[key]))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def ranks_of(values: dict[str, dict[str, float]], ours: Sequence[str]) -> dict[str, float]:
    """The mean ranks of all rows. ours: networks of one kind, nearly alike in every measure: each is ranked
    without the others, which would count as many rivals, and the other rows beside the first alone."""
    ranks: dict[str, float] = {}
    for mine in reversed(ours or [""]):
        rows = {method: row for method, row in values.items() if method == mine or method not in ours}
        ranks = {**ranks, **mean_rank(rows)}
    return ranks


def foreground_table(report: dict[str, Any]) -> list[str]:
    """The ranked measures over pixels where either source is above 2 of 255; we lack the peers' pictures."""
    rows = [
        (name, method, values)
        for name, entry in report["sets"].items()
        for method, values in entry.get("foreground", {}).items()
    ]
    if not rows:
        return []
    keys = list(rows[0][2])
    lines = [f"| foreground only | | {' | '.join(keys)} |", "|---|---|" + "---:|" * len(keys)]
    for name, method, values in rows:
        cells = ["-" if values[key] is None else f"{values[key]:.{DECIMALS}f}" for key in keys]
        lines.append(f"| {name} | {method} | {' | '.join(cells)} |")
    return lines


def emphasise(text: str, is_best: bool) -> str:
    return f"**{text}**" if is_best else text


def replaced(page: str, text: str, path: Path, markers: tuple[str, str]) -> str:
    """page with text between the markers. Raises InputError unless each marker occurs once."""
    begin, end = markers
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise InputError(f"{path}: no pair of markers; expected {begin} and then {end}, once each")
    head, rest = page.split(begin)
    return f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}"


def filled(page: str, report: dict[str, Any], path: Path) -> str:
    """page with its tables: the brief ones if it has the brief markers. Raises InputError without any."""
    brief = MARKERS["quality-brief"][0] in page
    name = "quality-brief" if brief else "quality"
    return replaced(page, tables(report, brief), path, MARKERS[name])


def show(args: argparse.Namespace) -> None:
    report = load(args.out)
    if not report["sets"]:
        raise InputError(f"{args.out}: no rows; expected a file that score or import-peers wrote")
    if args.write is None:
        print(tables(report))
        return
    for path in args.write or PAGES:
        write_atomic(path, filled(path.read_text(), report, path).encode())


def main(argv: Sequence[str] | None = None) -> int:
    shared = argparse.ArgumentParser(add_help=False)
    results_command.add_out(shared, "quality.json")
    parser = results_command.parser(__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = commands.add_parser("score", parents=[shared], help="measure a method and the baselines")
    results_command.add_data(one)
    one.add_argument("--fused", type=Path, metavar="DIR")
    one.add_argument("--name", help="the method's name in the tables")
    what = "fuse the pairs with it first; instead of --fused and --name"
    one.add_argument("--network", choices=weights.NAMES, help=what)
    one.add_argument("--made-by", default="", metavar="TEXT", help="how the fused pictures were made")
    one.set_defaults(run=score)
    peers = commands.add_parser("import-peers", parents=[shared], help="import figures measured elsewhere")
    peers.add_argument("peers", type=Path, metavar="PEERS.json")
    peers.set_defaults(run=import_peers)
    page = commands.add_parser("table", parents=[shared], help="print the tables, or write them into a page")
    page.add_argument("--write", type=Path, nargs="*", metavar="PAGE", help="default: README and docs")
    page.set_defaults(run=show)
    return results_command.run("quality", parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
