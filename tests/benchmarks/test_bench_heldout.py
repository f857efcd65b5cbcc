"""The benchmark that chooses weights on training cases: the mixed weights, the held-out cases and the
rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import scenery
from conftest import REPO
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mmif_trt import io, weights
from mmif_trt.image import Image

sys.path.insert(0, str(REPO / "benchmarks"))

torch = pytest.importorskip("torch", reason="needs the train extra")
heldout = pytest.importorskip("heldout")
RELEASED = str(weights.verified_path("lagn", "safetensors"))


def test_weights_are_mixed_in_the_given_shares(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    released = heldout.weights(RELEASED)
    save_file({f"average.{k}": 3 * v for k, v in released.items()}, tmp_path / "c.safetensors")
    mixed = heldout.weights(f"0.25*{RELEASED}+0.75*{tmp_path}/c.safetensors")
    assert mixed.keys() == released.keys()
    for key, value in released.items():
        torch.testing.assert_close(mixed[key], 2.5 * value)


def test_a_row_covers_the_held_out_cases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ("train/case34_1", "train/case37_1", "train/case20_1", "val/case41_1")
    for number, (split, name) in enumerate(file.split("/") for file in files):
        for kind, pixels in (("mri", scenery.mri(number)), ("ct", scenery.ct(number))):
            folder = tmp_path / "data/mri-ct" / split / kind
            folder.mkdir(parents=True, exist_ok=True)
            io.write(folder / f"{name}.png", Image(pixels), durable=False)
    for name, value in (("SETS", ("mri-ct",)), ("PAIRS", 2), ("PER_KIND", 1)):
        monkeypatch.setattr(heldout, name, value)
    assert {one.name for one in heldout.planted_of(tmp_path / "data", "mri-ct")} == {"case34_1", "case37_1"}
    out = ["--out", str(tmp_path / "rows.json")]
    assert heldout.main(["score", "--data", str(tmp_path / "data"), f"ours={RELEASED}", *out]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert rows.keys() == {"max", "ours"} and rows["max"]["mri-ct"] != rows["ours"]["mri-ct"]
    assert np.isfinite([rows["ours"]["mri-ct"][key] for key in ("lesions", "soft", "SSIM2")]).all()
    ours = ["--validation", "--data", str(tmp_path / "data"), f"ours={RELEASED}"]
    assert heldout.main(["score", *ours, *out]) == 0
    both = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert (
        both.keys() == rows.keys() | {"max, validation", "ours, validation"} and both["ours"] == rows["ours"]
    )
    assert both["ours, validation"]["mri-ct"] != rows["ours"]["mri-ct"]
    assert heldout.main(["table", *out]) == 0 and "over the maximum" in capsys.readouterr().out
    (tmp_path / "data/mri-ct/train/mri/case34_1.png").unlink()
    (tmp_path / "data/mri-ct/train/mri/case37_1.png").unlink()
    assert heldout.main(["score", "--data", str(tmp_path / "data"), f"ours={RELEASED}", *out]) == 2
    assert "expected the cases held out" in capsys.readouterr().err


def test_a_network_that_saw_the_cases_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The guide's example held out two of the five, and a training without --hold-out none."""
    with safe_open(RELEASED, "pt") as file:
        model = json.loads(file.metadata()["config"])
    some, path = ["ct:case37", "pet:case25"], str(tmp_path / "checkpoint.safetensors")
    save_file(load_file(RELEASED), path, {"config": json.dumps({"model": model, "hold_out": some})})
    told = ["score", "--data", "none", "--out", str(tmp_path / "out"), f"ours=0.5*{RELEASED}+0.5*{path}"]
    assert heldout.main(told) == 2
    assert (
        "trained on ct:case34 spect:case15 spect:case40; expected --hold-out ct:" in capsys.readouterr().err
    )
    assert heldout.main([*told, "--validation"]) == 2
    assert "trained on" not in capsys.readouterr().err, "those are of nobody's training"


def test_a_missing_checkpoint_is_named_with_its_argument(capsys: pytest.CaptureFixture[str]) -> None:
    told = f"ours=0.5*{RELEASED}+0.5*missing.safetensors"
    assert heldout.main(["score", "--data", "none", told]) == 2
    said = capsys.readouterr().err
    assert told in said and "'missing.safetensors' is not a file; expected a checkpoint" in said
    for other in (weights.FOLDER / "autoencoder.safetensors", __file__):  # were tracebacks
        assert heldout.main(["score", "--data", "none", f"ours={other}"]) == 2
        assert f"ours={other}: holds no network of ours; expected a ch" in capsys.readouterr().err
