"""The test files that pydicom and nibabel ship, as neighbours and devices wrote them: read as nibabel reads
them, or refused in words that say why and what to do."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

import mmif_trt

DICOM = Path(pydicom.__file__).parent / "data" / "test_files"
NIBABEL = Path(nibabel.__file__).parent
REORDER = [2, 1, 0, 3]
REFUSED = {
    "JPEG-lossy": "pixels of JPEG Extended (Process 2 and 4) in 12 bits that no codec here decodes",
    "JPEG2000-embedded-sequence-delimiter": "JPEG of 1024 x 3722445056 px",
    "MR_truncated": "8130 bytes of pixels, 8192 announced: truncated",
    "no_meta": "a stray byte before a bare data set; expected none",
    "nested_priv_SQ": "pixel data without Rows and Columns",
    "UN_sequence": "no Rows and no pixel data, no image",
    "empty_charset_LEI": "no Rows and no pixel data, no image",
    "waveform_ecg": "1 x 12-lead ECG Waveform, no image",
    "rtstruct": "1 x RT Structure Set, no image",
    "liver_1frame": "1 x Segmentation, no image",
    "meta_missing_tsyntax": "DICOM without a transfer syntax",
    "SC_rgb_rle_16bit": "colour of 16 bits; expected 8",
    "examples_ybr_color": "30 frames without a position",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_pydicom_ships_is_refused_with_a_reason(name: str) -> None:
    path = DICOM / f"{name}.dcm"
    if not path.exists():
        pytest.skip(f"this pydicom ships no {path.name}")
    with pytest.raises(mmif_trt.InputError) as caught:
        mmif_trt.read(path)
    message = str(caught.value)
    assert REFUSED[name] in message and "expected" in message and "\n" not in message, message


def test_a_jp2_file_inside_dicom_is_its_picture() -> None:
    """A writer's error: the file with its boxes, where only the codestream belongs. OpenCV reads the same
    pixels."""
    import cv2
    from pydicom.encaps import generate_frames

    path = DICOM / "GDCMJ2K_TextGBR.dcm"
    if not path.exists():
        pytest.skip("this pydicom ships no GDCMJ2K_TextGBR.dcm")
    frame = next(generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=1))
    theirs = cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_COLOR)
    assert theirs is not None
    np.testing.assert_array_equal(mmif_trt.read(path).data, theirs[..., ::-1])


@pytest.mark.parametrize(
    ("name", "volume"),
    [("anatomical.nii", 1), ("example4d.nii.gz", 2), ("example_nifti2.nii.gz", 2), ("functional.nii", 20)],
)
def test_what_nibabel_ships_is_what_nibabel_reads(name: str, volume: int) -> None:
    path = NIBABEL / "tests" / "data" / name
    if not path.exists():
        pytest.skip(f"this nibabel ships no {name}")
    image = mmif_trt.read(path, volume=volume)
    file = nibabel.Nifti1Image.load(path) if "nifti2" not in name else nibabel.Nifti2Image.load(path)
    voxels = np.asarray(file.dataobj, np.float32)
    np.testing.assert_allclose(image.data, (voxels[..., volume - 1] if voxels.ndim == 4 else voxels).T)
    np.testing.assert_allclose(image.affine, file.affine[:, REORDER], atol=1e-4)


def test_cifti_is_told_from_a_volume() -> None:
    path = NIBABEL / "tests" / "data" / "row_major.dconn.nii"
    if not path.exists():
        pytest.skip("this nibabel ships no CIFTI")
    with pytest.raises(mmif_trt.InputError, match="CIFTI: values along surfaces and parcels; expected"):
        mmif_trt.read(path)
