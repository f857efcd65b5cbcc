"""DICOM and NIfTI in: the head of phantoms.py must lie where it lay, whatever file it went through."""

from __future__ import annotations

import copy
import shutil
import subprocess
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pydicom
import pytest
from phantoms import affine_of, encoded, grid, head, slices, write_mr, write_nifti, write_series
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless, generate_uid

import mmif_trt
from mmif_trt.image import Image, InputError
from mmif_trt.io import dicom, nifti
from mmif_trt.io.dicom import meta

SHAPE = (24, 60, 48)
GRIDS: dict[str, np.ndarray] = {
    "axial": affine_of(),
    "axial from the head down": affine_of("IPL"),
    "sagittal": affine_of("LIP", (4.0, 2.5, 2.5)),
    "coronal": affine_of("AIL", (4.0, 2.5, 2.5)),
    "oblique": affine_of(turn_deg=(13, -7, 21)),
    "anisotropic": affine_of(spacing=(6.0, 1.5, 2.75)),
}


def is_the_head(image: Image, tolerance: float = 1.0) -> None:
    """Every voxel has the value that the head has at the place where the image says the voxel is."""
    assert image.affine is not None
    error = np.abs(image.data - head(grid(image.affine, image.data.shape))).max()
    assert error <= tolerance, f"{error} of 1000"
    assert image.data.max() > 300


@pytest.mark.parametrize("name", GRIDS)
def test_a_folder_is_a_volume_in_its_place(tmp_path: Path, name: str) -> None:
    image = mmif_trt.read(write_mr(tmp_path / "ä series", GRIDS[name]))
    assert image.data.shape == SHAPE and image.modality == "mri" and image.frame == phantoms.FRAME
    is_the_head(image)
    assert image.value_range == (0.0, 999.0), "the window 500 / 1000 of PS3.3 C.11.2.1.2"
    np.testing.assert_allclose(image.spacing_mm, np.linalg.norm(GRIDS[name][:3, :3], axis=0), atol=1e-4)


@pytest.mark.parametrize("name", GRIDS)
def test_dcm2niix_says_the_same(tmp_path: Path, name: str) -> None:
    """Not for tilted stacks: dcm2niix removes the tilt by resampling, or (MR) ignores it."""
    same_as_dcm2niix(write_mr(tmp_path / "in", GRIDS[name]), tmp_path)


def same_as_dcm2niix(folder: Path, tmp_path: Path) -> None:
    """Every voxel of ours is one of dcm2niix's, with the same value in the same place."""
    if not shutil.which("dcm2niix"):
        pytest.skip("dcm2niix is not installed (apt-get install dcm2niix)")
    (tmp_path / "out").mkdir()
    command = ["dcm2niix", "-f", "x", "-z", "n", "-o", str(tmp_path / "out"), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    ours, theirs = mmif_trt.read(folder), mmif_trt.read(tmp_path / "out" / "x.nii")
    assert ours.affine is not None and theirs.affine is not None
    assert ours.data.shape == theirs.data.shape
    # dcm2niix reverses rows and stacks: where we have a voxel, it must have one with that value.
    to_theirs = np.linalg.inv(theirs.affine) @ ours.affine
    index = np.stack(np.meshgrid(*map(np.arange, ours.data.shape), indexing="ij"), axis=-1)
    place = index @ to_theirs[:3, :3].T + to_theirs[:3, 3]
    np.testing.assert_allclose(place, np.rint(place), atol=0.02)
    np.testing.assert_array_equal(
        theirs.data[tuple(np.moveaxis(np.rint(place).astype(int), -1, 0))], ours.data
    )


def test_gantry_tilt_is_a_shear_and_says_so(tmp_path: Path) -> None:
    image = mmif_trt.read(write_mr(tmp_path / "s", affine_of(tilt=1.2)))
    is_the_head(image)
    assert any("gantry tilt of 13.5 degrees" in note for note in image.notes)


def test_ct_is_hounsfield_and_has_no_window_of_its_own(tmp_path: Path) -> None:
    affine = affine_of()
    values = head(grid(affine, SHAPE)) - 900
    image = mmif_trt.read(
        write_series(tmp_path / "ct", slices(values, affine, "CT", WindowCenter="40", WindowWidth="80"))
    )
    assert (image.units, image.modality, image.value_range) == ("HU", "ct", None)
    assert np.abs(image.data - values).max() <= 0.51
    assert "24 x 60 x 48, grey, float32" in repr(image) and "axes to SPL, HU" in repr(image)


@pytest.mark.parametrize("code", ["rle", "jpeg lossless", "jpeg-ls", "jpeg 2000", "deflated", "big endian"])
def test_transfer_syntaxes_decode_to_the_same(tmp_path: Path, code: str) -> None:
    folder = write_mr(tmp_path / "in", affine_of())
    expected = mmif_trt.read(folder).data
    for path in folder.iterdir():
        if code in ("rle", "jpeg 2000"):
            dataset = pydicom.dcmread(path)
            if code == "rle":
                dataset.compress(RLELossless)
            else:
                from pydicom.uid import JPEG2000Lossless

                dataset.compress(JPEG2000Lossless)
            path.write_bytes(encoded(dataset))
        else:
            tool = {
                "jpeg lossless": ["dcmcjpeg"],
                "jpeg-ls": ["dcmcjpls"],
                "deflated": ["dcmconv", "+td"],
                "big endian": ["dcmconv", "+tb"],
            }[code]
            if not shutil.which(tool[0]):
                pytest.skip(f"{tool[0]} is not installed (apt-get install dcmtk)")
            subprocess.run([*tool, str(path), str(path) + ".out"], check=True, capture_output=True)
            Path(str(path) + ".out").replace(path)
    np.testing.assert_array_equal(mmif_trt.read(folder).data, expected)


def enhanced(affine: np.ndarray) -> Dataset:
    """The head as one enhanced MR instance, frames in a shuffled order."""
    parts = slices(head(grid(affine, SHAPE)), affine)
    order = np.random.default_rng(0).permutation(len(parts))
    one = parts[0]
    one.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    one.NumberOfFrames = len(parts)
    shared, groups = Dataset(), []
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [Dataset()], [Dataset()]
    shared.PixelMeasuresSequence[0].PixelSpacing = one.PixelSpacing
    shared.PixelMeasuresSequence[0].SliceThickness = one.SliceThickness
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = one.ImageOrientationPatient
    for i in order:
        group = Dataset()
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [Dataset()], [Dataset()]
        group.PlanePositionSequence[0].ImagePositionPatient = parts[i].ImagePositionPatient
        transformation = group.PixelValueTransformationSequence[0]
        transformation.RescaleSlope, transformation.RescaleIntercept = "0.5", "10"
        groups.append(group)
    one.SharedFunctionalGroupsSequence, one.PerFrameFunctionalGroupsSequence = [shared], groups
    one.PixelData = b"".join(parts[i].PixelData for i in order)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(one, keyword)
    return one


def test_enhanced_multi_frame_and_zip(tmp_path: Path) -> None:
    (tmp_path / "one.dcm").write_bytes(encoded(enhanced(affine_of(turn_deg=(5, 0, 0)))))
    image = mmif_trt.read(tmp_path / "one.dcm")
    is_the_head(image.with_data((image.data - 10) * 2))
    folder = write_mr(tmp_path / "in", affine_of())
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.iterdir():
            archive.write(path, f"deep/{path.name}")
        archive.writestr("readme.txt", "no DICOM")
    is_the_head(mmif_trt.read(tmp_path / "x.zip"))


@pytest.mark.parametrize("dtype", ["<f4", ">i2", "<u2"])
@pytest.mark.parametrize("orientation", ["SAL", "SAR", "SPL", "LIP"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_of_either_handedness_and_byte_order(
    tmp_path: Path, dtype: str, orientation: str, suffix: str
) -> None:
    affine = affine_of(orientation, (3.0, 3.0, 3.0), (40, 48, 44), (0, 4, 0))
    image = mmif_trt.read(
        write_nifti(tmp_path / f"x{suffix}", head(grid(affine, (40, 48, 44))), affine, dtype)
    )
    is_the_head(image, 1.0)
    assert image.value_range is None and image.orientation == orientation
    again = tmp_path / f"again{suffix}"
    mmif_trt.write(again, image)
    back = mmif_trt.read(again)
    np.testing.assert_array_equal(back.data, image.data)
    np.testing.assert_allclose(back.affine, image.affine, atol=1e-4)


def says_what_is_right(message: str) -> bool:
    return "expected" in message


def broken(kind: str, folder: Path) -> Path:
    """The head's folder (or a file) with one thing wrong."""
    affine = affine_of()
    parts = slices(head(grid(affine, SHAPE)), affine)
    if kind == "gap":
        del parts[7:9]
    elif kind == "duplicate position":
        parts[5].ImagePositionPatient = parts[4].ImagePositionPatient
    elif kind == "duplicate instance":
        parts.append(copy.deepcopy(parts[3]))
        parts[-1].PixelData = bytes(len(parts[3].PixelData))
    elif kind == "orientation":
        parts[5].ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    elif kind == "geometry":
        del parts[5].ImagePositionPatient
    elif kind == "spacing":
        parts[5].PixelSpacing = [1, 1]
    elif kind == "two series":
        parts[5].SeriesInstanceUID = generate_uid()
    elif kind == "two patients":
        parts[5].PatientID = "PLANTED-OTHER"
    elif kind == "pixels missing":
        del parts[5].PixelData
    elif kind == "rows":
        parts[5].Rows = 59
    elif kind == "announced":
        parts[5].NumberOfFrames = 100_000_000
    elif kind == "slope":
        parts[5].RescaleSlope, parts[5].RescaleIntercept = "0", "0"
    elif kind == "monochrome1":
        for part in parts:
            part.PhotometricInterpretation = "MONOCHROME1"
    elif kind in ("empty", "pictures"):
        parts = []
    write_series(folder, parts)
    if kind == "pictures":
        (folder / "case1.png").write_bytes(b"any")
    if kind == "truncated":
        path = sorted(folder.iterdir())[3]
        path.write_bytes(path.read_bytes()[:-1000])
    return folder


BROKEN = {
    "gap": "missing slices: 15.00 mm where the pitch is 5.00 mm",
    "duplicate position": "slices at one place",
    "duplicate instance": "twice",
    "orientation": "mixed orientations",
    "geometry": "ImagePositionPatient is missing",
    "spacing": "mixed pixel spacings",
    "two series": "of 2 series",
    "two patients": "of 2 patients",
    "pixels missing": "no pixel data",
    "rows": "sizes",
    "announced": "announces",
    "slope": "rescale slope",
    "monochrome1": "MONOCHROME1",
    "empty": "without DICOM files; expected one with a series",
    "pictures": "expected one with a series, or a file in place of the folder",
    "truncated": "announced: truncated",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_series_gives_one_clear_line(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputError) as caught:
        mmif_trt.read(broken(kind, tmp_path / "in"))
    message = str(caught.value)
    assert BROKEN[kind] in message and says_what_is_right(message) and "\n" not in message, message
    assert not any(value in message for value in (*phantoms.PLANTED.values(), "OTHER")), message


def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    dataset = slices(head(grid(affine_of(), SHAPE)), affine_of())[0]
    dataset.file_meta.TransferSyntaxUID = meta.DEFLATED
    data = encoded(dataset)
    _, at = meta.transfer_syntax(data, "x")
    packer = zlib.compressobj(9, wbits=-15)
    bomb = b"".join([packer.compress(b"\0" * (1 << 20)) for _ in range(400)]) + packer.flush()
    assert len(bomb) < 1 << 20
    with pytest.raises(InputError, match="inflates to over"):
        dicom.parse(data[:at] + bomb, "x")
    affine = affine_of()
    good = write_nifti(tmp_path / "x.nii", np.zeros((4, 20, 20)), affine).read_bytes()
    huge = good[:42] + np.array([1024, 1024, 1024], "<i2").tobytes() + good[48:]
    import gzip

    for form, data in (("nii", huge), ("nii.gz", gzip.compress(huge))):
        with pytest.raises(InputError, match="announces .1024, 1024, 1024. voxels"):
            nifti.decode(data, f"x.{form}")
    for data, words in (
        (gzip.compress(good)[:-6], "complete file"),
        (good[:-5], "announces"),
        (gzip.compress(good + b"\0" * (2 << 20)), "goes on after"),
        (b"", "not a single-file NIfTI"),
    ):
        with pytest.raises(InputError, match=words):
            nifti.decode(data, "x.nii")


def pet(**changes: Any) -> Image:
    affine = affine_of()
    parts = slices(20 * phantoms.uptake(grid(affine, SHAPE)), affine, "PT")
    for part in parts:
        for keyword, value in changes.items():
            target = part.RadiopharmaceuticalInformationSequence[0] if keyword.startswith("Radio") else part
            setattr(target, keyword, value)
    return dicom.series([dicom.parse(encoded(part), "pet") for part in parts], "pet")


def test_suv_by_body_weight() -> None:
    """70 kg; 400 MBq at 08:10:13, half-life 6587 s, scan at 10:00:00: exactly one half-life, 200 MBq left."""
    image = pet()
    bqml = np.rint(20 * phantoms.uptake(grid(affine_of(), SHAPE)))
    assert image.units == "SUVbw" and image.value_range is None
    np.testing.assert_allclose(image.data, bqml * 70_000 / 200e6, rtol=1e-6)
    np.testing.assert_allclose(pet(DecayCorrection="ADMIN").data, bqml * 70_000 / 400e6, rtol=1e-6)
    np.testing.assert_allclose(
        pet(SeriesTime="113000").data, image.data, rtol=1e-6, err_msg="post-processed later"
    )
    np.testing.assert_allclose(pet(Units="GML").data, bqml, rtol=1e-6)


@pytest.mark.parametrize(
    ("injected", "zone"),
    [
        ("20260102081013", "+0100"),
        ("20260102081013.00+0100", None),
        ("20260102081013.000000+0100", "+0100"),
        ("20260102071013+0000", "+0100"),
        ("20260102014013-0530", "+0100"),
    ],
)
def test_the_injection_is_timed_by_the_clock_of_the_scan(injected: str, zone: str | None) -> None:
    """All are 08:10:13 where the scan began at 10:00:00, see test_suv_by_body_weight."""
    image = pet(RadiopharmaceuticalStartDateTime=injected, TimezoneOffsetFromUTC=zone)
    bqml = np.rint(20 * phantoms.uptake(grid(affine_of(), SHAPE)))
    np.testing.assert_allclose(image.data, bqml * 70_000 / 200e6, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"PatientWeight": None}, "Weight is missing"),
        ({"PatientWeight": "70000"}, "grams"),
        ({"RadionuclideTotalDose": "400"}, "MBq"),
        ({"RadionuclideHalfLife": "0"}, "Half Life is missing or not above 0"),
        ({"DecayCorrection": "NONE"}, "Decay Correction NONE"),
        ({"CorrectedImage": ["ATTN"]}, "lacks DECY"),
        ({"RadiopharmaceuticalStartTime": ""}, "no time of injection"),
        ({"Units": "CNTS"}, "counts without a calibration"),
    ],
)
def test_no_suv_where_the_header_does_not_allow_it(change: dict[str, Any], words: str) -> None:
    image = pet(**change)
    assert image.units != "SUVbw" and any(words in note for note in image.notes), image.notes
