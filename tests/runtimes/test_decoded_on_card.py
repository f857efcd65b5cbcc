"""`fuse --runtime tensorrt --decode dali`: what DALI decodes on the card is fused there, and only the result
leaves it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import fake_dali
import numpy as np
import pytest
from fake_card import FakeCard
from fake_engine import Light, install, usable_modules

from mmif_trt import Fuser, InputError, cli, io
from mmif_trt.folders.pairs import plan_pairs, prepare_output
from mmif_trt.folders.run import Result, run_pairs
from mmif_trt.io import dali
from mmif_trt.models.pixels import LUMA, Form
from mmif_trt.runtimes.trt import build as engine_build

nvidia = pytest.importorskip("nvidia.dali", reason="nvidia-dali-cuda130 is not installed")
GREY, RGB = (40, 48), (40, 48, 3)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeCard:
    made = install(monkeypatch, tmp_path / "cache")
    usable_modules(monkeypatch)
    return made


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, card: FakeCard) -> fake_dali.Seen:
    return fake_dali.install(monkeypatch, card)


def save(root: Path, name: str, *shapes: tuple[int, ...], dtype: str = "uint8") -> None:
    """root/a/name and root/b/name, of two shapes or of one for both."""
    for side, shape in zip("ab", (shapes[0], shapes[-1]), strict=True):
        x = np.random.default_rng([*name.encode(), *side.encode()]).integers(0, np.iinfo(dtype).max, shape)
        x[: shape[0] // 3] = 0
        (root / side).mkdir(exist_ok=True)
        assert cv2.imwrite(str(root / side / name), x.astype(dtype))


def fuse(root: Path, decode: str, fuser: Any = None, **how: Any) -> list[Result]:
    plan = plan_pairs(root / "a", root / "b", root / decode)
    prepare_output(plan)
    return run_pairs(plan.pairs, fuser or Fuser("tensorrt"), workers=2, decode=decode, **how)


def same(root: Path, one: list[Result], other: list[Result]) -> None:
    """Status, message and file of every pair, and their order."""
    assert [(r.pair.name, r.status, r.message) for r in one] == [
        (r.pair.name, r.status, r.message) for r in other
    ]
    for x, y in zip(one, other, strict=True):
        if x.status == "done":
            assert Path(x.pair.out).read_bytes() == Path(y.pair.out).read_bytes(), x.pair.name
            assert x.sha256 == y.sha256


def test_only_the_results_leave_the_card(card: FakeCard, seen: fake_dali.Seen, tmp_path: Path) -> None:
    for i in range(12):
        save(tmp_path, f"{i:02}.png", GREY, RGB if i % 3 else GREY)
    save(tmp_path, "12.png", (16, 16))
    save(tmp_path, "13.tif", (20, 1024), (20, 1024, 3))
    command = ["fuse", *(str(tmp_path / x) for x in "ab"), "--runtime", "tensorrt", "--quiet"]
    out, report = tmp_path / "dali", tmp_path / "report.json"
    assert cli.main([*command, "-o", str(out), "--decode", "dali", "--report", str(report)]) == 0
    assert card.calls.count("upload") == 0 and card.calls.count("download") == 14
    assert card.calls.count("execute") == 14
    assert set(seen.devices) == {0} and len(seen.readers) == 2 * 14, "DLPack names the engine's stream"
    said = json.loads(report.read_text())
    assert said["settings"]["decode"] == "dali" and said["runtime"]["name"] == "tensorrt"
    assert cli.main([*command, "-o", str(tmp_path / "opencv"), "--decode", "opencv"]) == 0
    assert card.calls.count("upload") > 0
    for path in sorted((tmp_path / "opencv").iterdir()):
        assert path.read_bytes() == (out / path.name).read_bytes(), "the label and its hashes too"
    assert len(list(out.iterdir())) == 14


def test_the_rest_goes_through_the_host_as_before(
    card: FakeCard, seen: fake_dali.Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, under their names, with the pixels and messages of the host's way."""
    for i in range(0, 40, 2):
        save(tmp_path, f"{i:02}.png", GREY, RGB)
    save(tmp_path, "01.png", GREY, dtype="uint16")
    save(tmp_path, "03.png", (20, 1040))
    save(tmp_path, "05.png", RGB)  # an MRI in colour
    save(tmp_path, "07.png", GREY, (48, 40))
    save(tmp_path, "09.png", GREY, (40, 48, 4))
    save(tmp_path, "11.png", GREY)
    (tmp_path / "b" / "11.png").write_bytes(b"no picture")
    save(tmp_path, "13.png", GREY)
    grey = cv2.imread(str(tmp_path / "a" / "13.png"), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(tmp_path / "a" / "13.png"), np.dstack([grey] * 3))  # grey, stored in three channels
    real, refused = dali.raster.check, str(tmp_path / "a" / "24.png")

    def check(content: bytes, name: str) -> Any:
        kind, proven = real(content, name)
        if name == refused:  # damage that only a decoder finds
            proven = dali.Checked(fake_dali.NO_PICTURE, proven.shape, proven.dtype)
        return kind, proven

    monkeypatch.setattr(dali.raster, "check", check)
    results = fuse(tmp_path, "dali")
    assert [r.pair.name for r in results if r.status != "done"] == ["05", "07", "09", "11", "24"]
    assert results[[r.pair.name for r in results].index("24")].message.startswith(refused)
    assert {0, None} == set(seen.devices)
    same(tmp_path, results, fuse(tmp_path, "opencv"))


@pytest.mark.parametrize(("limits", "on_card"), [((0.0, 255.0), True), ((10.0, 200.0), False)])
def test_a_stated_range_other_than_the_whole_goes_through_the_host(
    card: FakeCard, seen: fake_dali.Seen, tmp_path: Path, limits: tuple[float, float], on_card: bool
) -> None:
    save(tmp_path, "0.png", GREY, RGB)
    results = fuse(tmp_path, "dali", range_a=limits)
    assert seen.devices == [0 if on_card else None] and ("upload" in card.calls) != on_card
    same(tmp_path, results, fuse(tmp_path, "opencv", range_a=limits))


@pytest.mark.parametrize("error", [InputError, RuntimeError])
def test_without_the_engine_the_host_does_it_and_the_note_says_why(
    card: FakeCard,
    seen: fake_dali.Seen,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
) -> None:
    tries, build = [], engine_build.build

    def no_pixels(path: Path, command: str, form: Form, **how: Any) -> Any:
        if form == LUMA:
            return build(path, command, form=form, **how)
        tries.append(str(form))
        raise error("onnx is not\ninstalled")

    monkeypatch.setattr(engine_build, "build", no_pixels)
    for i in range(3):
        save(tmp_path, f"{i}.png", GREY, RGB)
    fuser = Fuser("tensorrt")
    results = fuse(tmp_path, "dali", fuser)
    assert tries == ["uint8-rgb-last"], "once, however many pairs"
    assert set(seen.devices) == {None} and [r.status for r in results] == ["done"] * 3
    assert fuser.runtime.note.endswith("; no engine uint8-rgb-last: onnx is not installed")
    same(tmp_path, results, fuse(tmp_path, "opencv", fuser))


def test_without_a_card_nothing_is_decoded_on_one(
    seen: fake_dali.Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, "0.png", GREY, RGB)
    fuser = Fuser("tensorrt")
    fuser.runtime = Light()
    (result,) = fuse(tmp_path, "dali", fuser)
    assert result.status == "done" and seen.devices == [None]


def test_dali_that_does_not_start_on_the_card_says_so(
    card: FakeCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(pipeline: Any) -> None:
        raise RuntimeError("You are trying to create a GPU DALI pipeline\nwhile CUDA is not available.")

    monkeypatch.setattr(nvidia.Pipeline, "build", build)
    save(tmp_path, "0.png", GREY, RGB)
    (result,) = fuse(tmp_path, "dali")
    assert result.status == "failed"
    assert result.message.startswith("decode 'dali': ") and result.message.endswith("; try --decode opencv")


def test_a_card_picture_says_what_it_is(card: FakeCard, seen: fake_dali.Seen, tmp_path: Path) -> None:
    save(tmp_path, "0.png", GREY, RGB)
    files = [[str(tmp_path / side / "0.png")] for side in "ab"]
    (pair,) = dali.read_pairs(*files, on_card=lambda a, b: a == GREY and b == RGB)
    fuser = Fuser("tensorrt")
    fused = fuser.fuse_images(pair.a, pair.b)
    assert "synchronise" not in card.calls, "DLPack has ordered the one stream behind the other"
    true = fuser.fuse_images(*(io.read(name) for (name,) in files))
    np.testing.assert_array_equal(fused.data, true.data)
    assert (fused.source, fused.label, fused.value_range) == (true.source, true.label, true.value_range)
    (small,) = dali.read_pairs(files[0], files[0], on_card=lambda a, b: True)
    assert small.a.size == pair.a.size == GREY
