"""One HTML file that needs nothing else: figures, plots, pictures, conditions and hashes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from mmif_trt import __version__
from mmif_trt.about import RESEARCH_USE
from mmif_trt.files import write_atomic
from mmif_trt.image import SHOWN
from mmif_trt.machine import conditions
from mmif_trt.measure.scores import Ranges
from mmif_trt.report import plots
from mmif_trt.report.commands import Shown
from mmif_trt.report.figures import ALL, RANKED, Figures, extremes, folder_hash, ranked_order
from mmif_trt.report.pictures import OTHER_BYTES, PAGE_BYTES, Pictures, as_url, collect
from mmif_trt.report.reader import reader_table

Gallery = Sequence[tuple[str, Sequence[Shown]]]


def write(
    figures: Figures,
    out: Path,
    *,
    title: str,
    sources: Path,
    ranges: Ranges | None = None,
    lesions: Mapping[str, Mapping[str, float]] | None = None,
    gallery: Gallery = (),
    places: Mapping[str, str] | None = None,
    budget: int = PAGE_BYTES - OTHER_BYTES,
) -> int:
    """Writes the page atomically; returns its size in bytes. lesions: see reader.read_lesions. gallery: see
    commands.gallery. places: what to say of where a method's pictures are from. budget: of the pictures in
    it, in bytes.

    Raises InputError, OutputError.
    """
    pictures = collect(figures, out, ranges or {}, budget)
    extra: dict[str, Any] = {"gallery": gallery, "places": places or {}}
    text = render(figures, pictures, lesions or {}, title=title, sources=sources, **extra)
    data = text.encode(errors="replace")  # of names in another encoding
    write_atomic(out, data)
    return len(data)


def render(
    figures: Figures,
    pictures: Pictures,
    lesions: Mapping[str, Mapping[str, float]],
    *,
    title: str,
    sources: Path,
    gallery: Gallery = (),
    places: Mapping[str, str] | None = None,
) -> str:
    """The page's text. Names that a user chose are always escaped."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(_asset("report.html"))
    found = conditions()
    return template.render(
        title=title,
        css=_asset("report.css"),
        scripts=[_asset("panzoom.js"), _asset("report.js")],
        data=_json(_data(figures, pictures)),
        plots=_plots(figures),
        figures=figures,
        reader=reader_table(figures, lesions),
        modality=SHOWN[figures.modality],
        ranked=RANKED,
        pictures=pictures.how,
        sources=sources,
        hashes=_hashes(figures, places or {}),
        gallery=[(kind, [_shown(one) for one in row]) for kind, row in gallery],
        conditions=f"{found['os']}, Python {found['python']}, {found['cpu']['model']}",
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        research_use=RESEARCH_USE,
    )


def _asset(name: str) -> str:
    return resources.files("mmif_trt.report").joinpath(name).read_text(encoding="utf-8")


def _json(data: Any) -> str:
    """JSON for a script element: no name can close the element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _data(figures: Figures, pictures: Pictures) -> dict[str, Any]:
    """The script's data; undefined measures are null."""
    order = ranked_order(figures)
    return {
        "measures": list(ALL),
        "ranked": list(RANKED),
        "methods": order,
        "baselines": figures.baselines,
        "other": SHOWN[figures.modality],
        "cases": [case.name for case in figures.cases],
        "rank": {method: round(figures.rank[method], 4) for method in order},
        "means": {method: _numbers(figures.means[method]) for method in order},
        "values": {
            method: [_numbers(figures.values[method][case.name]) for case in figures.cases]
            for method in order
        },
        "pictures": [pictures.inside[case.name] for case in figures.cases],
        "whole": [pictures.beside[case.name] for case in figures.cases] if pictures.beside else None,
        "extremes": extremes(figures),
    }


def _numbers(values: dict[str, float]) -> list[float | None]:
    return [None if math.isnan(values[key]) else round(values[key], 5) for key in ALL]


def _plots(figures: Figures) -> list[str]:
    order = ranked_order(figures)
    drawn = []
    for key in ALL:
        columns = {
            method: [
                v for case in figures.cases if not math.isnan(v := figures.values[method][case.name][key])
            ]
            for method in order
        }
        drawn.append(plots.boxes(columns, key, f"Distribution of {key} over the cases, one box per method"))
    return drawn


def _shown(one: Shown) -> tuple[str, str, str]:
    """(name, data URL, share as text) of a picture in the gallery."""
    pixels = one.pixels if one.pixels.ndim == 3 else np.repeat(one.pixels[..., None], 3, axis=2)
    return one.name, as_url(pixels), "" if one.share is None else f"{one.share:.2f}"


def _hashes(figures: Figures, places: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(what, where, SHA-256 over its files)."""
    first = figures.cases[0].paths
    return [
        (
            slot,
            places.get(slot) or str(Path(first[slot]).parent),
            folder_hash([case.paths[slot] for case in figures.cases]),
        )
        for slot in first
    ]
