"""Of several series in a study, batch takes the right one and says why: by what they are, not by their
number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pytest
from phantoms import affine_of, grid, head, slices, write_mr, write_series

from mmif_trt.cli import main
from mmif_trt.clinical import planning

SECRET = bytes(range(32))
SHAPE = (24, 60, 48)


def mr(folder: Path, number: int, **tags: Any) -> Path:
    return write_mr(folder, affine_of(), SHAPE, SeriesNumber=number, **tags)


def repeated(folder: Path, number: int, keyword: str, values: list[Any], count: int = 8, **tags: Any) -> Path:
    """A series of `count` positions with one image per value at each: more files than any T1."""
    affine = affine_of(shape=(count, 60, 48))
    parts, uid = [], phantoms.generate_uid()
    for value in values:
        more = {"SeriesNumber": number, keyword: value, **tags}
        parts += slices(head(grid(affine, (count, 60, 48))), affine, series=uid, **more)
    return write_series(folder, parts)


def ct(folder: Path, **tags: Any) -> Path:
    affine = affine_of(shape=SHAPE)
    return write_series(folder, slices(head(grid(affine, SHAPE)), affine, "CT", **tags))


def plan(root: Path) -> tuple[list[Any], list[str]]:
    return planning.plan(str(root), SECRET)


def chosen(root: Path) -> str:
    (case,), _ = plan(root)
    return Path(case.a[0]).parent.name


RIVALS: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "fmri": ("TemporalPositionIdentifier", [1, 2, 3, 4, 5], {}),
    "field map": ("EchoTime", ["4.9", "7.4", "9", "11"], {}),
    "dwi": ("DiffusionBValue", [0.0, 500.0, 1000.0, 2000.0], {}),
}


@pytest.mark.parametrize("rival", RIVALS)
def test_one_volume_wins_over_many_files(tmp_path: Path, rival: str) -> None:
    keyword, values, tags = RIVALS[rival]
    repeated(tmp_path / "rival", 1, keyword, values, **tags)
    mr(tmp_path / "t1", 2)
    ct(tmp_path / "ct")
    assert len(list((tmp_path / "rival").iterdir())) > 24 and chosen(tmp_path) == "t1"
    (case,), left = plan(tmp_path)
    assert "before 1 other MRI: one volume" in case.words and str(tmp_path / "t1") in case.words
    assert any(
        f"images at 8 places, {tmp_path / 'rival'}): another MRI of its group is one volume" in x
        for x in left
    )


def test_a_series_of_several_grids_is_not_one_volume(tmp_path: Path) -> None:
    """A survey in three planes that does not say so has every image at its own place."""
    uid = phantoms.generate_uid()
    planes = [affine_of(orientation, (4, 4, 4), (20, 20, 20)) for orientation in ("SPL", "RIP", "PIL")]
    values = [slices(head(grid(one, (20, 20, 20))), one, series=uid, SeriesNumber=1) for one in planes]
    write_series(tmp_path / "survey", [image for some in values for image in some])
    ct(tmp_path / "ct")
    (case,), _ = plan(tmp_path)
    assert "mri will be refused: several orientations" in case.words
    mr(tmp_path / "t1", 2)
    assert chosen(tmp_path) == "t1" and "refused" not in plan(tmp_path)[0][0].words


def missing(folder: Path) -> None:
    mr(folder, 1)
    sorted(folder.iterdir())[9].unlink()


FAULTS: dict[str, tuple[Any, str]] = {
    "two echoes": (lambda folder: repeated(folder, 1, "EchoTime", ["10", "90"]), "several images per place"),
    "a gap": (missing, "missing slices: 10.00 mm where the pitch is 5.00 mm"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_the_plan_says_what_reading_will_refuse(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make, words = FAULTS[kind]
    make(tmp_path / "root" / "mr")
    ct(tmp_path / "root" / "ct")
    command = ["batch", str(tmp_path / "root"), "-o", str(tmp_path / "out")]
    assert main([*command, "--dry-run"]) == 0
    assert f"; mri will be refused: {words}" in capsys.readouterr().out
    assert main(command) == 1, "it is refused"


OTHERS: dict[str, dict[str, Any]] = {
    "ADC": {"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]},
    "phase": {"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]},
    "named dwi": {"SeriesDescription": "ep2d_DWI_tra"},
    "perfusion": {"SeriesDescription": "DSC perf first pass"},
    "echo planar": {"SequenceName": "*epfid2d1_64"},
    "MPR": {"ImageType": ["DERIVED", "SECONDARY", "MPR"]},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_anatomy_and_originals_win_over_more_slices(tmp_path: Path, kind: str) -> None:
    finer = affine_of(spacing=(3.0, 3.0, 3.0), shape=(40, 60, 48))
    write_mr(tmp_path / "other", finer, (40, 60, 48), SeriesNumber=1, **OTHERS[kind])
    mr(tmp_path / "t1", 2, SeriesDescription="t1_mprage_dixon")
    ct(tmp_path / "ct")
    assert chosen(tmp_path) == "t1"


def test_coverage_then_slices_then_matrix_then_contrast(tmp_path: Path) -> None:
    ct(tmp_path / "ct")
    slab = affine_of(spacing=(1.0, 3.0, 3.0), shape=(30, 60, 48))  # more slices of a fifth of the head
    write_mr(tmp_path / "slab", slab, (30, 60, 48), SeriesNumber=1)
    mr(tmp_path / "whole", 2)
    assert chosen(tmp_path) == "whole"
    assert "covers more of the other series" in " ".join(plan(tmp_path)[1])
    fine = affine_of(spacing=(5.0, 1.5, 1.5), shape=(24, 120, 96))
    write_mr(tmp_path / "fine", fine, (24, 120, 96), SeriesNumber=3)
    assert chosen(tmp_path) == "fine"
    write_mr(tmp_path / "fine with gd", fine, (24, 120, 96), SeriesNumber=4, ContrastBolusAgent="Gd")
    assert chosen(tmp_path) == "fine with gd"


def test_derived_series_are_candidates_where_there_is_no_original(tmp_path: Path) -> None:
    """An anonymiser marks all it writes as DERIVED\\SECONDARY."""
    mr(tmp_path / "mr", 1, ImageType=["DERIVED", "SECONDARY"])
    ct(tmp_path / "ct", ImageType="DERIVED")  # one value alone
    assert chosen(tmp_path) == "mr"
    ct(tmp_path / "ct original", SeriesNumber=5)
    (case,), left = plan(tmp_path)
    assert Path(case.b[0]).parent.name == "ct original"
    assert any("derived; the original of its modality is fused" in line for line in left)


def test_what_is_left_out_is_named(tmp_path: Path) -> None:
    mr(tmp_path / "mr", 1)
    ct(tmp_path / "ct")
    capture = slices(np.zeros((1, 60, 48)), affine_of(shape=(1, 60, 48)), "CT", SeriesNumber=8)[0]
    del capture.ImagePositionPatient
    write_series(tmp_path / "dose report", [capture])
    report = slices(
        np.zeros((1, 60, 48)), affine_of(shape=(1, 60, 48)), SOPClassUID="1.2.840.10008.5.1.4.1.1.88.22"
    )[0]
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(report, keyword)
    write_series(tmp_path / "sr", [report])
    (tmp_path / "gone.dcm").symlink_to(tmp_path / "nowhere")
    (tmp_path / "copy.dcm").write_bytes(sorted((tmp_path / "mr").iterdir())[0].read_bytes())
    cut = sorted((tmp_path / "mr").iterdir())[1].read_bytes()[:200]
    (tmp_path / "cut.dcm").write_bytes(cut)
    (case,), left = plan(tmp_path)
    said = "\n".join(left)
    for words in (
        "ct series 8 (1 files, " + str(tmp_path / "dose report"),
        "no geometry",
        "1 x Enhanced SR",
        "1 files that cannot be read: " + str(tmp_path / "gone.dcm"),
        "1 DICOM files with a damaged header: " + str(tmp_path / "cut.dcm"),
        "1 copies of its instances",
    ):
        assert words in said, said
    assert len(case.a) == 24 and "PLANTED" not in said


def test_links_and_bare_files_are_in_the_plan_as_in_fuse(tmp_path: Path) -> None:
    store = mr(tmp_path / "annex", 1)
    ct(tmp_path / "root" / "ct")
    (tmp_path / "root" / "mr").mkdir()
    for path in store.iterdir():
        (tmp_path / "root" / "mr" / path.name).symlink_to(path)
    for path in sorted((tmp_path / "root" / "ct").iterdir())[:5]:
        path.write_bytes(path.read_bytes()[132:])
    (case,), left = plan(tmp_path / "root")
    assert (len(case.a), len(case.b), left) == (24, 24, [])
