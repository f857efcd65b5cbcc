"""--network on every command that fuses: the network asked for runs, and what is written names it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pages
import pytest
from phantoms import affine_of, grid, head, uptake, write_mr, write_nifti, write_pet

from mmif_trt import Fuser, cli, io, sample, weights
from mmif_trt.cli import main
from mmif_trt.image import Image
from mmif_trt.stages.normalise import as_rgb8

QUALITY = ["--network", "lagn-quality"]
FP32 = ["--precision", "fp32"]
DIGEST = weights.onnx_sha256("lagn-quality")
SHAPE, AFFINE = (3, 36, 40), affine_of("SPL", (6, 4, 4), (3, 36, 40))


@pytest.fixture(scope="module")
def fusers() -> dict[str, Fuser]:
    return {name: Fuser("openvino", "fp32", 1, network=name) for name in weights.NAMES}


@pytest.fixture(autouse=True)
def fuser(fusers: dict[str, Fuser], monkeypatch: pytest.MonkeyPatch) -> Fuser:
    """Commands get a Fuser that is loaded already, of the network that they ask for; here that of QUALITY."""

    def loaded(
        runtime: str = "", precision: str = "", threads: Any = 1, streams: int = 1, network: str = "lagn"
    ) -> Fuser:
        return fusers[network]

    monkeypatch.setattr("mmif_trt.fuser.Fuser", loaded)
    return fusers["lagn-quality"]


@pytest.fixture
def pairs(tmp_path: Path) -> tuple[str, str]:
    """Two folders of one pair each."""
    rng = np.random.default_rng(0)
    for side in "ab":
        (tmp_path / side).mkdir()
        io.write(tmp_path / side / "x.png", Image(rng.integers(0, 255, (32, 48), dtype=np.uint8)))
    return str(tmp_path / "a"), str(tmp_path / "b")


@pytest.fixture
def cases(tmp_path: Path) -> str:
    write_nifti(tmp_path / "mri.nii", head(grid(AFFINE, SHAPE)), AFFINE)
    write_nifti(tmp_path / "pet.nii", uptake(grid(AFFINE, SHAPE)), AFFINE)
    heading = "name,a,b,modality_b,low_a,high_a,low_b,high_b"
    (tmp_path / "list.csv").write_text(f"{heading}\ncase,mri.nii,pet.nii,pet,0,1000,0,1000\n")
    return str(tmp_path / "list.csv")


def option(parser: argparse.ArgumentParser, name: str) -> argparse.Action | None:
    return next((action for action in parser._actions if name in action.option_strings), None)


def test_every_command_that_fuses_has_it() -> None:
    found = {name: option(parser, "--network") for name, parser in pages.tables().parsers(cli._parser())}
    chosen = {name for name, action in found.items() if action}
    assert chosen == {"fuse", "eval", "info", "batch", "plan", "node", "demo", "study demo"}
    runs = {name for name, parser in pages.tables().parsers(cli._parser()) if option(parser, "--precision")}
    assert runs < chosen, "what chooses how a network runs also chooses which"
    for action in filter(None, found.values()):
        assert tuple(action.choices or ()) == tuple(weights.manifest()["models"])
        assert action.default == weights.DEFAULT


@pytest.mark.parametrize("command", ["fuse a b -o c", "batch x -o y", "plan x -o y", "demo x", "info"])
def test_an_unknown_network_is_a_usage_error(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--network", "unet"])
    told = capsys.readouterr().err
    assert ended.value.code == 2 and "'unet'" in told and "lagn-quality" in told and told.count("\n") == 1


def test_fuse_of_pictures(
    pairs: tuple[str, str], fuser: Fuser, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fuse", *pairs, *FP32, "-o", str(tmp_path / "out"), "--report", str(tmp_path / "r.json")]
    assert main([*words, *QUALITY]) == 0
    assert "pairs/s by lagn-quality, openvino fp32 on CPU" in capsys.readouterr().err
    expected = fuser(io.read(f"{pairs[0]}/x.png"), io.read(f"{pairs[1]}/x.png"))
    made = tmp_path / "out" / "x.png"
    np.testing.assert_array_equal(io.read(made).data, expected.data)
    assert f"LAGN-quality, weights sha256 {DIGEST}".encode() in made.read_bytes()
    assert list(json.loads((tmp_path / "r.json").read_text())["weights"]) == ["lagn-quality"]
    before = made.read_bytes()
    assert main([*words, "--overwrite"]) == 0
    assert "pairs/s by openvino fp32 on CPU" in capsys.readouterr().err
    assert list(json.loads((tmp_path / "r.json").read_text())["weights"]) == ["lagn"]
    assert made.read_bytes() != before and b"fused by LAGN, weights" in made.read_bytes()


def test_fuse_of_volumes_to_dicom(tmp_path: Path) -> None:
    import pydicom

    write_mr(tmp_path / "mr", AFFINE, SHAPE)
    write_pet(tmp_path / "pt", AFFINE, SHAPE)
    words = ["fuse", str(tmp_path / "mr"), str(tmp_path / "pt"), *FP32, *QUALITY, "--quiet"]
    assert main([*words, "-o", str(tmp_path / "x.dcm"), "--report", str(tmp_path / "r.json")]) == 0
    made = pydicom.dcmread(tmp_path / "x.dcm")
    (equipment,) = made.ContributingEquipmentSequence
    assert "luma fused by LAGN-quality from MRI and pet" in made.DerivationDescription
    assert DIGEST in equipment.ContributionDescription
    assert list(json.loads((tmp_path / "r.json").read_text())["weights"]) == ["lagn-quality"]


def test_batch_does_not_mix_networks(cases: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["batch", cases, "-o", str(out), "--runtime", "openvino", *FP32, "--quiet"]

    def record() -> Any:
        return json.loads((out / "case.json").read_text())

    assert main(words) == 0
    first, told = (out / "case.nii").read_bytes(), record()
    assert told["asked"]["network"] == "lagn" and list(told["weights"]) == ["lagn"]
    assert main([*words, *QUALITY]) == 2
    assert "other options, such as case (network lagn, now lagn-quality" in capsys.readouterr().err
    assert (out / "case.nii").read_bytes() == first
    assert main([*words, *QUALITY, "--overwrite"]) == 0
    assert (out / "case.nii").read_bytes() != first and DIGEST.encode() in (out / "case.nii").read_bytes()
    now = record()
    assert now["asked"]["network"] == "lagn-quality" and list(now["weights"]) == ["lagn-quality"]
    assert now["asked"]["weights"]["lagn-quality.onnx"] == DIGEST
    made = (out / "case.nii").stat().st_mtime_ns
    assert main([*words, *QUALITY]) == 0 and (out / "case.nii").stat().st_mtime_ns == made, "it is done"
    # A record of a version before the second network says no name: it was the default.
    del told["asked"]["network"]
    (out / "case.json").write_text(json.dumps(told))
    assert main([*words, "--dry-run"]) == 0 and "(done)" in capsys.readouterr().out


def test_a_plan_keeps_its_network(cases: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, out = tmp_path / "plan", tmp_path / "out"
    assert main(["plan", cases, "-o", str(plan), "--runtime", "openvino", *FP32, *QUALITY]) == 0
    assert ", lagn-quality by openvino fp32 ->" in capsys.readouterr().err
    words = ["batch", str(plan), "-o", str(out), "--quiet"]
    assert main([*words, *QUALITY]) == 2
    assert "a plan says how its cases are fused" in capsys.readouterr().err
    assert main(words) == 0
    assert json.loads((out / "case.json").read_text())["asked"]["network"] == "lagn-quality"
    head_file = plan / "plan-1-of-1.json"
    whole = json.loads(head_file.read_text())
    head_file.write_text(json.dumps({**whole, "run": {**whole["run"], "network": "unet"}}))
    assert main(words) == 2
    said = "plan-1-of-1.json: network 'unet'; expected lagn, lagn-quality"
    assert said in capsys.readouterr().err
    del whole["run"]["network"]
    head_file.write_text(json.dumps({**whole, "format": 1}))
    assert main([*words, "--dry-run"]) == 0
    assert "network lagn-quality, now lagn" in capsys.readouterr().out, "a plan of before had the default"


def test_demo_study_and_info(
    fuser: Fuser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mmif_trt.commands import demo

    monkeypatch.setattr(demo, "WARM_RUNS", 1)
    expected = fuser.fuse_images(*sample("mri-spect"))
    assert main(["demo", str(tmp_path / "demo"), *QUALITY]) == 0
    np.testing.assert_array_equal(io.read(tmp_path / "demo" / "mri-spect.png").data, expected.data)
    assert "pixels to pixels, lagn-quality, openvino fp32 on CPU" in capsys.readouterr().out
    pytest.importorskip("jinja2")
    assert main(["study", "demo", str(tmp_path / "s"), "--no-serve", *QUALITY]) == 0
    assert "LAGN-quality, average and maximum" in capsys.readouterr().out
    (one, *_) = json.loads((tmp_path / "s" / "study.json").read_text())["sets"][2:]
    assert list(one["methods"]) == ["LAGN-quality", "average", "maximum"]
    shown = io.read(tmp_path / "s" / one["methods"]["LAGN-quality"] / "sample.png").data
    np.testing.assert_array_equal(shown, as_rgb8(expected))
    assert main(["info", *QUALITY]) == 0
    told = capsys.readouterr().out
    assert "network: lagn-quality, of lagn, lagn-quality" in told
    assert all(f"weights {name} of " in told for name in weights.NAMES)


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "jp2"])
def test_pictures_of_another_network_are_kept_and_named(
    pairs: tuple[str, str], tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report = tmp_path / "out", tmp_path / "report.json"
    call = ["fuse", *pairs, "-o", str(out), "--format", suffix, *FP32, "--report", str(report)]
    assert main(call) == 0
    written = (out / f"x.{suffix}").read_bytes()
    capsys.readouterr()
    assert main(call) == 0
    assert "warning" not in capsys.readouterr().err
    assert main([*call, *QUALITY]) == 0
    warning = "warning: 1 skipped were fused by other weights, such as x; use --overwrite to redo"
    assert warning in capsys.readouterr().err
    assert (out / f"x.{suffix}").read_bytes() == written
    (entry,) = json.loads(report.read_text())["pairs"]
    assert entry["status"] == "skipped" and "other weights" in entry["message"]
    Path(out / f"x.{suffix}").write_bytes(b"edited, or of another program")
    assert main([*call, *QUALITY]) == 0
    assert "warning" not in capsys.readouterr().err
