"""`fuse` on the files that people have at hand: pictures without geometry, single slices, one series of
several."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import phantoms
import pytest
from phantoms import affine_of, encoded, grid, head, slices, write_mr, write_series

import mmif_trt
from mmif_trt.cli import main

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
