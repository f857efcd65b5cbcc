"""The viewer's page at a clinical size: its bytes, the time to write it, and the time to open it in a
browser.

    python benchmarks/view_page.py --json benchmarks/results/view.json

A synthetic head (synthetic_head.py) of 256 x 256 x 180 voxels of 1 mm, with noise everywhere, as MRI + PET
and as MRI + CT; the "fused" volume is their average, coloured for PET: the network's time is not the page's.
The page is opened from disk in Chromium with its software renderer; a GPU is not measured here. Times run
from navigation to the first pane that has its voxels, and until a pixel of each of the four was read
back. Memory: the resident sets of all browser processes (shared pages count in each), minus those with an
empty page.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(REPO / "tests"), str(REPO / "benchmarks")]

import chromium  # noqa: E402
import synthetic_head  # noqa: E402
from conditions import conditions, load_average  # noqa: E402
from report import markdown, sentence, write_json  # noqa: E402

from mmif_trt.image import Image  # noqa: E402
from mmif_trt.stages import normalise, palettes  # noqa: E402
from mmif_trt.view import page, triple  # noqa: E402

SHAPE = (180, 256, 256)


def triple_of(head: synthetic_head.Head, other: str) -> triple.Triple:
    """MRI and PET (in DICOM's palette) or CT, and their average in place of the fused volume."""
    a = Image(head.mri, (0, 950), "mri", affine=head.affine, source="mri")
    limits, units = {"pet": ((0.0, 10.0), "SUVbw"), "ct": ((-100.0, 900.0), "HU")}[other]
    values = head.pet if other == "pet" else head.ct
    b = Image(values, limits, other, affine=head.affine, units=units, source=other)
    unit_a, unit_b = normalise.unit(head.mri, (0, 950)), normalise.unit(values, limits)
    if other == "ct":
        fused = np.rint((unit_a + unit_b) / 2 * 65535).astype(np.uint16)
    else:
        fused = np.rint((unit_a[..., None] + palettes.apply(unit_b, "PET")) / 2 * 255).astype(np.uint8)
    shown = Image(fused, affine=head.affine, source="fused")
    return triple.of_volumes(a, b, shown)


def resident_mb(root: int) -> float:
    """Of a process and all that it started."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(folder.name))
    total, todo = 0, [root]
    while todo:
        process = todo.pop()
        todo += parents.get(process, [])
        try:
            text = (Path("/proc") / str(process) / "status").read_text()
        except OSError:
            continue
        total += next((int(x.split()[1]) for x in text.splitlines() if x.startswith("VmRSS")), 0)
    return total / 1024


# Drawing calls return before anything is drawn; reading a pixel waits for it.
READ_BACK = """() => new Promise((resolve) => {
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d", { willReadFrequently: true });
  desk.drawn.push(() => {
    for (const pane of document.querySelectorAll(".pane canvas")) {
      context.drawImage(pane, 0, 0);
      context.getImageData(0, 0, 1, 1);
    }
    resolve(performance.now());
  });
  desk.redraw();
})"""


def opened(path: Path) -> dict[str, float]:
    """One fresh browser."""
    with chromium.browser(*chromium.WEBGL) as started:
        shown = started.new_page(viewport={"width": 1400, "height": 900})
        before = resident_mb(os.getpid())
        shown.goto(path.as_uri())
        shown.wait_for_selector("body[data-ready]", timeout=300_000)
        ready = shown.evaluate(READ_BACK)
        first = shown.evaluate("performance.getEntriesByName('first-paint').at(-1).startTime")
        heap = shown.evaluate("performance.memory.usedJSHeapSize")
        memory = resident_mb(os.getpid()) - before
        start = shown.evaluate("performance.now()")
        for _ in range(10):
            shown.keyboard.press("PageUp")
        shown.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        step = (shown.evaluate("performance.now()") - start) / 10
    return {
        "first_pane_s": first / 1e3,
        "all_panes_s": ready / 1e3,
        "heap_mb": heap / 1e6,
        "resident_mb": memory,
        "slice_step_ms": step,
    }


def view_table(result: dict[str, Any]) -> str:
    """Markdown for README.md."""
    head = ["pair", "page MB", "to write, s", "first pane, s", "all panes, s", "per slice, ms", "browser MB"]
    rows = []
    for row in result["rows"]:
        write = row["place_s"] + row["write_s"]
        times = (write, row["first_pane_s"], row["all_panes_s"])
        cells = [f"{row['page_mb']:.1f}", *(f"{value:.1f}" for value in times)]
        rows.append([row["pair"], *cells, f"{row['slice_step_ms']:.0f}", f"{row['resident_mb']:.0f}"])
    return "\n\n".join([sentence(result), markdown(head, rows)])


def main() -> int:
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=how)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--runs", type=int, default=3, help="fresh browsers per pair; the median is told")
    args = parser.parse_args()
    began = conditions()  # the load before this
    head, rows = synthetic_head.make(SHAPE, 1.0), []
    for other in ("pet", "ct"):
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "page.html"
            start = time.perf_counter()
            found = triple_of(head, other)
            placed = time.perf_counter()
            size = page.write(path, found, "page", {"a": "mri", "b": other, "fused": "fused"})
            written = time.perf_counter()
            runs = [opened(path) for _ in range(args.runs)]
        row: dict[str, Any] = {
            "pair": f"mri-{other}",
            "voxels": list(SHAPE[::-1]),
            "page_mb": size / 1e6,
            "place_s": placed - start,
            "write_s": written - placed,
            "writer_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            **{key: statistics.median(run[key] for run in runs) for key in runs[0]},
            "runs": runs,
        }
        rows.append(row)
        print({key: round(value, 2) for key, value in row.items() if isinstance(value, float)}, flush=True)
    if args.json:
        settings = {"browsers": args.runs, "nice": os.nice(0)}
        whole = {"conditions": began, "settings": settings, "load_average_end": load_average(), "rows": rows}
        write_json(args.json, whole)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
