"""No command writes over a source, over another output, or over a file that is somebody else's."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import phantoms
import pytest
from conftest import REPO

from mmif_trt import overwriting
from mmif_trt.cli import main
from mmif_trt.image import InputError

AFFINE = phantoms.affine_of(shape=(6, 32, 32), spacing=(5.0, 4.0, 4.0))
RANGES = ["--value-range-a", "0", "1000", "--value-range-b", "0", "1000", "--modality-b", "pet", "--quiet"]
HEADER = "name,a,b,modality_b,low_a,high_a,low_b,high_b\n"
SAMPLES = REPO / "mmif_trt" / "samples"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """p1.nii and p1_pet.nii, in the current folder."""
    points = phantoms.grid(AFFINE, (6, 32, 32))
    phantoms.write_nifti(tmp_path / "p1.nii", np.rint(phantoms.head(points)), AFFINE, "<u2")
    phantoms.write_nifti(tmp_path / "p1_pet.nii", np.rint(phantoms.uptake(points)), AFFINE, "<u2")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def manifest(folder: Path, *names: str) -> Path:
    rows = "".join(f"{name},p1.nii,p1_pet.nii,pet,0,1000,0,1000\n" for name in names)
    (folder / "m.csv").write_text(HEADER + rows)
    return folder / "m.csv"


def refused(here: Path, capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """Runs a command that must change nothing; returns its message."""
    before = contents(here)
    assert main([str(word) for word in words]) == 2
    after = contents(here)
    assert {name: after.get(name) for name in before} == before
    return capsys.readouterr().err


def test_batch_never_meets_its_inputs_nor_itself(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest(here, "p1")
    assert "same file as the input" in refused(here, capsys, "batch", "m.csv", "-o", ".", "--quiet")
    manifest(here, "x", "x_luma")
    assert "is also the output" in refused(here, capsys, "batch", "m.csv", "-o", "out", "--quiet")
    assert not (here / "out").exists()
    (here / "out").mkdir()
    os.link(here / "p1_pet.nii", here / "out" / "y_luma.nii")  # a source under another name
    manifest(here, "y")
    assert "same file as the input" in refused(here, capsys, "batch", "m.csv", "-o", "out", "--quiet")


@pytest.mark.parametrize("foreign", ["z.nii", "z_luma.nii", "z.json"])
def test_batch_leaves_a_foreign_file_alone(
    here: Path, capsys: pytest.CaptureFixture[str], foreign: str
) -> None:
    manifest(here, "z")
    (here / "out").mkdir()
    (here / "out" / foreign).write_text('{"somebody": "else"}')
    for more in ([], ["--overwrite"]):
        said = refused(here, capsys, "batch", "m.csv", "-o", "out", "--quiet", *more)
        assert foreign in said and "no record of this program claims it" in said


def test_batch_finds_its_own_after_a_kill_and_a_failure(here: Path) -> None:
    """As a kill leaves it between the claim and the record; and a case that fails keeps its claim."""
    from mmif_trt.clinical import records
    from mmif_trt.storage import Folder

    manifest(here, "k")
    out = here / "out"
    out.mkdir()
    (out / "k_luma.nii").write_bytes(b"half of the work")
    claim = {"name": "k", "status": "writing", "message": "", "files": ["out/k.nii", "out/k_luma.nii"]}
    (out / "k.json").write_text(json.dumps(claim))
    assert main(["batch", "m.csv", "-o", "out", "--quiet"]) == 0
    assert json.loads((out / "k.json").read_text())["status"] == "done"
    (here / "p1_pet.nii").write_bytes(b"damaged")
    assert main(["batch", "m.csv", "-o", "out", "--quiet", "--overwrite", "--palette", "PET"]) == 1
    assert json.loads((out / "k.json").read_text())["status"] == "failed"
    assert records.claimed(records.Output(Folder(out), ".nii"), "k") == {"k.json", "k.nii", "k_luma.nii"}


def test_fuse_of_volumes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = ["p1.nii", "p1_pet.nii"]
    for out in ("p1.nii", "p1_pet.nii"):
        assert "same file" in refused(here, capsys, "fuse", *pair, "-o", out, "--overwrite", *RANGES)
    for option in ("--report", "--preview"):
        suffix = {"--report": "r.json", "--preview": "r.png"}[option]
        (here / suffix).unlink(missing_ok=True)
        os.symlink("p1.nii", here / suffix)
        assert "same file" in refused(here, capsys, "fuse", *pair, "-o", "o.nii", option, suffix, *RANGES)
        (here / suffix).unlink()
        (here / suffix).write_bytes(b"somebody's")
        assert "no record" in refused(here, capsys, "fuse", *pair, "-o", "o.nii", option, suffix, *RANGES)
    assert "is also the output" in refused(
        here, capsys, "fuse", *pair, "-o", "o.nii", "--preview", "./o.nii", *RANGES
    )
    (here / "o_luma.nii").write_bytes(b"somebody's")
    assert "no record" in refused(here, capsys, "fuse", *pair, "-o", "o.nii", *RANGES)
    os.rename(here / "p1.nii", here / "brain_luma.nii")
    words = ["fuse", "brain_luma.nii", "p1_pet.nii", "-o", "brain.nii", *RANGES]
    assert "same file" in refused(here, capsys, *words)


def test_fuse_of_a_dicom_folder_into_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for write, name in ((phantoms.write_mr, "mr"), (phantoms.write_pet, "pt")):
        write(tmp_path / name, AFFINE, (6, 32, 32))
    (tmp_path / "mr" / "MR0000").rename(tmp_path / "mr" / "MR0000.dcm")
    mr, pt = tmp_path / "mr", tmp_path / "pt"
    said = refused(tmp_path, capsys, "fuse", mr, pt, "-o", mr / "MR0000.dcm", "--overwrite")
    assert "same file" in said


def test_fuse_of_pictures_eval_report_and_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, sample in (("mri", "mri-pet_mri"), ("pet", "mri-pet_pet"), ("fused", "mri-pet_pet")):
        (tmp_path / "s" / name).mkdir(parents=True)
        (tmp_path / "s" / name / "a.png").write_bytes((SAMPLES / f"{sample}.png").read_bytes())
    pictures = [tmp_path / "s" / name / "a.png" for name in ("mri", "pet")]
    os.link(pictures[0], tmp_path / "r.json")
    words: list[str | Path] = ["fuse", *pictures, "-o", tmp_path / "o.png", "--report", tmp_path / "r.json"]
    assert "same file" in refused(tmp_path, capsys, *words)
    fused = tmp_path / "s" / "fused"
    for name, tool in (("t.csv", "eval"), ("t.html", "report")):
        (tmp_path / name).write_text("somebody's,table\n")
        own = [fused] if tool == "eval" else ["--method", f"x={fused}"]
        said = refused(tmp_path, capsys, tool, tmp_path / "s", *own, "-o", tmp_path / name)
        assert "no record" in said
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "mri-ct.png").write_bytes(b"somebody's")
    assert "no record" in refused(tmp_path, capsys, "demo", tmp_path / "demo")


def test_what_counts_as_ours(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"mmif_trt": "0.1.0"}')
    (tmp_path / "b.csv").write_text("method,name,mi\n")
    (tmp_path / "c").write_text("else")
    assert overwriting.is_ours(str(tmp_path / "a.json"))
    assert overwriting.is_ours(str(tmp_path / "b.csv"), b"method,name,")
    assert not overwriting.is_ours(str(tmp_path / "c"))
    with pytest.raises(InputError, match="same file"):
        overwriting.check([tmp_path], [tmp_path / "c"])
    overwriting.check([tmp_path / "a.json"], [tmp_path / "new", tmp_path / "c"])
