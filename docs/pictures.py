"""The pictures of the pages, of a head that nobody has: python docs/pictures.py [NAME ...]

Fuses synthetic volumes (benchmarks/synthetic_head.py), opens what the commands write in Chromium, and writes
docs/NAME.png. Needs Chromium, playwright and the clinical and study extras; napari.png the napari extra.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

DOCS = Path(__file__).resolve().parent
REPO = DOCS.parent
sys.path[:0] = [str(REPO), *(str(REPO / name) for name in ("tests", "tests/study", "benchmarks"))]

import chromium  # noqa: E402
import synthetic_head  # noqa: E402

from mmif_trt import io as mmif_io  # noqa: E402
from mmif_trt.cli import main as mmif  # noqa: E402
from mmif_trt.image import Image  # noqa: E402

SHAPE, SPACING_MM = (120, 144, 120), 1.5
COLOURS = 200  # of a picture, so that it stays small


def run(*words: str | Path) -> None:
    if mmif([str(word) for word in words]):
        raise SystemExit(f"failed: mmif-trt {' '.join(map(str, words))}")


def volumes(folder: Path) -> dict[str, Path]:
    """The synthetic head as NIfTI; the PET lies 9 mm off."""
    head = synthetic_head.make(SHAPE, SPACING_MM)
    off = head.affine.copy()
    off[:3, 3] += (7.0, -5.0, 3.0)
    made = {}
    for name, data, affine in (
        ("mri", head.mri, head.affine),
        ("ct", head.ct, head.affine),
        ("pet", head.pet, head.affine),
        ("pet_off", head.pet, off),
    ):
        made[name] = folder / f"{name}.nii"
        mmif_io.write(made[name], Image(data.astype(np.float32), (0, 1000), affine=affine), durable=False)
    return made


def keep(shown: Any, name: str) -> None:
    from PIL import Image as Pil

    shown.wait_for_timeout(700)
    picture = Pil.open(io.BytesIO(shown.screenshot())).convert("RGB")
    picture.quantize(COLOURS, dither=Pil.Dither.NONE).save(DOCS / f"{name}.png", optimize=True)
    print(f"docs/{name}.png")


def page_of(shown: Any, path: Path) -> None:
    shown.goto(path.as_uri())
    shown.wait_for_selector("body[data-ready]", timeout=120_000)


def view(shown: Any, made: dict[str, Path], folder: Path) -> None:
    limits = ("--value-range-a", 0, 950, "--value-range-b", 0, 9, "--modality-b", "pet")
    run("fuse", made["mri"], made["pet"], "-o", folder / "f.nii", "--view", folder / "v.html", *limits)
    page_of(shown, folder / "v.html")
    for key in ("ArrowLeft",) * 13 + ("PageUp",) * 2:
        shown.keyboard.press(key)
    keep(shown, "view")


def registration(shown: Any, made: dict[str, Path], folder: Path) -> None:
    limits = ("--value-range-a", 0, 950, "--value-range-b", 0, 9, "--modality-b", "pet")
    how = ("--registration", "rigid", "--view", folder / "r.html")
    run("fuse", made["mri"], made["pet_off"], "-o", folder / "r.nii", *how, *limits)
    page_of(shown, folder / "r.html")
    shown.select_option("#mode", "edges")
    shown.select_option("#planes", "axial")
    shown.keyboard.press("x")
    shown.locator("#amount").fill("70")
    shown.click("#before")
    shown.locator("#check-h").scroll_into_view_if_needed()
    keep(shown, "registration")


def study(shown: Any, made: dict[str, Path], folder: Path) -> None:
    from study_load import serving
    from test_study_server import free_port

    from mmif_trt.stages import palettes
    from mmif_trt.study.config import read_config
    from mmif_trt.study.create import create

    limits = ("--value-range-a", 0, 950, "--value-range-b", 0, 9, "--modality-b", "pet")
    places = {"mri": made["mri"], "pet": made["pet"]}
    for kind, path in places.items():
        (folder / "sources" / kind).mkdir(parents=True)
        (folder / "sources" / kind / "head.nii").write_bytes(path.read_bytes())
    run("fuse", made["mri"], made["pet"], "-o", folder / "network" / "head.nii", "--quiet", *limits)
    mri, pet = (mmif_io.read(path) for path in places.values())
    half = (np.clip(mri.data / 950, 0, 1)[..., None] + palettes.apply(np.clip(pet.data / 9, 0, 1), "PET")) / 2
    pixels = np.rint(half * 255).astype(np.uint8)
    (folder / "overlay").mkdir()
    mmif_io.write(folder / "overlay" / "head.nii", Image(pixels, affine=mri.affine), durable=False)
    one = {"modality": "pet", "sources": "sources", "methods": {m: m for m in ("network", "overlay")}}
    config = {"title": "Network or overlay", "sets": [one], "readers": 1, "window": "logged"}
    config["value_range"] = {"mri": [0, 950], "pet": [0, 9]}
    (folder / "study.json").write_text(json.dumps(config))
    create(read_config(folder / "study.json"), folder / "study")
    with serving(folder / "study", free_port()) as (_, links):
        shown.goto(links[0])
        shown.click("text=Begin")
        shown.wait_for_selector("body.ready", timeout=120_000)
        keep(shown, "study")


def report(shown: Any, made: dict[str, Path], folder: Path) -> None:
    """Slices of the head's CT and MRI, LAGN as a command beside the baselines, its gallery of lesions."""
    mri, ct = (mmif_io.read(made[name]).data for name in ("mri", "ct"))
    for kind, values, low, high in (("mri", mri, 0, 950), ("ct", ct, -100, 900)):
        (folder / "slices" / kind).mkdir(parents=True)
        for index in range(50, 80, 5):
            unit = np.clip((values[index] - low) / (high - low), 0, 1)
            pixels = np.rint(255 * unit).astype(np.uint8)
            mmif_io.write(folder / "slices" / kind / f"{index}.png", Image(pixels), durable=False)
    command = f"{sys.executable} -m mmif_trt fuse {{mri}} {{other}} -o {{out}} --quiet"
    out = ("--per-kind", 6, "-o", folder / "report.html")
    run("report", folder / "slices", "--method", f"LAGN={command}", *out)
    shown.goto((folder / "report.html").as_uri())
    shown.locator("#lesions").evaluate("e => e.scrollIntoView()")
    keep(shown, "report")


def sheet(shown: Any, made: dict[str, Path], folder: Path) -> None:
    """The contact sheet of fuse --preview; no browser."""
    from PIL import Image as Pil

    limits = ("--value-range-a", 0, 950, "--value-range-b", -100, 900, "--modality-b", "ct")
    out = ("-o", folder / "s.nii", "--preview", DOCS / "sheet.png", "--quiet", "--overwrite")
    run("fuse", made["mri"], made["ct"], *out, *limits)
    picture = Pil.open(DOCS / "sheet.png").convert("RGB")
    picture.quantize(COLOURS, dither=Pil.Dither.NONE).save(DOCS / "sheet.png", optimize=True)
    print("docs/sheet.png")


def napari(shown: Any, made: dict[str, Path], folder: Path) -> None:
    """The panel alone, as Qt draws it without a screen; in an environment with napari and a Qt."""
    os.environ["QT_QPA_PLATFORM"] = "offscreen"
    from napari.components import ViewerModel
    from napari.qt import get_qapp

    from mmif_trt.plugin.layers import sample_layers
    from mmif_trt.plugin.widget import fuse_widget

    app, viewer, panel = get_qapp(), ViewerModel(), fuse_widget()
    for data, how, _ in sample_layers():
        viewer.add_image(data, **how)
    panel.mri.choices = panel.other.choices = list(viewer.layers)
    panel.other.value = viewer.layers[1]
    panel.native.resize(420, 260)
    app.processEvents()
    panel.native.grab().save(str(DOCS / "napari.png"))
    print("docs/napari.png")


Picture = Callable[[Any, dict[str, Path], Path], None]
PICTURES: dict[str, Picture] = {
    "view": view,
    "registration": registration,
    "study": study,
    "report": report,
    "sheet": sheet,
    "napari": napari,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(PICTURES)}; default: all but napari"
    )
    names = parser.parse_args().names or [name for name in PICTURES if name != "napari"]
    with tempfile.TemporaryDirectory() as scratch, chromium.browser(*chromium.WEBGL) as started:
        made = volumes(Path(scratch))
        for name in names:
            shown = started.new_page(viewport={"width": 1280, "height": 800})
            PICTURES[name](shown, made, Path(scratch))
            shown.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
