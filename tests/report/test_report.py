"""The report: figures as `eval` gives them, one file that opens from disk, and its viewer in a real
browser.
"""

from __future__ import annotations

import html
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scenery

pytest.importorskip("jinja2", reason="needs the study extra: pip install 'mmif-trt[study]'")

from chromium import (
    TABLETS,
    browser,
    check_accessible,
    check_by_tab,
    check_label,
    check_not_clipped,
    check_printed,
    check_targets,
    tablet,
    touch,
    watched,
)
from shell import mmif

from mmif_trt import io
from mmif_trt.image import Image
from mmif_trt.measure.baselines import PICTURES
from mmif_trt.measure.fidelity import UPTAKE
from mmif_trt.measure.planting import kinds_for
from mmif_trt.measure.scores import evaluate
from mmif_trt.report import page, pictures, plots
from mmif_trt.report.commands import Shown
from mmif_trt.report.figures import ALL, Figures, extremes, gather

NASTY = "</script><b>患$x$&\"' of a name that leaves no room for anything beside it"


def make_cases(root: Path, count: int = 4) -> dict[str, Path]:
    """Sources and two methods, one worse than the other by noise."""
    rng = np.random.default_rng(0)
    for name in ("sources/mri", "sources/pet", "sharp", "noisy"):
        (root / name).mkdir(parents=True)
    for case in range(count):
        y, x = np.mgrid[:64, :80]
        a = np.uint8(127 + 100 * np.sin(x / (4 + case)) * np.cos(y / 5))
        b = np.dstack([np.uint8(200 * np.exp(-((x - 40) ** 2 + (y - 30) ** 2) / 300))] * 2 + [a // 3])
        fused = np.maximum(a[..., None], b)
        noisy = np.clip(fused + rng.normal(0, 20, fused.shape), 0, 255).astype(np.uint8)
        for where, data in (("sources/mri", a), ("sources/pet", b), ("sharp", fused), ("noisy", noisy)):
            io.write(root / where / f"case {case}.png", Image(data), durable=False)
    return {"sharp": root / "sharp", NASTY: root / "noisy"}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """Folder and methods of make_cases; none of its files is changed."""
    root = tmp_path_factory.mktemp("cases")
    return root, make_cases(root)


@pytest.fixture(scope="module", autouse=True)
def drawn_once() -> Iterator[None]:
    """The thirteen plots of a page are drawn once for the same figures; a page of them takes most of a
    second."""
    boxes, drawn = plots.boxes, dict[Any, str]()

    def kept(values: dict[str, list[float]], title: str, words: str) -> str:
        key = (title, words, *((name, *column) for name, column in values.items()))
        if key not in drawn:
            drawn[key] = boxes(values, title, words)
        return drawn[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "boxes", kept)
        yield


@pytest.fixture(scope="module")
def figures(cases: tuple[Path, dict[str, Path]]) -> Figures:
    return gather(cases[0] / "sources", cases[1])


@pytest.fixture(scope="module")
def reported(cases: tuple[Path, dict[str, Path]]) -> tuple[Path, str]:
    """The page of the command, and what it says."""
    root, methods = cases
    options = [f"--method={name}={folder}" for name, folder in methods.items()]
    done = mmif("report", root / "sources", *options, "-o", root / "r.html")
    return root / "r.html", done.stdout


def data_of(path: Path) -> dict[str, Any]:
    (text,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL
    )
    found: dict[str, Any] = json.loads(text)
    return found


def test_figures_are_those_of_eval(
    cases: tuple[Path, dict[str, Path]], figures: Figures, reported: tuple[Path, str]
) -> None:
    sources, path = cases[0] / "sources", reported[0]
    assert "4 cases, 4 methods" in reported[1]
    data, text = data_of(path), path.read_text()
    scores = evaluate(sources, cases[0] / "sharp", method="sharp", baselines=True, fidelity=True)
    for method in ("sharp", "average", "max"):
        means = {key: value for key, value in scores.means[method].items() if key not in UPTAKE}
        for key, value in means.items():
            assert data["means"][method][list(ALL).index(key)] == pytest.approx(value, abs=1e-5)
        assert f"<td>{scores.means[method]['readback']:.3f}" in text.replace("<b>", "")
    assert data["methods"] == sorted(data["methods"], key=lambda m: data["rank"][m])
    assert data["baselines"] == ["average", "max"] and NASTY in data["methods"]
    assert text.count("</script>") == 3 and "http-equiv" in text
    assert not re.findall(r'(?:src|href)="(?!#)[^"]', text)  # needs no other file
    best = extremes(figures)["SSIM255"]["best"]
    assert {method for _, method, _ in best} == {"sharp"} and best[0][2] >= best[-1][2]


def test_what_a_reader_needs_comes_first(reported: tuple[Path, str], tmp_path: Path) -> None:
    text = reported[0].read_text()
    assert text.index('id="reader"') < text.index('id="table"') and "were not scored" in text
    methods = make_cases(tmp_path, 1)
    options = [f"--method={name}={folder}" for name, folder in methods.items()]
    out = ("-o", tmp_path / "r.html")
    row = {"mean": 0.625, "worst": 0.5, "lost": 0.125}
    table = tmp_path / "lesions.json"
    table.write_text(json.dumps({"methods": {"fused": row, "max": {**row, "mean": 0.75}, "overlay70": row}}))
    mmif("report", tmp_path / "sources", *options, f"--lesions=sharp={table}", *out)
    rows = re.findall(r'<tr><th scope="row">(.*?)</th><td>(.*?)</td>', (tmp_path / "r.html").read_text())
    shown = [(re.sub("<.*", "", name), value) for name, value in rows[:4]]
    assert shown[:2] == [("max", "<b>0.750</b>"), ("sharp", "0.625")] and shown[2][1] == shown[3][1] == "–"
    for given, word in (
        ("nobody=" + str(table), "a NAME of --method"),
        (f"sharp={tmp_path}/none.json", "expected JSON of"),
        (f"sharp={tmp_path}/r.html", "expected JSON of"),
    ):
        args = (*options, f"--lesions={given}", *out)
        assert word in mmif("report", tmp_path / "sources", *args, code=2).stderr


def test_too_many_pictures_go_beside_the_page(
    cases: tuple[Path, dict[str, Path]], figures: Figures, tmp_path: Path
) -> None:
    whole = pictures.collect(figures, tmp_path / "r.html", {})
    assert not whole.beside and not (tmp_path / "r_files").exists()
    size = sum(len(url) for case in whole.inside.values() for url in case.values())
    less = pictures.collect(figures, tmp_path / "r.html", {}, budget=size - 1)
    assert "lossless" in whole.how and "lossy" in less.how and not less.beside
    some = pictures.collect(figures, tmp_path / "r.html", {}, budget=40_000)
    assert sum(len(url) for case in some.inside.values() for url in case.values()) <= 40_000 + 2000
    assert len(list((tmp_path / "r_files").iterdir())) == 4 * 6
    from PIL import Image as Pil

    kept = np.asarray(Pil.open(tmp_path / some.beside["case 1"]["sharp"]))
    assert np.array_equal(kept, io.read(cases[0] / "sharp" / "case 1.png").data)  # lossless


def test_bad_arguments(tmp_path: Path) -> None:
    make_cases(tmp_path, 2)
    out = ("-o", tmp_path / "r.html")
    (tmp_path / "t.json").write_text("{}")
    for options, word in (
        ([f"--method=max={tmp_path}"], "max"),
        (["--method=sharp"], "NAME=FOLDER"),
        ([f"--method=sharp={tmp_path}/none"], "none"),
        (["--no-baselines"], "--method"),
        ([f"--method=sharp={tmp_path}/sharp"] * 2, "once"),
        (["--range-mri", "5", "5"], "LOW < HIGH"),
        (["--range-mri", "5", "inf"], "LOW < HIGH"),
        (["--method=sharp=run {mri} {other}"], "no {out}; expected {mri}, {other}, {out} in a command"),
        (["--method=sharp=run '{mri} {other} {out}"], "a quote without its end; expected it closed"),
        (
            [f"--method=sharp={tmp_path}/sharp", f"--lesions=sharp={tmp_path}/t.json"],
            f"--lesions sharp={tmp_path}/t.json: an entry is missing; expected JSON of",
        ),
    ):
        assert word in mmif("report", tmp_path / "sources", *options, *out, code=2).stderr
    assert ".html" in mmif("report", tmp_path / "sources", "-o", tmp_path / "r.txt", code=2).stderr
    (tmp_path / "sharp" / "case 0.png").unlink()
    assert (
        "case 0" in mmif("report", tmp_path / "sources", f"--method=s={tmp_path}/sharp", *out, code=2).stderr
    )
    assert not (tmp_path / "r.html").exists()


def test_the_page_works_from_disk(
    cases: tuple[Path, dict[str, Path]], figures: Figures, tmp_path: Path
) -> None:
    flat = np.full((56, 56), 90, np.uint8)
    gallery = [("CT bright", [Shown("source without", flat), Shown(NASTY, flat, 0.5)])]
    page.write(figures, tmp_path / "r.html", title="A <title>", sources=cases[0] / "sources", gallery=gallery)
    with browser() as chromium:
        context = chromium.new_context(viewport={"width": 1400, "height": 900}, offline=True)
        shown, wrong = watched(context)
        shown.goto((tmp_path / "r.html").as_uri())
        check_accessible(shown, "report")
        check_not_clipped(shown, "report")
        check_table(shown)
        check_viewer(shown)
        check_by_tab(shown, "report")
        check_printed(shown, "report")
        beside = shown.locator(".plots text").all_text_contents()
        assert "sharp" in beside and max(map(len, beside)) < 30, "a long name leaves room for the plot"
        shown.click("text=Side by side")
        shown.set_viewport_size({"width": 390, "height": 844})
        check_not_clipped(shown, "report, telephone")
        sides = shown.evaluate("[...document.querySelectorAll('.pane')].map(e => e.clientWidth)")
        assert len(set(sides)) == 1, sides  # whatever the names above them
        shown.set_viewport_size({"width": 1400, "height": 900})
        check_keys(shown)
        for name in TABLETS:
            held, wrong_there = watched(tablet(chromium, name))
            held.goto((tmp_path / "r.html").as_uri())
            for check in (check_accessible, check_not_clipped, check_targets, check_label):
                check(held, f"report, {name}")
            check_fingers(held)
            assert not wrong_there
        assert shown.inner_text("h1") == "A <title>"
        many = tmp_path / "try #2, 100 %25?.html"
        doubted = replace(figures, warnings=["fused: <16-bit> pictures, none above 4095"])
        page.write(doubted, many, title="Many", sources=tmp_path, budget=40_000)
        shown.goto(many.as_uri())
        assert shown.inner_text(".warning") == "fused: <16-bit> pictures, none above 4095."
        assert pictures.folder_of(many).is_dir()
        shown.wait_for_function(
            "[...document.querySelectorAll('#panes img')].every(i => i.naturalWidth === 80)"
        )
        assert not wrong


def check_table(shown: Any) -> None:
    def column(index: int) -> list[str]:
        return list(shown.locator(f"#means tbody tr > :nth-child({index})").all_inner_texts())

    ranks = [float(text) for text in column(2)]
    assert ranks == sorted(ranks) and sum("baseline" in text for text in column(1)) == 2
    shown.click("#means button:has-text('MI')")
    values = [float(text) for text in column(2 + 1 + list(ALL).index("MI"))]
    assert values == sorted(values, reverse=True)
    shown.click("#means button:has-text('MI')")
    assert [float(text) for text in column(3 + list(ALL).index("MI"))] == values[::-1]


def check_viewer(shown: Any) -> None:
    assert shown.evaluate("[...document.querySelectorAll('#panes img')].every(i => i.naturalWidth === 80)")
    shown.keyboard.press("ArrowRight")
    assert shown.input_value("#case") == "1"
    shown.click("#panes .b .pane")
    box = shown.locator("#panes .b .pane").bounding_box()
    shown.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    shown.mouse.wheel(0, -600)
    shown.wait_for_function("document.getElementById('zoomed').textContent !== '1.0×'")
    moved = shown.evaluate(
        "[...document.querySelectorAll('#panes img')].map(i => i.style.transform.split('scale')[1])"
    )
    assert len(set(moved)) == 1 and moved[0] != "(1)"
    shown.keyboard.press("0")
    shown.click("text=Swipe >> nth=0")
    shown.fill("#swipe", "25")
    assert "25%" in shown.locator("#panes .over").evaluate("i => i.style.clipPath")
    shown.locator("#sheet .thumb").nth(3).click()
    assert shown.input_value("#case") == "0"
    shown.select_option("#measure", "VIF")
    assert shown.locator("#extremes .row").count() == 6


def check_keys(shown: Any) -> None:
    """Shift and arrows move a zoomed picture; in a table or a row arrows scroll, and leave the case alone."""
    shown.select_option("#case", "0")
    shown.locator("h1").click()
    for key in ("+", "+", "Shift+ArrowLeft"):
        shown.keyboard.press(key)
    assert "translate(0px" not in shown.locator("#panes img").first.evaluate("i => i.style.transform")
    shown.keyboard.press("0")
    shown.locator("#sheet .row").first.focus()
    shown.keyboard.press("ArrowRight")
    assert shown.input_value("#case") == "0"


def check_fingers(shown: Any) -> None:
    """One finger on a whole picture scrolls the page, two zoom, and one then moves the picture."""
    pane = shown.locator("#panes .a .pane")
    pane.scroll_into_view_if_needed()
    box = pane.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    before = shown.evaluate("scrollY")
    up = [(x, y - 20 * part) for part in range(6)]
    touch(shown, up)
    shown.wait_for_function("before => scrollY > before + 50", arg=before)
    pane.scroll_into_view_if_needed()
    box = pane.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touch(shown, *([(x + side * (20 + 10 * part), y) for part in range(5)] for side in (-1, 1)))
    assert float(shown.inner_text("#zoomed").rstrip("×")) > 2
    before = shown.evaluate("scrollY")
    touch(shown, [(x, y - 20 * part) for part in range(6)])
    assert shown.evaluate("scrollY") == before and shown.evaluate("visualViewport.scale") == 1
    assert "translate(0px, 0px)" not in pane.locator("img").first.evaluate("i => i.style.transform")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sources/ with one MRI and CT that lesions can stand in, and program.py, a method that is a command."""
    root = tmp_path_factory.mktemp("scene")
    for kind, pixels in (("mri", scenery.mri()), ("ct", scenery.ct())):
        (root / "sources" / kind).mkdir(parents=True)
        io.write(root / "sources" / kind / "one.png", Image(pixels), durable=False)
    (root / "program.py").write_text(
        "import sys, pathlib, cv2\n"
        "a, b, out = map(pathlib.Path, sys.argv[1:4])\n"
        "for path in a.iterdir():\n"
        "    x, y = (cv2.imread(str(f / path.name), 0) for f in (a, b))\n"
        "    cv2.imwrite(str(out / path.name), x if 'mri' in sys.argv[4:] else cv2.max(x, y))\n"
    )
    return root


def test_methods_that_are_commands_are_judged_on_lesions(scene: Path, tmp_path: Path) -> None:
    program = f"{sys.executable} {scene / 'program.py'} {{mri}} {{other}} {{out}}"
    methods = [f"--method=mine={program}", f"--method={NASTY}={program} mri"]
    out = tmp_path / "r.html"
    done = mmif("report", scene / "sources", *methods, "--per-kind", "2", "-o", out)
    assert "1 cases, 4 methods" in done.stdout
    text = out.read_text()
    assert text.index('id="reader"') < text.index('id="lesions"') < text.index('id="table"')
    rows = re.findall(r'<tr><th scope="row">(.*?)</th><td>(.*?)</td>', text)
    first = {re.sub("<.*", "", name): float(re.sub("<.*?>", "", value)) for name, value in rows[:4]}
    assert first["mine"] == first["max"], "the command is the maximum"
    kinds = re.findall(r"<h3>(.*?)</h3>\n<div class=\"row\"", text)
    assert kinds == [kind.name for kind in kinds_for("ct")]
    shares = re.findall(r"<figcaption>([^<]*) <b>([\d.]+)</b></figcaption>", text)
    assert len(shares) == (2 + len(PICTURES)) * len(kinds) and text.count(
        "source without</figcaption>"
    ) == len(kinds)
    by_method: dict[str, list[float]] = {}
    for name, share in shares:
        by_method.setdefault(html.unescape(name), []).append(float(share))
    assert by_method["mine"] == by_method["max"] and NASTY in by_method
    of_mri = [i for i, kind in enumerate(kinds_for("ct")) if kind.source == "a"]
    of_ct = [i for i, kind in enumerate(kinds_for("ct")) if kind.source == "b"]
    assert all(by_method[NASTY][i] == 1.0 for i in of_mri), "the MRI alone keeps the MRI's lesions"
    assert all(by_method[NASTY][i] == 0.0 for i in of_ct), "and none of the CT's"
    assert str(tempfile.gettempdir()) + "/tmp" not in text, "no scratch folder is named"


def test_bad_commands(scene: Path, tmp_path: Path) -> None:
    program = f"{sys.executable} {scene / 'program.py'}"
    for command, word in (
        (f"{program} {{mri}} {{out}}", "no {other}"),
        ("/no/such/program {mri} {other} {out}", "expected a program"),
        (
            f"{sys.executable} -c 'import sys; sys.exit(\"why\")' {{mri}} {{other}} {{out}}",
            "exit code 1 (why)",
        ),
        (
            f"{sys.executable} -c pass {{mri}} {{other}} {{out}}",
            "it wrote nothing; expected a picture per pair",
        ),
        ("'a program {mri} {other} {out}", "a quote without its end"),
    ):
        args = (f"--method=m={command}", "--per-kind", "1", "-o", tmp_path / "r.html")
        assert word in mmif("report", scene / "sources", *args, code=2).stderr
    assert not (tmp_path / "r.html").exists()
