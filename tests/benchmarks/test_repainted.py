"""benchmarks/repainted: the same uptake in other palettes, and the rows of every method under each."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scenery
from conftest import REPO

from mmif_trt import io, weights
from mmif_trt.image import Image
from mmif_trt.stages import palettes

sys.path.insert(0, str(REPO / "benchmarks"))

pytest.importorskip("torch", reason="needs the train extra")
repainted = pytest.importorskip("repainted")


def test_uptake_stays_and_its_colours_are_the_palettes() -> None:
    ramp = scenery.ramp_palette()
    pairs = [(f"case1_{i}", scenery.mri(i), scenery.tracer(ramp, i)) for i in range(2)]
    shown = dict(repainted.repainted(pairs))
    assert list(shown) == [repainted.OWN, *palettes.PALETTES, repainted.GREY]
    assert shown[repainted.OWN] == pairs
    (_, a, before), (_, same, iron), (_, _, grey) = (shown[k][1] for k in (repainted.OWN, "HOT_IRON", "grey"))
    assert np.array_equal(a, same) and iron.dtype == np.uint8
    table = {tuple(colour) for colour in np.rint(255 * palettes.table("HOT_IRON")).astype(int).tolist()}
    assert {tuple(colour) for colour in iron.reshape(-1, 3).tolist()} <= table | {(0, 0, 0)}
    assert (grey[..., 0] == grey[..., 1]).all() and (grey[..., 0] == grey[..., 2]).all()
    assert not iron[before.max(2) <= repainted.BLACK].any(), "black stays black"
    true = scenery.uptake(1)[before.max(2) > repainted.BLACK]
    assert np.corrcoef(true, grey[before.max(2) > repainted.BLACK][:, 0])[0, 1] > 0.99


def test_rows_of_every_palette_and_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(split: str, stem: str, number: int) -> None:
        pictures = {"mri": scenery.mri(number), "pet": scenery.tracer(scenery.ramp_palette(), number)}
        for kind, pixels in pictures.items():
            folder = tmp_path / "mri-pet" / split / kind
            folder.mkdir(parents=True, exist_ok=True)
            io.write(folder / f"{stem}.png", Image(pixels), durable=False)

    write("val", "case9_1", 1)
    write("train", "case25_1", 2)
    write("train", "case30_1", 3)
    settings: dict[str, Any] = {"SETS": ("mri-pet",), "PAIRS": 1, "PER_KIND": 1}
    settings["SHOWN"] = (repainted.OWN, "PET", "grey")
    for name, value in settings.items():
        monkeypatch.setattr(repainted, name, value)
    monkeypatch.setattr(repainted.heldout, "END_SLICES", {})
    assert [name for name, *_ in repainted.heldout.pairs_of(tmp_path, "mri-pet", 1)] == ["case25_1"]
    out = ["--out", str(tmp_path / "rows.json")]
    assert repainted.main(["score", "--data", str(tmp_path), *out]) == 0
    result = json.loads((tmp_path / "rows.json").read_text())
    assert result["split"] == "validation" and list(result["sets"]["mri-pet"]) == list(settings["SHOWN"])
    for rows in result["sets"]["mri-pet"].values():
        assert list(rows) == ["average", "max", *weights.NAMES]
        assert all(0 <= row["lesions"] <= 1 for row in rows.values())
    assert repainted.main(["table", *out]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(lines) == 2 + 3 * 4 and len({line.count("|") for line in lines}) == 1
    assert (
        lines[-1].startswith("| grey | LAGN-quality |")
        and lines[-1].count("|  |") + lines[-1].count("  |") > 0
    )
    assert repainted.main(["score", "--data", str(tmp_path), "lagn", *out]) == 2
    assert "expected NAME=CHECKPOINT" in capsys.readouterr().err
