"""Plots on a dark ground as SVG text, drawn by matplotlib; for the report of figures and that of a study."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from mmif_trt import privacy

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXT, FAINT, LINE, ACCENT = "#c9ced6", "#959ca8", "#33383f", "#e0a458"
# Five steps from worst to best, and A | equal | B: distinguishable in grey and with common colour blindness.
STEPS = ("#a1543b", "#c99a72", "#5d636d", "#7fa7c4", "#3d7ebf")
NAME = 28  # characters of a method's name beside an axis
MANY_POINTS = 600  # of a plot; above it only the boxes are drawn


@contextmanager
def _figure(width: float, height: float, words: str) -> Iterator[tuple[Any, Any, list[str]]]:
    """Yields (figure, axes, result); the SVG, labelled by `words`, is in result[0] afterwards."""
    privacy.font_list_off()
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: Any = {
        "font.size": 10,
        "text.color": TEXT,
        "axes.labelcolor": FAINT,
        "xtick.color": FAINT,
        "ytick.color": TEXT,
        "axes.edgecolor": LINE,
        "grid.color": LINE,
        "svg.fonttype": "none",  # keep text as text: small, selectable, in the page's font
        "svg.hashsalt": words,  # ids must differ between the plots of a page
        "font.family": "sans-serif",
    }
    result: list[str] = []
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), facecolor="none", layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot(facecolor="none")
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.tick_params(length=0)
        yield figure, axes, result
        buffer = io.StringIO()
        with warnings.catch_warnings():  # of letters that matplotlib's font lacks: the browser draws the text
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'font: (\d+px)[^;"]*', r"font: \1 system-ui, sans-serif", text)
    for name, colour in (("text", TEXT), ("faint", FAINT), ("line", LINE), ("accent", ACCENT)):
        text = text.replace(colour, f"var(--{name})")  # the page has others for paper
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # figure_1 and the like, the same in every plot
    result.append(text.replace("<svg", f'<svg role="img" aria-label="{html.escape(words)}"', 1))


def intervals(rows: Sequence[tuple[str, float, float, float]], xlabel: str, words: str) -> str:
    """Points with intervals, one per row, first on top, and a line at 0. rows: (name, value, low, high)."""
    with _figure(7.2, 0.7 + 0.42 * len(rows), words) as (_, axes, result):
        axes.grid(axis="x", linewidth=0.6)
        axes.axvline(0, color=FAINT, linewidth=1)
        for y, (_name, value, low, high) in enumerate(rows):
            axes.plot([low, high], [y, y], color=FAINT, linewidth=2.5, solid_capstyle="round")
            axes.plot([value], [y], "o", color=ACCENT, markersize=7)
        axes.set_yticks(range(len(rows)), [_plain(row[0]) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(xlabel)
    return result[0]


def stacked(rows: Mapping[str, Sequence[float]], names: Sequence[str], words: str) -> str:
    """Shares as bars of equal length, one per row, first on top; names: of the parts, colours from STEPS."""
    colours = STEPS if len(names) == 5 else (STEPS[4], STEPS[2], STEPS[0])
    with _figure(7.2, 1.0 + 0.46 * len(rows), words) as (figure, axes, result):
        for y, parts in enumerate(rows.values()):
            start, whole = 0.0, sum(parts)
            for part, colour in zip(parts, colours, strict=True):
                share = 100 * part / whole if whole else 0
                axes.barh(y, share, left=start, color=colour, height=0.66, edgecolor="#0b0c0f", linewidth=1)
                if share >= 7:
                    axes.text(start + share / 2, y, f"{part:g}", ha="center", va="center", color="white")
                start += share
        axes.set_yticks(range(len(rows)), [_plain(name) for name in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of answers (numbers: answers)")
        handles = [axes.barh(0, 0, color=colour) for colour in colours]
        figure.legend(
            handles, [_plain(n) for n in names], loc="outside upper right", ncols=len(names), frameon=False
        )
    return result[0]


def boxes(values: Mapping[str, Sequence[float]], title: str, words: str) -> str:
    """A box plot of each row's values (whiskers: 5 and 95 %), with its points unless there are too many."""
    with _figure(5.2, 0.75 + 0.34 * len(values), words) as (_, axes, result):
        axes.grid(axis="x", linewidth=0.6)
        rng = np.random.default_rng(0)
        drawn = sum(map(len, values.values())) <= MANY_POINTS
        for y, found in enumerate(values.values()):
            if not len(found):
                continue
            axes.boxplot(
                [list(found)],
                positions=[y],
                orientation="horizontal",
                widths=0.6,
                whis=(5, 95),
                showfliers=False,
                boxprops={"color": FAINT},
                whiskerprops={"color": FAINT},
                capprops={"color": FAINT},
                medianprops={"color": ACCENT, "linewidth": 2},
            )
            if drawn:
                scatter = y + rng.uniform(-0.18, 0.18, len(found))
                axes.plot(found, scatter, "o", color="#7fa7c4", markersize=2.4, alpha=0.75, markeredgewidth=0)
        axes.set_yticks(range(len(values)), [_plain(name) for name in values])
        axes.set_ylim(len(values) - 0.5, -0.5)
        axes.locator_params(axis="x", nbins=5)
        axes.set_title(title, color=TEXT, fontsize=11, loc="left")
    return result[0]


def _plain(name: str) -> str:
    """A name beside an axis. Of a long one its ends, or it would leave no room for the plot; tables have it
    whole. matplotlib reads $...$ as mathematics."""
    parts = (f"{one[:15]}…{one[-10:]}" if len(one) > NAME else one for one in name.split(" | "))
    return " | ".join(parts).encode(errors="replace").decode().replace("$", r"\$")
