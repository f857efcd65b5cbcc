"""The viewer: what is packed comes back, three files lie on one grid, and what a page holds.

test_view_browser.py opens the page in a real browser.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import browser, watched
from phantoms import affine_of, grid, head, uptake, write_nifti
from shell import mmif

from mmif_trt import io
from mmif_trt.cli import main
from mmif_trt.image import Image, InputError
from mmif_trt.stages import geometry
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


@pytest.mark.parametrize("doubted", [False, True])
def test_a_page_doubts_a_rigid_registration_whose_runs_end_apart(doubted: bool) -> None:
    apart_mm, (a, b, fused) = 2.9, volumes()
    registration = {"registration": "rigid", "matrix": np.eye(4).tolist(), "repeatability_mm": apart_mm}
    side = {"notes": [f"{geometry.UNSURE}: as its size goes"] if doubted else ["a copy of a slice"]}
    found = triple.of_volumes(a, b, fused, {"registration": registration, "palette": None, "b": side})
    packed = page._packed(found, 100_000_000)
    row = dict(page.facts(found, packed, {"a": "a", "b": "b", "fused": "f"}))["Registration"]
    assert f"{apart_mm} mm apart (not the error)" in row
    assert ("not trustworthy" in row) is doubted


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


def fused_phantom(folder: Path) -> tuple[Path, Path, Path]:
    """A phantom, fused, with a page of --view beside it and the record."""
    a, b, out = made(folder)
    limits = ["--value-range-a", "0", "1000", "--value-range-b", "0", "8", "--modality-b", "pet"]
    record = ["--report", str(folder / "record.json"), "--view", str(folder / "fused.html")]
    assert main(["fuse", str(a), str(b), "-o", str(out), *limits, *record, "--quiet"]) == 0
    return a, b, out


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return fused_phantom(tmp_path_factory.mktemp("view"))


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


@pytest.mark.parametrize(
    ("entry", "name", "value"),
    [
        ("registration", "matrix", "abc"),
        ("registration", "matrix", [[1, 0], [0, 1]]),
        ("registration", "matrix", [[float("nan")] * 4] * 4),
        ("registration", "registration", 7),
        ("registration", "shift_mm", "far"),
        ("registration", "inside", [1]),
        ("a", "limits", [5, 5]),
        ("b", "limits", ["low", "high"]),
        ("b", "modality", 5),
        ("palette", "name", None),
        ("weights", "lagn", "yes"),
    ],
)
def test_a_record_edited_by_hand_is_refused_by_name(
    fused: tuple[Path, Path, Path], tmp_path: Path, capsys: Any, entry: str, name: str, value: Any
) -> None:
    record = json.loads(fused[2].with_name("record.json").read_text())
    record[entry] = (record.get(entry) or {}) | {name: value}
    if value is None:
        record[entry] = "PET"
    (tmp_path / "edited.json").write_text(json.dumps(record))
    given = [*map(str, fused), "--report", str(tmp_path / "edited.json"), "-o", str(tmp_path / "v.html")]
    assert main(["view", *given]) == 2
    said = capsys.readouterr().err
    assert f"edited.json: {entry}" in said and "not as fuse writes it" in said
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
