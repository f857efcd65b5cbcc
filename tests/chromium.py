"""A real Chromium for tests: Debian's, driven by Playwright. Skips with the reason where one is missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

# WebGL without a graphics card, by the browser's own software renderer.
WEBGL = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")


@contextmanager
def browser(*options: str) -> Iterator[Any]:
    """options: further ones of Chromium, such as WEBGL."""
    sync = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'mmif-trt[dev]'")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync.sync_playwright() as playwright:
        # No sandbox: tests run as root in containers, on pages of our own.
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", *options])
        yield started
        started.close()


def watched(context: Any) -> tuple[Any, list[str]]:
    """A page, and the list of whatever goes wrong in it: script errors, refused loads, console errors."""
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("requestfailed", lambda request: wrong.append(request.url[:100]))
    return page, wrong


def check_accessible(page: Any, name: str) -> None:
    """axe-core finds nothing: contrast, names, roles, labels, order of headings."""
    axe = pytest.importorskip("axe_core_python.sync_playwright", reason="needs axe-core-python")
    found = axe.Axe().run(page)["violations"]
    assert not found, (
        name,
        [(v["id"], v["nodes"][0]["html"], v["nodes"][0]["failureSummary"]) for v in found],
    )


def check_not_clipped(page: Any, name: str) -> None:
    """Nothing sticks out of the window sideways, and an item with its buttons fits it whole."""
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, (name, wide)
    if page.locator("body.item").count():
        bottom = page.evaluate(
            "Math.max(...[...document.querySelectorAll('footer *')]"
            ".map(e => e.getBoundingClientRect().bottom)) - innerHeight"
        )
        assert bottom <= 0, (name, bottom)
    lost = page.evaluate(
        """[...document.querySelectorAll("button, a, .pane")]
             .filter(e => e.offsetParent && !e.closest(".row, .wide"))
             .filter(e => {  // rows and wide tables scroll by themselves
             const b = e.getBoundingClientRect();
             return b.left < -1 || b.right > innerWidth + 1 || b.width < 20 || b.height < 16;
           }).map(e => e.outerHTML.slice(0, 80))"""
    )
    assert not lost, (name, lost)
