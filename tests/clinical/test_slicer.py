"""What fuse writes, read as 3D Slicer reads it: by ITK, whose readers Slicer uses, here through SimpleITK."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from phantoms import affine_of, write_mr, write_pet

from mmif_trt.cli import main

SHAPE = (20, 40, 36)
# Oblique, off-centre, no two spacings equal: a swapped axis or sign shows.
AFFINE = affine_of("SPL", (6, 4, 3.5), SHAPE, turn_deg=(4, 3, 8), middle=(5, -7, 11))


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The MRI series, and its fusion as NIfTI and as DICOM."""
    root = tmp_path_factory.mktemp("slicer")
    write_mr(root / "mr", AFFINE, SHAPE)
    write_pet(root / "pt", AFFINE, SHAPE)
    for name in ("f.nii.gz", "f.dcm"):
        assert main(["fuse", str(root / "mr"), str(root / "pt"), "-o", str(root / name), "--quiet"]) == 0
    series = sitk.ImageSeriesReader()
    series.SetFileNames(series.GetGDCMSeriesFileNames(str(root / "mr")))
    found = {name: sitk.ReadImage(str(root / name)) for name in ("f.nii.gz", "f.dcm", "f_luma.nii.gz")}
    return {"mri": series.Execute(), **found}


@pytest.mark.parametrize("name", ("f.nii.gz", "f.dcm", "f_luma.nii.gz"))
def test_it_lies_on_the_mri(read: dict[str, Any], name: str) -> None:
    mri, fused = read["mri"], read[name]
    assert fused.GetSize() == mri.GetSize() == SHAPE[::-1]
    np.testing.assert_allclose(fused.GetSpacing(), mri.GetSpacing(), rtol=1e-6)
    np.testing.assert_allclose(fused.GetDirection(), mri.GetDirection(), atol=1e-6)
    for index in ((0, 0, 0), (35, 39, 19), (3, 17, 8)):
        at = [image.TransformIndexToPhysicalPoint(index) for image in (mri, fused)]
        np.testing.assert_allclose(at[1], at[0], atol=1e-3)


def test_both_forms_have_the_same_colours(read: dict[str, Any], tmp_path: Path) -> None:
    nifti, dicom = (sitk.GetArrayFromImage(read[name]) for name in ("f.nii.gz", "f.dcm"))
    assert nifti.dtype == np.uint8 and nifti.shape == (*SHAPE, 3)
    np.testing.assert_array_equal(nifti, dicom)
    luma = sitk.GetArrayFromImage(read["f_luma.nii.gz"])
    shown = nifti @ np.array([0.299, 0.587, 0.114]) / 255
    assert np.abs(luma - shown).max() < 0.01
    assert luma.max() > 0.3
