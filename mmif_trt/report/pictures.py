"""The pictures of a report: inside the page while they fit, lossless if possible; otherwise thumbnails."""

from __future__ import annotations

import base64
import io as bytes_io
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

import numpy as np

from mmif_trt import io
from mmif_trt.files import write_atomic
from mmif_trt.measure.scores import Ranges
from mmif_trt.report.figures import Case, Figures
from mmif_trt.stages.normalise import as_rgb8

PAGE_BYTES = 30_000_000  # a page is smaller than this
OTHER_BYTES = 3_000_000  # kept for table, plots and script
THUMBNAIL_PX = 160
# WebP's quality; None is lossless. The first that fits all pictures is used, before any go beside the page.
QUALITIES = (None, 92)


@dataclass(frozen=True)
class Pictures:
    """inside: case -> slot -> data URL. beside: case -> slot -> address relative to the page; {} if all
    pictures are inside at full size. how: the note for the page's reader."""

    inside: dict[str, dict[str, str]]
    beside: dict[str, dict[str, str]]
    how: str


def folder_of(page: Path) -> Path:
    """The folder beside a page, for pictures that do not fit in it."""
    return page.with_name(page.stem + "_files")


def collect(figures: Figures, page: Path, ranges: Ranges, budget: int = PAGE_BYTES - OTHER_BYTES) -> Pictures:
    """All pictures of the report; writes PAGE_files/ if they are too many. Raises InputError,
    OutputError.
    """
    for quality in QUALITIES:
        if whole := _inside(figures, ranges, budget, quality):
            how = (
                "lossless, 8 bit"
                if quality is None
                else f"lossy (WebP {quality}): for viewing, not for measuring"
            )
            return Pictures(whole, {}, f"All pictures are in this file, {how}.")
    return _beside(figures, page, ranges, budget)


def _inside(
    figures: Figures, ranges: Ranges, budget: int, quality: int | None
) -> dict[str, dict[str, str]] | None:
    """Every picture as a data URL; None if together they exceed the budget."""
    whole: dict[str, dict[str, str]] = {}
    used = 0
    for case, slot, pixels in _all(figures, ranges):
        url = _url(_webp(pixels, quality))
        used += len(url)
        if used > budget:
            return None
        whole.setdefault(case.name, {})[slot] = url
    return whole


def _beside(figures: Figures, page: Path, ranges: Ranges, budget: int) -> Pictures:
    folder = folder_of(page)
    folder.mkdir(exist_ok=True)
    inside: dict[str, dict[str, str]] = {}
    beside: dict[str, dict[str, str]] = {}
    side, used = THUMBNAIL_PX, 0
    slots = list(figures.methods)
    numbers = {case.name: number for number, case in enumerate(figures.cases)}
    for case, slot, pixels in _all(figures, ranges):
        place = slots.index(slot) if slot in slots else slot
        name = f"{numbers[case.name]:05d}-{place}.webp"
        write_atomic(folder / name, _webp(pixels, None), durable=False)
        # An address: of a page named "try #2", "100 %" or in another encoding, too.
        beside.setdefault(case.name, {})[slot] = f"{quote(os.fsencode(folder.name))}/{name}"
        small = _url(_webp(_small(pixels, side), 80))
        used += len(small)
        # Beyond the budget (thousands of cases) the page only links to the full pictures.
        inside.setdefault(case.name, {})[slot] = small if used <= budget else beside[case.name][slot]
    how = f"Thumbnails ({side} px, lossy) are in this file, the full pictures (lossless) in {folder.name}/."
    return Pictures(inside, beside, how)


def _all(figures: Figures, ranges: Ranges) -> Iterator[tuple[Case, str, np.ndarray]]:
    """(case, slot, [H, W, 3] uint8) for sources, methods, and baselines as `combine` makes them of 8 bit."""
    for case in figures.cases:
        sources = {}
        for slot, path in case.paths.items():
            kind = {"mri": "mri", "other": figures.modality}.get(slot, "fused")
            image = io.read(path)
            pixels = as_rgb8(replace(image, value_range=ranges[kind]) if kind in ranges else image)
            sources[slot] = pixels
            yield case, slot, pixels
        for slot in figures.baselines:
            yield case, slot, combine(slot, sources["mri"], sources["other"])


def combine(baseline: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A baseline's picture channel by channel: its luma on grey pairs is what `evaluate` scores. On colour
    the scored baseline is of the lumas; the page says so. a, b: [H, W, 3] uint8."""
    from mmif_trt.measure.scores import BASELINES

    return BASELINES[baseline](a.astype(np.float64), b.astype(np.float64)).astype(np.uint8)


def _webp(pixels: np.ndarray, quality: int | None) -> bytes:
    """[H, W, 3] uint8 to WebP bytes without metadata; sides up to 4096 px are within the format's 16383."""
    from PIL import Image as Pil

    out = bytes_io.BytesIO()
    Pil.fromarray(pixels).save(out, "WEBP", lossless=quality is None, quality=quality or 60, method=3)
    return out.getvalue()


def _small(pixels: np.ndarray, side: int) -> np.ndarray:
    from PIL import Image as Pil

    picture = Pil.fromarray(pixels)
    picture.thumbnail((side, side))
    return np.asarray(picture)


def as_url(pixels: np.ndarray) -> str:
    """[H, W, 3] uint8 as a lossless data URL."""
    return _url(_webp(pixels, None))


def _url(data: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(data).decode()
