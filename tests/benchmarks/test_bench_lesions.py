"""The benchmark of lesions: its rows from pictures, peers beside them, and the tables in the pages."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import scenery
from conftest import REPO

from mmif_trt import io
from mmif_trt.image import Image

sys.path.insert(0, str(REPO / "benchmarks"))

import lesions

PEER = """
import torch

class Copy(torch.nn.Module):
    def forward(self, mri, other):
        return mri
"""


def test_from_pictures_to_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="needs the train extra")
    for number in range(2):
        for kind, pixels in (("mri", scenery.mri(number)), ("ct", scenery.ct(number))):
            folder = tmp_path / "data/mri-ct/val" / kind
            folder.mkdir(parents=True, exist_ok=True)
            io.write(folder / f"case{number}.png", Image(pixels), durable=False)
    (tmp_path / "peer.py").write_text(PEER)
    out = ["--out", str(tmp_path / "l.json")]
    told = ["score", "--data", str(tmp_path / "data"), "--sets", "mri-ct", "--per-kind", "2", *out]
    assert lesions.main(told) == 0
    assert lesions.main([*told, "--peer", f"Copy={tmp_path}/peer.py:Copy", "--every", "2"]) == 0
    before = json.loads((tmp_path / "l.json").read_text())["sets"]["mri-ct"]["methods"]
    assert lesions.main([*told, "--network", "lagn-quality"]) == 0
    entry = json.loads((tmp_path / "l.json").read_text())["sets"]["mri-ct"]
    assert list(entry["methods"]) == ["LAGN", "average", "overlay70", "max", "Copy", "LAGN-quality"]
    assert {name: entry["methods"][name] for name in before} == before, "the other rows stay"
    assert entry["methods"]["LAGN-quality"]["by_lesion"] != entry["methods"]["LAGN"]["by_lesion"]
    copy, count = entry["methods"]["Copy"], len(entry["planted"])
    assert count == 12 == len(copy["by_lesion"]) and copy["pairs"] == 1
    assert [row is None for row in copy["by_lesion"]] == [row[0] == "case1" for row in entry["planted"]]
    assert copy["share"].get("CT bright", 0) == 0 and copy["fidelity"]["soft"] == 1
    for brief, name in ((False, "lesions"), (True, "lesions-brief")):
        page = tmp_path / f"{name}.md"
        begin, end = lesions.MARKERS[name]
        page.write_text(f"before\n{begin}\nstale\n{end}\nafter\n")
        for _ in range(2):
            assert lesions.main(["table", *out, "--write", str(page)]) == 0
        assert "| 50 % overlay |" in page.read_text() and "stale" not in page.read_text(), brief
        assert "| LAGN-quality (ours) |" in page.read_text()
    capsys.readouterr()
    for more in (["--peer", f"Copy={tmp_path}/peer.py:Copy"], ["--network", "lagn-quality"]):
        assert lesions.main([*told[:-2], "--per-kind", "1", *out, *more]) == 2
        assert "has other lesions" in capsys.readouterr().err
    assert lesions.main([*told, "--places", "1"]) == 2
    assert "lesions at --places 5; expected another --out" in capsys.readouterr().err


@pytest.mark.parametrize("rows, pages", [("lesions", 2), ("lesions_anywhere", 1)])
def test_the_pages_show_the_committed_figures(rows: str, pages: int) -> None:
    report = lesions.load(REPO / f"benchmarks/results/{rows}.json")
    for page in lesions.PAGES[-pages:]:
        text = page.read_text()
        assert text == lesions.filled(text, report, page), "run: python benchmarks/lesions.py table --write"
