"""NIfTI and its kin as SPM, FSL, FreeSurfer, Slicer and dcm2niix write them."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from phantoms import affine_of, grid, head, uptake, write_mr

import mmif_trt
from mmif_trt import volume
from mmif_trt.image import Image, InputError
from mmif_trt.io import nifti
from mmif_trt.stages import geometry

SHAPE = (20, 40, 36)
AFFINE = affine_of("SAL", (6, 4, 4), SHAPE, turn_deg=(4, 0, 3))
ITS = AFFINE[:, [2, 1, 0, 3]]  # nibabel's order of axes
VALUES = head(grid(AFFINE, SHAPE)).astype(np.float32)


def save(path: Path, values: np.ndarray = VALUES, code: int = 1, **header: Any) -> Path:
    image = nibabel.Nifti1Image(values.T, ITS)
    image.set_sform(ITS, code)
    image.set_qform(ITS, code)
    for key, value in header.items():
        image.header[key] = value
    image.to_filename(path)
    return path


def is_the_head(image: Image, tolerance: float = 1.0) -> None:
    assert image.data.shape == SHAPE and image.affine is not None
    assert np.abs(image.data - head(grid(image.affine, SHAPE))).max() <= tolerance
    assert image.data.max() > 300


def refused(path: Path, *words: str, **which: Any) -> None:
    with pytest.raises(InputError) as caught:
        mmif_trt.read(path, **which)
    message = str(caught.value)
    assert all(word in message for word in words) and "expected" in message and "\n" not in message, message


def test_gzip_of_several_members(tmp_path: Path) -> None:
    raw = save(tmp_path / "x.nii").read_bytes()
    parts = [gzip.compress(raw[at : at + 9000], mtime=0) for at in range(0, len(raw), 9000)]
    (tmp_path / "x.nii.gz").write_bytes(b"".join(parts))
    is_the_head(mmif_trt.read(tmp_path / "x.nii.gz"))
    (tmp_path / "x.nii.gz").write_bytes(b"".join([*parts, gzip.compress(b"")]))  # bgzip's end-of-file block
    is_the_head(mmif_trt.read(tmp_path / "x.nii.gz"))
    for cut in (b"".join(parts[:-1]), b"".join(parts)[:-7]):
        (tmp_path / "cut.nii.gz").write_bytes(cut)
        refused(tmp_path / "cut.nii.gz", "complete file")
    (tmp_path / "more.nii.gz").write_bytes(b"".join([*parts, gzip.compress(bytes(2 << 20))]))
    refused(tmp_path / "more.nii.gz", "goes on after its announced end")


def test_nan_is_background_and_infinity_is_not(tmp_path: Path) -> None:
    outside = VALUES < 20
    image = mmif_trt.read(save(tmp_path / "x.nii", np.where(outside, np.nan, VALUES - 50)))
    assert image.data[outside].max() == image.data.min() == (VALUES[~outside] - 50).min(), "black, not grey"
    np.testing.assert_allclose(image.data[~outside], (VALUES - 50)[~outside], atol=1e-3)
    brain = mmif_trt.read(save(tmp_path / "m.nii", np.where(outside, np.nan, VALUES)))
    assert brain.data[outside].max() == 0, "not the darkest voxel of the brain"
    (note,) = image.notes
    assert f"{int(outside.sum())} voxels" in note and "NaN: background" in note
    refused(
        save(tmp_path / "i.nii", np.where(outside, np.nan, np.where(VALUES > 600, np.inf, VALUES))),
        "infinite",
    )
    refused(save(tmp_path / "n.nii", np.full(SHAPE, np.nan, np.float32)), "all voxels are NaN")


@pytest.mark.parametrize("broken", [0.0, np.nan])
def test_an_sform_that_spans_no_space_yields_to_the_qform(tmp_path: Path, broken: float) -> None:
    data = bytearray(save(tmp_path / "x.nii").read_bytes())
    data[280:312] = np.full(8, broken, "<f4").tobytes()  # srow_x, srow_y
    (tmp_path / "x.nii").write_bytes(data)
    image = mmif_trt.read(tmp_path / "x.nii")
    is_the_head(image)
    assert "the sform does not span space: the qform is used" in image.notes


def test_one_of_several_volumes(tmp_path: Path) -> None:
    many = np.stack([VALUES, VALUES + 100, VALUES + 200])  # nibabel: the last axis
    image = nibabel.Nifti1Image(np.moveaxis(many, 0, -1).transpose(2, 1, 0, 3), ITS)
    image.to_filename(tmp_path / "x.nii.gz")
    refused(tmp_path / "x.nii.gz", "3 volumes", "--volume-a")
    for number in (1, 2, 3):
        found = mmif_trt.read(tmp_path / "x.nii.gz", volume=number)
        is_the_head(found.with_data(found.data - np.float32(100 * (number - 1))))
        assert f"volume {number} of 3" in found.notes
    refused(tmp_path / "x.nii.gz", "volume 4 of 3", volume=4)


def pair(a: Image, b: Image, **options: Any) -> volume.Fused:
    def infer(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        fused: np.ndarray = np.maximum(x, y[0])
        return fused

    return volume.fuse(infer, a, b, volume.Options(value_range_a=(0, 800), value_range_b=(0, 800), **options))


def test_without_geometry_only_where_it_is_stated_to_be_aligned(tmp_path: Path) -> None:
    a, b = mmif_trt.read(save(tmp_path / "a.nii")), mmif_trt.read(save(tmp_path / "b.nii", code=0))
    assert b.space == "none" and any("no geometry" in note for note in b.notes)
    for options in ({}, {"registration": "rigid"}):
        with pytest.raises(InputError, match="without geometry.*expected.*assume-aligned"):
            pair(a, b, modality_b="pet", **options)
    fused = pair(a, b, modality_b="pet", registration="none", assume_aligned=True)
    np.testing.assert_array_equal(fused.image.affine, a.affine)


@pytest.mark.parametrize(("code_a", "code_b"), [(1, 4), (4, 1), (1, 3), (2, 4), (3, 4), (1, 5)])
def test_two_spaces_are_refused(tmp_path: Path, code_a: int, code_b: int) -> None:
    a, b = (mmif_trt.read(save(tmp_path / f"{x}.nii", code=x)) for x in (code_a, code_b))
    with pytest.raises(InputError, match="space .*expected one space"):
        pair(a, b, modality_b="pet")
    assert pair(a, b, modality_b="pet", registration="none", assume_aligned=True)


def test_aligned_with_the_scanner_gives_a_note_and_one_space_gives_none(tmp_path: Path) -> None:
    one, two, mni = (mmif_trt.read(save(tmp_path / f"{x}.nii", code=x)) for x in (1, 2, 4))
    assert any("'aligned' (code 2)" in x for x in pair(one, two, modality_b="pet").record["b"]["notes"])
    assert not pair(mni, mni, modality_b="pet").record["b"]["notes"]
    dicom = mmif_trt.read(write_mr(tmp_path / "mr", affine_of()))
    with pytest.raises(InputError, match="scanner space .* mni space"):
        geometry.align(dicom, mni)
    assert geometry.align(dicom, one)
    back = nifti.decode(nifti.encode(mni), "x.nii")
    assert back.space == "mni", "what is written says its space again"


def test_an_mri_as_b_is_noted(tmp_path: Path) -> None:
    a = mmif_trt.read(save(tmp_path / "a.nii"))
    assert any("an MRI as B: fused in grey" in x for x in pair(a, a, modality_b="mri").record["b"]["notes"])


@pytest.mark.parametrize("suffix", [".mgh", ".mgz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_freesurfer(tmp_path: Path, suffix: str, dtype: Any) -> None:
    values = (VALUES / 4).astype(dtype)
    nibabel.MGHImage(values.T, ITS).to_filename(tmp_path / f"x{suffix}")
    image = mmif_trt.read(tmp_path / f"x{suffix}")
    np.testing.assert_array_equal(image.data, values)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-3)
    assert image.space == "scanner" and image.data.dtype == (np.uint8 if dtype == np.uint8 else np.float32)
    (tmp_path / f"y{suffix}").write_bytes((tmp_path / f"x{suffix}").read_bytes()[:2000])
    refused(tmp_path / f"y{suffix}", "expected a complete file")
    data = nibabel.MGHImage(values.T, ITS).to_bytes()
    huge = data[:4] + np.array([4096, 4096, 4096], ">i4").tobytes() + data[16:]
    (tmp_path / f"z{suffix}").write_bytes(gzip.compress(huge) if suffix == ".mgz" else huge)
    refused(tmp_path / f"z{suffix}", "voxels announced")


def test_pairs_of_header_and_image(tmp_path: Path) -> None:
    nibabel.Nifti1Pair(VALUES.T, ITS).to_filename(tmp_path / "x.img")
    for end in ("img", "hdr"):
        is_the_head(mmif_trt.read(tmp_path / f"x.{end}"))
    (tmp_path / "x.img").write_bytes((tmp_path / "x.img").read_bytes()[:-5])
    refused(tmp_path / "x.hdr", "are announced")
    (tmp_path / "x.img").unlink()
    refused(tmp_path / "x.hdr", "expected both .hdr and .img")
    nibabel.Spm2AnalyzeImage(VALUES.T.astype(np.int16), None).to_filename(tmp_path / "y.img")
    image = mmif_trt.read(tmp_path / "y.hdr")
    assert image.space == "none"
    np.testing.assert_array_equal(image.data, VALUES.astype(np.int16))


def by_itk(path: Path, compressed: bool = True) -> bytes:
    """The head as ITK writes it; the bytes of the file."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(VALUES)
    lps = np.diag([-1.0, -1, 1, 1]) @ ITS
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    sitk.WriteImage(image, str(path), useCompression=compressed)
    return path.read_bytes()


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
def test_meta_image(tmp_path: Path, suffix: str, compressed: bool) -> None:
    text, path = by_itk(tmp_path / f"x{suffix}", compressed), tmp_path / f"y{suffix}"
    found = mmif_trt.read(tmp_path / f"x{suffix}")
    is_the_head(found)
    assert found.space is None and not found.notes and len(found.sha256) == 64

    def written(before: bytes, now: bytes) -> Path:
        assert text.count(before) == 1
        path.write_bytes(text.replace(before, now))
        return path

    for key in (b"Offset", b"TransformMatrix", b"ElementSpacing"):
        image = mmif_trt.read(written(key, b"Comment"))
        assert image.space == "none" and image.notes[-1].endswith(f"(no {key.decode()})")
    assert mmif_trt.read(written(b"ElementSpacing", b"ElementSize")).space is None
    refused(written(b"DimSize = 36 40 20", b"DimSize = 9999 9999 9999"), "voxels announced")
    refused(written(b"DimSize = 36 40 20", b"DimSize = 36 40 -20"), "voxels announced")
    for slices in (b"19", b"21") if compressed else (b"21",):
        refused(written(b"DimSize = 36 40 20", b"DimSize = 36 40 " + slices), "expected a complete file")
    if compressed:
        path.write_bytes(re.sub(rb"(CompressedDataSize = )\d+", rb"\g<1>300", text))
        refused(path, "expected a complete file")
        path.write_bytes(re.sub(rb"CompressedDataSize = \d+\n", b"", text))
        if suffix == ".mha":
            refused(path, "without CompressedDataSize")
        else:
            is_the_head(mmif_trt.read(path))
    elif suffix == ".mha":
        refused(written(b"ElementType", b"HeaderSize = 4\nElementType"), "HeaderSize with LOCAL")
    refused(written(b"MET_FLOAT", b"MET_FLAT"), "not a MetaImage that ITK reads")
    refused(written(b"ElementType", b"ElementNumberOfChannels = 2\nElementType"), "2 values per voxel")
    where = b"LOCAL" if suffix == ".mha" else b"x.zraw" if compressed else b"x.raw"
    for other in (b"LIST", b"/dev/zero", b"x%02d.raw 1 20 1", b""):
        refused(written(b"ElementDataFile = " + where, b"ElementDataFile = " + other), "no data file")
    path.write_bytes(text[:60])
    refused(path, "no ElementDataFile")
    data = tmp_path / (f"x{suffix}" if where == b"LOCAL" else where.decode())
    whole = data.read_bytes()
    for damaged in (whole[:-9], whole[:-40] + bytes(40)) if compressed else (whole[:-9],):
        data.write_bytes(damaged)
        refused(tmp_path / f"x{suffix}", "expected a complete file")


def test_meta_image_of_several_volumes(tmp_path: Path) -> None:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.stack([VALUES, VALUES + 50]), isVector=False)
    sitk.WriteImage(image, str(tmp_path / "x.mha"))
    refused(tmp_path / "x.mha", "2 volumes", "--volume-a")
    np.testing.assert_array_equal(mmif_trt.read(tmp_path / "x.mha", volume=2).data, VALUES + 50)


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr"])
def test_nrrd(tmp_path: Path, suffix: str) -> None:
    text = by_itk(tmp_path / f"x{suffix}")
    found = mmif_trt.read(tmp_path / f"x{suffix}")
    is_the_head(found)
    assert found.space == "scanner"
    lines = [x for x in text.split(b"\n") if not x.startswith(b"space: ")]
    (tmp_path / f"z{suffix}").write_bytes(text.replace(b"sizes: 36 40 20", b"sizes: 9999 9999 9999"))
    refused(tmp_path / f"z{suffix}", "voxels announced")
    (tmp_path / f"y{suffix}").write_bytes(b"\n".join(lines)[:120])
    refused(tmp_path / f"y{suffix}", "expected")


@pytest.mark.parametrize("kinds", ["list domain domain domain", "domain domain domain list"])
def test_nrrd_of_several_volumes(tmp_path: Path, kinds: str) -> None:
    """As 3D Slicer writes sequences and diffusion: an axis of kind list, first or last."""
    axis = 3 if kinds.startswith("list") else 0
    voxels = np.stack([VALUES, VALUES + 50], axis).astype("<f4")
    lps = np.diag([-1.0, -1, 1, 1]) @ ITS
    directions = ["({:f},{:f},{:f})".format(*lps[:3, k]) for k in range(3)]
    axes = [(str(side), way) for side, way in zip(VALUES.shape[::-1], directions, strict=True)]
    axes.insert(0 if axis else 3, ("2", "none"))
    head = (
        f"NRRD0004\ntype: float\ndimension: 4\nspace: LPS\nsizes: {' '.join(x for x, _ in axes)}\n"
        f"space directions: {' '.join(x for _, x in axes)}\nkinds: {kinds}\nendian: little\n"
        f"encoding: raw\nspace origin: ({','.join(map(str, lps[:3, 3]))})\n\n"
    )
    path = tmp_path / "x.nrrd"
    path.write_bytes(head.encode() + voxels.tobytes())
    refused(path, "2 volumes", "--volume-a")
    for number in (1, 2):
        image = mmif_trt.read(path, volume=number)
        is_the_head(image.with_data(image.data - 50 * (number - 1)))
        assert f"volume {number} of 2" in image.notes
    path.write_bytes(head.replace("list", "vector").encode() + voxels.tobytes())
    refused(path, "NRRD of 2 values per voxel (vector)")


def test_uptake_in_mgz_is_fused_by_the_command_line(tmp_path: Path) -> None:
    from mmif_trt.cli import main

    nibabel.MGHImage(uptake(grid(AFFINE, SHAPE)).astype(np.float32).T, ITS).to_filename(tmp_path / "b.mgz")
    save(tmp_path / "a.nii")
    command = [
        "fuse",
        str(tmp_path / "a.nii"),
        str(tmp_path / "b.mgz"),
        "-o",
        str(tmp_path / "o.nii"),
        "--quiet",
    ]
    assert main([*command, "--modality-b", "pet", "--value-range", "0", "1000"]) == 0
    assert mmif_trt.read(tmp_path / "o.nii").is_colour
