"""Score a folder of fused pictures against its sources: rows per pair, means, tables, mean rank.

SOURCES holds mri/ and one of ct/, pet/, spect/; the fused folder holds pictures with the same names, apart
from the suffix. The measures of published tables judge the 8-bit luma, those of fidelity.py the 8-bit
colours.
"""

from __future__ import annotations

import csv
import io as text_io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from mmif_trt import io
from mmif_trt.about import VERSION
from mmif_trt.files import write_atomic
from mmif_trt.image import DTYPE_RANGE, MODALITIES, Image, InputError
from mmif_trt.measure import fidelity as of_reader
from mmif_trt.measure.baselines import PICTURES
from mmif_trt.measure.metrics import RANKED, all_metrics
from mmif_trt.measure.uptake import recover
from mmif_trt.stages.normalise import refuse_other_scale

Measure = Callable[[ndarray, ndarray, ndarray], dict[str, float]]
Table = dict[str, dict[str, float]]  # method -> metric -> value
Ranges = Mapping[str, tuple[float, float]]  # "mri", "ct", "pet", "spect", "fused" -> black and white
DIM_MAX = 8191  # of 65535: 16-bit pictures none of which is brighter have 13 bits or fewer

# The two without a network, which a method must beat. a, b: [H, W] on 0..255. As pictures: PICTURES.
BASELINES: dict[str, Callable[[ndarray, ndarray], ndarray]] = {
    "average": lambda a, b: np.rint((a + b) / 2),
    "max": np.maximum,
}
# BT.601 in 15-bit fixed point, truncated: libpng's rule, and therefore that of cv2.IMREAD_GRAYSCALE on a
# PNG and of the check values. Rounding instead moves SD by 0.09 and MI by 0.03 on PET and SPECT.
LUMA_15_BIT = np.array([9797, 19234, 3737])


@dataclass(frozen=True)
class Row:
    """The measures of one method on one pair; nan if a measure is undefined."""

    method: str
    name: str
    values: dict[str, float]


@dataclass(frozen=True)
class Scores:
    """rows: by pair, then method. means: over the pairs where a measure is defined, nan if in none.
    warnings: a line for each folder whose range was probably not stated."""

    rows: list[Row]
    means: Table
    pairs: int
    warnings: tuple[str, ...] = ()


def evaluate(
    sources: str | Path,
    fused: str | Path | None,
    *,
    method: str = "fused",
    baselines: bool = False,
    measure: Measure = all_metrics,
    fidelity: bool = False,
    ranges: Ranges | None = None,
) -> Scores:
    """Score the pictures in `fused` (None: the baselines alone) against those in `sources`.

    method: the name of the rows. baselines: add the rows "average" and "max". measure: all_metrics, or
    foreground_metrics. fidelity: add the measures of fidelity.names_for(modality), of the coloured pictures
    (of the baselines "average" is then the 50 % overlay). ranges: black and white; default: the whole
    range of the file's type. Raises InputError for a missing or empty folder, names that differ, an
    unreadable file, a volume and sizes that differ.
    """
    folders = list(source_folders(Path(sources)))
    folders += [] if fused is None else [_folder(Path(fused), "a folder of fused pictures")]
    if fused is None and not baselines:
        raise InputError("fused: None without baselines; expected a folder, or baselines=True")
    if method in BASELINES:
        raise InputError(f"method: {method!r} is a baseline's name; expected another name")

    rows: list[Row] = []
    pairs = match_folders(folders)
    kinds = ("mri", folders[1].name, "fused")
    brightest: dict[str, int] = {}
    for name, *paths in pairs:
        a, b, *rest = read_8_bit(paths, True, kinds, ranges, brightest)
        luma_a, luma_b = _luma(a), _luma(b)
        lumas = {method: _luma(rest[0])} if rest else {}
        if baselines:
            lumas |= {baseline: combine(luma_a, luma_b) for baseline, combine in BASELINES.items()}
        values = {row: measure(luma_a, luma_b, f) for row, f in lumas.items()}
        if fidelity:
            palette = None if folders[1].name == "ct" else recover(b)
            for row in values:
                f = PICTURES[row](a, b) if row in BASELINES else rest[0]
                values[row] = values[row] | of_reader.fidelity(a, b, f, folders[1].name, palette)
        rows += [Row(row, name, found) for row, found in values.items()]
    return Scores(rows, means(rows), len(pairs), tuple(_dim(folders, kinds, brightest)))


def _dim(folders: Sequence[Path], kinds: Sequence[str], brightest: Mapping[str, int]) -> Iterator[str]:
    for folder, kind in zip(folders, kinds, strict=False):
        if brightest.get(kind, DIM_MAX + 1) <= DIM_MAX:
            yield (
                f"{folder}: 16-bit pictures, none above {brightest[kind]} of 65535, count as nearly black; "
                f"for 12-bit data state --range-{kind} 0 4095"
            )


def means(rows: Sequence[Row]) -> Table:
    """Each method's mean over the pairs where a measure is defined."""
    by_method: dict[str, list[dict[str, float]]] = {}
    for row in rows:
        by_method.setdefault(row.method, []).append(row.values)
    return {
        method: {key: _mean_of_defined([v[key] for v in values]) for key in values[0]}
        for method, values in by_method.items()
    }


def _mean_of_defined(values: list[float]) -> float:
    defined = [v for v in values if not math.isnan(v)]
    return sum(defined) / len(defined) if defined else math.nan


def mean_rank(table: Mapping[str, Mapping[str, float]], metrics: Sequence[str] = RANKED) -> dict[str, float]:
    """Each method's rank (1 is best, higher values are better), averaged over the metrics.

    Tied methods share the mean of their ranks; nan ranks last. Raises InputError for a missing value.
    """
    for method, values in table.items():
        if missing := [key for key in metrics if key not in values]:
            raise InputError(
                f"mean_rank: {method} lacks {', '.join(missing)}; expected rows with all metrics"
            )
    ranks: dict[str, list[float]] = {method: [] for method in table}
    for key in metrics:
        column = {m: -math.inf if math.isnan(v[key]) else v[key] for m, v in table.items()}
        for method, value in column.items():
            better = sum(other > value for other in column.values())
            equal = sum(other == value for other in column.values())  # itself among them
            ranks[method].append(better + (equal + 1) / 2)
    return {method: sum(places) / len(places) for method, places in ranks.items()}


def as_8_bit(image: Image) -> ndarray:
    """uint8 [H, W] or [H, W, 3], by the value range. Raises InputError, see refuse_other_scale."""
    data = image.data
    refuse_other_scale(image)
    if data.dtype != np.uint8 or image.value_range != DTYPE_RANGE["uint8"]:
        assert image.value_range is not None
        low, high = image.value_range
        data = np.clip(np.rint((data.astype(np.float64) - low) * (255 / (high - low))), 0, 255)
    return data.astype(np.uint8)


def luma_8_bit(image: Image) -> ndarray:
    """[H, W] float64, whole numbers 0..255: the channels to 8 bit by the value range, then LUMA_15_BIT."""
    return _luma(as_8_bit(image))


def _luma(picture: ndarray) -> ndarray:
    if picture.ndim == 3:
        picture = (picture.astype(np.int64) @ LUMA_15_BIT) >> 15
    return picture.astype(np.float64)


def _folder(path: Path, expected: str) -> Path:
    if not path.is_dir():
        received = "not a folder" if path.exists() else "no such folder"
        raise InputError(f"{path}: {received}; expected {expected}")
    return path


def source_folders(sources: Path) -> tuple[Path, Path]:
    expected = "a folder that holds mri/ and one of ct/, pet/, spect/"
    _folder(sources, expected)
    found = [kind for kind in MODALITIES if (sources / kind).is_dir()]
    if len(found) != 2 or found[0] != "mri":
        received = ", ".join(f"{kind}/" for kind in found) or "no folder of a modality"
        raise InputError(f"{sources}: holds {received}; expected {expected}")
    return sources / "mri", sources / found[1]


def _pictures(folder: Path) -> dict[str, Path]:
    """Name without suffix -> path; hidden files, those without a picture's or volume's suffix, and the lumas
    that `fuse` writes beside its volumes are ignored."""
    found: dict[str, Path] = {}
    suffixes = sorted(io.FORMATS, key=len, reverse=True)
    for path in sorted(folder.iterdir()):
        suffix = next((one for one in suffixes if path.name.lower().endswith(one)), None)
        if suffix is None or path.name.startswith(".") or not path.is_file():
            continue
        stem = path.name[: -len(suffix)]
        if io.FORMATS[suffix].is_volume and stem.endswith("_luma"):
            continue
        if stem in found:
            received = f"{found[stem].name} and {path.name} differ in the suffix only"
            raise InputError(f"{folder}: {received}; expected one file per name")
        found[stem] = path
    if not found:
        expected = " ".join("*" + suffix for suffix in io.FORMATS)
        raise InputError(f"{folder}: no pictures; expected files named {expected}")
    return found


def match_folders(folders: list[Path]) -> list[tuple[str, ...]]:
    """(name, path in each folder) for every name; the folders must hold the same names."""
    tables = [_pictures(folder) for folder in folders]
    names = sorted(tables[0])
    for folder, table in zip(folders[1:], tables[1:], strict=True):
        extra, lacking = sorted(table.keys() - tables[0].keys()), sorted(tables[0].keys() - table.keys())
        if extra or lacking:
            common = len(table) - len(extra) or "none"
            example = f"{lacking[0]} is missing" if lacking else f"{extra[0]} has no partner"
            received = f"{len(table)} pictures, {common} named as those of {folders[0]} ({example})"
            raise InputError(f"{folder}: {received}; expected the same {len(names)} names (any suffix)")
    return [(name, *(str(table[name]) for table in tables)) for name in names]


def read_8_bit(
    paths: Sequence[str],
    grey_first: bool = False,
    kinds: Sequence[str] = (),
    ranges: Ranges | None = None,
    brightest: dict[str, int] | None = None,
) -> list[ndarray]:
    """uint8 [H, W] or [H, W, 3] of each file. grey_first: the first, an MRI, as its luma. kinds: of each
    file, a key of `ranges`, which has black and white. brightest: keeps by kind the largest pixel of 16-bit
    pictures without a range.

    Raises InputError for an unreadable file, a volume, and sizes that differ from the first's.
    """
    pictures = []
    for path, kind in zip_longest(paths, kinds[: len(paths)], fillvalue=""):
        image = io.read(path)
        if image.is_volume:
            raise InputError(f"{path}: a volume; expected pictures: write its slices as PNG or TIFF")
        if ranges and kind in ranges:
            image = replace(image, value_range=ranges[kind])
        elif image.data.dtype == np.uint16 and brightest is not None:
            brightest[kind] = max(brightest.get(kind, 0), int(image.data.max()))
        pictures.append(as_8_bit(image))
    if grey_first:
        pictures[0] = _luma(pictures[0]).astype(np.uint8)
    for path, picture in zip(paths[1:], pictures[1:], strict=True):
        if picture.shape[:2] != pictures[0].shape[:2]:
            sizes = [f"{shape[0]} x {shape[1]} px" for shape in (picture.shape, pictures[0].shape)]
            raise InputError(f"{path}: {sizes[0]}; expected the size of {paths[0]}, {sizes[1]}")
    return pictures


def text_table(table: Table, keys: Sequence[str] | None = None) -> str:
    """Plain columns for a terminal: one line per method, three decimals, "-" for an undefined measure.

    keys: the columns; None takes all.
    """
    keys = list(next(iter(table.values()), {})) if keys is None else keys
    wide = max([len("method"), *map(len, table)])
    columns = {key: max(8, len(key)) for key in keys}
    lines = [f"{'method':{wide}}" + "".join(f" {key:>{columns[key]}}" for key in keys)]
    for method, values in table.items():
        cells = {key: "-" if math.isnan(values[key]) else f"{values[key]:.3f}" for key in keys}
        lines.append(f"{method:{wide}}" + "".join(f" {cells[key]:>{columns[key]}}" for key in keys))
    return "\n".join(lines)


def write_scores(path: str | Path, scores: Scores) -> None:
    """Every row and the means, as .csv or .json by the suffix, written atomically.

    An undefined measure is an empty cell, null in JSON. Raises InputError for an unknown suffix.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".csv":
        text = _csv(scores)
    elif suffix == ".json":
        rows = [{"method": row.method, "name": row.name, **_defined(row.values)} for row in scores.rows]
        average = {method: _defined(values) for method, values in scores.means.items()}
        whole = {"mmif_trt": VERSION, "pairs": scores.pairs, "means": average, "rows": rows}
        text = json.dumps(whole, indent=1, allow_nan=False)
        text += "\n"
    else:
        raise InputError(f"{path}: suffix {suffix or 'none'}; expected .csv or .json")
    write_atomic(path, text.encode(errors="surrogateescape"))  # a name that is not UTF-8 keeps its bytes


def _defined(values: Mapping[str, float]) -> dict[str, float | None]:
    return {key: None if math.isnan(value) else round(value, 6) for key, value in values.items()}


def _csv(scores: Scores) -> str:
    def lines() -> Iterator[list[Any]]:
        yield ["method", "name", *next(iter(scores.means.values()))]
        averages = [Row(method, "mean", values) for method, values in scores.means.items()]
        for row in [*scores.rows, *averages]:
            yield [row.method, row.name, *_defined(row.values).values()]

    out = text_io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines())
    return out.getvalue()
