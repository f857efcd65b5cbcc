"""DICOM out, judged by others: dciodvfy, dcmtk, and our own reader; and the command line on volumes."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import phantoms
import pydicom
import pytest
from phantoms import affine_of, grid, head, uptake, write_mr, write_nifti, write_pet

import mmif_trt
from mmif_trt import volume
from mmif_trt.cli import main
from mmif_trt.stages import colour

PET_GRID = affine_of("SPR", (4, 4, 4), (24, 50, 44))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of an oblique MRI and a PET on another grid, fused to out.dcm and deid.dcm."""
    root = tmp_path_factory.mktemp("a study ü")
    write_mr(root / "mr", affine_of(turn_deg=(6, 3, 0)))
    write_pet(root / "pt", PET_GRID, (24, 50, 44))
    for name, extra in (("out", []), ("deid", ["--deidentify"]), ("burn", ["--burn-in"])):
        command = ["fuse", str(root / "mr"), str(root / "pt"), "-o", str(root / f"{name}.dcm"), "--quiet"]
        assert main([*command, *extra]) == 0
    return root


def complaints(path: Path) -> Counter[str]:
    """dciodvfy's lines that begin with Error, counted."""
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    return Counter(line for line in done.stderr.splitlines() if line.startswith("Error"))


@pytest.mark.parametrize("name", ["out", "deid", "burn"])
def test_dciodvfy_finds_nothing_that_the_sources_do_not_have(study: Path, name: str) -> None:
    if not shutil.which("dciodvfy"):
        pytest.skip("dciodvfy is not installed (apt-get install dicom3tools)")
    known = complaints(next((study / "mr").iterdir())) | complaints(next((study / "pt").iterdir()))
    assert not complaints(study / f"{name}.dcm") - known


def test_it_stays_in_its_study_and_says_where_it_comes_from(study: Path) -> None:
    out = pydicom.dcmread(study / "out.dcm")
    sources = [pydicom.dcmread(path) for folder in ("mr", "pt") for path in (study / folder).iterdir()]
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "AccessionNumber", "FrameOfReferenceUID"):
        assert out[keyword].value == sources[0][keyword].value
    assert list(out.ImageType) == ["DERIVED", "SECONDARY"] and "RESEARCH USE ONLY" in out.SeriesDescription
    named = {item.ReferencedSOPInstanceUID for item in out.SourceImageSequence}
    assert named == {source.SOPInstanceUID for source in sources} and len(out.SourceImageSequence) == len(
        sources
    )
    assert out.SeriesInstanceUID not in {source.SeriesInstanceUID for source in sources}
    (equipment,) = out.ContributingEquipmentSequence
    manifest = mmif_trt.weights.manifest()["models"]["lagn"]["files"]["lagn.onnx"]["sha256"]
    assert (
        equipment.SoftwareVersions == mmif_trt.__version__ and manifest in equipment.ContributionDescription
    )
    sums = {mmif_trt.read(study / folder).sha256 for folder in ("mr", "pt")}
    assert len(sums) == 2 and all(one in equipment.ContributionDescription for one in sums)
    assert not [one for one in sums if one.encode() in (study / "deid.dcm").read_bytes()]
    assert "palette PET" in out.DerivationDescription and "(0.0, 10.0)" not in out.DerivationDescription
    assert out.BurnedInAnnotation == "NO" and pydicom.dcmread(study / "burn.dcm").BurnedInAnnotation == "YES"
    assert pydicom.dcmread(study / "burn.dcm").SOPInstanceUID != out.SOPInstanceUID


def test_its_geometry_is_that_of_a(study: Path) -> None:
    image, a = mmif_trt.read(study / "out.dcm"), mmif_trt.read(study / "mr")
    assert a.affine is not None
    expected, affine = volume.orient(a.data, a.affine, "axial")
    assert image.data.shape == (*expected.shape, 3) and image.frame == a.frame
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)
    fused = mmif_trt.fuse(a, mmif_trt.read(study / "pt"))
    np.testing.assert_array_equal(image.data, volume.orient(fused.data, a.affine, "axial")[0])


def test_dcmtk_renders_what_we_wrote(study: Path, tmp_path: Path) -> None:
    if not shutil.which("dcm2pnm"):
        pytest.skip("dcm2pnm is not installed (apt-get install dcmtk)")
    frame = 12
    command = ["dcm2pnm", "+on", "+F", str(frame), str(study / "out.dcm"), str(tmp_path / "x.png")]
    subprocess.run(command, check=True, capture_output=True)
    theirs = cv2.imread(str(tmp_path / "x.png"), cv2.IMREAD_COLOR)[..., ::-1]
    ours = mmif_trt.read(study / "out.dcm").data[frame - 1]
    np.testing.assert_array_equal(theirs, ours)
    assert np.ptp(ours.astype(int), axis=-1).max() > 60, "colour"
    burnt = mmif_trt.read(study / "burn.dcm").data
    np.testing.assert_array_equal(burnt[:, :26], mmif_trt.read(study / "out.dcm").data[:, :26])
    assert all((plane[28:].min(axis=-1) > 100).sum() > 150 for plane in (burnt[0], burnt[-1])), (
        "the mark is in every frame"
    )


def test_deidentified_holds_no_planted_value_and_no_source_uid(study: Path) -> None:
    data, plain = (study / "deid.dcm").read_bytes(), (study / "out.dcm").read_bytes()
    sources = [pydicom.dcmread(path) for folder in ("mr", "pt") for path in (study / folder).iterdir()]
    words = [*phantoms.PLANTED.values(), "ACC-PLANTED", phantoms.STUDY, phantoms.FRAME]
    words += [str(source.SOPInstanceUID) for source in sources]
    for word in words:
        assert word.encode() in plain, "the test would see it"
        assert word.encode() not in data, word
    out = pydicom.dcmread(study / "deid.dcm")
    assert out.PatientIdentityRemoved == "YES" and len(out.SourceImageSequence) == len(sources)
    assert out.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
    assert len({item.ReferencedSOPInstanceUID for item in out.SourceImageSequence}) == len(sources)
    np.testing.assert_array_equal(
        mmif_trt.read(study / "deid.dcm").data, mmif_trt.read(study / "out.dcm").data
    )


def test_ct_comes_out_grey_and_sagittal_slices_stay_sagittal(tmp_path: Path) -> None:
    affine = affine_of("LIP", (4, 3, 3), (30, 50, 56))
    shape = (30, 50, 56)
    write_mr(tmp_path / "mr", affine, shape)
    ct = phantoms.slices(head(grid(affine, shape)) - 200, affine, "CT")
    phantoms.write_series(tmp_path / "ct", ct)
    command = ["fuse", str(tmp_path / "mr"), str(tmp_path / "ct"), "-o", str(tmp_path / "x.dcm"), "--quiet"]
    assert main(command) == 0
    out = pydicom.dcmread(tmp_path / "x.dcm")
    assert out.SOPClassUID == "1.2.840.10008.5.1.4.1.1.7.3" and list(out.PatientOrientation) == ["P", "F"]
    assert mmif_trt.read(tmp_path / "x.dcm").orientation == volume.PLANES["sagittal"]
    if shutil.which("dciodvfy"):
        known = complaints(next((tmp_path / "mr").iterdir()))
        assert not complaints(tmp_path / "x.dcm") - known


def test_slices_without_right_angles_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a stack whose slices slip sideways, one plane cuts slanted pixels, which DICOM cannot place."""
    shape = (20, 24, 24)
    tilted = affine_of(spacing=(4, 4, 4), shape=shape, tilt=1.4)
    write_mr(tmp_path / "mr", tilted, shape)
    write_pet(tmp_path / "pt", affine_of(spacing=(4, 4, 4), shape=shape), shape)
    command = ["fuse", str(tmp_path / "mr"), str(tmp_path / "pt"), "--quiet", "-o"]
    assert main([*command, str(tmp_path / "out.dcm"), "--plane", "sagittal"]) == 2
    assert "no right angles; expected another --plane" in capsys.readouterr().err
    assert not (tmp_path / "out.dcm").exists()
    assert main([*command, str(tmp_path / "out.dcm"), "--plane", "coronal"]) == 0
    read = mmif_trt.read(tmp_path / "out.dcm")
    _, expected = volume.orient(np.zeros(shape), tilted, "coronal")
    np.testing.assert_allclose(read.affine, expected, atol=1e-5)


def test_command_line_on_nifti(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    affine = affine_of("SAR", (3, 3, 3), (40, 50, 44))
    a = str(write_nifti(tmp_path / "a.nii", head(grid(affine, (40, 50, 44))), affine))
    b = str(write_nifti(tmp_path / "b.nii.gz", uptake(grid(affine, (40, 50, 44))), affine))
    ranges = ["--value-range", "0", "1000"]
    out, sheet, report = (str(tmp_path / name) for name in ("o/x.nii.gz", "o/s.png", "o/r.json"))
    command = [
        "fuse",
        a,
        b,
        "-o",
        out,
        *ranges,
        "--modality-b",
        "spect",
        "--preview",
        sheet,
        "--report",
        report,
    ]
    assert main([*command, "--plane", "coronal"]) == 0
    rgb, luma = mmif_trt.read(out), mmif_trt.read(tmp_path / "o" / "x_luma.nii.gz")
    assert rgb.is_colour and not luma.is_colour and rgb.data.shape[:3] == luma.data.shape
    np.testing.assert_allclose(luma.data, colour.luma(rgb.data / np.float32(255)), atol=2 / 255)
    record = json.loads(Path(report).read_text())
    assert record["plane"] == "coronal" and record["palette"]["name"] == "HOT_IRON"
    assert record["a"]["limits"] == [0, 1000] and "research" in record["use"].lower()
    assert cv2.imread(sheet).shape[1] == 1100
    assert main(command) == 0 and "exists, skipped" in capsys.readouterr().err
    assert main(["fuse", a, b, "-o", str(tmp_path / "stack"), *ranges, "--palette", "PET"]) == 0
    assert len(list((tmp_path / "stack").iterdir())) == 40
    capsys.readouterr()
    for extra, words in (
        (["-o", str(tmp_path / "y.nii")], "modality_b"),
        (["-o", str(tmp_path / "y.dcm"), "--palette", "PET"], "y.dcm: no DICOM among"),
        (["-o", str(tmp_path / "y.jpg")], "expected .nii, .nii.gz, .dcm"),
        (["-o", str(tmp_path / "y.nii"), "--burn-in"], "expected only with -o NAME.dcm"),
        (["-o", str(tmp_path / "y.nii"), "--percentiles-a", "1", "99"], "expected one of them"),
    ):
        assert main(["fuse", a, b, *ranges, *extra]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1, error
    assert not (tmp_path / "y.nii").exists() and not (tmp_path / "y.dcm").exists()


def test_lossy_methods_and_ratios_are_carried_over() -> None:
    """From the headers that leave the reading process, the highest ratio of each method."""
    from mmif_trt.clinical.header import header, parsed
    from mmif_trt.io.dicom.write import _lossy_steps

    sources = []
    for methods, ratios in (
        (["ISO_10918_1"], ["10"]),
        (["ISO_10918_1", "ISO_15444_1"], ["12", "7.5"]),
        ([], []),
    ):
        source = pydicom.Dataset()
        source.LossyImageCompression = "01"
        source.LossyImageCompressionMethod, source.LossyImageCompressionRatio = methods, ratios
        sources.append(parsed(header(source)[0]))
    assert _lossy_steps(sources) == {"ISO_10918_1": 12.0, "ISO_15444_1": 7.5}
