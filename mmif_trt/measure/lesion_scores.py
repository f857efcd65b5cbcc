"""Tables of planted lesions: for a terminal, as JSON and as CSV."""

from __future__ import annotations

import csv
import io as text_io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmif_trt.about import VERSION
from mmif_trt.files import write_atomic
from mmif_trt.image import InputError
from mmif_trt.measure.lesions import Kept, Summary, summarise

HEADS = (("mean", "mean share kept"), ("worst", "worst kind"), ("lost", "lost (share < .25)"))
FALSE = ("false_uptake", "false uptake")


def text_lesions(kept: Mapping[str, Iterable[Kept]]) -> str:
    """One line per measure, one column per method; each kind shows its number of lesions."""
    found = {method: summarise(rows) for method, rows in kept.items()}
    lines: list[tuple[str, list[float]]] = []
    for key, label in (*HEADS, FALSE):
        lines.append((label, [getattr(one, key) for one in found.values()]))
    kinds = dict.fromkeys(kind for one in found.values() for kind in one.count)
    for kind in kinds:
        count = max(one.count.get(kind, 0) for one in found.values())
        lines.append((f"{kind} ({count})", [one.share.get(kind, math.nan) for one in found.values()]))
    lines = [(label, values) for label, values in lines if not all(map(math.isnan, values))]
    wide = max(len(label) for label, _ in lines)
    columns = [max(8, len(method)) for method in found]
    rows = [" ".join([" " * wide, *(f"{m:>{w}}" for m, w in zip(found, columns, strict=True))])]
    for label, values in lines:
        cells = ("-" if math.isnan(v) else f"{v:.3f}" for v in values)
        rows.append(
            " ".join([f"{label:{wide}}", *(f"{c:>{w}}" for c, w in zip(cells, columns, strict=True))])
        )
    return "\n".join(rows)


def summary_of(rows: Iterable[Kept]) -> dict[str, Any]:
    """A method's summary for JSON; undefined values are null."""
    found: Summary = summarise(rows)
    single = {key: _defined(getattr(found, key)) for key, _ in (*HEADS, FALSE)}
    share, lost = ({k: round(v, 6) for k, v in x.items()} for x in (found.share, found.lost_by_kind))
    return {**single, "share": share, "lost_by_kind": lost, "count": found.count}


def write_lesions(path: str | Path, kept: Mapping[str, Iterable[Kept]]) -> None:
    """Every lesion of every method, and in JSON the summaries. Raises InputError for an unknown suffix."""
    suffix = Path(path).suffix.lower()
    rows = [
        {"method": method, **{k: _defined(v) if isinstance(v, float) else v for k, v in asdict(one).items()}}
        for method, found in kept.items()
        for one in found
    ]
    if suffix == ".json":
        methods = {method: summary_of(found) for method, found in kept.items()}
        whole = {"mmif_trt": VERSION, "methods": methods, "lesions": rows}
        text = json.dumps(whole, indent=1, allow_nan=False) + "\n"
    elif suffix == ".csv":
        out = text_io.StringIO()
        table = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        text = out.getvalue()
    else:
        raise InputError(f"{path}: suffix {suffix or 'none'}; expected .csv or .json")
    write_atomic(path, text.encode(errors="surrogateescape"))  # a name that is not UTF-8 keeps its bytes


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)
