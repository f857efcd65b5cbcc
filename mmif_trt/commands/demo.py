"""`mmif-trt demo`: fuse the bundled samples, time them, and draw one contact sheet, sources beside fused."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmif_trt import __version__, io, overwriting, runtimes
from mmif_trt.about import RESEARCH_USE
from mmif_trt.commands.arguments import add_runtime, load_fuser, what_ran
from mmif_trt.files import prove_writable
from mmif_trt.image import SHOWN, Image
from mmif_trt.machine import cpu
from mmif_trt.samples import PAIRS, SIDE_PX, sample
from mmif_trt.stages.normalise import as_rgb8

if TYPE_CHECKING:
    from PIL import ImageDraw

WARM_RUNS = 20
SHEET = "contact_sheet.png"
# Around the sheet, above it, above and below each row.
MARGIN_PX, TITLE_PX, LABEL_PX, NOTE_PX = 20, 58, 30, 52
BACKGROUND, TEXT, FAINT, SIMULATED = (18, 20, 24), (232, 234, 238), (150, 156, 166), (255, 190, 92)
Row = tuple[Image, Image, Image]  # MRI, the other source, fused


def add(commands: Any) -> None:
    demo = commands.add_parser("demo", help="fuse the bundled samples, draw a contact sheet")
    demo.add_argument("out", type=Path, metavar="OUT_DIR", help="the folder to create")
    add_runtime(demo)
    demo.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    make(args.out, lambda: load_fuser(args))
    return 0


def make(out: Path, load: Callable[[], Any]) -> None:
    """Write OUT/<pair>.png and OUT/contact_sheet.png, print a table of ms per pair. load: creates the
    `Fuser`.

    Raises InputError if `out` is not writable.
    """
    made = [out / f"{name}.png" for name in (*PAIRS, Path(SHEET).stem)]
    before = all(path.exists() for path in made)  # all from an earlier demo
    overwriting.check([], made, lambda path: before)
    prove_writable(out)
    start = time.perf_counter()
    fuser = load()
    load_ms = (time.perf_counter() - start) * 1e3
    rows: list[Row] = []
    times: dict[str, list[float]] = {}
    for name in PAIRS:
        a, b = sample(name)
        times[name] = []
        for _ in range(1 + WARM_RUNS):
            start = time.perf_counter()
            fused = fuser.fuse_images(a, b)
            times[name].append((time.perf_counter() - start) * 1e3)
        rows.append((a, b, fused))
        io.write(out / f"{name}.png", fused)
    runtime = what_ran(runtimes.describe(fuser.runtime), fuser.network)
    sheet = draw_sheet(rows, f"mmif-trt {__version__}, {runtime}. Research use only.")
    io.write(out / SHEET, Image(sheet, source=SHEET))
    print(table(times, load_ms, runtime))
    print(f"{len(rows)} fused pairs and {SHEET} are in {out}. CT, PET and SPECT here are simulated.")
    print(RESEARCH_USE)


def table(times: dict[str, list[float]], load_ms: float, runtime: str) -> str:
    """times: per pair the cold first run, then the warm ones, in ms."""
    lines = [f"{'ms per pair':<11} {'first':>7} {f'median of {WARM_RUNS}':>13}"]
    for name, (first, *warm) in times.items():
        lines.append(f"{name:<11} {first:>7.1f} {statistics.median(warm):>13.1f}")
    machine = cpu()
    lines.append(
        f"{SIDE_PX} x {SIDE_PX} px, batch 1, pixels to pixels, {runtime}; "
        f"{machine['model']}, {machine['cores']} cores; loading took {load_ms:.0f} ms more"
    )
    return "\n".join(lines)


def draw_sheet(rows: list[Row], title: str) -> np.ndarray:
    """One row per pair, pixels 1:1: MRI, the other source, fused. Returns [H, W, 3] uint8."""
    from PIL import Image as Pil
    from PIL import ImageDraw

    side = max(max(image.size) for row in rows for image in row)
    step_x, step_y = side + MARGIN_PX, LABEL_PX + side + NOTE_PX
    sheet = Pil.new("RGB", (MARGIN_PX + 3 * step_x, TITLE_PX + len(rows) * step_y), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    _text(draw, (MARGIN_PX, MARGIN_PX), title, TEXT, 17)
    for r, row in enumerate(rows):
        other = SHOWN[row[1].modality or ""]
        labels = ("MRI, average of 152 heads", f"{other}, SIMULATED", "fused")
        notes = ("real, no single person", "not a patient, not for diagnosis", f"MRI + simulated {other}")
        for c, image in enumerate(row):
            x, y = MARGIN_PX + c * step_x, TITLE_PX + r * step_y
            simulated = c == 1
            _text(draw, (x, y + 5), labels[c], SIMULATED if simulated else TEXT, 15)
            sheet.paste(Pil.fromarray(as_rgb8(image)), (x, y + LABEL_PX))
            _text(draw, (x, y + LABEL_PX + side + 6), notes[c], SIMULATED if c else FAINT, 13)
    return np.asarray(sheet)


def _text(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, colour: tuple[int, int, int], size: int
) -> None:
    from PIL import ImageFont

    draw.text(at, text, fill=colour, font=ImageFont.load_default(size))
