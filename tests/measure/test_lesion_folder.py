"""Planted folders: written, fused by any program, scored as in process; a bad folder gives one line."""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import scenery
from shell import mmif

from mmif_trt import cli, commands, io
from mmif_trt.image import Image, InputError
from mmif_trt.measure.baselines import PICTURES, Fuse, maximum, overlay
from mmif_trt.measure.lesion_folder import is_planted, plant_folder, read_fused, read_planted, write_planted
from mmif_trt.measure.lesions import judge
from mmif_trt.measure.planting import Planted
from mmif_trt.report.reader import read_lesions


def put(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    io.write(path, Image(pixels), durable=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Planted]]:
    """sources/, planted/ and fused/ (the 50 % overlay, as TIFF) of one MRI and PET."""
    root = tmp_path_factory.mktemp("lesions")
    put(root / "sources/mri/one.png", scenery.mri())
    put(root / "sources/pet/one.png", scenery.tracer(scenery.ramp_palette()))
    planted = plant_folder(root / "sources", per_kind=2, seed=0)
    count = write_planted(root / "planted", planted, seed=0)
    names = [path.stem for path in (root / "planted/mri").iterdir()]
    assert count == len(names) > 1 and is_planted(root / "planted")
    for name in names:
        a, b = (io.read(root / "planted" / kind / f"{name}.png").data for kind in ("mri", "pet"))
        put(root / "fused" / f"{name}.tif", PICTURES["average"](a, b))
    return root, planted


def test_a_folder_scores_as_in_process(made: tuple[Path, list[Planted]]) -> None:
    root, planted = made
    again = read_planted(root / "planted")
    assert [one.lesions for one in again] == [one.lesions for one in planted]
    found = read_fused(root / "planted", again, root / "fused")
    wanted = judge(PICTURES["average"], planted)
    assert len(found) == 8 and repr(found) == repr(wanted)  # nan is not itself


@pytest.mark.parametrize(("network", "title"), [("lagn", "LAGN"), ("lagn-quality", "LAGN-quality")])
def test_lesions_of_a_network_stand_under_its_name(
    made: tuple[Path, list[Planted]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    network: str,
    title: str,
) -> None:
    """And `report --lesions` finds them there."""

    def load(args: argparse.Namespace) -> Fuse:
        assert args.network == network
        return maximum

    monkeypatch.setattr(commands.eval, "load_fuser", load)
    words = ["eval", str(made[0] / "planted"), "--lesions", "--network", network]
    assert cli.main([*words, "-o", str(tmp_path / "t.json")]) == 0
    (method,) = json.loads((tmp_path / "t.json").read_text())["methods"]
    assert method == title
    assert set(read_lesions({"ours": tmp_path / "t.json"})) == {"ours"}


def test_the_three_steps_of_the_command(made: tuple[Path, list[Planted]], tmp_path: Path) -> None:
    root, _ = made
    done = mmif("eval", root / "sources", "--plant", tmp_path / "planted", "--per-kind", "2")
    assert "8 lesions in" in done.stdout and f"mmif-trt eval {tmp_path / 'planted'} FUSED" in done.stdout
    shown = json.loads((tmp_path / "planted/lesions.json").read_text())
    assert shown == json.loads((root / "planted/lesions.json").read_text())
    for table in ("t.json", "t.csv"):
        args = (root / "planted", root / "fused", "--lesions", "--baselines", "-o", tmp_path / table)
        done = mmif("eval", *args)
    lines = {line[:30].strip(): line.split()[-4:] for line in done.stdout.splitlines()}
    fused, average, overlay70, _ = map(float, lines["mean share kept"])
    assert fused == average > 0 and overlay70 > 0
    assert lines["tracer hot (2)"][2] > lines["tracer hot (2)"][1]
    report = json.loads((tmp_path / "t.json").read_text())
    with open(tmp_path / "t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(report["lesions"]) == 4 * 8
    assert report["methods"]["fused"]["mean"] == pytest.approx(fused, abs=6e-4)
    assert float(rows[0]["share"]) == report["lesions"][0]["share"]


def test_the_installed_network_is_judged_without_a_folder(made: tuple[Path, list[Planted]]) -> None:
    root, _ = made
    done = mmif("eval", root / "planted", "--lesions", "--threads", "1")
    assert done.stdout.split()[0] == "LAGN" and "MRI dark under uptake (2)" in done.stdout


def test_bad_use_gives_one_clear_line(made: tuple[Path, list[Planted]], tmp_path: Path) -> None:
    root, _ = made
    sources, planted, fused = root / "sources", root / "planted", root / "fused"
    for args, word in (
        ((sources,), "FUSED: missing"),
        ((sources, fused, "--lesions"), "--plant PLANTED first"),
        ((sources, fused, "--plant", tmp_path / "x"), "expected SOURCES alone"),
        ((sources, "--plant", planted), "not empty"),
        ((sources, fused, "--seed", "2"), "--plant or --lesions only"),
        ((planted, fused, "--lesions", "--seed", "2"), "is planted"),
        ((planted, sources / "mri", "--lesions"), "lesions00 is missing"),
    ):
        assert word in mmif("eval", *args, code=2).stderr, word
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "how", ["changed", "missing", "no json", "other json", "other kind", "nowhere", "none", "size"]
)
def test_a_spoilt_folder_is_refused(made: tuple[Path, list[Planted]], tmp_path: Path, how: str) -> None:
    root, _ = made
    folder, fused = tmp_path / "planted", root / "fused"
    shutil.copytree(root / "planted", folder)
    text = (folder / "lesions.json").read_text()
    if how == "changed":
        put(folder / "pet/one.png", np.zeros((scenery.SIDE, scenery.SIDE, 3), np.uint8))
    elif how == "missing":
        (folder / "mri/one_lesions00.png").unlink()
    elif how == "no json":
        (folder / "lesions.json").write_text(text[:100])
    elif how == "other json":
        (folder / "lesions.json").write_text("[]")
    elif how == "other kind":
        (folder / "lesions.json").write_text(text.replace("tracer hot", "tracer odd"))
    elif how in ("nowhere", "none"):
        found = json.loads(text)
        found["pairs"][0]["lesions"] = found["pairs"][0]["lesions"][:1] if how == "nowhere" else []
        for lesion in found["pairs"][0]["lesions"]:
            lesion["centre"][1] = scenery.SIDE - 3
        (folder / "lesions.json").write_text(json.dumps(found))
    else:
        fused = tmp_path / "fused"
        shutil.copytree(root / "fused", fused)
        put(fused / "one.tif", np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(InputError, match="expected") as caught:
        read_fused(folder, read_planted(folder), fused)
    assert "\n" not in str(caught.value)


def test_names_that_are_not_utf_8_keep_their_bytes(tmp_path: Path) -> None:
    """Planted, scored and listed like others."""
    sources, name = tmp_path / "sources", os.fsdecode(b"\xff<&,")
    put(sources / "mri" / f"{name}.png", scenery.mri())
    put(sources / "pet" / f"{name}.png", scenery.tracer(scenery.ramp_palette()))
    mmif("eval", sources, "--plant", tmp_path / "planted", "--per-kind", 1)
    shutil.copytree(tmp_path / "planted/pet", tmp_path / "fused")
    for suffix in (".csv", ".json"):
        table = tmp_path / f"table{suffix}"
        mmif("eval", tmp_path / "planted", tmp_path / "fused", "--lesions", "-o", table)
    assert b'fused,"\xff<&,",' in (tmp_path / "table.csv").read_bytes()
    assert json.loads(table.read_text())["lesions"][0]["pair"] == name


def test_lesions_of_twelve_bits_are_those_of_eight(tmp_path: Path) -> None:
    for root, step in (("eight", 1), ("twelve", 16)):
        for kind, pixels in (("mri", scenery.mri()), ("pet", scenery.tracer(scenery.ramp_palette()))):
            scaled = pixels if step == 1 else pixels.astype(np.uint16) * step
            put(tmp_path / root / kind / "one.png", scaled)
    ranges = dict.fromkeys(("mri", "pet"), (0.0, 4080.0))
    (wanted,), (found,) = (
        plant_folder(tmp_path / root, per_kind=1, seed=0, ranges=given)
        for root, given in (("eight", None), ("twelve", ranges))
    )
    assert found.lesions == wanted.lesions and (found.b == wanted.b).all()
    fused = tmp_path / "fused"
    write_planted(tmp_path / "planted", [wanted], seed=0)
    for path in (tmp_path / "planted/pet").iterdir():
        put(fused / path.name, io.read(path).data.astype(np.uint16) * 16)
    planted = read_planted(tmp_path / "planted")
    kept = read_fused(tmp_path / "planted", planted, fused, ranges={"fused": (0.0, 4080.0)})
    assert str(kept) == str(read_fused(tmp_path / "planted", planted, tmp_path / "planted/pet"))


def test_names_that_would_clash_and_pictures_without_room_are_refused(tmp_path: Path) -> None:
    black = np.zeros((64, 64), np.uint8)
    for kind in ("mri", "ct"):
        put(tmp_path / kind / "one.png", black)
    with pytest.raises(InputError, match="no place for a lesion"):
        plant_folder(tmp_path, per_kind=2, seed=0)
    one = Planted("x", "ct", black, black, None, [(black, black)])
    with pytest.raises(InputError, match="x_lesions00: two pictures"):
        write_planted(tmp_path / "out", [one, Planted("x_lesions00", "ct", black, black)], seed=0)


def test_baselines_are_what_their_names_say() -> None:
    a, b = np.full((4, 4), 100, np.uint8), np.zeros((4, 4, 3), np.uint8)
    b[..., 0] = 200
    assert (overlay(0.5)(a, b) == (150, 50, 50)).all() and (overlay(0.7)(a, b) == (170, 30, 30)).all()
    assert (overlay(0.5)(a, b[..., 1]) == 50).all() and (maximum(a, b[..., 0]) == 200).all()
    luma = maximum(a, b) @ np.array([0.299, 0.587, 0.114])
    assert np.abs(luma - 100).max() < 1 and (maximum(b[..., 1], b) == b).all()
