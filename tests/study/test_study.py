"""Reader studies without a browser: plan, configuration, database, statistics, command line."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPO
from shell import mmif

pytest.importorskip("fastapi", reason="needs the study extra: pip install 'mmif-trt[study]'")

from mmif_trt import io
from mmif_trt.image import Image
from mmif_trt.study import analysis, export, paired, plan, power, scales, simulate
from mmif_trt.study.config import read_config
from mmif_trt.study.create import create, links
from mmif_trt.study.store import FILE, Store

METHODS = ["secretA", "secretB", "secretC"]
PLANTED = simulate.Planted({"good": 0.9, "poor": -0.9}, side_bias=0.5, reader_sd=0.2, case_sd=0.2)


def make_config(root: Path, *, cases: int = 3, methods: list[str] = METHODS, **more: Any) -> Path:
    """Sources and fused pictures under `root`, and the configuration that names them."""
    rng = np.random.default_rng(0)
    for where in ("sources/mri", "sources/pet", *methods):
        (root / where).mkdir(parents=True, exist_ok=True)
        for case in range(cases):
            data = rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)
            io.write(
                root / where / f"case{case}.png", Image(data if where != "sources/mri" else data[..., 0])
            )
    one = {"modality": "pet", "sources": "sources", "methods": {m: m for m in methods}}
    config = {"title": "Test", "sets": [one], "readers": 3, "repeats": 0.34, **more}
    (root / "study.json").write_text(json.dumps(config))
    return root / "study.json"


def make_study(root: Path, **more: Any) -> Path:
    create(read_config(make_config(root, **more)), root / "study")
    return root / "study"


def items_of(reader: int, **more: Any) -> list[plan.Item]:
    given = {"cases": 20, "methods": 3, "kinds": ("paired",), "repeats": 0.1}
    return plan.reader_items(7, reader, **{**given, **more})


def test_plan_is_whole_seeded_and_random() -> None:
    items = items_of(1)
    assert items == items_of(1) and items != items_of(2)
    assert [item.position for item in items] == list(range(len(items)))
    first = [item for item in items[1:] if item.repeat_of is None]
    asked = Counter((i.case, *sorted((i.left, i.right or 0))) for i in first)
    assert len(asked) == 20 * 3 and set(asked.values()) == {1}
    repeats = [item for item in items if item.repeat_of is not None]
    assert len(repeats) == 6
    for again in repeats:
        before = items[again.repeat_of or 0]
        assert again.position - before.position >= plan.REPEAT_GAP and before.repeat_of is None
        assert (again.case, {again.left, again.right}) == (before.case, {before.left, before.right})
    left = [item.left < (item.right or 0) for reader in range(40) for item in items_of(reader)]
    assert 0.46 < np.mean(left) < 0.54  # 2600 fair draws: 4 standard deviations


def test_plan_shares_out_evenly_and_does_scales_after_pairs() -> None:
    used: plan.Used = Counter()
    for reader in range(10):
        items = items_of(reader, most=18, used=used, repeats=0)
        assert len(items) == 19
    assert set(used.values()) == {3}  # 10 readers x 18 items = 60 comparisons x 3
    both = items_of(1, kinds=("paired", "scale"), cases=4)
    kinds = [item.kind for item in both]
    assert kinds == sorted(kinds) and kinds[0] == "paired" and kinds[-1] == "scale"
    assert [item.position for item in both] == list(range(len(both)))


def test_nothing_in_the_folder_or_its_pictures_names_a_method(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    assert {path.name for path in study.iterdir()} == {FILE, "links.csv"}
    assert (study / "links.csv").stat().st_mode & 0o077 == 0
    db = sqlite3.connect(study / FILE)
    names = [row[0] for row in db.execute("SELECT name FROM picture")]
    assert len(names) == 3 * 5 == len(set(names)) and all(len(name) == 32 for name in names)
    store = Store(study)
    for row in db.execute("SELECT id FROM picture"):
        png = store.picture(row[0])
        assert b"secret" not in png and png[:4] == b"\x89PNG" and b"tEXt" not in png
    tokens = [link.rsplit("/", 1)[1] for link in links(study, "http://x")]
    assert len(set(tokens)) == 3 and not any(
        token.encode() in (study / FILE).read_bytes() for token in tokens
    )
    assert [store.reader_of(token) for token in tokens] == [1, 2, 3] and store.reader_of("x") is None


def test_sets_may_name_the_methods_in_any_order(tmp_path: Path) -> None:
    config = json.loads(make_config(tmp_path, cases=1).read_text())
    (one,) = config["sets"]
    turned = {name: one["methods"][name] for name in reversed(METHODS)}
    shutil.copytree(tmp_path / "sources", tmp_path / "more/sources")
    for folder in (tmp_path / "sources/mri", tmp_path / "sources/pet", *(tmp_path / m for m in METHODS)):
        again = tmp_path / "more" / folder.relative_to(tmp_path)
        again.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "case0.png", again / "other.png")
        (again / "case0.png").unlink(missing_ok=True)
    turned = {name: f"more/{where}" for name, where in turned.items()}
    config["sets"] = [one, {**one, "sources": "more/sources", "methods": turned}]
    (tmp_path / "study.json").write_text(json.dumps(config))
    create(read_config(tmp_path / "study.json"), tmp_path / "study")
    db = sqlite3.connect(tmp_path / "study" / FILE)
    sql = "SELECT method, source_sha256 FROM fused JOIN picture p ON p.id=picture WHERE case_id=? ORDER BY 1"
    first, second = (db.execute(sql, (case,)).fetchall() for case in (1, 2))
    assert first == second and len({digest for _, digest in first}) == 3


def test_the_database_refuses_change(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    store = Store(study)
    store.begin(1, "student", None)
    assert store.answer(1, 0, store.show(1, 0), "left", visible_s=None, view="{}", revise=False) == "stored"
    db = sqlite3.connect(study / FILE)
    for sql in (
        "UPDATE answer SET answer='right'",
        "DELETE FROM answer",
        "DELETE FROM item",
        "UPDATE fused SET method=1",
    ):
        with pytest.raises(sqlite3.DatabaseError, match="append-only"):
            db.execute(sql)


def bad_configs() -> dict[str, tuple[dict[str, Any], str]]:
    return {
        "one method": ({"methods": METHODS[:1]}, "methods"),
        "no reader": ({"readers": 0}, "readers"),
        "share": ({"repeats": 0.9}, "repeats"),
        "text": ({"readers": "3"}, "readers is text; expected a whole number"),
        "true": ({"readers": True}, "readers"),
        "unknown": ({"reader": 3}, "unknown key 'reader'"),
        "scale": ({"scales": ["beauty"]}, "beauty"),
        "scale list": ({"scales": [["detail"]]}, "scales ['detail']"),
        "half a letter": ({"title": "\ud800"}, "'\\ud800' in a text, half a letter"),
        "nothing": ({"paired": False}, "paired"),
        "window": ({"window": "open"}, "window"),
        "range": ({"value_range": {"pet": [5, 5]}}, "value_range"),
        "sets": ({"sets": [{"modality": "pet"}]}, "sets[0]"),
        "modality": ({"sets": [{"modality": "mri", "sources": "", "methods": {}}]}, "modality"),
    }


@pytest.mark.parametrize("name", bad_configs())
def test_bad_configuration(tmp_path: Path, name: str) -> None:
    more, word = bad_configs()[name]
    done = mmif("study", "create", make_config(tmp_path, **more), tmp_path / "study", code=2)
    assert word in done.stderr and "expected" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "study").exists()


def test_bad_pictures_make_no_study(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    victim = tmp_path / "secretB" / "case1.png"
    whole = victim.read_bytes()
    cases = {"missing": None, "truncated": whole[:-40], "text": b"dear all"}
    for data in cases.values():
        victim.unlink() if data is None else victim.write_bytes(data)
        done = mmif("study", "create", config, tmp_path / "study", code=2)
        assert "secretB" in done.stderr and done.stderr.count("\n") == 1
    io.write(victim, Image(np.zeros((40, 47, 3), np.uint8)))
    assert "40 x 47" in mmif("study", "create", config, tmp_path / "study", code=2).stderr
    victim.write_bytes(whole)
    (tmp_path / "sources" / "pet").rename(tmp_path / "sources" / "ct")
    assert "ct" in mmif("study", "create", config, tmp_path / "study", code=2).stderr
    assert [p.name for p in tmp_path.iterdir() if "study" in p.name] == ["study.json"]


def test_pictures_that_readers_would_see_as_black_are_warned_of(tmp_path: Path) -> None:
    """12-bit data in 16-bit files, of one method too; not with a range, nor with one bright picture."""
    config = make_config(tmp_path)
    for where, bright in (("sources/mri", 4095), ("secretB", 4000), ("sources/pet", 60_000)):
        for case in range(3):
            pixels = np.full((40, 48, 3), 900 if case else bright, np.uint16)
            data = pixels if where != "sources/mri" else pixels[..., 0]
            io.write(tmp_path / where / f"case{case}.png", Image(data))
    lines: list[str] = []
    create(read_config(config), tmp_path / "study", warn=lines.append)
    assert [line.split(":")[0] for line in lines] == [str(tmp_path / x) for x in ("sources/mri", "secretB")]
    assert "none above 4095 of 65535" in lines[0] and '"value_range": {"mri": [0, 4095]}' in lines[0]
    stated = make_config(tmp_path / "again", value_range={"mri": [0, 4095], "fused": [0, 4095]})
    for where in ("sources/mri", "secretB"):
        shutil.copytree(tmp_path / where, tmp_path / "again" / where, dirs_exist_ok=True)
    create(read_config(stated), tmp_path / "again" / "study", warn=lines.append)
    assert len(lines) == 2


@pytest.mark.parametrize("how", ["one name twice", "not UTF-8"])
def test_a_case_has_a_name_of_its_own(tmp_path: Path, how: str) -> None:
    """The analysis knows cases by name: of two with one name, the later ratings replaced the earlier."""
    config = make_config(tmp_path, cases=1)
    found = json.loads(config.read_text())
    if how == "one name twice":
        found["sets"] *= 2
    else:
        for folder in (tmp_path / "sources/mri", tmp_path / "sources/pet", *(tmp_path / m for m in METHODS)):
            (folder / "case0.png").rename(folder / os.fsdecode(b"\xff.png"))
    config.write_text(json.dumps(found))
    words = {
        "one name twice": "case0.png: two PET cases named case0; expected",
        "not UTF-8": "\\xff.png: a name",
    }
    done = mmif("study", "create", config, tmp_path / "study", code=2)
    assert words[how] in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "study").exists()


def test_full_disk_makes_no_study(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    command = f"ulimit -f 40; exec {sys.executable} -m mmif_trt study create {config} {tmp_path}/study"
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=env)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "expected" in done.stderr, done.stderr
    assert [p.name for p in tmp_path.iterdir() if "study" in p.name] == ["study.json"]


def test_other_folders_are_not_studies(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    assert "exists" in mmif("study", "create", tmp_path / "study.json", study, code=2).stderr
    assert FILE in mmif("study", "status", tmp_path, code=2).stderr
    db = sqlite3.connect(study / FILE)
    db.execute("PRAGMA user_version=2")
    db.close()
    assert "version 2" in mmif("study", "status", study, code=2).stderr
    (study / FILE).write_bytes(b"no database, but long enough to be taken for one" * 100)
    assert FILE in mmif("study", "serve", study, code=2).stderr


def test_command_line_from_simulation_to_analysis(tmp_path: Path) -> None:
    study = make_study(tmp_path, cases=5, scales=["detail", "artefacts"])
    strength = ("--strength", "secretA=1.5", "--strength", "secretC=-1.5")
    mmif("study", "simulate", study, *strength, "--seed", "3")
    assert "begun" in mmif("study", "simulate", study, code=2).stderr
    assert mmif("study", "status", study).stdout.count("finished") == 3
    said = mmif("study", "analyse", study, "-o", tmp_path / "a.html").stdout
    assert "secretA, secretB, secretC" in said and "SIMULATED" in said
    page = (tmp_path / "a.html").read_text()
    assert page.count("<svg") == 4 and "src=" not in page and "Friedman" in page and "SIMULATED" in page
    mmif("study", "export", study, "-o", tmp_path / "a.csv")
    mmif("study", "export", study, "-o", tmp_path / "a.json")
    assert "suffix" in mmif("study", "export", study, "-o", tmp_path / "a.xls", code=2).stderr
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    whole = json.loads((tmp_path / "a.json").read_text())
    assert len(rows) == len(whole["answers"]) == 3 * (1 + 20 + 20)
    assert list(rows[0]) == list(export.DICTIONARY) == list(whole["answers"][0])
    for row in rows:
        side = row[f"method_{row['answer']}"] if row["answer"] in ("left", "right") else ""
        assert row["preferred"] == (side if row["kind"] == "paired" else "")


def test_analysis_recovers_what_was_planted() -> None:
    methods = ["poor", "fair", "good"]
    c = paired.comparisons(simulate.rows(PLANTED, methods, readers=10, cases=25, seed=1), methods)
    assert len(c.won) == 10 * 25 * 3  # neither training nor repeats
    bt = paired.bradley_terry(c, bootstraps=300)
    planted = np.array([-0.9, 0.0, 0.9])
    assert list(np.argsort(bt["strength"])) == [0, 1, 2]
    assert (bt["low"] <= planted).all() and (planted <= bt["high"]).all()
    for (i, j), (_, low, high) in bt["differences"].items():
        assert low <= planted[i] - planted[j] <= high and high < 0
    assert bt["sides"].mean() == pytest.approx(PLANTED.side_bias, abs=0.25)
    _, low, high = paired.side_bias(c)["log_odds"]
    assert low <= PLANTED.side_bias <= high and low > 0
    test = paired.randomisation(c)
    assert test["overall"] < 0.001 and max(holm for _, holm in test["pairs"].values()) < 0.01


def test_sides_drawn_in_blocks_are_those_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    planted = simulate.Planted({"a": 0.3}, equal=0.3)
    c = paired.comparisons(simulate.rows(planted, list("abc"), readers=3, cases=5, seed=2), list("abc"))
    whole = paired.randomisation(c, draws=300)
    assert 0.001 < whole["overall"] < 0.999
    monkeypatch.setattr(paired, "BLOCK", 7 * len(c.won))
    assert paired.randomisation(c, draws=300) == whole


def test_a_bias_to_one_side_is_not_a_preference() -> None:
    methods = ["a", "b", "c"]
    rows = simulate.rows(simulate.Planted(side_bias=2.0), methods, readers=10, cases=15, seed=5)
    c = paired.comparisons(rows, methods)
    assert paired.randomisation(c)["overall"] > 0.05
    assert paired.side_bias(c)["p"] < 1e-6
    found = analysis.analyse(
        [{**row, "role": None, "years": None, "seconds": 5.0, "too_fast": 0} for row in rows], methods, []
    )
    assert list(found["paired"]["sides"]) == list(range(10)) and min(found["paired"]["sides"].values()) > 1
    said = analysis.sentences(found, methods)
    assert any("No difference" in line for line in said) and any("preferred a side" in line for line in said)


def compared(methods: list[str], *tallies: tuple[int, int, int, int, int]) -> paired.Comparisons:
    """tallies: (reader, left, right, times that left won, times that right won); one case each."""
    table = [
        (reader, left, right, answer)
        for reader, left, right, wins, losses in tallies
        for answer in [1.0] * wins + [0.0] * losses
    ]
    reader, left, right, won = (np.array(column) for column in zip(*table, strict=True))
    readers = sorted(set(reader.tolist()))
    return paired.Comparisons(left, right, reader, np.arange(len(won)), won, methods, readers)


def test_strengths_with_a_side_by_hand() -> None:
    # Logit of 8:2 is strength + side, logit of 4:6 (b on the left) is side - strength.
    strength, (side,) = paired.strengths(compared(["a", "b"], (0, 0, 1, 800, 200), (0, 1, 0, 400, 600)))
    up, down = np.log(80 / 20), np.log(40 / 60)
    assert strength[0] - strength[1] == pytest.approx((up - down) / 2, abs=0.01)
    assert side == pytest.approx((up + down) / 2, abs=0.01)
    never_lost, _ = paired.strengths(compared(["a", "b"], (0, 0, 1, 9, 0), (0, 1, 0, 0, 9)))
    assert 2 < never_lost[0] < 10  # large, but finite
    # A reader who only presses A says nothing of methods; his side is where the likelihood meets the prior.
    strength, (side,) = paired.strengths(compared(["a", "b"], (0, 0, 1, 9, 0), (0, 1, 0, 9, 0)))
    assert strength == pytest.approx(0, abs=1e-5)
    assert 18 / (1 + np.exp(side)) == pytest.approx(side / paired.SIDE_SD**2, rel=1e-4)


def test_without_a_side_strengths_are_those_of_choix() -> None:
    choix = pytest.importorskip("choix", reason="needs choix: pip install 'mmif-trt[dev]'")
    # The same wins from either side: the side of both readers is 0.
    tallies = [
        (0, 0, 1, 7, 3),
        (0, 1, 0, 3, 7),
        (0, 0, 2, 9, 1),
        (0, 2, 0, 1, 9),
        (1, 1, 2, 5, 4),
        (1, 2, 1, 4, 5),
    ]
    c = compared(["a", "b", "c"], *tallies)
    strength, sides = paired.strengths(c)
    assert sides == pytest.approx(0, abs=1e-7)
    assert strength == pytest.approx(
        choix.ilsr_pairwise_dense(paired.win_matrix(c), alpha=paired.ALPHA), abs=1e-5
    )


@pytest.mark.parametrize("a", [0, 1])
@pytest.mark.parametrize("opposed", [False, True])
def test_a_side_seen_more_often_names_no_winner(opposed: bool, a: int) -> None:
    b = 1 - a
    # b lies nine times in ten where the reader presses: raw wins say b, within sides a is better.
    tallies = [(0, b, a, 140, 40), (0, a, b, 20, 0)]
    if opposed:  # the other reader presses right; a side common to both would be 0
        tallies += [(1, a, b, 40, 140), (1, b, a, 0, 20)]
    c = compared([*("ab" if a == 0 else "ba")], *tallies)
    wins = paired.win_matrix(c)
    assert wins[b, a] > wins[a, b]
    strength, sides = paired.strengths(c)
    assert strength[a] > strength[b] and sides[0] > 1
    assert not opposed or sides[1] == pytest.approx(-sides[0])
    test = paired.randomisation(c)
    assert test["net"][0, 1] * (b - a) == pytest.approx(32 if opposed else 16)
    p = {
        "bradley_terry": {"strength": strength},
        "sides": dict(zip(c.readers, sides, strict=True)),
        "test": test,
        "side": paired.side_bias(c),
        "agreement": {"within": {}},
        "tally": {(0, 1): analysis._tally(c, 0, 1)},
    }
    said = " ".join(analysis.sentences({"readers": [], "paired": p}, c.methods))
    assert ("a was not shown to differ from b (60 to 140", "(120 to 280")[opposed] in said
    odds = [f"{x:.2f}" for x in np.exp(np.sort(sides))]
    assert f"equal methods are {' to '.join(odds)}; " in said


@pytest.mark.parametrize(
    ("strength", "holm", "net", "expected"),
    [
        ([1.0, 0.0, -1.0], (0.01, 0.01, 0.5), 3.0, "Best: a."),
        ([-1.0, 0.0, 1.0], (0.5, 0.01, 0.01), -3.0, "Best: c."),
        ([1.0, 0.0, -1.0], (0.2, 0.01, 0.01), 3.0, "No single best method was shown."),
        ([0.0, 1.0, -1.0], (0.01, 0.01, 0.5), 3.0, "no order is given"),
    ],
)
def test_a_best_method_is_named_only_where_the_test_supports_it(
    strength: list[float], holm: tuple[float, ...], net: float, expected: str
) -> None:
    pairs = [(0, 1), (0, 2), (1, 2)]
    test = {"pairs": {p: (q, q) for p, q in zip(pairs, holm, strict=True)}, "net": dict.fromkeys(pairs, net)}
    found = {"bradley_terry": {"strength": np.array(strength)}, "test": test}
    assert expected in analysis._order(found, list("abc"))


def test_figures_of_small_tables_by_hand() -> None:
    def row(
        reader: int, position: int, left: str, right: str, answer: str, repeat_of: int | None = None
    ) -> dict[str, Any]:
        preferred = {"left": left, "right": right}.get(answer, "equal")
        own = {
            "reader": reader,
            "position": position,
            "case": "x",
            "kind": "paired",
            "final": 1,
            "training": 0,
        }
        return {
            **own,
            "method_left": left,
            "method_right": right,
            "answer": answer,
            "preferred": preferred,
            "repeat_of": repeat_of,
        }

    rows = [
        row(1, 1, "a", "b", "left"),
        row(1, 2, "b", "a", "right", 1),
        row(2, 1, "b", "a", "equal"),
        row(2, 2, "a", "b", "right", 1),
    ]
    c = paired.comparisons(rows, ["a", "b"])
    assert paired.win_matrix(c).tolist() == [[0, 1.5], [0.5, 0]]
    assert paired.agreement(rows)["within"] == {1: (1, 1), 2: (0, 1)}


def test_scales_and_power() -> None:
    methods = ["poor", "fair", "good"]
    rows = simulate.rows(PLANTED, methods, readers=6, cases=20, seed=2, kinds=("scale",))
    found = scales.analyse(rows, "detail", methods)
    assert found["counts"].sum() == 6 * 20 * 3 and found["medians"] == sorted(found["medians"])
    assert found["test"]["p"] < 0.001 and 0 < found["test"]["w"] <= 1
    assert 1 < found["odds"][0][1] < found["odds"][1][1]  # fair, then good, against poor
    assert found["icc"][1] < found["icc"][0] < found["icc"][2] and 0 < found["alpha"] < 1
    c = paired.comparisons(simulate.rows(PLANTED, methods, readers=6, cases=20, seed=2), methods)
    wanted = power.needed(c, 0, 2)
    assert wanted is not None and wanted["share"] < 0.5
    numbers = [n for n in wanted["cases"].values() if n is not None]
    assert numbers == sorted(numbers, reverse=True)


def test_analysis_of_next_to_nothing(tmp_path: Path) -> None:
    study = make_study(tmp_path, cases=1, scales=["detail"], methods=METHODS[:2])
    assert "No comparison" in mmif("study", "analyse", study, "-o", tmp_path / "a.html").stdout
    store = Store(study)
    store.begin(1, "", None)
    for item in store.items(1)[:3]:
        said = "left" if item.kind == "paired" else '{"detail": 3}'
        store.answer(
            1, item.position, store.show(1, item.position), said, visible_s=1.0, view="{}", revise=False
        )
    assert "reader(s)" in mmif("study", "analyse", study, "-o", tmp_path / "a.html").stdout


@pytest.mark.nightly
def test_type_one_error() -> None:
    """200 studies in which no method is better, with a bias to a side: 5 % may look otherwise.

    Bounds: 99.9 % of the binomial distribution of 200 draws at 5 %.
    """
    methods = ["a", "b", "c"]
    nothing = simulate.Planted(side_bias=0.4, equal=0.2)
    found = {"paired": 0, "scale": 0, "interval": 0}
    for seed in range(200):
        rows = simulate.rows(nothing, methods, readers=6, cases=12, seed=seed, kinds=("paired", "scale"))
        c = paired.comparisons(rows, methods)
        found["paired"] += paired.randomisation(c, seed, draws=1000)["overall"] < 0.05
        test = scales.analyse(rows, "detail", methods)["test"]
        found["scale"] += test is not None and test["p"] < 0.05
        bounds = paired.bradley_terry(c, seed, bootstraps=100)["differences"].values()
        found["interval"] += any(low > 0 or high < 0 for _, low, high in bounds)
    print(found)
    assert 2 <= found["paired"] <= 21 and 2 <= found["scale"] <= 21
    assert found["interval"] <= 21  # wide on purpose; three intervals per study
