"""A whole study in a real browser: three readers at once, one interrupted and resumed, one by keyboard
alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chromium import (
    browser,
    check_accessible,
    check_by_tab,
    check_label,
    check_not_clipped,
    check_printed,
    check_targets,
    refuses_answers,
    watched,
)
from ports import free_port
from test_study_server import make_study, serving

from mmif_trt.study import export
from mmif_trt.study.store import Store

SIZES = {"desktop": (1600, 900), "tablet": (820, 1180), "tablet on its side": (1180, 820)}
ITEMS = 12


def ready(page: Any) -> None:
    page.wait_for_selector("body.ready, h1:has-text('Finished')")


def left(page: Any) -> int:
    """Items still to answer, the training item among them; 0 on the last page."""
    position = page.locator("input[name=position]")
    return 1 + ITEMS - int(position.input_value()) if position.count() else 0


def step(page: Any, act: Callable[[], None]) -> None:
    """One answer: the page that follows is another item's."""
    before = page.title()
    act()
    page.wait_for_function("before => document.title !== before", arg=before)
    ready(page)


def begin_by_keyboard(page: Any) -> None:
    page.keyboard.press("Tab")
    page.keyboard.type("res")  # resident
    page.keyboard.press("Tab")
    page.keyboard.type("4")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    ready(page)


def test_twelve_items_three_readers(tmp_path: Path) -> None:
    # 2 cases x 6 pairs of 4 methods = 12 items, no repeats.
    study = make_study(tmp_path, readers=3, cases=2, repeats=0)
    port = free_port()
    with browser() as chromium:
        contexts = [
            chromium.new_context(viewport=dict(zip(("width", "height"), s, strict=True)))
            for s in SIZES.values()
        ]
        (mouse, wrong_a), (keys, wrong_b), (touch, wrong_c) = map(watched, contexts)
        with serving(study, port) as (process, links):
            for page, link, name in zip((mouse, keys, touch), links, SIZES, strict=True):
                page.goto(link)
                assert "/enter/" not in page.url
                check_accessible(page, f"welcome, {name}")
                check_not_clipped(page, f"welcome, {name}")
                check_label(page, f"welcome, {name}")
                check_by_tab(page, f"welcome, {name}")
            begin_by_keyboard(keys)
            for page in (mouse, touch):
                page.click("text=Begin")
                ready(page)
            for page, name in zip((mouse, keys, touch), SIZES, strict=True):
                check_accessible(page, f"item, {name}")
                check_not_clipped(page, f"item, {name}")
                check_targets(page, f"item, {name}")
                check_label(page, f"item, {name}")
                check_by_tab(page, f"item, {name}")
                sizes = page.evaluate("[...document.querySelectorAll('.pane img')].map(i => i.naturalWidth)")
                assert sizes == [128] * 4
            check_at_sizes(keys, "item")
            check_missing(contexts[0].new_page(), mouse.url)
            zoom_together(keys)
            for _ in range(5):  # in turn: three readers at once
                step(mouse, lambda: mouse.click("button[value=left]"))
                step(keys, lambda: keys.keyboard.press("b"))
                step(touch, lambda: touch.dblclick("button[value=equal]", delay=1))
            step(keys, lambda: keys.keyboard.press("Backspace"))  # back: "changing your answer"
            step(
                keys, lambda: keys.keyboard.press("ArrowDown")
            )  # equal instead; on to the item that was open
            contexts[0].close()  # the first reader's machine is gone, and then the server too
            process.kill()
            process.wait()
        with serving(study, port) as (_, links):
            other_machine, wrong_d = watched(chromium.new_context())
            other_machine.goto(links[0])
            ready(other_machine)
            assert left(other_machine) == ITEMS - 4
            for page, key in ((other_machine, "ArrowLeft"), (keys, "ArrowRight"), (touch, "e")):
                page.reload()
                ready(page)
                while left(page):
                    step(page, lambda page=page, key=key: page.keyboard.press(key))
                assert "Finished" in page.inner_text("h1")
                check_accessible(page, "finished")
                check_label(page, "finished")
            before = last_pictures(other_machine)
            other_machine.goto(links[1])
            check_accessible(other_machine, "another reader's link")
            check_label(other_machine, "another reader's link")
            other_machine.click("text=This link is mine")
            ready(other_machine)
            assert before != last_pictures(other_machine) == last_pictures(keys), "kept from another reader"
            lost = chromium.new_page()
            lost.goto(links[0].replace("/enter/", "/enter/no"))
            check_accessible(lost, "wrong link")
            check_label(lost, "wrong link")
        assert not wrong_a + wrong_b + wrong_c + wrong_d
    check_answers(study)


def check_missing(page: Any, address: str) -> None:
    """A picture that does not come: the page says so in its pane, and takes no answer."""
    page.route("**/picture/*/right*", lambda route: route.abort())
    page.goto(address)
    pane, words = page.locator(".right .pane").bounding_box(), page.locator("p.missing")
    words.wait_for()
    box = words.bounding_box()
    assert words.count() == 1 and pane["y"] < box["y"] < pane["y"] + pane["height"] - box["height"]
    assert refuses_answers(page)
    page.close()


def last_pictures(page: Any) -> list[str]:
    """What a reader who has finished sees on going back: the pixels, wherever the browser has them from."""
    page.click("text=Change my last answer")
    ready(page)
    found = page.evaluate(
        """[...document.querySelectorAll(".pane img")].map(img => {
             const canvas = Object.assign(document.createElement("canvas"), { width: 128, height: 128 });
             canvas.getContext("2d").drawImage(img, 0, 0);
             return canvas.toDataURL();
           })"""
    )
    page.click("text=Keep my answer")
    ready(page)
    return [str(one) for one in found]


def zoom_together(page: Any) -> None:
    """Keys zoom and move all four pictures by the same, in shares of their panes."""
    for key in ("+", "+", "+", "Shift+ArrowLeft"):
        page.keyboard.press(key)
    found = page.evaluate(
        """[...document.querySelectorAll(".pane")].map(p => {
             const m = new DOMMatrix(getComputedStyle(p.querySelector("img")).transform);
             return [m.a, m.e / p.clientWidth, m.f / p.clientHeight]; })"""
    )
    assert len(found) == 4 and found[0][0] == pytest.approx(1.25**3, abs=1e-3)
    assert found[0][1] > 0.05
    for other in found[1:]:
        assert other == pytest.approx(found[0], abs=1e-3)


def check_answers(study: Path) -> None:
    rows = export.rows(Store(study))
    final = [row for row in rows if row["final"]]
    assert len(final) == 3 * (ITEMS + 1) and len(rows) == len(final) + 1  # one was changed
    by_reader = {reader: [row for row in final if row["reader"] == reader] for reader in (1, 2, 3)}
    assert [row["position"] for row in by_reader[1]] == list(range(ITEMS + 1))
    assert {row["answer"] for row in by_reader[1]} == {"left"}
    assert [row["answer"] for row in sorted(by_reader[2], key=lambda row: row["position"])] == (
        ["right"] * 4 + ["equal"] + ["right"] * 8
    )
    assert {row["answer"] for row in by_reader[3]} == {"equal"}
    assert by_reader[2][0]["role"] == "resident" and by_reader[2][0]["years"] == 4
    assert by_reader[2][0]["zoom"] == pytest.approx(1.953, abs=0.001) and by_reader[1][0]["zoom"] == 1
    assert all(0 < row["visible_s"] <= row["seconds"] + 1 for row in final)


def check_at_sizes(page: Any, name: str) -> None:
    """At the size of any screen the label can be read and nothing lies over a picture or a scale."""
    before = page.viewport_size
    for width, height in (
        (1920, 1080),
        (1366, 768),
        (1024, 600),
        (820, 1180),
        (1180, 820),
        (844, 390),
        (390, 844),
    ):
        page.set_viewport_size({"width": width, "height": height})
        check_label(page, f"{name}, {width} x {height}")
        check_targets(page, f"{name}, {width} x {height}")
        sides = page.evaluate(
            "[...document.querySelectorAll('.pane, .scales')].flatMap(e => [e.clientWidth, e.clientHeight])"
        )
        wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0 and min(sides) >= 90, (name, width, height, wide, sides)
    page.set_viewport_size(before)


def test_scales_by_keyboard_and_the_analysis_page(tmp_path: Path) -> None:
    names = ["detail", "colour", "lesion", "artefacts", "confidence"]
    study = make_study(tmp_path, readers=1, cases=1, repeats=0, paired=False, scales=names, window="logged")
    with browser() as chromium:
        page, wrong = watched(chromium.new_context(viewport={"width": 820, "height": 1180}))
        with serving(study, free_port()) as (_, links):
            page.goto(links[0])
            page.click("text=Begin")
            ready(page)
            check_accessible(page, "scales")
            check_not_clipped(page, "scales")
            check_targets(page, "scales")
            check_by_tab(page, "scales")
            check_at_sizes(page, "scales")
            page.fill("input[name=contrast]", "1.5")
            assert "contrast(1.5)" in page.locator(".pane img").first.evaluate("i => i.style.filter")
            for _ in range(5):
                page.locator("body").click(position={"x": 2, "y": 2})

                def rate() -> None:
                    for digit in "12345":
                        page.keyboard.press(digit)
                    page.keyboard.press("Enter")

                step(page, rate)
            assert "Finished" in page.inner_text("h1")
        from mmif_trt.study import analysis

        analysis.write(Store(study), tmp_path / "analysis.html")
        page.goto((tmp_path / "analysis.html").as_uri())
        check_accessible(page, "analysis")
        check_not_clipped(page, "analysis")
        check_printed(page, "analysis")
        check_label(page, "analysis")
        assert not wrong
    rows = export.rows(Store(study))
    assert [[row[name] for name in names] for row in rows] == [[1, 2, 3, 4, 5]] * 5
    assert rows[0]["contrast"] == 1.5 and rows[1]["contrast"] == 1
