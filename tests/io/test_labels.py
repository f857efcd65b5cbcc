"""What a fused file says about itself, as other programs read it: software, weights, sources, research
use."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from pathlib import Path

import cv2
import nibabel
import numpy as np
import PIL.Image
import pytest
from phantoms import PLANTED, affine_of, write_mr, write_pet
from pictures import GREY, RGB

import mmif_trt
from mmif_trt import cli
from mmif_trt.about import RESEARCH_USE
from mmif_trt.image import Image
from mmif_trt.weights import manifest

NETWORK = manifest()["models"]["lagn"]["files"]["lagn.onnx"]["sha256"]


def sum_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    mmif_trt.write(folder / "a.png", Image(GREY))
    mmif_trt.write(folder / "b.png", Image(RGB))
    return folder


def comment_of(path: Path) -> tuple[str, str]:
    """(software, the whole label) as Pillow reads them or, for JPEG 2000, from the bytes."""
    with PIL.Image.open(path) as file:
        if file.format == "PNG":
            text = dict(file.text)  # type: ignore[attr-defined]
            return text["Software"], "\n".join(f"{key}: {value}" for key, value in text.items())
        if file.format == "TIFF":
            tags = file.tag_v2  # type: ignore[attr-defined]
            return tags[305], tags[270]
        if file.format == "JPEG":
            text = file.info["comment"].decode()
            return re.findall("Software: (.*)", text)[0], text
    text = path.read_bytes().split(b"\xff\x64", 1)[1][4:].split(b"\xff", 1)[0].decode("latin-1")
    return re.findall("Software: (.*)", text)[0], text


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".jp2", ".j2k"])
def test_a_fused_picture_says_what_it_is(pair: Path, tmp_path: Path, suffix: str) -> None:
    a, b = pair / "a.png", pair / "b.png"
    fused = mmif_trt.fuse(a, b)
    out = tmp_path / f"fused{suffix}"
    mmif_trt.write(out, fused)
    software, text = comment_of(out)
    assert software == f"mmif_trt {mmif_trt.__version__}"
    assert NETWORK in text and RESEARCH_USE in text
    assert f"A sha256 {sum_of(a)}, B sha256 {sum_of(b)}" in text
    assert str(pair) not in text and "a.png" not in text
    again = mmif_trt.read(out)
    if suffix != ".jpg":
        np.testing.assert_array_equal(again.data, fused.data)
        with PIL.Image.open(out) as file:  # no other decoder takes the label for damage
            np.testing.assert_array_equal(np.asarray(file), fused.data)
    read = cv2.imread(str(out), cv2.IMREAD_UNCHANGED)
    assert read is not None and read.shape == fused.data.shape
    mmif_trt.write(tmp_path / f"twice{suffix}", mmif_trt.fuse(a, b))
    assert out.read_bytes() == (tmp_path / f"twice{suffix}").read_bytes()


def test_what_was_not_fused_says_nothing(pair: Path, tmp_path: Path) -> None:
    for suffix in (".png", ".tif", ".jpg"):
        mmif_trt.write(tmp_path / f"x{suffix}", mmif_trt.read(pair / "a.png"))
        assert b"mmif" not in (tmp_path / f"x{suffix}").read_bytes()
    assert not mmif_trt.read(pair / "a.png").label


def test_float_tiff_and_arrays(tmp_path: Path) -> None:
    a, b = (Image(x.astype(np.float32) / 255) for x in (GREY, GREY[::-1].copy()))
    mmif_trt.write(tmp_path / "x.tif", mmif_trt.fuse(a, b))
    with PIL.Image.open(tmp_path / "x.tif") as file:
        assert "A sha256 unknown, B sha256 unknown" in file.tag_v2[270]  # type: ignore[attr-defined]
    read = cv2.imread(str(tmp_path / "x.tif"), cv2.IMREAD_UNCHANGED)
    assert read is not None and read.dtype == np.float32


def test_a_folder_of_pairs(pair: Path, tmp_path: Path) -> None:
    for side in "ab":
        (tmp_path / side).mkdir()
        (tmp_path / side / "x.png").write_bytes((pair / f"{side}.png").read_bytes())
    out = tmp_path / "out"
    assert cli.main(["fuse", *(str(tmp_path / side) for side in "ab"), "-o", str(out), "--quiet"]) == 0
    _, text = comment_of(out / "x.png")
    assert sum_of(pair / "a.png") in text and sum_of(pair / "b.png") in text


def test_volumes_slices_and_sheet(tmp_path: Path) -> None:
    """A series has the sum of its files' sorted sums, as a shell computes it."""
    affine = affine_of(shape=(4, 32, 32), spacing=(5.0, 4.5, 4.5))
    write_mr(tmp_path / "mr", affine, (4, 32, 32))
    write_pet(tmp_path / "pt", affine, (4, 32, 32))
    how = ["fuse", str(tmp_path / "mr"), str(tmp_path / "pt"), "--quiet"]
    preview = ["--preview", str(tmp_path / "sheet.png"), "--report", str(tmp_path / "report.json")]
    assert cli.main([*how, "-o", str(tmp_path / "x.nii.gz"), *preview]) == 0
    command = "sha256sum mr/* | cut -c1-64 | sort | sha256sum | cut -c1-64"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    of_mr = done.stdout.strip()
    for name in ("x.nii.gz", "x_luma.nii.gz"):
        volume = nibabel.Nifti1Image.load(tmp_path / name)
        short = bytes(volume.header["descrip"].tobytes()).rstrip(b"\0").decode()
        assert (
            short == f"mmif_trt {mmif_trt.__version__}, LAGN {NETWORK[:8]}: research use only"
            and len(short) < 80
        )
        (extension,) = volume.header.extensions
        text = extension.get_content()
        text = text.decode() if isinstance(text, bytes) else text
        assert extension.get_code() == 6 and of_mr in text and NETWORK in text and RESEARCH_USE in text
        assert not [value for value in PLANTED.values() if value in text] and str(tmp_path) not in text
    # dcm2niix, ITK and our own reader find the voxels behind the extension
    import SimpleITK as sitk

    luma = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "x_luma.nii.gz")))
    np.testing.assert_array_equal(luma, mmif_trt.read(tmp_path / "x_luma.nii.gz").data)
    _, text = comment_of(tmp_path / "sheet.png")
    assert of_mr in text
    assert json.loads((tmp_path / "report.json").read_text())["a"]["sha256"] == of_mr
    assert cli.main([*how, "-o", str(tmp_path / "slices")]) == 0
    for path in sorted((tmp_path / "slices").iterdir()):
        assert of_mr in comment_of(path)[1]


def test_a_pair_of_files_has_one_sum(tmp_path: Path) -> None:
    nibabel.Nifti1Pair(np.zeros((20, 20, 4), np.uint8), np.eye(4)).to_filename(tmp_path / "x.img")
    sums = sorted(sum_of(tmp_path / name) for name in ("x.img", "x.hdr"))
    expected = hashlib.sha256("".join(f"{one}\n" for one in sums).encode()).hexdigest()
    assert mmif_trt.read(tmp_path / "x.hdr").sha256 == mmif_trt.read(tmp_path / "x.img").sha256 == expected
