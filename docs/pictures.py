"""The pictures of the pages, of a head that nobody has: python docs/pictures.py [NAME ...]

Fuses synthetic volumes (benchmarks/synthetic_head.py), opens what the commands write in Chromium, and writes
docs/NAME.png. What a command prints is drawn as a terminal, word for word. Needs Chromium, playwright and the
clinical and study extras; napari.png the napari extra, node.png dcmtk, engine.png TensorRT-RTX.
"""

from __future__ import annotations

import argparse
import html
import io
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

DOCS = Path(__file__).resolve().parent
REPO = DOCS.parent
sys.path[:0] = [str(REPO), *(str(REPO / name) for name in ("tests", "tests/study", "benchmarks"))]

import chromium  # noqa: E402
import peers  # noqa: E402
import phantoms  # noqa: E402
import synthetic_head  # noqa: E402

from mmif_trt import io as mmif_io  # noqa: E402
from mmif_trt.cli import main as mmif  # noqa: E402
from mmif_trt.image import Image  # noqa: E402

SHAPE, SPACING_MM = (120, 144, 120), 1.5
COLOURS = 200  # of a picture, so that it stays small
TERMINAL = """<style>body { margin: 0 }
pre { margin: 0; padding: 14px 18px; width: max-content; min-width: 100ch; max-width: 128ch;
  white-space: pre-wrap; overflow-wrap: anywhere; background: #14161a; color: #c9ced6;
  font: 14px/1.45 "DejaVu Sans Mono", monospace }
b { color: #e0a458; font-weight: 400 }</style><pre>%s</pre>"""


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


def printed(folder: Path, *commands: str) -> list[tuple[str, str]]:
    """(command, what it prints) of commands of mmif-trt in a folder, each of which must succeed."""
    environment = {**os.environ, "PYTHONPATH": str(REPO), "MMIF_ENGINES": str(folder / "engines")}
    found = []
    for command in commands:
        words = [sys.executable, "-m", "mmif_trt", *command.split()]
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"failed: mmif-trt {command}\n{done.stderr}")
        found.append((f"mmif-trt {command}", (done.stdout + done.stderr).replace(f"{folder}/", "")))
    return found


def terminal(shown: Any, name: str, found: list[tuple[str, str]]) -> None:
    """A terminal with commands and what they printed."""
    from PIL import Image as Pil

    text = "\n".join(f"<b>$ {html.escape(x)}</b>\n{html.escape(y.rstrip())}\n" for x, y in found).rstrip()
    shown.set_content(TERMINAL % text)
    picture = Pil.open(io.BytesIO(shown.locator("pre").screenshot())).convert("RGB")
    picture.quantize(32, dither=Pil.Dither.NONE).save(DOCS / f"{name}.png", optimize=True)
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
    from ports import free_port
    from study_load import serving

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
    panel.native.resize(420, 295)
    app.processEvents()
    panel.native.grab().save(str(DOCS / "napari.png"))
    print("docs/napari.png")


def cluster(shown: Any, made: dict[str, Path], folder: Path) -> None:
    for number in range(1, 4):
        study = folder / "cluster" / "STUDY_ROOT" / f"study-{number}"
        phantoms.write_mr(study / "mr", phantoms.affine_of())
        phantoms.write_pet(study / "pet", phantoms.affine_of())
    commands = ("plan STUDY_ROOT -o PLAN", "batch PLAN -o FUSED_STUDIES", "status FUSED_STUDIES")
    terminal(shown, "cluster", printed(folder / "cluster", *commands))


def info(shown: Any, made: dict[str, Path], folder: Path) -> None:
    shortened = [
        (command, text.replace(sys.executable, "python3")) for command, text in printed(folder, "info")
    ]
    terminal(shown, "info", shortened)


def evaluation(shown: Any, made: dict[str, Path], folder: Path) -> None:
    """Slices of the head's MRI and CT, fused by the network."""
    place = folder / "eval"
    mri, ct = (mmif_io.read(made[name]).data for name in ("mri", "ct"))
    for kind, values, low, high in (("mri", mri, 0, 950), ("ct", ct, -100, 900)):
        (place / "SOURCES" / kind).mkdir(parents=True)
        for index in range(50, 80, 10):
            pixels = np.rint(255 * np.clip((values[index] - low) / (high - low), 0, 1)).astype(np.uint8)
            mmif_io.write(place / "SOURCES" / kind / f"{index}.png", Image(pixels), durable=False)
    run("fuse", place / "SOURCES/mri", place / "SOURCES/ct", "-o", place / "FUSED", "--quiet")
    terminal(shown, "eval", printed(place, "eval SOURCES FUSED --baselines"))


def engine(shown: Any, made: dict[str, Path], folder: Path) -> None:
    (folder / "engine").mkdir()
    terminal(shown, "engine", printed(folder / "engine", "engine build --size 256", "engine list"))


def node(shown: Any, made: dict[str, Path], folder: Path) -> None:
    """A node that fuses a study and keeps it, since the PACS of its --send-to is down."""
    port, web, down = (peers.free_port() for _ in range(3))
    options = f"node --aet MMIF --port {port} --peer SCANNER --send-to PACS@localhost:{down} --quiet-s 2"
    options += f" --http-port {web}"
    words = [sys.executable, "-m", "mmif_trt", *options.split()]
    (folder / "node").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(REPO)}

    def health() -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{web}/health", timeout=5) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    log_path = folder / "node.log"
    with log_path.open("w") as log:
        started = subprocess.Popen(words, cwd=folder / "node", env=environment, stdout=log, stderr=log)
    try:
        peers.until(health)
        study = folder / "node-study"
        for series in (phantoms.write_mr, phantoms.write_pet):
            peers.storescu(port, series(study / series.__name__, phantoms.affine_of()))
        peers.until(lambda: "fused" in log_path.read_text())
        answer, text = json.dumps(health(), indent=1), log_path.read_text()
    finally:
        started.terminate()
        started.wait()
    terminal(shown, "node", [(f"mmif-trt {options}", text), (f"curl http://127.0.0.1:{web}/health", answer)])


Picture = Callable[[Any, dict[str, Path], Path], None]
PICTURES: dict[str, Picture] = {
    "view": view,
    "registration": registration,
    "study": study,
    "report": report,
    "sheet": sheet,
    "cluster": cluster,
    "info": info,
    "eval": evaluation,
    "engine": engine,
    "node": node,
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
