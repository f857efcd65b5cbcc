"""Viewer pages: what `view`, `fuse --view` and `batch --view` share."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmif_trt.commands.arguments import say
from mmif_trt.image import Image, InputError

if TYPE_CHECKING:
    from mmif_trt.view.triple import Triple

RECORD_KEYS = {"registration", "a", "b"}


@contextmanager
def steps(count: int, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal; yields what to call with the name of each step as it begins."""
    from tqdm import tqdm

    with tqdm(total=count, unit="step", disable=True if quiet else None, leave=False) as bar:
        begun: list[str] = []

        def begin(what: str) -> None:
            bar.update(len(begun) - bar.n)
            bar.set_postfix_str(what)
            begun.append(what)

        yield begin


def save(path: str, triple: Triple, files: tuple[str, str, str], title: str | None = None) -> int:
    """Writes the page of a, b and fused, with doubts on stderr; returns its size in bytes."""
    from mmif_trt.view import page

    named = {side: Path(file).name or file for side, file in zip(("a", "b", "fused"), files, strict=True)}
    size = page.write(path, triple, title or named["fused"], named)
    if triple.in_doubt:
        say(f"warning: {triple.in_doubt}")
    if triple.reduced:
        say(f"{path}: {triple.reduced}")
    if size > page.PAGE_BYTES:
        say(
            f"warning: {path}: {size / 1e6:.0f} MB with the fewest levels; expected at most "
            f"{page.PAGE_BYTES / 1e6:.0f} MB: it opens slowly; volumes cropped to the head make it smaller"
        )
    return size


def of_pictures(
    a: Image, b: Image, fused: Image, range_a: Any = None, range_b: Any = None, modality_b: str | None = None
) -> Triple:
    """range_a, range_b: (black, white) instead of the images' own. modality_b: if b's file says none."""
    from mmif_trt.view import triple

    b = replace(b, modality=b.modality or modality_b)
    a, b = (
        image if limits is None else image.with_data(image.data, value_range=limits)
        for image, limits in ((a, range_a), (b, range_b))
    )
    return triple.of_pictures(a, b, fused, palette_of(b))


def palette_of(b: Image) -> Any:
    """[256, 3] on 0..255 that a coloured picture shows, or None."""
    if not b.is_colour or b.data.dtype.name != "uint8":
        return None
    from mmif_trt.measure.uptake import recover

    found = recover(b.data)
    return None if found is None else found.rgb


def beside(fused: str) -> str | None:
    """The record that batch writes beside its fused volume, if there is one."""
    name = fused
    for suffix in (".gz", ".nii", ".dcm"):
        name = name.removesuffix(suffix)
    path = f"{name}.json"
    return path if os.path.isfile(path) else None


def read_record(path: str | None, is_given: bool = True) -> dict[str, Any]:
    """A fusion's record; {} for no path. Raises InputError if a stated file contains none, and for one that
    was edited into what no page can show."""
    if path is None:
        return {}
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(found, dict) and found.keys() >= RECORD_KEYS and "matrix" in found["registration"]:
            _check(found, path)
            return found
    except InputError:
        raise
    except (OSError, ValueError, TypeError) as error:
        if is_given:
            what = (error.strerror if isinstance(error, OSError) else "") or "not such a record"
            raise InputError(
                f"--report {path}: {what}; expected the JSON of fuse --report or batch"
            ) from error
    if is_given:
        raise InputError(f"--report {path}: no record of a fused volume; expected that of fuse or batch")
    return {}


def _check(record: dict[str, Any], path: str) -> None:
    """Raises InputError for an entry that triple.py and page.py use and that is not as fuse writes it."""
    moved = record["registration"]

    def is_number(value: Any) -> bool:
        return isinstance(value, int | float) and math.isfinite(value)

    def is_matrix(value: Any) -> bool:
        rows = value if isinstance(value, list) else []
        return [len(row) if isinstance(row, list) else 0 for row in rows] == [4] * 4 and all(
            is_number(number) for row in rows for number in row
        )

    def is_side(value: Any) -> bool:
        limits: Any = value.get("limits") if isinstance(value, dict) else 0
        is_pair = isinstance(limits, list) and len(limits) == 2 and all(map(is_number, limits))
        return limits is None or (is_pair and limits[0] < limits[1])

    palette, weights = record.get("palette"), record.get("weights") or {}
    right = {
        "registration.registration": isinstance(moved.get("registration"), str),
        "registration.matrix": is_matrix(moved["matrix"]),
        "a": is_side(record["a"]),
        "b": is_side(record["b"]) and isinstance(record["b"].get("modality"), str | None),
        "palette": palette is None or (isinstance(palette, dict) and "name" in palette),
        "weights": isinstance(weights, dict) and all(isinstance(one, dict) for one in weights.values()),
    }
    for name in ("shift_mm", "rotation_deg", "repeatability_mm", "inside"):
        right[f"registration.{name}"] = moved.get(name) is None or is_number(moved[name])
    for name, is_right in right.items():
        if not is_right:
            what = f"{name} is not as fuse writes it; expected the JSON of fuse or batch, unedited"
            raise InputError(f"{path}: {what}")
