"""benchmarks/card_report keeps everything that a card's archives hold, and reports a failed step."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO

NCU_LOG = """==PROF== talk
"ID","Kernel Name","gpu__time_duration.sum","launch__registers_per_thread","other"
"","","us","register/thread",""
"0","void unnamed>::fusion_loss_fwd_kernel<0>(FusionLossParams, C","49.1","86","1"
"""


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    return __import__("card_report")


def archive(path: Path, steps: list[dict[str, Any]], files: dict[str, str]) -> Path:
    index = {"part": "first", "device": "cuda", "card": "9.0", "seconds": 3, "steps": steps}
    with tarfile.open(path, "w:gz") as tar:
        for name, text in {"index.json": json.dumps(index), **files}.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


def test_the_archives_are_shown(card: Any, tmp_path: Path) -> None:
    title = {"op": "fusion_loss", "dtype": "float32", "output": "d_f", "plain_error": 1e-7}
    rows = [
        {**title, "case": [1], "error": 3e-8, "passes": True},
        {**title, "case": [2], "error": 5e-3, "passes": False},
    ]
    steps = [
        {"name": "correct", "exit": 1, "seconds": 1, "limit_s": 9, "json": "correct.json"},
        {"name": "tests", "exit": None, "seconds": 0, "limit_s": 9, "json": None},
        {"name": "ncu_rows", "exit": 0, "seconds": 1, "limit_s": 9, "json": None},
    ]
    files = {"correct.json": json.dumps({"rows": rows}), "ncu_rows.log": NCU_LOG}
    part = card.read_part(archive(tmp_path / "first.tar.gz", steps, files))
    kept = json.loads(json.dumps({"parts": [part]}))
    said = card.tables(kept)
    assert "correct (exit 1), tests (not begun)." in said and "ncu_rows" not in said
    assert "1 of 2 outputs within their limits" in said and "5.0e-03" in said, "the worst case is shown"
    assert "| fusion_loss_fwd_kernel<0> | 49.1 us | 86 register/thread |" in said
    assert "aim" not in said, "of a step that was not run"


def test_the_aims_take_the_best_row_of_each(card: Any) -> None:
    def row(batch: int, ms: float, mode: str, size: int = 256) -> dict[str, Any]:
        times = {"ms": {"p50": ms}, "pairs_per_s": batch * 1e3 / ms, "rival": mode}
        return {"status": "measured", "size_px": size, "batch": batch, **times}

    rows = [row(1, 0.7, "eager"), row(1, 0.4, "cuda-graph"), row(64, 8.0, "eager"), row(1, 0.1, "x", 128)]
    rows += [{"status": "refused", "size_px": 256, "batch": 256, "reason": "memory"}]
    (said,) = card.aims({"network": {"rows": rows}})
    assert "0.400 ms (cuda-graph)" in said and "8,000 pairs/s (eager, batch 64)" in said
    (said,) = card.aims({"network": {"rows": rows[4:]}})
    assert said.count("not measured") == 3, "no row to meet an aim"
