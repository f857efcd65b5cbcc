"""Answers as tables: one row per answer, and a dictionary that explains each column."""

from __future__ import annotations

import csv
import io as text_io
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mmif_trt.files import write_atomic
from mmif_trt.image import InputError
from mmif_trt.study.config import SCALES
from mmif_trt.study.plan import PAIRED
from mmif_trt.study.store import Store

DICTIONARY = {
    "answer_id": "number of the answer, in order of arrival over all readers",
    "reader": "number of the reader, as in links.csv",
    "role": "role as the reader gave it; simulated: by mmif-trt study simulate; empty: not said",
    "years": "years of practice as the reader gave them; empty: not said",
    "position": "place of the item in the reader's own order, 1 first; 0 is the training item",
    "training": "1 for the training item, which is never counted",
    "kind": "paired (two fused pictures compared) or scale (one fused picture rated)",
    "repeat_of": "position of the first showing if this item was repeated; otherwise empty",
    "case": "modality and name of the case",
    "modality": "ct, pet or spect",
    "method_left": "method shown as A, or the one rated",
    "method_right": "method shown as B; empty for a scale",
    "answer": "left, right or equal; empty for a scale",
    "preferred": "method preferred, or equal; empty for a scale",
    "revision": "0 for the first answer to an item, 1 and more after going back",
    "final": "1 for the answer in force, 0 for one that was changed",
    "shown_at": "time at which the server sent the item, UTC",
    "answered_at": "time at which the answer was saved, UTC",
    "seconds": "answered_at minus shown_at",
    "visible_s": "seconds the page was in front, as the browser told; empty without its script",
    "too_fast": "1 where seconds is under the study's too_fast_s",
    "zoom": "magnification when the answer was given; empty: not told",
    "brightness": "of the display filter where the study logs the window; 1 is unchanged",
    "contrast": "of the display filter where the study logs the window; 1 is unchanged",
    "seen_axial": "of volumes: axial slices that were on the screen, from 1 at the feet, as 12-40 55",
    "seen_coronal": "of volumes: coronal slices seen, from 1 at the back",
    "seen_sagittal": "of volumes: sagittal slices seen, from 1 at the patient's left",
    "window_mri": "of volumes, where the study logs the window: black to white of the MRI at the answer",
    "window_other": "of volumes, where the study logs the window: black to white of the other source",
    **{
        name: f"{scale.title}, 1 ({scale.anchors[0]}) to 5 ({scale.anchors[4]})"
        for name, scale in SCALES.items()
    },
}


def rows(store: Store) -> list[dict[str, Any]]:
    """Every answer with the columns of DICTIONARY, None if a column does not apply."""
    profiles = store.profiles()
    too_fast_s = store.meta["too_fast_s"]
    return [_row(found, profiles.get(found["reader"], {}), too_fast_s) for found in store.answers()]


def _row(found: dict[str, Any], profile: dict[str, Any], too_fast_s: float) -> dict[str, Any]:
    seconds = found["answered_at"] - found["shown_at"]
    row: dict[str, Any] = dict.fromkeys(DICTIONARY)
    row |= {key: found[key] for key in found if key in DICTIONARY}
    row |= json.loads(found["view"])
    row |= {
        "case": found["case_name"],
        "role": profile.get("role"),
        "years": profile.get("years"),
        "training": int(found["position"] == 0),
        "seconds": round(seconds, 3),
        "too_fast": int(seconds < too_fast_s),
        "shown_at": _utc(found["shown_at"]),
        "answered_at": _utc(found["answered_at"]),
    }
    if found["kind"] == PAIRED:
        preferred = {"left": found["method_left"], "right": found["method_right"]}
        row["preferred"] = preferred.get(found["answer"], "equal")
    else:
        row["answer"] = None
        row |= json.loads(found["answer"])
    return row


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")


def write(store: Store, path: str | Path) -> int:
    """The answers as .csv (its dictionary beside it, as NAME.dictionary.csv) or .json. Returns the answers.

    Raises InputError for an unknown suffix, OutputError if a file cannot be written.
    """
    path = Path(path)
    found = rows(store)
    if path.suffix == ".csv":
        write_atomic(path, _csv(list(DICTIONARY), [list(row.values()) for row in found]))
        words = [[name, meaning] for name, meaning in DICTIONARY.items()]
        write_atomic(path.with_suffix(".dictionary.csv"), _csv(["column", "meaning"], words))
    elif path.suffix == ".json":
        whole = {"study": store.meta, "methods": store.methods(), "dictionary": DICTIONARY, "answers": found}
        write_atomic(path, (json.dumps(whole, indent=1) + "\n").encode())
    else:
        raise InputError(f"{path}: suffix {path.suffix or 'none'}; expected .csv or .json")
    return len(found)


def _csv(head: list[str], lines: list[list[Any]]) -> bytes:
    out = text_io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(lines)
    return out.getvalue().encode()
