"""The benchmark of the registration: pairs with a truth, counts of them, and what the pages say of them."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import REPO

from mmif_trt.stages import geometry
from mmif_trt.stages.geometry import rigid

sys.path.insert(0, str(REPO / "benchmarks"))

import registration


def test_pairs_are_the_same_each_time_and_truth_is_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("scipy", reason="needs scipy")
    one, again = (list(registration.pairs(103, 7)) for _ in range(2))
    for (what, a, b, truth), other in zip(one, again, strict=True):
        np.testing.assert_array_equal(b.data, other[2].data)
        if what["b"] == "ct":  # bright at the edge only: no correlation
            continue
        moved = geometry.align(a, b, geometry.Stated(truth))[0].data
        unmoved = geometry.align(a, b, geometry.Stated(np.eye(4)))[0].data
        inside, aside = (np.corrcoef(a.data.ravel(), x.ravel())[0, 1] for x in (moved, unmoved))
        assert inside > aside, what

    def register(a: Any, b: Any) -> tuple[np.ndarray, geometry.Report]:
        shifted = one[0][3].copy()
        shifted[0, 3] += 4
        return shifted, geometry.Report("rigid", [], repeatability_mm=3.5)

    monkeypatch.setattr(geometry, "register_rigid", register)
    (row,) = registration.measured(103, 1)
    assert row["error_mm"] == pytest.approx(4) and row["repeatability_mm"] == 3.5


def test_failures_warnings_and_false_alarms_are_counted() -> None:
    rows = [
        {"error_mm": error, "repeatability_mm": apart, "cpu_s": 1.0}
        for error, apart in ((5.1, 3.1), (5.1, 3.0), (5.0, 3.1), (3.0, 3.1), (3.0, 3.0), (3.1, 9.0))
    ]
    found = registration.summary(rows)
    assert (found["pairs"], found["failures"], found["warned"]) == (6, 2, 1)
    assert (found["good"], found["false_alarms"], found["covered"]) == (2, 1, 3)


def test_the_pages_say_what_was_measured() -> None:
    result = json.loads(registration.RESULT.read_text())
    assert not result["phantoms"]["conditions"]["uncommitted_changes"]
    rows = result["phantoms"]["rows"]
    counts = registration.summary(rows)
    page = (REPO / "docs" / "how-it-works.md").read_text()
    text = " ".join(page.split())
    said = re.search(
        r"On (\d+) pairs .*? (\d+) registrations \((\d+)%\) were wrong by more than 5 mm \(up to (\d+) mm\)"
        r".*? so for (\d+) of these (\d+), .*? (\d+) of the (\d+) that were within 3 mm"
        r".*? at least the largest error in (\d+) of the",
        text,
    )
    assert said, "docs/how-it-works.md does not state the failures"
    share = round(100 * counts["failures"] / counts["pairs"])
    names = ("warned", "failures", "false_alarms", "good", "covered")
    expected = [counts["pairs"], counts["failures"], share, round(counts["worst_mm"])]
    assert [int(x) for x in said.groups()] == [*expected, *(counts[name] for name in names)]
    fields = {"head, noise": "whole", "top 70 mm": "truncated", "box of 60": "small"}
    for row in re.findall(r"^\| covers (.*?) \| (\d+) \| (\d+) \|$", page, re.MULTILINE):
        (field,) = (name for words, name in fields.items() if words in row[0])
        some = [x for x in rows if x["field"] == field]
        if field == "whole":
            some = [x for x in some if (x["noise"] == 10) is ("10%" in row[0])]
        assert [int(x) for x in row[1:]] == [len(some), registration.summary(some)["failures"]], row
    assert f"in {share}% of the pairs" in (REPO / "docs" / "guides" / "volumes.md").read_text()
    assert registration.table(result) in (REPO / "benchmarks" / "README.md").read_text()


@pytest.mark.parametrize(("seed", "number", "most_mm"), [(103, 3, 3.0), (104, 10, 1.5)])
def test_pairs_that_failed_are_registered(seed: int, number: int, most_mm: float) -> None:
    """Coarse and noisy ones: too few voxels at the first resolutions, or too little smoothing."""
    pytest.importorskip("scipy", reason="needs scipy")
    _, a, b, truth = list(registration.pairs(seed, number + 1))[number]
    matrix, _ = geometry.register_rigid(a, b)
    assert registration.farthest(registration.BOX, matrix, truth) < most_mm


@pytest.mark.parametrize("scale", [1.0, 0.03])
def test_the_second_run_starts_elsewhere(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs from one start agreed on the same wrong place. A small volume is less than 14 mm wide, and is
    registered at a head's size."""
    pytest.importorskip("scipy", reason="needs scipy")
    ends, descend = list[np.ndarray](), rigid.descend

    def stays(*args: Any) -> Any:
        found = descend(*args)
        ends.append(found[0])
        return found

    monkeypatch.setattr(rigid, "descend", stays)
    monkeypatch.setattr(rigid, "_STEP_MM", (1e-6, 1e-7))  # so that it ends where it starts
    _, a, b, _ = next(registration.pairs(103, 1))
    smaller = np.diag([scale, scale, scale, 1])
    a, b = (replace(x, affine=smaller @ x.affine) for x in (a, b))
    geometry.register_rigid(a, b)
    apart = np.linalg.norm(((ends[0] - ends[1]) @ registration.BOX.T)[:3], axis=0).max()
    np.testing.assert_allclose(ends[0], np.eye(4), atol=1e-3)
    assert 10 < apart < 40
