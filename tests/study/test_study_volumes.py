"""A study of volumes: made, read in a real browser by wheel and keys, and exported with the slices seen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the study extra: pip install 'mmif-trt[study]'")

from chromium import (
    TABLETS,
    WEBGL,
    browser,
    check_accessible,
    check_by_tab,
    check_label,
    check_not_clipped,
    check_targets,
    emptied,
    lose_graphics,
    refuses_answers,
    tablet,
    touch,
    watched,
)
from phantoms import affine_of, grid, head, uptake, write_nifti
from ports import free_port
from test_study_server import serving

from mmif_trt import io
from mmif_trt.image import Image, InputError
from mmif_trt.study import export, volumes
from mmif_trt.study.config import read_config
from mmif_trt.study.create import create
from mmif_trt.study.forms import view_of
from mmif_trt.study.store import Store

SHAPE = (24, 30, 26)
AFFINE = affine_of("SPL", (6, 6, 6), SHAPE)
METHODS = ("secretA", "secretB")


def make_config(root: Path, **more: Any) -> Path:
    points = grid(AFFINE, SHAPE)
    mri, pet = head(points), uptake(points) / 100
    for folder, values in (("sources/mri", mri), ("sources/pet", pet)):
        (root / folder).mkdir(parents=True)
        write_nifti(root / folder / "head.nii.gz", values, AFFINE)
    for number, method in enumerate(METHODS):
        (root / method).mkdir()
        pixels = np.stack([(mri / 4).astype(np.uint8)] * 3, axis=-1)
        pixels[..., number] += 40
        io.write(root / method / "head.nii", Image(pixels, affine=AFFINE))
        write_nifti(root / method / "head_luma.nii", mri, AFFINE)  # as fuse writes it, beside
    one = {"modality": "pet", "sources": "sources", "methods": {m: m for m in METHODS}}
    config = {"title": "Test", "sets": [one], "readers": 1, "repeats": 0, "window": "logged", **more}
    config["value_range"] = {"mri": [0, 1000], "pet": [0, 8]}
    (root / "study.json").write_text(json.dumps(config))
    return root / "study.json"


def test_what_a_reader_is_sent_tells_no_method(tmp_path: Path) -> None:
    create(read_config(make_config(tmp_path)), tmp_path / "study")
    store = Store(tmp_path / "study")
    assert store.meta["volumes"] is True and store.cases() == ["pet/head"]
    page = store.page(1, 1)
    assert page is not None
    heads = {}
    for slot, number in page.pictures.items():
        data = store.picture(number)
        assert data[:8] == b"MMIFVOL1" and not any(method.encode() in data for method in METHODS)
        heads[slot] = json.loads(data[12 : 12 + int.from_bytes(data[8:12], "little")])
        assert heads[slot]["shape"] == list(SHAPE[::-1])
    sides = [{k: v for k, v in heads[slot].items() if k != "sizes"} for slot in ("left", "right")]
    assert sides[0] == sides[1] and heads["other"]["high"] == 8.0 and len(heads["other"]["palette"]) == 256
    (tmp_path / "secretA" / "head.nii").unlink()
    io.write(tmp_path / "secretA" / "head.png", Image(np.zeros(SHAPE[1:], np.uint8)))
    with pytest.raises(InputError, match="expected one kind in a study"):
        create(read_config(tmp_path / "study.json"), tmp_path / "other")


def test_what_was_seen_is_kept_where_it_makes_sense() -> None:
    form = {
        "seen_axial": "3-12 14",
        "seen_coronal": "1;2",
        "window_mri": "-5.5 to 100",
        "window_other": "a to b",
    }
    assert volumes.seen_of(form) == {"seen_axial": "3-12 14", "window_mri": "-5.5 to 100"}
    assert volumes.seen_of({"seen_axial": "1 " * 1500}) == {}
    assert json.loads(view_of({**form, "zoom": "2"}))["seen_axial"] == "3-12 14"


@pytest.fixture(scope="module")
def started() -> Iterator[Any]:
    with browser(*WEBGL) as chromium:
        yield chromium


@pytest.fixture
def chromium(started: Any) -> Iterator[Any]:
    yield from emptied(started)


def test_a_reader_scrolls_and_answers(chromium: Any, tmp_path: Path) -> None:
    create(read_config(make_config(tmp_path)), tmp_path / "study")
    shown, wrong = watched(chromium.new_context(viewport={"width": 1100, "height": 640}))
    with serving(tmp_path / "study", free_port()) as (_, links):
        shown.goto(links[0])
        check_accessible(shown, "welcome")
        shown.click("text=Begin")
        for answer in ("a", "b"):
            shown.wait_for_selector("body.ready", timeout=120_000)
            if answer == "a":
                check_accessible(shown, "item")
                check_not_clipped(shown, "item")
                check_by_tab(shown, "item")
                scroll(shown)
            before = shown.title()
            if answer == "b":
                lose_graphics(shown)
                shown.locator("p.missing", has_text="lost this page's graphics").first.wait_for()
                assert refuses_answers(shown)
                shown.reload()
                shown.wait_for_selector("body.ready", timeout=120_000)
            shown.keyboard.press(answer)
            shown.wait_for_function("before => document.title !== before", arg=before)
        assert "Finished" in shown.inner_text("h1") and not wrong
    first, second = export.rows(Store(tmp_path / "study"))
    assert (first["answer"], second["answer"]) == ("left", "right")
    assert first["seen_axial"] == "11-15" and first["seen_sagittal"] == "14"
    assert second["seen_axial"] == "13" and second["window_mri"] == "0 to 1000"
    low, high = map(float, first["window_mri"].split(" to "))
    assert high - low == pytest.approx(1000 + 40 * 1000 / 400) and first["zoom"] == pytest.approx(1.25)


def scroll(shown: Any) -> None:
    """Slices 11 to 15 by keys and wheel, a wider window by a drag, some zoom."""

    def frame() -> None:
        shown.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    for key in ("PageUp", "PageUp", "PageDown", "PageDown", "PageDown"):
        shown.keyboard.press(key)
        frame()
    box = shown.locator("canvas[data-slot=left]").bounding_box()
    shown.select_option("#planes", "axial")
    shown.locator("h1").click()
    shown.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    shown.mouse.wheel(0, 100)
    frame()
    assert "axial 11/24" in shown.inner_text("#place")
    box = shown.locator("canvas[data-slot=mri]").bounding_box()
    shown.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    shown.mouse.down(button="right")
    shown.mouse.move(box["x"] + box["width"] / 2 + 40, box["y"] + box["height"] / 2)
    shown.mouse.up(button="right")
    shown.keyboard.press("+")
    frame()


@pytest.mark.parametrize("name", TABLETS)
def test_a_tablet_and_a_keyboard_reach_all(chromium: Any, tmp_path: Path, name: str) -> None:
    """Slices, window, crosshair and zoom without wheel and buttons; a held key scrolls, and answers once."""
    create(read_config(make_config(tmp_path)), tmp_path / "study")
    shown, wrong = watched(tablet(chromium, name))
    with serving(tmp_path / "study", free_port()) as (_, links):
        shown.goto(links[0])
        shown.tap("text=Begin")
        shown.wait_for_selector("body.ready", timeout=120_000)
        for check in (check_accessible, check_not_clipped, check_targets, check_label):
            check(shown, name)
        use_fingers(shown)
        use_keys(shown)
        shown.keyboard.down("a")
        shown.keyboard.down("a")  # held
        shown.wait_for_function("() => document.title.startsWith('Item 1')")
        shown.wait_for_selector("body.ready", timeout=120_000)
        shown.tap("button[value=right]")
        shown.wait_for_selector("h1:has-text('Finished')")
        assert not wrong
    first, second = export.rows(Store(tmp_path / "study"))
    assert (first["answer"], second["answer"]) == ("left", "right")
    low, high = map(float, first["window_mri"].split(" to "))
    assert high - low == pytest.approx(1000 + 40 * 1000 / 400)
    low, high = map(float, first["window_other"].split(" to "))
    assert high - low == pytest.approx(8 + 2 * 10 * 8 / 400)


def places(shown: Any) -> dict[str, int]:
    shown.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    words = shown.inner_text("#place").split(", ")
    return {plane: int(text.split("/")[0]) for plane, text in (word.split(" ") for word in words)}


def use_fingers(shown: Any) -> None:
    shown.select_option("#planes", "axial")
    box = shown.locator("canvas[data-slot=mri]").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    shown.select_option("#tool", "slices")
    touch(shown, [(x, y - 20 * part) for part in range(3)])  # each step is drawn
    assert places(shown)["axial"] > 13 and places(shown)["sagittal"] == 14
    shown.select_option("#tool", "window")
    touch(shown, [(x + 20 * part, y) for part in range(3)])
    before = places(shown)
    touch(shown, *([(x + side * (20 + 10 * part), y) for part in range(3)] for side in (-1, 1)))
    assert places(shown) == before and float(shown.inner_text("#zoomed").rstrip("×")) > 1.5
    shown.keyboard.press("0")


def use_keys(shown: Any) -> None:
    shown.focus("canvas[data-slot=other]")
    for _ in range(2):
        shown.keyboard.press("Shift+ArrowRight")  # the window of the source with the focus
    shown.select_option("#tool", "crosshair")
    before = places(shown)
    shown.keyboard.press("Shift+ArrowLeft")
    shown.keyboard.press("Shift+ArrowUp")
    moved = {plane: places(shown)[plane] - n for plane, n in before.items()}
    assert moved == {"axial": 0, "coronal": 1, "sagittal": 1}
    shown.locator("h1").click()
    for _ in range(3):
        shown.keyboard.down("PageDown")  # held
    shown.keyboard.up("PageDown")
    assert places(shown)["axial"] == before["axial"] - 3
