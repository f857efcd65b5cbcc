"""batch on a BIDS data set: its pairs, and a derived data set that the official validator accepts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from phantoms import affine_of, grid, head, uptake, write_nifti

from mmif_trt.cli import main
from mmif_trt.clinical import bids, planning
from mmif_trt.image import InputError

SHAPE = (18, 20, 18)
AFFINE = affine_of("SAL", (10, 10, 10), SHAPE)
HOW = ["--percentiles-a", "1", "99", "--percentiles-b", "1", "99", "--quiet"]
FILES = (
    "sub-01/ses-1/anat/sub-01_ses-1_acq-3d_T1w",
    "sub-01/ses-1/anat/sub-01_ses-1_T2w",
    "sub-01/ses-1/pet/sub-01_ses-1_trc-FDG_pet",
    "sub-01/ses-1/ct/sub-01_ses-1_ct",
    "sub-01/ses-2/pet/sub-01_ses-2_pet",
    "sub-02/anat/sub-02_FLAIR",
    "sub-02/pet/sub-02_pet",
    "sub-03/anat/sub-03_T1w",
    "sub-03/anat/sub-03_bold",
    "derivatives/other/sub-01/anat/sub-01_T1w",
)


def dataset(root: Path) -> Path:
    points = grid(AFFINE, SHAPE)
    for name in FILES:
        path = root / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_nifti(path, uptake(points) if "_pet" in name else head(points), AFFINE)
    (root / "dataset_description.json").write_text('{"Name": "heads", "BIDSVersion": "1.10.0"}')
    return root


def test_pairs_of_a_session(tmp_path: Path) -> None:
    root = dataset(tmp_path / "raw")
    (root / "sub-02/anat/sub-02_part-imag_T1w.nii.gz").touch()  # of a complex image: no anatomy
    (root / f"{FILES[2]}.nii").touch()
    found, left = planning.plan(str(root), bytes(32))
    assert [case.name for case in found] == [
        "sub-01_ses-1_acq-3d_desc-fusedpettrcFDG_T1w",
        "sub-01_ses-1_acq-3d_desc-fusedct_T1w",
        "sub-02_desc-fusedpet_FLAIR",
    ]
    assert [case.own["modality_b"] for case in found] == ["pet", "ct", "pet"]
    assert [words.split(": ")[1] for words in left] == [
        f"its fusion would have the name of that with {root / FILES[2]}.nii",
        "no T1w, T2w or FLAIR of its session",
        "no PET or CT of its session",
    ]
    across, _ = planning.plan(str(root), bytes(32), across=True)
    assert across[2].name == "sub-01_ses-2_acq-3d_desc-fusedpet_T1w" and "another session" in across[2].words
    assert bids.folder_of(across[2].name) == "sub-01/ses-2/anat"
    with pytest.raises(InputError, match="expected sub-<label>"):
        bids.folder_of("../x")


def test_a_data_set_without_a_pair_is_told_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "raw"
    for number in range(7):
        (root / f"sub-{number}" / "anat").mkdir(parents=True)
        (root / f"sub-{number}" / "anat" / f"sub-{number}_T1w.nii").write_bytes(b"")
    (root / "dataset_description.json").write_text('{"Name": "heads", "BIDSVersion": "1.10.0"}')
    assert main(["batch", str(root), "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.count("no PET or CT of its session") == 5 and "(T1w, T2w or FLAIR) in anat/" in said
    assert "--dry-run lists all" in said


def test_a_derived_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = dataset(tmp_path / "raw")
    out = root / "derivatives" / "mmif"
    assert main(["batch", str(root), "-o", str(out), *HOW, "--view", "--format", "nii.gz"]) == 0
    name = "sub-01_ses-1_acq-3d_desc-fusedpettrcFDG_T1w"
    record = json.loads((out / f"sub-01/ses-1/anat/{name}.json").read_text())
    assert record["Sources"] == [f"bids:raw:{FILES[0]}.nii.gz", f"bids:raw:{FILES[2]}.nii.gz"]
    assert {Path(path).name for path in record["files"]} == {
        f"{name}{end}" for end in (".nii.gz", "_luma.nii.gz", ".html")
    }
    text = (out / f"sub-01/ses-1/anat/{name}.html").read_text()
    assert f"<title>{name}" in text and str(tmp_path) not in text and "registration" in text.lower()
    made = sorted(path.name for path in out.glob("*/**/*.nii.gz") if "_luma" not in path.name)
    assert len(made) == 3 and "sub-02_desc-fusedpet_FLAIR.nii.gz" in made
    assert json.loads((out / "dataset_description.json").read_text())["DatasetLinks"] == {"raw": "../.."}
    assert sorted(path.name for path in out.iterdir() if path.name.startswith(".")) == [".bidsignore"]
    again = ["batch", str(root), "-o", str(out), *HOW[:-1], "--view", "--format", "nii.gz"]
    assert main(again) == 0
    assert "0 fused, 3 skipped" in capsys.readouterr().err
    (out / f"sub-01/ses-1/anat/{name}.html").unlink()
    assert main(again) == 0
    assert "1 fused, 2 skipped" in capsys.readouterr().err
    assert main(["status", str(out)]) == 0
    assert "3" in capsys.readouterr().out
    validated(out)


def test_a_plan_of_a_data_set_gives_what_one_run_gives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts, from another working folder, in two shares: one derived data set, as from `batch
    BIDS_ROOT`."""
    monkeypatch.chdir(dataset(tmp_path / "raw").parent)
    how = [*HOW[:-1], "--precision", "fp32"]
    assert main(["batch", "raw", "-o", "raw/derivatives/here", *how]) == 0
    for part in ("2/2", "1/2"):
        assert main(["plan", "raw", "-o", "plan", *how, "--part", part]) == 0
    assert not (tmp_path / "plan" / ".pseudonym-key").exists()
    capsys.readouterr()
    monkeypatch.chdir(tmp_path.parent)
    root, plan, out = tmp_path / "raw", str(tmp_path / "plan"), tmp_path / "raw" / "derivatives" / "there"
    assert main(["batch", plan, "-o", str(out), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.count("(to do)") == 3 and said.count("left out: ") == 2 and not out.exists()
    for given, words in ((str(root), "expected another"), ("s3://x/y", "a bucket; expected a folder")):
        assert main(["batch", plan, "-o", given]) == 2 and words in capsys.readouterr().err
    assert main(["batch", plan, "-o", str(out), "--format", "dcm"]) == 2
    assert [main(["batch", plan, "-o", str(out), "--part", f"{i}/2", "--quiet"]) for i in (1, 2)] == [0, 0]
    made, here = (
        {str(p.relative_to(top)): p for p in top.rglob("*") if p.is_file()}
        for top in (out, out.parent / "here")
    )
    assert {n for n in made if ".log" not in n} == {n for n in here if ".log" not in n}
    records = 0
    for name, path in made.items():
        if name.endswith((".nii", "README", ".bidsignore", "description.json")):
            assert path.read_bytes() == here[name].read_bytes()
        elif name.endswith(".json"):
            mine, other = (json.loads(at.read_text()) for at in (path, here[name]))
            same = ("Description", "Sources", "SkullStripped", "sha256", "asked", "status", "of")
            assert all(mine[key] == other[key] for key in same)
            records += 1
    assert records == 3
    validated(out)


def validated(folder: Path) -> None:
    """The official validator finds no error."""
    program = shutil.which("bids-validator-deno", path=str(Path(sys.executable).parent)) or shutil.which(
        "bids-validator-deno"
    )
    if program is None:
        pytest.skip("needs bids-validator-deno: pip install 'mmif-trt[dev]'")
    done = subprocess.run([program, "--json", str(folder)], capture_output=True, text=True, timeout=300)
    found = json.loads(done.stdout)["issues"]["issues"]
    errors = [(one["code"], one.get("location")) for one in found if one["severity"] == "error"]
    assert not errors and done.returncode == 0, errors


def test_what_is_not_a_derived_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = dataset(tmp_path / "raw")
    for given, words in (
        (["-o", str(root)], "expected another"),
        (["-o", str(tmp_path / "out"), "--format", "dcm"], "expected nii or nii.gz"),
    ):
        assert main(["batch", str(root), *given, *HOW]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
