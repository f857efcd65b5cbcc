"""Folders in, tables out: luma, means, ranks, files, one line for bad input; the benchmark and its pages."""

from __future__ import annotations

import csv
import importlib
import json
import math
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import REPO

from mmif_trt import io
from mmif_trt.image import Image, InputError
from mmif_trt.measure.baselines import PICTURES
from mmif_trt.measure.fidelity import fidelity, names_for
from mmif_trt.measure.metrics import ALL, all_metrics, foreground_metrics
from mmif_trt.measure.scores import (
    BASELINES,
    evaluate,
    luma_8_bit,
    mean_rank,
    means,
    text_table,
    write_scores,
)

SIZE = (40, 48)


def put(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """(sources, fused) with three pairs: PET in colour, the last pair of the MRI and PET all zero."""
    rng = np.random.default_rng(0)
    for name in ("one", "two", "zero"):
        live = name != "zero"
        put(tmp_path / "sources/mri" / f"{name}.png", rng.integers(0, 256, SIZE).astype(np.uint8) * live)
        put(
            tmp_path / "sources/pet" / f"{name}.png", rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8) * live
        )
        put(tmp_path / "fused" / f"{name}.png", rng.integers(0, 256, SIZE).astype(np.uint8) * live)
    return tmp_path / "sources", tmp_path / "fused"


def grey(path: Path) -> np.ndarray:
    return np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), np.float64)


def test_rows_and_means_are_those_of_the_metrics(folders: tuple[Path, Path]) -> None:
    sources, fused = folders
    scores = evaluate(sources, fused, method="ours", baselines=True)
    assert scores.pairs == 3
    assert [(r.method, r.name) for r in scores.rows[:3]] == [
        ("ours", "one"),
        ("average", "one"),
        ("max", "one"),
    ]
    a, b = grey(sources / "mri/two.png"), grey(sources / "pet/two.png")
    wanted = {"ours": grey(fused / "two.png"), "average": np.rint((a + b) / 2), "max": np.maximum(a, b)}
    for row in scores.rows[3:6]:
        assert row.values == all_metrics(a, b, wanted[row.method])
    ours = [row.values for row in scores.rows if row.method == "ours"]
    assert scores.means["ours"]["SD"] == pytest.approx(sum(v["SD"] for v in ours) / 3)


def test_fidelity_is_that_of_the_coloured_pictures(folders: tuple[Path, Path]) -> None:
    sources, fused = folders
    scores = evaluate(sources, fused, baselines=True, fidelity=True)
    a, b, f = (io.read(folder / "two.png").data for folder in (sources / "mri", sources / "pet", fused))
    wanted = {"fused": f, **{name: PICTURES[name](a, b) for name in BASELINES}}
    for row in scores.rows[3:6]:
        found = {key: row.values[key] for key in names_for("pet")}
        assert found == pytest.approx(fidelity(a, b, wanted[row.method], "pet"), nan_ok=True)
        assert list(row.values) == [*ALL, *names_for("pet")]


def test_a_pair_without_a_value_does_not_count_in_the_mean(folders: tuple[Path, Path]) -> None:
    scores = evaluate(*folders)
    qabf = [row.values["Qabf"] for row in scores.rows]
    assert math.isnan(qabf[2])
    assert scores.means["fused"]["Qabf"] == pytest.approx((qabf[0] + qabf[1]) / 2)
    assert math.isnan(means(scores.rows[2:])["fused"]["Qabf"])


def test_another_measure_and_the_baselines_alone(folders: tuple[Path, Path]) -> None:
    scores = evaluate(folders[0], None, baselines=True, measure=foreground_metrics)
    assert list(scores.means) == list(BASELINES) and "detail" not in scores.means["max"]


def test_names_match_without_their_suffix_and_other_files_are_passed_over(folders: tuple[Path, Path]) -> None:
    sources, fused = folders
    wanted = evaluate(sources, fused).means["fused"]
    put(fused / "one.tif", grey(fused / "one.png").astype(np.uint8))
    (fused / "one.png").unlink()
    (fused / "report.json").write_text("{}")
    (fused / ".hidden.png").write_text("")
    assert evaluate(sources, fused).means["fused"] == wanted


def test_luma_is_what_opencv_reads_from_a_png(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (512, 512, 3)).astype(np.uint8)
    pixels[:256] = pixels[:256, :, :1]  # equal channels must come out as they are
    put(tmp_path / "x.png", pixels)
    assert (luma_8_bit(io.read(tmp_path / "x.png")) == grey(tmp_path / "x.png")).all()


def test_other_types_come_to_eight_bit_by_their_value_range() -> None:
    levels = np.arange(256).reshape(16, 16)
    for data in (
        levels.astype(np.uint8),
        (levels * 257).astype(np.uint16),
        (levels / 255).astype(np.float32),
    ):
        assert (luma_8_bit(Image(data)) == levels).all()
    assert (luma_8_bit(Image((levels * 16).astype(np.uint16), (0, 4080))) == levels).all()


def test_stated_ranges_bring_all_pictures_to_eight_bit(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """12-bit data in 16-bit files score as their 8-bit twins; without a range they are warned of."""
    sources, fused = folders
    wanted = evaluate(sources, fused, baselines=True, fidelity=True)
    ranges = {"mri": (0.0, 4080.0), "pet": (-1.0, 254.0), "fused": (0.0, 255.0)}
    for folder in (sources / "mri", sources / "pet", fused):
        for path in list(folder.iterdir()):
            pixels = io.read(path).data
            scaled = {"mri": pixels.astype(np.uint16) * 16, "pet": pixels.astype(np.float32) - 1}
            data = scaled.get(folder.name, pixels.astype(np.uint16))
            io.write(path.with_suffix(".tif"), Image(data, (0, 255)))
            path.unlink()
    found = evaluate(sources, fused, baselines=True, fidelity=True, ranges=ranges)
    assert str(found.rows) == str(wanted.rows) and not found.warnings
    del ranges["mri"], ranges["fused"]
    warnings = evaluate(sources, fused, ranges=ranges).warnings
    for folder, brightest in ((sources / "mri", 4080), (fused, 255)):
        expected = (
            f"{folder}: 16-bit pictures, none above {brightest} of 65535, .* --range-{folder.name} 0 4095"
        )
        assert [line for line in warnings if re.fullmatch(expected, line)]
    assert len(warnings) == 2
    with pytest.raises(InputError, match="one.tif: float pixels from -1 to 254; expected 0 to 1, or"):
        evaluate(sources, fused)


def test_mean_rank_with_ties_and_nan() -> None:
    table = {
        "p": {"SD": 3.0, "SF": 1.0, "EN": math.nan},
        "q": {"SD": 2.0, "SF": 1.0, "EN": 0.1},
        "r": {"SD": 2.0, "SF": 1.0, "EN": 0.2},
    }
    assert mean_rank(table, ("SD", "SF")) == {"p": 1.5, "q": 2.25, "r": 2.25}
    assert mean_rank(table, ("EN",)) == {"p": 3, "q": 2, "r": 1}
    with pytest.raises(InputError, match="p lacks MI"):
        mean_rank(table, ("SD", "MI"))


def test_written_tables_hold_what_was_measured(folders: tuple[Path, Path], tmp_path: Path) -> None:
    scores = evaluate(*folders, baselines=True)
    write_scores(tmp_path / "t.json", scores)
    write_scores(tmp_path / "t.CSV", scores)
    report = json.loads((tmp_path / "t.json").read_text())
    with open(tmp_path / "t.CSV", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(report["rows"]) == 9 and len(lines) == 9 + 3 and report["pairs"] == 3
    assert report["rows"][6]["VIF"] is None and lines[6]["VIF"] == ""
    assert report["means"]["max"]["MI"] == pytest.approx(scores.means["max"]["MI"], abs=1e-6)
    assert float(lines[-1]["SCD"]) == pytest.approx(scores.means["max"]["SCD"], abs=1e-6)
    with pytest.raises(InputError, match=r"expected \.csv or \.json"):
        write_scores(tmp_path / "t.txt", scores)


def test_the_plain_table_is_aligned(folders: tuple[Path, Path]) -> None:
    scores = evaluate(*folders, baselines=True)
    lines = text_table({**scores.means, "nothing": scores.rows[6].values}).splitlines()
    assert len({len(line) for line in lines}) == 1 and lines[0].split() == ["method", *ALL]
    assert lines[1].split()[2] == f"{scores.means['fused']['SD']:.3f}" and lines[-1].split()[8] == "-"


def spoil(sources: Path, fused: Path, how: str) -> tuple[Path, Path]:
    if how == "no sources":
        sources = sources / "nowhere"
    elif how == "a file":
        fused = fused / "one.png"
    elif how == "volume":
        (fused / "two.png").unlink()
        slices = np.zeros((2, *SIZE), np.uint8)
        io.write(fused / "two.nii.gz", Image(slices, (0, 255), affine=np.eye(4)))
    elif how == "no mri":
        (sources / "mri").rename(sources / "t1")
    elif how == "two modalities":
        (sources / "ct").mkdir()
    elif how == "unequal sources":
        (sources / "pet/two.png").unlink()
    elif how == "one not fused":
        (fused / "two.png").unlink()
    elif how == "one too many":
        put(fused / "extra.png", np.zeros(SIZE, np.uint8))
    elif how == "no overlap":
        for path in list(fused.iterdir()):
            path.rename(path.with_name("x" + path.name))
    elif how == "empty":
        fused = fused / "new"
        fused.mkdir()
    elif how == "twice":
        put(fused / "one.tif", np.zeros(SIZE, np.uint8))
    elif how == "text":
        (fused / "two.png").write_text("no picture")
    elif how == "truncated":
        (fused / "two.png").write_bytes((fused / "two.png").read_bytes()[:-30])
    elif how == "size":
        put(fused / "two.png", np.zeros((40, 47), np.uint8))
    return sources, fused


BAD = {
    "no sources": "nowhere: no such folder; expected a folder that holds mri/",
    "a file": "one.png: not a folder; expected ",
    "no mri": "sources: holds pet/; expected ",
    "two modalities": "sources: holds mri/, ct/, pet/; expected ",
    "unequal sources": "pet: 2 pictures, 2 named as those of .*mri .two is missing.; expected ",
    "one not fused": "fused: 2 pictures, 2 named as .*two is missing",
    "one too many": "fused: 4 pictures, 3 named as .*extra has no partner",
    "no overlap": "fused: 3 pictures, none named as",
    "empty": "new: no pictures; expected ",
    "twice": "one.png and one.tif differ in the suffix only",
    "text": "two.png: .*expected",
    "truncated": "two.png: .*expected",
    "volume": "two.nii.gz: a volume; expected pictures",
    "size": "two.png: 40 x 47 px; expected the size of .*mri.two.png, 40 x 48 px",
}


@pytest.mark.parametrize("how", BAD)
def test_bad_input_gives_one_clear_line(folders: tuple[Path, Path], how: str) -> None:
    sources, fused = spoil(*folders, how)
    with pytest.raises(InputError, match=BAD[how]) as caught:
        evaluate(sources, fused)
    assert "\n" not in str(caught.value)


def test_a_method_cannot_pass_for_a_baseline(folders: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="baseline"):
        evaluate(*folders, method="max", baselines=True)
    with pytest.raises(InputError, match="baselines=True"):
        evaluate(folders[0], None)


@pytest.fixture
def quality(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Imports the script by name, as Python finds it when it runs."""
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    return importlib.import_module("quality")


def test_the_benchmark_fuses_with_a_network(
    quality: ModuleType, folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data" / "mri-ct").mkdir(parents=True)
    (tmp_path / "data" / "mri-ct" / "val").symlink_to(folders[0])
    asked: list[tuple[str, str, str]] = []

    def score(args: Any) -> None:
        names = {path.name for path in (args.fused / "mri-ct").iterdir()}
        assert names == {path.name for path in (folders[0] / "mri").iterdir()}
        (one, *_) = sorted((args.fused / "mri-ct").iterdir())
        assert f"fused by {args.name}, weights".encode() in one.read_bytes()
        asked.append((args.name, args.made_by, quality.command(args).partition(" --data ")[2].split()[1]))

    monkeypatch.setattr(quality, "SETS", ("mri-ct",))
    monkeypatch.setattr(quality, "score_folder", score)
    told = ["score", "--data", str(tmp_path / "data"), "--network"]
    assert quality.main([*told, "lagn-quality"]) == 0
    made = "mmif-trt fuse --precision fp32 --network lagn-quality"
    assert asked == [("LAGN-quality", made, "--network")]
    assert quality.main([*told, "lagn", "--fused", str(tmp_path), "--name", "LAGN"]) == 2


def test_two_networks_of_one_kind_are_no_rivals_of_each_other(quality: ModuleType) -> None:
    """Each is first by one measure and last by the other: as two rows they would push each other down."""
    values = {"LAGN": (9.0, 1.0), "LAGN-quality": (8.0, 0.0), "max": (7.0, 7.0), "peer": (6.0, 6.0)}
    rows = {m: {key: pair[i % 2] for i, key in enumerate(quality.RANKED)} for m, pair in values.items()}
    ranks = quality.ranks_of(rows, ["LAGN", "LAGN-quality"])
    assert ranks == {"LAGN": 2.0, "LAGN-quality": 2.0, "max": 1.5, "peer": 2.5}
    assert quality.ranks_of(rows, []) == quality.mean_rank(rows)


def test_the_benchmark_from_pictures_to_page(
    quality: ModuleType, folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources, fused = folders
    for name in quality.SETS:
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "val").symlink_to(sources)
        (tmp_path / "ours").mkdir(exist_ok=True)
        (tmp_path / "ours" / name).symlink_to(fused)
    out = ["--out", str(tmp_path / "q.json")]
    told = [
        "score",
        "--data",
        str(tmp_path / "data"),
        "--fused",
        str(tmp_path / "ours"),
        "--name",
        "LAGN",
        *out,
    ]
    assert quality.main(told) == 0
    peer = dict.fromkeys(ALL, 0.5) | {"n": 3, "EN": 99.0}
    tables = {name: {"Peer": peer, "max": {"n": 3}} for name in quality.SETS}
    (tmp_path / "peers.json").write_text(json.dumps({**tables, "note": "elsewhere", "speed": {}}))
    assert quality.main(["import-peers", str(tmp_path / "peers.json"), *out]) == 0
    report = json.loads((tmp_path / "q.json").read_text())
    assert list(report["sets"]["mri-ct"]["rows"]) == ["LAGN", "average", "max", "Peer"]
    inside = report["sets"]["mri-ct"]["foreground"]
    assert list(inside) == ["LAGN", "average", "max"] and inside["max"]["EN"] > 0
    assert report["sets"]["mri-ct"]["n"] == 3 and report["conditions"]["Peer"]["kind"] == "peer"
    assert not Path(report["conditions"]["LAGN"]["command"].split()[4]).is_absolute()
    page = tmp_path / "page.md"
    begin, end = quality.MARKERS["quality"]
    page.write_text(f"before\n{begin}\nstale\n{end}\nafter\n")
    for _ in range(2):  # the second time finds what the first wrote
        assert quality.main(["table", *out, "--write", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith(f"{end}\nafter\n") and "stale" not in text
    assert text.count("| Peer |") == text.count("| **99.000** |") == text.count("| LAGN (ours) |") == 3
    assert text.count("| LAGN |") == 3  # of the foreground
    page.write_text("no markers")
    assert quality.main(["table", *out, "--write", str(page)]) == 2
    assert "expected" in capsys.readouterr().err


def test_rows_of_another_number_of_pairs_are_refused(quality: ModuleType) -> None:
    report = {"conditions": {}, "sets": {"mri-ct": {"n": 20, "rows": {}}}}
    with pytest.raises(InputError, match="21 pairs; expected the 20"):
        quality.merge(report, "mri-ct", 21, {})


@pytest.mark.parametrize("ours", [("LAGN",), ("LAGN", "LAGN-quality")])
def test_the_brief_tables_keep_six_rows_and_the_ranks_of_all(
    quality: ModuleType, ours: tuple[str, ...]
) -> None:
    names = [*(("ours", name) for name in ours), ("baseline", "max"), ("baseline", "average")]
    names += [("peer", f"P{i}") for i in range(5)]
    conditions = {name: {"kind": kind, "made_by": "", "commit": "c", "date": "d"} for kind, name in names}
    rows = {name: dict.fromkeys(quality.COLUMNS, float(-i)) for i, (_, name) in enumerate(names)}
    report = {"conditions": conditions, "sets": {"mri-ct": {"n": 1, "rows": rows}}}
    lines = [line for line in quality.tables(report, brief=True).splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines[1:]] == [
        *(f"| {name} (ours)" for name in ours),
        "| max (baseline)",
        "| average (baseline)",
        *("| P0", "| P1", "| P2")[: 4 - len(ours)],
    ]
    last = "| P2 | 6.00 |" if len(ours) == 1 else "| P1 | 5.00 |"
    assert last in lines[-1] and len(lines[0].split("|")) == len(quality.RANKED) + 4


def test_the_pages_show_the_committed_figures(quality: ModuleType) -> None:
    report = quality.load(REPO / "benchmarks/results/quality.json")
    for page in quality.PAGES:
        text = page.read_text()
        assert text == quality.filled(text, report, page), "run: python benchmarks/quality.py table --write"
