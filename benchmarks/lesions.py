"""What a reader needs, on the validation pairs: fidelity and planted lesions of LAGN, baselines and peers.

    python benchmarks/lesions.py score --data HARVARD
    python benchmarks/lesions.py score --data HARVARD --network lagn-quality
    python benchmarks/lesions.py score --data HARVARD --peer NAME=FILE.py:CALLABLE [--every 4]
    python benchmarks/lesions.py score --data HARVARD --places 1 --out lesions_anywhere.json
    python benchmarks/lesions.py table [--write [PAGE ...]]

HARVARD holds SET/val/{mri,ct|pet|spect}/NAME.png. The first line measures the installed LAGN, the 50 % and
70 % overlays and the maximum; the second the other installed network alone; the third a peer's network, whose
callable returns a torch module (mri, other) -> luma, [B, 1, H, W] in [0, 1], on every fourth pair. With
--places 1 a lesion lies anywhere in its region; else it is the faintest of five. Rows of other methods stay
unchanged in --out (benchmarks/results/lesions.json), as long as the planted lesions are the same.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import results_command
import rivals
from quality import SETS, SPLIT, commit, emphasise, replaced

from mmif_trt import io, weights
from mmif_trt.files import write_atomic
from mmif_trt.image import InputError
from mmif_trt.machine import conditions
from mmif_trt.measure.baselines import PICTURES, Fuse
from mmif_trt.measure.fidelity import LOWER_IS_BETTER, NEITHER, fidelity, names_for
from mmif_trt.measure.lesions import Kept, read, summarise
from mmif_trt.measure.planting import PER_KIND, PLACES, Planted, plant
from mmif_trt.measure.scores import match_folders, source_folders
from mmif_trt.stages.colour import luma

REPO = Path(__file__).resolve().parent.parent
# The markers say which tables a page shows: one per set, the brief one, or that of lesions anywhere.
MARKERS = {
    name: (f"<!-- {name}:begin -->", f"<!-- {name}:end -->")
    for name in ("lesions", "lesions-brief", "lesions-anywhere")
}
PAGES = (REPO / "README.md", REPO / "docs/benchmarks.md")
SHOWN = {"average": "50 % overlay", "overlay70": "70 % overlay", "max": "maximum"}


def peer(module: Any) -> Fuse:
    """A network on lumas as a fusion of pictures: with b's Cb and Cr, clipped to RGB, as these networks are
    used."""
    import torch

    def fuse(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        unit_a, unit_b = a.astype(np.float32) / 255, b.astype(np.float32) / 255
        y_b = luma(unit_b) if b.ndim == 3 else unit_b
        with torch.inference_mode():
            y = module(*(torch.from_numpy(x)[None, None] for x in (unit_a, y_b)))[0, 0].numpy()
        fused = y if b.ndim == 2 else unit_b + (y - y_b)[..., None]
        return np.rint(np.clip(fused, 0, 1) * 255).astype(np.uint8)

    return fuse


def planted_of(data: Path, name: str, per_kind: int, places: int) -> list[Planted]:
    a_folder, b_folder = source_folders(data / name / SPLIT)
    pairs = [(stem, io.read(a).data, io.read(b).data) for stem, a, b in match_folders([a_folder, b_folder])]
    return plant(pairs, b_folder.name, per_kind=per_kind, places=places)


def score_method(fuse: Fuse, planted: Sequence[Planted], every: int) -> dict[str, Any]:
    """Fidelity and lesions of every `every`th pair, means and rows; a lesion that was not scored is null."""
    pairs: dict[str, dict[str, float | None]] = {}
    kept: list[Kept] = []
    rows: list[list[float | None] | None] = []
    start = time.perf_counter()
    for number, one in enumerate(planted):
        if number % every:
            rows += [None] * len(one.lesions)
            continue
        without = fuse(one.a, one.b)
        found = read(one, without, [fuse(a, b) for a, b in one.scenes])
        values = fidelity(one.a, one.b, without, one.modality, one.palette)
        pairs[one.name] = {key: rounded(value) for key, value in values.items()}
        rows += [[rounded(x.share), rounded(x.false_uptake)] for x in found]
        kept += found
    total = summarise(kept)
    keys = names_for(planted[0].modality)
    means = {key: mean([row[key] for row in pairs.values()]) for key in keys}
    lesions = {
        "mean": total.mean,
        "worst": total.worst,
        "lost": total.lost,
        "false_uptake": total.false_uptake,
    }
    return {
        "pairs": len(pairs),
        "seconds": round(time.perf_counter() - start, 1),
        "fidelity": means,
        "lesions": {key: rounded(value) for key, value in lesions.items()},
        "share": {kind: rounded(value) for kind, value in total.share.items()},
        "count": total.count,
        "by_pair": pairs,
        "by_lesion": rows,
    }


def rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


def mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return round(sum(defined) / len(defined), 4) if defined else None


def where(planted: Sequence[Planted]) -> list[list[Any]]:
    """What was planted: pair, kind, shape, radius, centre, contrast, d'; rows of methods keep the order."""
    return [
        [one.name, x.kind, x.shape, x.radius_px, *x.centre, round(x.contrast, 3), round(x.d_source, 3)]
        for one in planted
        for x in one.lesions
    ]


def score(args: argparse.Namespace) -> None:
    methods: dict[str, tuple[str, Fuse]] = {}
    every, alone = 1, args.peer or args.network != weights.DEFAULT
    if args.peer:
        name, _, given = args.peer.partition("=")
        if not given:
            raise InputError(f"--peer {args.peer}: expected NAME=FILE.py:CALLABLE")
        import torch

        torch.set_num_threads(args.threads)
        methods[name], every = ("peer", peer(rivals.peer(given)())), args.every
    else:
        from mmif_trt.fuser import Fuser

        fuser = Fuser(precision=args.precision, threads=args.threads, network=args.network)
        methods[weights.title(args.network)] = "ours", fuser
    if not alone:
        methods |= {name: ("baseline", fuse) for name, fuse in PICTURES.items()}
    report = load(args.out)
    if report["sets"] and report["places"] != args.places:
        raise InputError(f"{args.out}: lesions at --places {report['places']}; expected another --out")
    report["places"] = args.places
    for name in args.sets or SETS:
        planted = planted_of(args.data, name, args.per_kind, args.places)
        entry = report["sets"].setdefault(name, {"planted": where(planted), "methods": {}})
        if entry["planted"] != where(planted):
            if alone:
                raise InputError(f"{args.out}: {name} has other lesions; score LAGN and the baselines first")
            entry.update({"planted": where(planted), "methods": {}})
        for method, (kind, fuse) in methods.items():
            entry["methods"][method] = score_method(fuse, planted, every)
            made = {"kind": kind, "commit": commit(), "cpu": conditions()["cpu"]["model"]}
            made["date"] = f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}"
            if kind == "ours":
                made["precision"] = fuse.runtime.precision  # type: ignore[attr-defined]
            report["conditions"][method] = made
            save(args.out, report)
            found = entry["methods"][method]["lesions"]
            print(f"{name} {method}: {found}, {entry['methods'][method]['seconds']} s", flush=True)


def load(path: Path) -> dict[str, Any]:
    """{"places": N, "conditions": {method: ...}, "sets": {set: {"planted": [...], "methods": {...}}}}."""
    empty = {"places": PLACES, "conditions": {}, "sets": {}}
    return {**empty, **json.loads(path.read_text())} if path.exists() else empty


def save(path: Path, report: dict[str, Any]) -> None:
    """One line per lesion, pair or mean, for comparison by line."""
    text = json.dumps(report, allow_nan=False, separators=(",", ":"))
    text = text.replace("],[", "],\n[").replace("},", "},\n").replace(":{", ":{\n")
    write_atomic(path, (text + "\n").encode())


def tables(report: dict[str, Any], brief: bool = False) -> str:
    """One Markdown table per set, lesions first; brief: the lesions of all sets in one."""
    parts = []
    if brief:
        parts += [*brief_table(report["sets"], report["conditions"]), ""]
    else:
        for name in (name for name in SETS if name in report["sets"]):
            parts += [*table(name, report["sets"][name], report["conditions"]), ""]
    parts.append("n: lesions. Lesions: share kept, mean over the kinds. Best of a column in bold.")
    for method in (m for m, made in report["conditions"].items() if made["kind"] == "peer"):
        rows = [entry["methods"][method] for entry in report["sets"].values() if method in entry["methods"]]
        pairs, lesions = sum(row["pairs"] for row in rows), sum(sum(row["count"].values()) for row in rows)
        parts.append(f"{method}: a peer's released weights, on {pairs} of the pairs with {lesions} lesions.")
    for method, made in report["conditions"].items():
        if made["kind"] == "ours":
            parts.append(
                f"{method}: scored at commit {made['commit']} on {made['date']}, {made['precision']}."
            )
    return "\n".join(parts)


def brief_table(sets: dict[str, Any], made: dict[str, Any]) -> list[str]:
    """One row per method: mean share kept and, in brackets, that of its worst kind."""
    names = [name for name in SETS if name in sets]
    ours_first = sorted(made, key=lambda m: made[m]["kind"] != "ours")
    methods = [m for m in ours_first if all(m in sets[name]["methods"] for name in names)]
    found = {m: [sets[name]["methods"][m]["lesions"] for name in names] for m in methods}
    best = [max(rows[i]["mean"] for rows in found.values()) for i in range(len(names))]
    lines = [
        "| lesions kept: mean (worst kind) | " + " | ".join(n.upper().replace("-", " and ") for n in names)
    ]
    lines = [lines[0] + " |", "|---|" + "---:|" * len(names)]
    for method, rows in found.items():
        cells = [
            f"{emphasise(format(row['mean'], '.2f'), row['mean'] == top)} ({row['worst']:.2f})"
            for row, top in zip(rows, best, strict=True)
        ]
        lines.append(f"| {label_of(method, made)} | " + " | ".join(cells) + " |")
    return lines


def label_of(method: str, made: dict[str, Any]) -> str:
    return SHOWN.get(method, method) + (" (ours)" if made[method]["kind"] == "ours" else "")


def table(name: str, entry: dict[str, Any], made: dict[str, Any]) -> list[str]:
    measures = names_for(name.removeprefix("mri-"))
    extra = () if name == "mri-ct" else ("false_uptake",)
    keys = ("mean", "worst", "lost", *extra, *measures)
    values = {m: row["lesions"] | row["fidelity"] for m, row in entry["methods"].items()}
    lower = ("lost", "false_uptake", *LOWER_IS_BETTER)
    best = {}
    for key in keys:
        column = [v[key] for v in values.values() if v[key] is not None]
        if column and key not in NEITHER:
            best[key] = min(column) if key in lower else max(column)
    heads = [{"mean": "lesions", "worst": "worst kind"}.get(k, k).replace("_", " ") for k in keys]
    lines = [f"| {name.upper().replace('-', ' and ')} | n | {' | '.join(heads)} |"]
    lines.append("|---|" + "---:|" * (len(keys) + 1))
    for method in sorted(values, key=lambda m: -values[m]["mean"]):
        digits = {"bone_error": 1, "false_uptake": 3}
        cells = [label_of(method, made), str(sum(entry["methods"][method]["count"].values()))]
        for key in keys:
            value = values[method][key]
            text = "-" if value is None else f"{value:.{digits.get(key, 2)}f}"
            cells.append(emphasise(text, value is not None and value == best.get(key)))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def filled(page: str, report: dict[str, Any], path: Path) -> str:
    """page with its tables: the brief one if it has the brief markers. Raises InputError without any."""
    anywhere, brief = report["places"] == 1, MARKERS["lesions-brief"][0] in page
    name = "lesions-anywhere" if anywhere else "lesions-brief" if brief else "lesions"
    return replaced(page, tables(report, brief or anywhere), path, MARKERS[name])


def show(args: argparse.Namespace) -> None:
    report = load(args.out)
    if not report["sets"]:
        raise InputError(f"{args.out}: no rows; expected a file that score wrote")
    if args.write is None:
        print(tables(report))
        return
    for path in args.write or (PAGES[1:] if report["places"] == 1 else PAGES):
        write_atomic(path, filled(path.read_text(), report, path).encode())


def main(argv: Sequence[str] | None = None) -> int:
    shared = argparse.ArgumentParser(add_help=False)
    results_command.add_out(shared, "lesions.json")
    parser = results_command.parser(__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = commands.add_parser("score", parents=[shared], help="measure LAGN and the baselines, or a peer")
    results_command.add_data(one)
    one.add_argument("--sets", nargs="+", choices=SETS, metavar="SET", help="default: all three")
    what = "lagn: with the baselines, which the other then finds there; default: lagn"
    one.add_argument("--network", choices=weights.NAMES, default=weights.DEFAULT, help=what)
    one.add_argument("--peer", metavar="NAME=FILE.py:CALLABLE", help="a peer's network instead")
    one.add_argument("--every", type=int, default=1, help="for a peer: every N-th pair; default: all")
    one.add_argument("--per-kind", type=int, default=PER_KIND, help=f"lesions; default: {PER_KIND}")
    text = f"tried for a lesion, which takes the faintest; 1: anywhere; default: {PLACES}"
    one.add_argument("--places", type=int, default=PLACES, help=text)
    one.add_argument("--precision", default="auto", help="of LAGN")
    one.add_argument("--threads", type=int, default=1, help="of the network; default: 1")
    one.set_defaults(run=score)
    page = commands.add_parser("table", parents=[shared], help="print the tables, or write them into a page")
    page.add_argument("--write", type=Path, nargs="*", metavar="PAGE", help="default: README and docs")
    page.set_defaults(run=show)
    return results_command.run("lesions", parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
