"""One PNG of a latency run: the distribution of each row's network time, and its stages as a bar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH, LEFT, ROW, BINS = 1200, 340, 56, 120
# Of the stages, in order.
COLOURS = ["#4c78a8", "#72b7b2", "#f58518", "#54a24b", "#b279a2", "#e45756", "#9d755d", "#bab0ac"]


def draw(path: Path, samples: dict[str, dict[str, list[float]]], title: str) -> None:
    """samples: row -> stage -> ms of every call; "end_to_end" is left out of the bars. Scales start at 0."""
    height = 2 * ROW * len(samples) + 190
    picture = Image.new("RGB", (WIDTH, height), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(15)
    pen.text((20, 12), title, "black", font)
    y = _distributions(pen, font, samples, 50)
    _bars(pen, font, samples, y + 40)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, "PNG")


def _distributions(pen: Any, font: Any, samples: dict[str, dict[str, list[float]]], y: int) -> int:
    most = max(float(np.percentile(stages["network"], 99)) for stages in samples.values()) * 1.1
    pen.text((20, y), f"network, ms of each call, 0 to {most:.3g}; line: p50, p95", "black", font)
    y += 26
    scale = (WIDTH - LEFT - 20) / most
    for row, stages in samples.items():
        counts, edges = np.histogram(np.minimum(stages["network"], most), BINS, (0, most))
        pen.text((20, y + ROW // 3), row, "black", font)
        for count, left, right in zip(counts, edges, edges[1:], strict=False):
            top = y + ROW - 8 - (ROW - 14) * count / counts.max()
            if count:
                pen.rectangle((LEFT + left * scale, top, LEFT + right * scale, y + ROW - 8), COLOURS[0])
        for share in (50, 95):
            x = LEFT + float(np.percentile(stages["network"], share)) * scale
            pen.line((x, y, x, y + ROW - 8), "black")
        y += ROW
    return y


def _bars(pen: Any, font: Any, samples: dict[str, dict[str, list[float]]], y: int) -> None:
    medians = {
        row: {name: float(np.median(ms)) for name, ms in stages.items() if name != "end_to_end"}
        for row, stages in samples.items()
    }
    scale = (WIDTH - LEFT - 100) / max(sum(stages.values()) for stages in medians.values())
    x = 20
    colours: dict[str, str] = {}  # rows on a card have stages that others have not
    for name in max(medians.values(), key=len):
        colours[name] = COLOURS[len(colours) % len(COLOURS)]
        pen.rectangle((x, y + 3, x + 12, y + 15), colours[name])
        pen.text((x + 18, y), name, "black", font)
        x += 40 + int(font.getlength(name))
    y += 26
    for row, stages in medians.items():
        pen.text((20, y + ROW // 3), row, "black", font)
        at = float(LEFT)
        for name, ms in stages.items():
            pen.rectangle((at, y + 6, at + ms * scale, y + ROW - 8), colours[name])
            at += ms * scale
        pen.text((at + 6, y + ROW // 3), f"{sum(stages.values()):.3g} ms", "black", font)
        y += ROW
