"""The viewer: what is packed comes back, three files lie on one grid, and in a real browser the page shows
where things are, by pointer and keys, and makes no request.
"""

from __future__ import annotations

import hashlib
import io as bytes_io
import json
import re
import zlib
from importlib import resources
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
    tablet,
    touch,
    watched,
)
from phantoms import HOT_MM, RIGHT_MM, affine_of, grid, head, uptake, write_nifti
from shell import mmif

from mmif_trt import io
from mmif_trt.cli import main
from mmif_trt.image import Image, InputError
from mmif_trt.view import pack, page, triple

SHAPE = (36, 48, 40)
AFFINE = affine_of("SPL", (4, 4, 4), SHAPE)
NASTY = "</script><b>$x$&\"'"


def codes_of(packed: pack.Packed) -> np.ndarray:
    planes = [np.frombuffer(zlib.decompress(plane), np.uint8) for plane in packed.planes]
    if packed.kind == "rgb":
        green = planes[0]
        return np.stack([planes[1] + green, green, planes[2] + green], axis=-1)
    code = planes[0].astype(np.uint16)
    return code + 256 * planes[1].astype(np.uint16) if len(planes) == 2 else code


@pytest.mark.parametrize(
    ("values", "levels", "slope"),
    (
        (np.arange(-1000, 3000).astype(np.float32), 4096, 1.0),  # HU: exact
        (np.arange(-1000, 3000).astype(np.float32), 256, 16.0),
        (np.arange(65536).astype(np.uint16), 4096, 17.0),
        (np.linspace(0, 7.3, 5000, dtype=np.float32), 4096, 7.3 / 4095),
        (np.full(10, -2.5, np.float32), 256, 1.0),
        (np.arange(256).astype(np.uint8), 4096, 1.0),
    ),
)
def test_grey_comes_back_to_half_a_step(values: np.ndarray, levels: int, slope: float) -> None:
    packed = pack.grey(values, levels)
    assert packed.slope == pytest.approx(slope)
    back = codes_of(packed) * packed.slope + packed.inter
    assert np.abs(back - values).max() <= (0 if slope == 1 else packed.slope / 2 * 1.001)
    assert len(packed.planes) == (1 if np.ptp(values) / packed.slope < 256 else 2)


def test_colour_comes_back_exactly() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (500, 3), np.uint8)
    np.testing.assert_array_equal(codes_of(pack.rgb(pixels)), pixels)


def volumes() -> tuple[Image, Image, Image]:
    points = grid(AFFINE, SHAPE)
    a = Image(head(points).astype(np.float32), (0, 1000), "mri", affine=AFFINE, source="mri.nii")
    b = Image((uptake(points) / 100).astype(np.float32), (0, 8), "pet", affine=AFFINE, source="pet.nii")
    pixels = np.repeat((head(points) / 4).astype(np.uint8)[..., None], 3, axis=-1)
    pixels[..., 2] = 255 - pixels[..., 0] // 2
    return a, b, Image(pixels, affine=AFFINE, source="fused.nii")


def test_three_volumes_lie_on_one_grid_whatever_their_axes() -> None:
    a, b, fused = volumes()
    turned = fused.with_data(
        fused.data.transpose(2, 1, 0, 3)[::-1],
        affine=fused.affine[:, [2, 1, 0, 3]]
        @ np.array([[-1, 0, 0, 39], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
    )
    found = triple.of_volumes(a, b, turned)
    assert [image.orientation for image in (found.a, found.b, found.fused)] == ["SAR"] * 3
    np.testing.assert_array_equal(found.fused.data, triple.of_volumes(a, b, fused).fused.data)
    np.testing.assert_array_equal(found.fused.data[..., 0], (found.a.data / 4).astype(np.uint8))
    assert found.before is None and found.overlap == 1.0 and not found.in_doubt
    with pytest.raises(InputError, match="covers 0%.*expected the fusion of A"):
        far = AFFINE.copy()
        far[0, 3] += 1000
        triple.of_volumes(a, b, fused.with_data(fused.data, affine=far))


def test_b_lies_where_the_record_says_and_before_it() -> None:
    """A movement of 20 mm to the patient's right, undone by the record; without, half of B is elsewhere."""
    a, b, fused = volumes()
    away = np.eye(4)
    away[0, 3] = 20.0
    off = b.with_data(b.data, affine=away @ AFFINE)
    record = {
        "registration": {"registration": "rigid", "matrix": away.tolist(), "inside": 1.0},
        "palette": None,
    }
    found = triple.of_volumes(a, off, fused, record)
    expected = triple.of_volumes(a, b, fused)
    np.testing.assert_allclose(found.b.data, expected.b.data, atol=1e-4)
    assert found.before is not None and found.palette is None
    shift = np.abs(found.before.data[:, :, 5:] - expected.b.data[:, :, :-5]).max()
    assert shift < 1e-3
    gone = away.copy()
    gone[1, 3] = 110.0
    lost = triple.of_volumes(a, b.with_data(b.data, affine=gone @ AFFINE), fused)
    assert lost.overlap < 0.5 and "expected at least 50%" in lost.in_doubt


def test_a_page_has_the_levels_that_fit() -> None:
    a, b, fused = volumes()
    noise = np.random.default_rng(0).uniform(0, 1000, SHAPE)
    found = triple.of_volumes(a.with_data(noise.astype(np.float32)), b, fused)
    budget, slopes = 100_000_000, []
    for _ in page.LEVELS:
        packed = page._packed(found, budget)
        slopes.append(packed["a"].slope)
        budget = sum(one.size for one in packed.values()) - 1
    assert slopes == pytest.approx([1000 / (levels - 1) for levels in page.LEVELS], rel=1e-3)
    assert page._packed(found, 0)["a"].slope == slopes[-1], "the least there is"
    text = page.render(found, NASTY, {"a": NASTY, "b": "b", "fused": "f"})
    assert text.count("</script>") == 1 + 7 + len(page.SCRIPTS) and NASTY not in text


def test_the_bundled_viewer_is_the_released_one() -> None:
    folder = resources.files("mmif_trt.view")
    digest = hashlib.sha256(folder.joinpath("niivue.js").read_bytes()).hexdigest()
    assert digest in folder.joinpath("niivue-licences.txt").read_text()


def made(folder: Path) -> tuple[Path, Path, Path]:
    points = grid(AFFINE, SHAPE)
    a = write_nifti(folder / "mri.nii.gz", head(points), AFFINE, "<i2")
    b = write_nifti(folder / "pet.nii", uptake(points) / 100, AFFINE)
    return a, b, folder / "fused.nii"


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A phantom, fused, with a page of --view beside it and the record."""
    folder = tmp_path_factory.mktemp("view")
    a, b, out = made(folder)
    limits = ["--value-range-a", "0", "1000", "--value-range-b", "0", "8", "--modality-b", "pet"]
    record = ["--report", str(folder / "record.json"), "--view", str(folder / "fused.html")]
    assert main(["fuse", str(a), str(b), "-o", str(out), *limits, *record, "--quiet"]) == 0
    return a, b, out


def data_of(path: Path) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', path.read_text())
    found: dict[str, Any] = json.loads(text)
    return found


def test_view_and_fuse_make_the_same_page(fused: tuple[Path, Path, Path], tmp_path: Path) -> None:
    a, b, out = fused
    record = out.with_name("record.json")
    done = mmif("view", a, b, out, "--report", record, "--modality-b", "pet", "-o", tmp_path / "v.html")
    assert re.search(r"v\.html \(\d\.\d MB\)", done.stdout)
    found, direct = data_of(tmp_path / "v.html"), data_of(out.with_name("fused.html"))
    assert found == direct and found["shape"] == [40, 48, 36] and found["paletteName"] == "PET"
    text = (tmp_path / "v.html").read_text()
    assert "Registration</dt><dd>header" in text and "lagn, released" in text and "research use only" in text
    assert "No record" not in text
    mmif("view", a, b, out, "--modality-b", "pet", "-o", tmp_path / "v.html")
    assert "No record of the fusion" in (tmp_path / "v.html").read_text()


def test_what_is_wrong_is_reported(fused: tuple[Path, Path, Path], tmp_path: Path, capsys: Any) -> None:
    a, b, out = map(str, fused)
    (tmp_path / "other.html").write_text("somebody's")
    (tmp_path / "record.json").write_text("[]")
    io.write(tmp_path / "p.png", Image(np.zeros((40, 40), np.uint8)))
    io.write(tmp_path / "q.png", Image(np.zeros((40, 41), np.uint8)))
    pictures = [str(tmp_path / name) for name in ("p.png", "p.png", "q.png")]
    for given, words in (
        ([a, b, out, "-o", str(tmp_path / "v.txt")], "ending in .html"),
        ([a, b, out, "-o", str(tmp_path / "other.html")], "other.html"),
        ([a, b, out, "-o", str(tmp_path / "v.html"), "--report", str(tmp_path / "record.json")], "no record"),
        ([a, b, str(tmp_path / "p.png"), "-o", str(tmp_path / "v.html")], "expected the fused volume"),
        ([*pictures, "-o", str(tmp_path / "v.html")], "40 x 41 px; expected 40 x 40"),
        ([a, b, out, "-o", str(tmp_path / "v.html"), "--value-range-a", "5", "5"], "LOW < HIGH"),
    ):
        assert main(["view", *given]) == 2
        assert words in capsys.readouterr().err, given
    assert not (tmp_path / "v.html").exists()


def test_a_movement_that_is_in_doubt_is_a_warning(
    fused: tuple[Path, Path, Path], tmp_path: Path, capsys: Any
) -> None:
    a, b, out = map(str, fused)
    far = AFFINE.copy()
    far[1, 3] += 110
    write_nifti(tmp_path / "far.nii", uptake(grid(AFFINE, SHAPE)) / 100, far)
    given = ["view", a, str(tmp_path / "far.nii"), out, "--modality-b", "pet", "--value-range-b", "0", "8"]
    assert main([*given, "-o", str(tmp_path / "v.html")]) == 0
    assert "warning: the foregrounds of A and B share" in capsys.readouterr().err
    assert 'class="warning">The foregrounds' in (tmp_path / "v.html").read_text()


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


def test_volumes_too_large_for_a_page_are_reduced_and_it_says_so(
    fused: tuple[Path, Path, Path], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["view", *map(str, fused), "--report", str(fused[2].with_name("record.json"))]
    monkeypatch.setattr(triple, "MAX_VOXELS", 20_000)
    monkeypatch.setattr(page, "PAGE_BYTES", 1000)
    assert main([*given, "-o", str(tmp_path / "v.html")]) == 0
    said = capsys.readouterr().err
    assert "v.html: the page shows every second voxel along each axis, 20 x 24 x 18 of 40 x 48 x 36" in said
    assert "warning" in said and "expected at most 0 MB" in said
    assert 'class="warning">The page shows every second voxel' in (tmp_path / "v.html").read_text()
    assert data_of(tmp_path / "v.html")["shape"] == [20, 24, 18]


def test_a_modality_that_is_not_stated_can_be(
    fused: tuple[Path, Path, Path], tmp_path: Path, capsys: Any
) -> None:
    out, record = tmp_path / "v.html", ["--report", str(fused[2].with_name("record.json"))]
    for given, label in (
        ([], "modality not stated"),
        (["--modality-b", "pet"], "PET"),
        (record, "PET"),  # as the fusion had it
    ):
        assert main(["view", *map(str, fused), "-o", str(out), *given]) == 0
        assert data_of(out)["volumes"]["b"]["label"] == label
        is_told = label != "PET"
        assert ("--modality-b ct, pet or spect states it" in capsys.readouterr().err) == is_told
        assert ("--modality-b ct (or pet, or spect)" in out.read_text()) == is_told
    picture = str(tmp_path / "p.png")
    io.write(picture, Image(np.zeros((40, 40), np.uint8)))
    out.unlink()
    assert main(["view", picture, picture, picture, "-o", str(out), "--modality-b", "ct"]) == 0
    assert data_of(out)["volumes"]["b"]["label"] == "CT"


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


def test_the_page_in_a_browser(fused: tuple[Path, Path, Path], moved: Path) -> None:
    a, b, out = fused
    with browser(*WEBGL) as chromium:
        context = chromium.new_context(viewport={"width": 1010, "height": 520}, offline=True)
        context.add_init_script(COUNT_PROGRAMS)
        shown, wrong, asked = opened(context, moved)
        check_accessible(shown, "view")
        check_not_clipped(shown, "view")
        check_values(shown, a, b, out)
        check_colours(shown)
        check_places(shown)
        check_pointer(shown)
        check_comparison(shown)
        check_before(shown, b)
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
    shown.locator("#windows select").nth(0).select_option("0")
    assert width.input_value() == "1000"


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
def test_a_finger_moves_what_was_chosen_and_two_zoom(moved: Path, name: str) -> None:
    with browser(*WEBGL) as chromium:
        shown, wrong, _ = opened(tablet(chromium, name, offline=True), moved)
        for check in (check_accessible, check_not_clipped, check_targets, check_label):
            check(shown, name)
        shown.select_option("#planes", "axial")
        box = shown.locator("#pane-a canvas").bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

        def drag(to_x: float, to_y: float) -> tuple[list[int], list[float]]:
            path = [(x + to_x * part / 5, y + to_y * part / 5) for part in range(6)]
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
        apart = [[(x + side * (20 + 10 * part), y) for part in range(5)] for side in (-1, 1)]
        touch(shown, *apart)
        settled(shown)
        assert shown.evaluate("desk.zoom[3]") == pytest.approx(3, abs=0.4)
        touch(shown, *(path[::-1] for path in apart))
        settled(shown)
        assert shown.evaluate("desk.zoom[3]") == pytest.approx(1, abs=0.2)
        assert shown.evaluate("visualViewport.scale") == 1, "the page itself was zoomed"
        check_not_clipped(shown, name)
        assert not wrong


def test_tab_reaches_all_of_the_page(moved: Path) -> None:
    with browser(*WEBGL) as chromium:
        context = chromium.new_context(viewport={"width": 1010, "height": 520}, offline=True)
        shown, wrong, _ = opened(context, moved)
        check_by_tab(shown, "view")
        assert not wrong


def test_a_page_of_pictures_beside_their_fusion(tmp_path: Path, capsys: Any) -> None:
    rng = np.random.default_rng(0)
    for name, shape in (("a", (40, 60)), ("b", (40, 60, 3))):
        io.write(tmp_path / f"{name}.png", Image(rng.integers(0, 255, shape, np.uint8)))
    files = [str(tmp_path / f"{name}.png") for name in "ab"]
    page_path = tmp_path / "v.html"
    assert main(["fuse", *files, "-o", str(tmp_path / "f.png"), "--view", str(page_path), "--quiet"]) == 0
    assert data_of(page_path)["shape"] == [60, 40, 1] and not data_of(page_path)["isVolume"]
    folder = str(tmp_path)
    assert main(["fuse", folder, folder, "-o", str(tmp_path / "o"), "--view", str(page_path)]) == 2
    assert "expected two files" in capsys.readouterr().err


@pytest.mark.nightly
def test_pictures_in_a_browser(tmp_path: Path) -> None:
    made_pictures(tmp_path)
    coloured = io.read(tmp_path / "f.png").data
    with browser(*WEBGL) as chromium:
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


def test_a_picture_wider_than_a_3d_texture_is_drawn(tmp_path: Path) -> None:
    """2048 px is what a 3D texture may measure in many browsers."""
    wide = np.zeros((32, 2600, 3), np.uint8)
    wide[:, :1300, 0], wide[:, 1300:, 2] = 200, 200
    io.write(tmp_path / "a.png", Image(wide[..., 0]))
    for name in "bf":
        io.write(tmp_path / f"{name}.png", Image(wide))
    paths = [str(tmp_path / f"{name}.png") for name in "abf"]
    assert main(["view", *paths, "-o", str(tmp_path / "v.html")]) == 0
    with browser(*WEBGL) as chromium:
        shown, wrong, _ = opened(
            chromium.new_context(viewport={"width": 1010, "height": 520}), tmp_path / "v.html"
        )
        shown.uncheck("#crosshair")
        seen = pixels_of(shown, "fused")
    row, width = seen[len(seen) // 2], len(seen[0])
    np.testing.assert_allclose(row[width // 4], [200, 0, 0], atol=3)
    np.testing.assert_allclose(row[3 * width // 4], [0, 0, 200], atol=3)
    assert not wrong


def test_a_volume_of_one_slice_opens_in_its_plane(tmp_path: Path) -> None:
    """The two other planes would be lines below their own letters."""
    data = head(grid(AFFINE, SHAPE))[18:19]
    paths = [write_nifti(tmp_path / f"{name}.nii", data, AFFINE, "<i2") for name in "abf"]
    limits = ["--value-range-a", "0", "1000", "--value-range-b", "0", "1000"]
    assert main(["view", *map(str, paths), "-o", str(tmp_path / "v.html"), *limits]) == 0
    with browser(*WEBGL) as chromium:
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


def made_pictures(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name, shape in (("a", (40, 60)), ("b", (40, 60, 3)), ("f", (40, 60, 3))):
        io.write(folder / f"{name}.png", Image(rng.integers(0, 255, shape, np.uint8)))
    paths = [str(folder / f"{name}.png") for name in "abf"]
    assert main(["view", *paths, "-o", str(folder / "v.html"), "--title", NASTY]) == 0


def test_a_browser_without_webgl_is_told_what_is_expected(tmp_path: Path) -> None:
    made_pictures(tmp_path)
    with browser("--disable-3d-apis") as chromium:
        shown, _ = watched(chromium.new_context())
        shown.goto((tmp_path / "v.html").as_uri())
        shown.wait_for_selector("#busy.wrong")
        said = shown.inner_text("[role=alert]")
        assert "WebGL 2" in said and "Expected" in said
