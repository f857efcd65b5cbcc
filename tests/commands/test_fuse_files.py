"""`fuse` on the files that people have at hand: pictures without geometry, single slices, one series of
several."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import phantoms
import pytest
from phantoms import affine_of, encoded, grid, head, slices, write_mr, write_series
from shell import mmif

import mmif_trt
from mmif_trt import io
from mmif_trt.cli import main
from mmif_trt.clinical import outputs
from mmif_trt.files import OutputError

SHAPE = (9, 60, 48)
AFFINE = affine_of(shape=SHAPE)


def test_two_dicom_pictures_are_fused_as_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, modality in (("a", "MR"), ("b", "CT")):
        part = slices(head(grid(AFFINE, SHAPE)), AFFINE, modality)[4]
        del part.ImagePositionPatient
        (tmp_path / f"{name}.dcm").write_bytes(encoded(part))
    files = [str(tmp_path / "a.dcm"), str(tmp_path / "b.dcm")]
    ranges = ["--value-range-a", "0", "1000", "--value-range-b", "0", "1000"]
    assert main(["fuse", *files, "-o", str(tmp_path / "f.png"), *ranges]) == 0
    fused = mmif_trt.read(tmp_path / "f.png")
    assert fused.data.shape == SHAPE[1:] and fused.data.dtype == np.uint16 and fused.data.max() > 20_000
    capsys.readouterr()
    assert main(["fuse", *files, "-o", str(tmp_path / "f.nii")]) == 2
    assert "pictures without geometry (no Image Position (Patient)); expected" in capsys.readouterr().err
    mr = write_mr(tmp_path / "mr", AFFINE, SHAPE)
    assert main(["fuse", str(mr), files[1], "-o", str(tmp_path / "f.nii")]) == 2
    assert "a picture without geometry" in capsys.readouterr().err


def test_one_slice_is_a_picture_too_and_coverage_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mr = write_series(tmp_path / "mr", slices(head(grid(AFFINE, SHAPE)), AFFINE)[4:5])
    ct = slices(head(grid(AFFINE, SHAPE)), AFFINE, "CT")
    write_series(tmp_path / "ct", ct[4:5])
    command = ["fuse", str(mr), str(tmp_path / "ct"), "-o", str(tmp_path / "f.png")]
    assert main(command) == 0
    assert "B covers 100% of A" in capsys.readouterr().err
    assert mmif_trt.read(tmp_path / "f.png").data.shape == SHAPE[1:]
    whole = write_mr(tmp_path / "whole", AFFINE, SHAPE)
    assert main(["fuse", str(whole), str(tmp_path / "ct"), "-o", str(tmp_path / "g.png")]) == 2
    assert "expected .nii, .nii.gz, .dcm" in capsys.readouterr().err
    assert main(["fuse", str(whole), str(tmp_path / "ct"), "-o", str(tmp_path / "g.nii"), "--quiet"]) == 0
    assert "warning: B covers 11% of A; the rest shows A alone" in capsys.readouterr().err


def test_one_series_and_one_volume_of_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mr(tmp_path / "mr" / "t1", AFFINE, SHAPE, SeriesDescription="t1")
    echoes = [
        part
        for echo in ("10", "80")
        for part in slices(head(grid(AFFINE, SHAPE)), AFFINE, series="1.2.3", SeriesNumber=4, EchoTime=echo)
    ]
    write_series(tmp_path / "mr" / "dual", echoes)
    write_series(tmp_path / "ct", slices(head(grid(AFFINE, SHAPE)), AFFINE, "CT"))
    command = ["fuse", str(tmp_path / "mr"), str(tmp_path / "ct"), "-o", str(tmp_path / "f.nii")]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "series 1 't1' (9 files); series 4 (18 files)" in said and "--series-a" in said
    assert main([*command, "--series-a", "4"]) == 2
    said = capsys.readouterr().err
    assert "echo time (ms) 10 and 80" in said and "--volume-a" in said
    assert main([*command, "--series-a", "4", "--volume-a", "2"]) == 0
    assert "A: volume 2 of 2: echo time (ms) 80" in capsys.readouterr().err
    assert not any(value in said for value in phantoms.PLANTED.values())


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mr/ and ct/ of DICOM, mr.nii and pt.nii, a.png and b.png, A/ and B/ with one picture each."""
    root = tmp_path_factory.mktemp("sources")
    write_mr(root / "mr", AFFINE, SHAPE)
    write_series(root / "ct", slices(head(grid(AFFINE, SHAPE)), AFFINE, "CT"))
    for name in ("mr.nii", "pt.nii"):
        phantoms.write_nifti(root / name, head(grid(AFFINE, SHAPE)), AFFINE)
    for name in ("a.png", "b.png", "A/x.png", "B/x.png"):
        (root / name).parent.mkdir(exist_ok=True)
        io.write(root / name, mmif_trt.Image(np.full((32, 32), 90, np.uint8)))
    return root


VOLUMES, NIFTI, PICTURES, FOLDERS = "mr ct", "mr.nii pt.nii --palette PET", "a.png b.png", "A B"
LIMITS = "--value-range 0 1000"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            f"{PICTURES} -o OUT/f.png --registration rigid --plane axial",
            "--plane, --registration: expected with",
        ),
        (f"{FOLDERS} -o OUT --percentiles-a 1 99 --volume-b 2", "--percentiles-a, --volume-b: expected with"),
        (
            f"{FOLDERS} -o OUT --preview OUT/p.png --deidentify",
            "--preview, --deidentify: expected with volumes",
        ),
        (
            f"{VOLUMES} -o OUT/f.nii --format png --decode dali",
            "--format, --decode: expected with pictures only",
        ),
        (f"{VOLUMES} -o OUT/f.nii --workers 2 --on ray", "--workers, --on: expected with pictures only"),
        (f"{VOLUMES} -o OUT/f.nii --preview OUT/p.jpg", "p.jpg: expected a name ending in .png"),
        (f"{VOLUMES} -o OUT/f.nii --report OUT/r.txt", "r.txt: expected a file name ending in .json"),
        (f"{VOLUMES} -o OUT/f.nii --palette BLUE", "palette 'BLUE'; expected HOT_IRON"),
        (
            f"{VOLUMES} -o OUT/f.nii --percentiles-a .01 .99",
            "--percentiles-a (percentiles_a): 0.01 0.99; expected two numbers",
        ),
        (f"{VOLUMES} -o mr", "mr: is the same file as the input mr"),
        (f"{VOLUMES} -o mr/new/f.dcm", "in the source folder mr; expected a place outside"),
        (f"{NIFTI} -o mr.nii", "mr.nii: is the same file as the input"),
        (f"{NIFTI} {LIMITS} -o OUT/f.dcm", "f.dcm: no DICOM among mr.nii and pt.nii"),
        (f"{PICTURES} -o OUT/f.nii", "f.nii: suffix .nii; expected one of .png"),
        (f"{PICTURES} -o OUT/f.dcm", "f.dcm: suffix .dcm; expected one of .png"),
        (f"{PICTURES} -o OUT/f", "OUT/f: suffix none; expected one of .png"),
        (f"{FOLDERS} -o OUT.nii.gz", "OUT.nii.gz: the name of a file; expected that of a folder"),
        (f"{FOLDERS} -o ''", "argument -o/--output: is empty (an unset variable"),
        (f"{FOLDERS} --output=", "argument -o/--output: is empty (an unset variable"),
        ("'' B -o OUT", "argument A: is empty (an unset variable"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_work(
    sources: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    said: str,
) -> None:
    """Nothing is written, the network does not run, and no option is passed over."""
    monkeypatch.chdir(sources)
    monkeypatch.setattr("mmif_trt.fuser.Fuser.__init__", lambda *_: pytest.fail("it ran"))
    before = sorted(path for path in sources.rglob("*") if path.is_file())
    done = mmif("fuse", *shlex.split(command), code=2)
    assert said in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert sorted(path for path in sources.rglob("*") if path.is_file()) == before


@pytest.mark.parametrize("command", ["batch", "plan"])
def test_no_case_is_begun_with_options_that_fail_all(sources: Path, tmp_path: Path, command: str) -> None:
    for option in (["--palette", "BLUE"], ["--percentiles-b", "99", "1"]):
        done = mmif(command, sources, "-o", tmp_path / "out", *option, code=2)
        assert "; expected " in done.stderr and not (tmp_path / "out").exists()


def test_what_is_true_of_pictures_may_be_said(sources: Path, tmp_path: Path) -> None:
    said = ("--registration", "none", "--assume-aligned", "--modality-b", "ct")
    page = ("--view", tmp_path / "f.html")
    done = mmif("fuse", sources / "a.png", sources / "b.png", "-o", tmp_path / "f.png", *said, *page)
    assert done.stderr.endswith(f" -> {tmp_path / 'f.png'}\n"), "the file, not its folder"
    assert "CT" in (tmp_path / "f.html").read_text()


def stack(value: int) -> mmif_trt.Image:
    return mmif_trt.Image(np.full((3, 16, 16), value, np.uint8), affine=np.eye(4))


def test_of_two_runs_the_first_to_end_has_the_folder_of_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wrote into one folder aside: the first to end could name it with slices missing."""
    during(monkeypatch, lambda: outputs._save_slices(tmp_path / "out", stack(1)))
    with pytest.raises(OutputError, match="out: cannot be written .*; expected a new or empty folder"):
        outputs._save_slices(tmp_path / "out", stack(2))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    names = [f"slice_000{number}.png" for number in (1, 2, 3)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert {int(io.read(tmp_path / "out" / name).data.max()) for name in names} == {1}


def test_an_interrupt_leaves_no_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    during(monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        outputs._save_slices(tmp_path / "out", stack(2))
    assert not [*tmp_path.iterdir()]


def during(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Has this done when the second slice is to be written."""
    write = io.write

    def written(path: Path, image: mmif_trt.Image) -> None:
        if path.name == "slice_0002.png":
            monkeypatch.setattr(io, "write", write)
            act()
        write(path, image)

    monkeypatch.setattr(io, "write", written)
