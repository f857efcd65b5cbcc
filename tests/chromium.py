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
    """options: further command-line options of Chromium, such as WEBGL."""
    sync = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'mmif-trt[dev]'")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync.sync_playwright() as playwright:
        # No sandbox: tests run as root in containers, on pages of our own.
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", *options])
        yield started
        started.close()


def emptied(started: Any) -> Iterator[Any]:
    """The browser of a file of tests for one of them, after which none of its pages is left."""
    yield started
    for context in started.contexts:
        context.close()


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
    page.evaluate(axe.Axe().axe_script)
    # Not Axe.run: it brings every element that passed from the browser, megabytes of them, to be thrown away.
    found = page.evaluate("axe.run({ resultTypes: ['violations'] }).then(found => found.violations)")
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


def check_printed(page: Any, name: str) -> None:
    """On a sheet of A4, without its ground: text stands out from white, every picture has come, and no table
    or row of pictures is cut off."""
    page.emulate_media(media="print")
    before = page.viewport_size
    page.set_viewport_size({"width": 720, "height": 1040})
    found = page.evaluate(
        """() => {
             const light = (colour) => {
               const [r, g, b] = colour.match(/[\\d.]+/g).map(c => (c / 255) ** 2.2);
               return 0.2126 * r + 0.7152 * g + 0.0722 * b;
             };
             const tag = (e) => e.outerHTML.slice(0, 80), own = (e) => [...e.childNodes].some(
               n => n.nodeType === 3 && n.textContent.trim());
             const colour = (e) => getComputedStyle(e)[e.closest("svg") ? "fill" : "color"];
             const texts = [...document.body.querySelectorAll("*:not(script, style)")].filter(
               e => own(e) && e.checkVisibility());
             const onBars = (e) => e.closest("svg") && light(colour(e)) > 0.99;
             return {
               faint: texts.filter(e => !onBars(e) && 1.05 / (light(colour(e)) + 0.05) < 4.5).map(tag),
               missing: [...document.images].filter(i => i.checkVisibility() && !i.naturalWidth).map(tag),
               cut: [...document.querySelectorAll(".wide, .row")].filter(
                 e => e.getBoundingClientRect().left + e.scrollWidth > innerWidth).map(tag),
             };
           }"""
    )
    page.set_viewport_size(before)
    page.emulate_media(media="screen")
    assert found == {"faint": [], "missing": [], "cut": []}, (name, found)


def refuses_answers(page: Any) -> bool:
    """Whether an item of a study takes no answer, neither by its key nor by its button."""
    return bool(
        page.evaluate(
            """() => {
                 const heard = [];
                 form.addEventListener("submit", (event) => {
                   heard.push(event.defaultPrevented);
                   event.preventDefault();
                 });
                 document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "b", bubbles: true }));
                 const byKey = heard.length;
                 form.querySelector("[value=right]").click();
                 return !byKey && heard.length === 1 && heard[0];
               }"""
        )
    )


def lose_graphics(page: Any) -> None:
    """As when a driver is reset: the contexts of all canvases that are drawn by WebGL are lost."""
    page.evaluate(
        """() => [...document.querySelectorAll("canvas")].forEach(
             c => c.getContext("webgl2")?.getExtension("WEBGL_lose_context").loseContext())"""
    )


TABLETS = {"tablet": (820, 1180), "tablet on its side": (1180, 820)}
# Pixels to one of the page. Not 2 for both: a picture drawn without a graphics card takes its time by them.
PIXELS = {"tablet": 2, "tablet on its side": 1}


def tablet(started: Any, name: str, **more: Any) -> Any:
    """A context with a touch screen."""
    size = dict(zip(("width", "height"), TABLETS[name], strict=True))
    more |= {"viewport": size, "device_scale_factor": PIXELS[name]}
    return started.new_context(has_touch=True, is_mobile=True, **more)


def touch(page: Any, *paths: list[tuple[float, float]]) -> None:
    """Fingers that go down together, each along its path of (x, y), and up."""
    session = page.context.new_cdp_session(page)
    for step, places in enumerate(zip(*paths, strict=True)):
        points = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(places)]
        kind = "touchMove" if step else "touchStart"
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    session.detach()


def check_targets(page: Any, name: str) -> None:
    """Whatever takes a finger has 24 px or more each way, and no two of them lie over each other."""
    found = page.evaluate(
        """() => {
             const box = (e) => e.getBoundingClientRect(), tag = (e) => e.outerHTML.slice(0, 80);
             const all = [...document.querySelectorAll("button, a, select, input, summary")]
               .filter(e => e.checkVisibility({ visibilityProperty: true }) && e.type !== "hidden");
             const small = all.filter(e => box(e).width < 24 || box(e).height < 24).map(tag);
             const clip = (e) => { // to what scrolls by itself
               const frame = e.closest(".scales, .row, .wide, aside") ?? document.documentElement;
               const [a, b] = [box(e), box(frame)];
               const [left, top] = [Math.max(a.left, b.left), Math.max(a.top, b.top)];
               return { left, top, right: Math.min(a.right, b.right), bottom: Math.min(a.bottom, b.bottom) };
             };
             const boxes = all.map(clip);
             const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
               Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
             const over = all.flatMap((e, i) =>
               all.filter((f, j) => j > i && meet(boxes[i], boxes[j])).map(f => [tag(e), tag(f)]));
             return { small, over };
           }"""
    )
    assert found == {"small": [], "over": []}, (name, found)


def check_by_tab(page: Any, name: str) -> None:
    """Tab reaches every control in the order of the page; each has a name and a ring around it, is in the
    window, and lets Tab go on. Of a group of radio buttons Tab reaches one."""
    everything = page.evaluate(
        """() => {
             document.body.tabIndex = -1;
             document.body.focus(); // from the top, wherever the focus was
             document.body.removeAttribute("tabindex");
             const all = [...document.querySelectorAll("button, a, select, input, summary, [tabindex]")];
             const seen = all.filter(e => e.checkVisibility({ visibilityProperty: true }));
             const first = (name) => document.querySelector(`[name="${name}"]:checked`) ??
               document.querySelector(`[name="${name}"]`);
             globalThis.stops = seen.filter(e => e.type !== "radio" || e === first(e.name));
             return stops.length;
           }"""
    )
    for number in range(everything):
        page.keyboard.press("Tab")
        found = page.evaluate(
            """() => {
                 const e = document.activeElement, box = e.getBoundingClientRect();
                 const shown = e.type === "radio" ? e.nextElementSibling : e; // its face
                 const text = e.labels?.[0]?.textContent || e.textContent;
                 return { tag: e.outerHTML.slice(0, 80), at: stops.indexOf(e),
                   named: Boolean((e.getAttribute("aria-label") || text || "").trim()),
                   ring: getComputedStyle(shown).outlineStyle !== "none",
                   inside: box.bottom > 0 && box.top < innerHeight && box.right > 0 &&
                     box.left < innerWidth };
               }"""
        )
        expected = {"tag": found["tag"], "at": number, "named": True, "ring": True, "inside": True}
        assert found == expected, (name, found)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement === document.body"), (name, "Tab does not leave the page")


def check_label(page: Any, name: str) -> None:
    """The research-use label can be read: it lies over nothing, nothing lies over it, and it is in the window
    if the page does not scroll."""
    found = page.evaluate(
        """() => {
             const said = (e) => e.textContent.includes("research use only");
             const label = [...document.querySelectorAll("p")].filter(said).at(-1);
             if (!label) return "none";
             const a = label.getBoundingClientRect();
             if (!a.width || !a.height || label.scrollWidth > label.clientWidth + 1) return "not seen whole";
             const scrolls = document.documentElement.scrollHeight > innerHeight;
             if (!scrolls && a.bottom > innerHeight) return "below the window";
             const others = ":is(button, a, select, input, output, label):not(.scales *), .pane, .scales";
             return [...document.querySelectorAll(others)].filter(e => {
               const b = e.getBoundingClientRect();
               return b.width && Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
                 Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
             }).map(e => e.outerHTML.slice(0, 80));
           }"""
    )
    assert found == [], (name, found)
