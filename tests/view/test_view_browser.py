"""The viewer's page in a real browser: it shows where things are, by pointer, keys and fingers, and makes no
request.
"""

from __future__ import annotations

import io as bytes_io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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
    tablet,
    touch,
    watched,
)
from phantoms import HOT_MM, RIGHT_MM, grid, head, uptake, write_nifti
from test_view import AFFINE, NASTY, SHAPE, fused_phantom, made_pictures

from mmif_trt import io
from mmif_trt.cli import main
from mmif_trt.image import Image
from mmif_trt.view import triple


@pytest.fixture(scope="module")
def started() -> Iterator[Any]:
    with browser(*WEBGL) as chromium:
        yield chromium


@pytest.fixture
def chromium(started: Any) -> Iterator[Any]:
    yield from emptied(started)


def opened(context: Any, path: Path) -> tuple[Any, list[str], list[str]]:
    shown, wrong = watched(context)
    asked: list[str] = []
    shown.on("request", lambda request: asked.append(request.url[:60]))
    shown.goto(path.as_uri())
    shown.wait_for_selector("body[data-ready]", timeout=120_000)
    return shown, wrong, asked


def values_of(shown: Any) -> dict[str, str]:
    names, texts = (shown.locator(f"#values {tag}").all_inner_texts() for tag in ("dt", "dd"))
    return dict(zip(names, texts, strict=True))


def settled(shown: Any) -> None:
    shown.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def pixels_of(shown: Any, pane: str) -> np.ndarray:
    from PIL import Image as Pil

    settled(shown)
    data = shown.locator(f"#pane-{pane} .pane").screenshot()
    return np.asarray(Pil.open(bytes_io.BytesIO(data)).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return fused_phantom(tmp_path_factory.mktemp("view"))


@pytest.fixture(scope="module")
def moved(fused: tuple[Path, Path, Path]) -> Path:
    """The page of the same, where the PET's header lies 8 mm off and the record says so."""
    a, b, out = fused
    off, matrix = AFFINE.copy(), np.eye(4)
    off[0, 3] += 8
    matrix[0, 3] = 8
    write_nifti(out.with_name("off.nii"), uptake(grid(AFFINE, SHAPE)) / 100, off)
    record = json.loads(out.with_name("record.json").read_text())
    record["registration"] |= {"registration": "rigid", "matrix": matrix.tolist(), "shift_mm": 8.0}
    (out.with_name("moved.json")).write_text(json.dumps(record))
    paths = [a, out.with_name("off.nii"), out, "--report", out.with_name("moved.json")]
    page_path = out.with_name("moved.html")
    assert main(["view", *map(str, paths), "--modality-b", "pet", "-o", str(page_path)]) == 0
    return page_path


PROGRAMS = 4  # of shaders that a pane draws with; NiiVue has 40
COUNT_PROGRAMS = """globalThis.linked = 0;
const link = WebGL2RenderingContext.prototype.linkProgram;
WebGL2RenderingContext.prototype.linkProgram = function (program) {
  linked++;
  return link.call(this, program);
};"""


def test_the_page_in_a_browser(chromium: Any, fused: tuple[Path, Path, Path], moved: Path) -> None:
    a, b, out = fused
    context = chromium.new_context(viewport={"width": 1010, "height": 520}, offline=True)
    context.add_init_script(COUNT_PROGRAMS)
    shown, wrong, asked = opened(context, moved)
    check_accessible(shown, "view")
    check_not_clipped(shown, "view")
    check_by_tab(shown, "view")
    check_values(shown, a, b, out)
    check_colours(shown)
    check_places(shown)
    check_pointer(shown)
    check_comparison(shown)
    check_before(shown, b)
    lose_graphics(shown)
    shown.locator("#busy.wrong", has_text="lost this page's graphics").wait_for()
    outside = [address for address in asked if not address.startswith("blob:")]  # its workers
    assert not wrong and len(outside) == 1 and outside[0].startswith("file:"), (wrong, asked)
    assert len(asked) > 1, "nothing was unpacked in a worker"
    assert 0 < shown.evaluate("linked") <= 3 * PROGRAMS


def check_values(shown: Any, *paths: Path) -> None:
    """What the page says at a voxel is what the files hold there; keys reach it."""
    a, b, fused = (triple._turned(io.read(path)).data for path in paths)
    for key, times in (("PageUp", 3), ("ArrowUp", 2), ("ArrowLeft", 4)):
        for _ in range(times):
            shown.keyboard.press(key)
    settled(shown)
    z, y, x = 18 + 3, 24 + 2, 20 + 4  # to the left of the picture: the patient's right
    said = values_of(shown)
    assert said["A"] == str(int(a[z, y, x]))
    assert float(said["B"]) == pytest.approx(b[z, y, x], abs=0.01)
    assert said["Fused"] == ", ".join(map(str, fused[z, y, x]))
    assert float(said["Uptake read back"]) == pytest.approx(b[z, y, x], abs=2.0)
    assert said["Place"] == "18.0 R, 10.0 A, 14.0 S mm"
    assert shown.locator("#slices output").all_inner_texts() == ["22 of 36", "27 of 48", "25 of 40"]


def check_colours(shown: Any) -> None:
    """The middle of a voxel has the colour of its value in its window, in each plane."""
    rows = shown.evaluate("""() => {
      const grey = Array.from({ length: 256 }, (_, i) => [i, i, i]), rows = [];
      const windows = [["a", 0, 1000], ["a", 300, 420], ["b", 0, 40], ["b", 3, 9.5], ["fused", 0, 255]];
      const start = { voxel: desk.voxel, planes: desk.planes, plane: desk.plane };
      for (const planes of ["axial", "coronal", "sagittal"]) {
        desk.setPlanes(planes);
        for (const [name, low, high] of windows) {
          const { nv } = desk.panes.get(name), { gl } = nv;
          desk.window(name, low, high);
          for (let i = 0; i < 12; i++) {
            const part = (axis) => 0.2 + 0.6 * ((0.37 * i + 0.23 * axis * i) % 1);
            desk.moveTo(desk.data.shape.map((n, axis) => n * part(axis)));
            desk.draw(desk.panes.get(name), true);
            const [x, y] = nv.frac2canvasPos(nv.scene.crosshairPos);
            const pixel = new Uint8Array(4);
            gl.readPixels(x, gl.canvas.height - y, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, pixel);
            const value = desk.value(name, desk.voxel);
            const entry = Math.round(255 * Math.min(Math.max((value - low) / (high - low), 0), 1));
            const due = Array.isArray(value) ? value : ((name === "b" && data.palette) || grey)[entry];
            rows.push([planes, name, low, value, due, [...pixel.slice(0, 3)]]);
          }
        }
      }
      for (const name of ["a", "b"]) desk.window(name, data.volumes[name].low, data.volumes[name].high);
      desk.setPlanes(start.planes);
      desk.plane = start.plane;
      desk.moveTo(start.voxel);
      return rows;
    }""")
    far = [row for row in rows if np.abs(np.subtract(row[4], row[5])).max() > 12]
    assert not far, far[:5]
    assert len({tuple(row[4]) for row in rows}) > 25, "too few colours to tell"


def check_places(shown: Any) -> None:
    """The hot spot at the patient's left is on the right, and the one in front is above: as letters say."""
    shown.select_option("#planes", "axial")
    shown.uncheck("#crosshair")
    for pane, place in (("b", HOT_MM), ("a", RIGHT_MM)):
        shown.click(f"[data-pane={pane}]")
        slider = shown.locator("#slices input").nth(0)
        slider.fill(str(int(18 + place[2] // 4 + 1)))
        light = pixels_of(shown, pane).sum(axis=2)
        light[:40], light[-40:], light[:, :40], light[:, -40:] = 0, 0, 0, 0  # letters and scale
        row, column = np.unravel_index(light.argmax(), light.shape)
        height, width = light.shape
        per_mm = height / (48 * 4)
        assert column - width / 2 == pytest.approx(-place[0] * per_mm, abs=8 * per_mm)
        assert height / 2 - row == pytest.approx(place[1] * per_mm, abs=8 * per_mm)
    shown.click("[data-pane=all]")
    shown.select_option("#planes", "three")
    shown.check("#crosshair")


def check_pointer(shown: Any) -> None:
    """The crosshair goes to a click, in all panes; wheel, windows, hovering."""
    box = shown.locator("#pane-a canvas").bounding_box()
    before = shown.locator("#slices output").all_inner_texts()
    shown.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.2)
    assert shown.inner_text("#where-from") == "under the pointer"
    shown.mouse.wheel(0, -100)
    settled(shown)
    moved = shown.locator("#slices output").all_inner_texts()
    assert sum(x != y for x, y in zip(before, moved, strict=True)) == 1
    said = values_of(shown)
    shown.mouse.down()
    shown.mouse.up()
    shown.hover("h1")
    settled(shown)
    assert shown.inner_text("#where-from") == "at the crosshair" and values_of(shown) == said
    assert shown.locator("#slices output").all_inner_texts() != moved
    dark = pixels_of(shown, "a").mean()
    level, width = shown.locator("#windows input").nth(0), shown.locator("#windows input").nth(1)
    assert (level.input_value(), width.input_value()) == ("500", "1000")
    width.fill("400")
    width.press("Enter")
    level.fill("200")
    level.press("Enter")
    assert pixels_of(shown, "a").mean() > dark * 1.4
    shown.mouse.move(box["x"] + 100, box["y"] + 100)
    shown.keyboard.down("Shift")
    shown.mouse.down()
    shown.mouse.move(box["x"] + 140, box["y"] + 100)
    shown.mouse.up()
    shown.keyboard.up("Shift")
    assert float(width.input_value()) == pytest.approx(400 + 40 * 1000 / 400)
    preset = shown.locator("#windows select").nth(0)
    assert preset.input_value() == "", "a browser does not offer again what is chosen"
    preset.select_option("0")
    assert width.input_value() == "1000" and preset.input_value() == "0"
    shown.evaluate("windows.b.set(12.3456, 20)")
    shown.locator("#windows input").nth(3).fill("30")
    shown.locator("#windows input").nth(3).press("Enter")
    low, high = shown.evaluate("desk.panes.get('b').window")
    assert (low + high) / 2 == pytest.approx(12.3456) and high - low == pytest.approx(30), "shown as 12.3"
    shown.locator("#windows select").nth(1).select_option("0")


def check_comparison(shown: Any) -> None:
    """Overlay is the mean of its two, swipe and fields show each in its part, edges lie on the second."""
    shown.uncheck("#crosshair")
    shown.keyboard.press("1")
    one = pixels_of(shown, "a")
    shown.keyboard.press("2")
    two = pixels_of(shown, "b")
    shown.keyboard.press("4")
    width = one.shape[1]

    def far(shown_now: np.ndarray, from_what: np.ndarray) -> float:
        """All but letters and scale, which are half transparent."""
        return float(np.quantile(np.abs(shown_now - from_what)[:-40].max(axis=2), 0.99))

    assert far(one, two) > 30
    assert far(pixels_of(shown, "check"), (one + two) / 2) <= 3
    shown.fill("#amount", "20")
    assert far(pixels_of(shown, "check"), 0.8 * one + 0.2 * two) <= 3
    shown.keyboard.press("c")
    swiped, at = pixels_of(shown, "check"), width // 2
    assert far(swiped[:, : at - 3], one[:, : at - 3]) <= 3 and far(swiped[:, at + 3 :], two[:, at + 3 :]) <= 3
    shown.keyboard.press("c")
    fields = pixels_of(shown, "check")
    is_first, is_second = (np.abs(fields - x).max(axis=2)[:-40] <= 3 for x in (one, two))
    differ = (np.abs(one - two).max(axis=2) > 12)[:-40]
    assert (is_first | is_second).mean() > 0.99 and 0.3 < is_first[differ].mean() < 0.7
    shown.keyboard.press("c")
    marked = np.abs(pixels_of(shown, "check") - [255, 190, 92]).max(axis=2) < 40
    assert 0.0005 < marked.mean() < 0.1
    shown.keyboard.press("c")
    assert shown.input_value("#mode") == "overlay"


def check_before(shown: Any, b: Path) -> None:
    """One key shows B where its header has it, two voxels to the patient's right, and back."""
    shown.keyboard.press("Home")
    shown.hover("h1")
    pet = triple._turned(io.read(b)).data
    for state, x in (("before", 20 - 2), ("after", 20)):
        shown.keyboard.press("r")
        shown.locator("#b-state", has_text=state).wait_for(state="attached")
        settled(shown)
        said = values_of(shown)["B before" if state == "before" else "B"]
        assert float(said) == pytest.approx(pet[18, 24, x], abs=0.02), state
    assert "8 mm" in shown.inner_text("#side")


@pytest.mark.parametrize("name", TABLETS)
def test_a_finger_moves_what_was_chosen_and_two_zoom(chromium: Any, moved: Path, name: str) -> None:
    shown, wrong, _ = opened(tablet(chromium, name, offline=True), moved)
    for check in (check_accessible, check_not_clipped, check_targets, check_label):
        check(shown, name)
    shown.select_option("#planes", "axial")
    box = shown.locator("#pane-a canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def drag(to_x: float, to_y: float) -> tuple[list[int], list[float]]:
        path = [(x + to_x * part / 3, y + to_y * part / 3) for part in range(4)]  # each step is drawn
        touch(shown, path)
        settled(shown)
        return shown.evaluate("desk.voxel"), shown.evaluate("desk.panes.get('a').window")

    start, as_fused = shown.evaluate("desk.voxel"), [0, 1000]
    shown.select_option("#tool", "slices")
    voxel, window = drag(0, -60)
    assert voxel[2] > start[2] and voxel[:2] == start[:2] and window == as_fused
    shown.select_option("#tool", "window")
    again, window = drag(40, 0)
    assert again == voxel and window == pytest.approx([-50, 1050])
    shown.select_option("#tool", "crosshair")
    moved_to, again = drag(30, 0)
    assert moved_to[2] == voxel[2] and moved_to[0] != voxel[0] and again == window
    apart = [[(x + side * (20 + 20 * part), y) for part in range(3)] for side in (-1, 1)]
    touch(shown, *apart)
    settled(shown)
    assert shown.evaluate("desk.zoom[3]") == pytest.approx(3, abs=0.4)
    touch(shown, *(path[::-1] for path in apart))
    settled(shown)
    assert shown.evaluate("desk.zoom[3]") == pytest.approx(1, abs=0.2)
    assert shown.evaluate("visualViewport.scale") == 1, "the page itself was zoomed"
    check_not_clipped(shown, name)
    assert not wrong


@pytest.mark.nightly
def test_pictures_in_a_browser(chromium: Any, tmp_path: Path) -> None:
    made_pictures(tmp_path)
    coloured = io.read(tmp_path / "f.png").data
    context = chromium.new_context(viewport={"width": 1010, "height": 520}, offline=True)
    shown, wrong, _ = opened(context, tmp_path / "v.html")
    assert shown.inner_text("h1") == NASTY
    values = values_of(shown)
    assert values["Pixel"] == "row 20, column 31"
    assert values["A"] == str(io.read(tmp_path / "a.png").data[19, 30])
    assert values["Fused"] == ", ".join(map(str, coloured[19, 30]))
    check_accessible(shown, "picture")
    assert not shown.is_visible("text=Planes"), "a picture has one plane"
    assert shown.locator("#tool option").all_inner_texts() == ["crosshair", "window"]
    check_by_tab(shown, "picture")
    assert not wrong


def test_a_picture_wider_than_a_3d_texture_is_drawn(chromium: Any, tmp_path: Path) -> None:
    """2048 px is what a 3D texture may measure in many browsers."""
    wide = np.zeros((32, 2600, 3), np.uint8)
    wide[:, :1300, 0], wide[:, 1300:, 2] = 200, 200
    io.write(tmp_path / "a.png", Image(wide[..., 0]))
    for name in "bf":
        io.write(tmp_path / f"{name}.png", Image(wide))
    paths = [str(tmp_path / f"{name}.png") for name in "abf"]
    assert main(["view", *paths, "-o", str(tmp_path / "v.html")]) == 0
    shown, wrong, _ = opened(
        chromium.new_context(viewport={"width": 1010, "height": 520}), tmp_path / "v.html"
    )
    shown.uncheck("#crosshair")
    seen = pixels_of(shown, "fused")
    row, width = seen[len(seen) // 2], len(seen[0])
    np.testing.assert_allclose(row[width // 4], [200, 0, 0], atol=3)
    np.testing.assert_allclose(row[3 * width // 4], [0, 0, 200], atol=3)
    assert not wrong


def test_a_volume_of_one_slice_opens_in_its_plane(chromium: Any, tmp_path: Path) -> None:
    """The two other planes would be lines below their own letters."""
    data = head(grid(AFFINE, SHAPE))[18:19]
    paths = [write_nifti(tmp_path / f"{name}.nii", data, AFFINE, "<i2") for name in "abf"]
    limits = ["--value-range-a", "0", "1000", "--value-range-b", "0", "1000"]
    assert main(["view", *map(str, paths), "-o", str(tmp_path / "v.html"), *limits]) == 0
    shown, wrong, _ = opened(
        chromium.new_context(viewport={"width": 1010, "height": 520}), tmp_path / "v.html"
    )
    assert shown.input_value("#planes") == "axial"
    assert shown.evaluate("desk.panes.get('a').nv.screenSlices.map(tile => tile.axCorSag)") == [0]
    assert shown.evaluate("[123456789, 1234567, 0.12345, -2.5, 7].map(short)") == [
        "1.23e+8",
        "1234567",
        "0.123",
        "-2.5",
        "7",
    ]
    assert not wrong
