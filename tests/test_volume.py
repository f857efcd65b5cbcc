"""Volumes through geometry, registration, palettes and the network: what lies where, and what is refused."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import phantoms
import pytest
from conftest import REPO, data_root
from phantoms import affine_of, grid, head, uptake, write_mr, write_nifti, write_pet

import mmif_trt
from mmif_trt import volume
from mmif_trt.clinical import outputs
from mmif_trt.commands import volumes
from mmif_trt.image import Image, InputError
from mmif_trt.stages import geometry, normalise, palettes
from mmif_trt.stages.geometry import rigid

SHAPE = (24, 60, 48)


def mri(affine: np.ndarray | None = None, shape: tuple[int, int, int] = SHAPE) -> Image:
    affine = affine_of() if affine is None else affine
    return Image(head(grid(affine, shape)).astype(np.float32), (0, 800), "mri", affine=affine, source="mri")


def pet(affine: np.ndarray, shape: tuple[int, int, int], **changes: object) -> Image:
    image = Image(
        uptake(grid(affine, shape)).astype(np.float32), (0, 1000), "pet", affine=affine, source="pet"
    )
    return replace(image, **changes)  # type: ignore[arg-type]


OTHER_GRIDS = {
    "opposite hand": (affine_of("SPR", (4, 4, 4), (32, 50, 44)), (32, 50, 44)),
    "sagittal": (affine_of("LIP", (3, 3, 3), (50, 50, 60)), (50, 50, 60)),
    "oblique": (affine_of("AIL", (3, 3, 3), (64, 48, 48), (20, 10, -15)), (64, 48, 48)),
    "sheared": (affine_of("SPL", (4, 3, 3), (32, 60, 48), tilt=0.8), (32, 60, 48)),
}


@pytest.mark.parametrize("name", OTHER_GRIDS)
def test_b_lands_where_its_header_says(name: str) -> None:
    affine, shape = OTHER_GRIDS[name]
    a = mri()
    moved, report = geometry.align(a, pet(affine, shape))
    truth = uptake(grid(affine_of(), SHAPE))
    assert moved.data.shape == SHAPE and report.matrix == np.eye(4).tolist()
    inside, _ = geometry.resample(a, replace(pet(affine, shape), data=np.ones(shape, np.float32)), np.eye(4))
    covered = inside.data > 0.999
    assert covered.mean() > 0.5
    error = np.abs(moved.data - truth)[covered]
    assert np.percentile(error, 99) < 40 and error.mean() < 5  # linear interpolation of 4 mm voxels


def test_what_b_does_not_cover_shows_a_alone() -> None:
    """A CT cut out of the head holds no air: its lowest value is no black, and must not fill what lies
    beyond it."""
    a = mri()
    slab = np.full((4, *SHAPE[1:]), 40.0, np.float32)
    slab[:, 20:40, 20:30] = 700
    ct = Image(slab, None, "ct", affine=affine_of(), source="ct", units="HU")
    fused = volume.fuse(
        lambda x, y: np.maximum(x, y[0]), replace(a, data=0 * a.data), ct, volume.Options()
    ).image.data
    assert (fused[:4] > 0).all() and not fused[5:].any()


@pytest.mark.parametrize("plane", [None, *volume.PLANES])
def test_the_hot_spot_of_the_left_is_hot_on_the_left(plane: str | None, tmp_path: Path) -> None:
    """From DICOM MRI and opposite-handed NIfTI PET to RGB NIfTI: red where the uptake is, not opposite."""
    affine, shape = OTHER_GRIDS["opposite hand"]
    write_nifti(tmp_path / "pet.nii.gz", uptake(grid(affine, shape)), affine, ">i2")
    options = {"modality_b": "pet", "palette": "HOT_IRON", "value_range_b": (0, 1000), "plane": plane}
    fused = mmif_trt.fuse(write_mr(tmp_path / "mri dir", affine_of()), tmp_path / "pet.nii.gz", **options)
    assert fused.data.shape == (*SHAPE, 3) and fused.data.dtype == np.uint8
    mmif_trt.write(tmp_path / "out.nii.gz", fused)
    back = mmif_trt.read(tmp_path / "out.nii.gz")
    assert back.affine is not None

    def redness(place: np.ndarray) -> float:
        s, r, c = np.rint(np.linalg.solve(back.affine[:3, :3], place - back.affine[:3, 3])).astype(int)
        around = back.data[s, r - 1 : r + 2, c - 1 : c + 2].astype(float)
        return float((around[..., 0] - around[..., 2]).mean())

    left = redness(phantoms.HOT_MM)
    assert left > 60 and left > 1.5 * redness(phantoms.HOT_MM * (-1, 1, 1))


def test_real_spect_of_the_opposite_handedness_is_not_mirrored() -> None:
    folder = data_root() / "templates"
    if not folder.is_dir():
        pytest.skip(f"templates not found at {folder}; set MMIF_DATA to the folder that holds templates/")
    import nibabel
    from nibabel.processing import resample_from_to

    a, b = mmif_trt.read(folder / "T1.nii"), mmif_trt.read(folder / "SPECT.nii")
    moved, _ = geometry.align(a, b)
    theirs = resample_from_to(nibabel.load(folder / "SPECT.nii"), nibabel.load(folder / "T1.nii"), order=1)
    np.testing.assert_allclose(moved.data, np.asarray(theirs.dataobj).T, atol=1.0)
    mirrored = np.abs(moved.data[..., ::-1] - moved.data).mean()
    assert mirrored > 10 * np.abs(moved.data - np.asarray(theirs.dataobj).T).mean(), (
        "the test can see a mirror"
    )


@pytest.mark.parametrize(
    ("shift_mm", "turn_deg", "size"),
    [((12.0, -8.0, 6.0), (0, 0, 0), 1.0), ((-5.0, 4.0, 7.0), (6, -4, 8), 1.0), ((-5, 4, 7), (6, -4, 8), 0.1)],
)
def test_rigid_finds_a_known_shift_and_turn(
    shift_mm: tuple[float, ...], turn_deg: tuple[float, ...], size: float
) -> None:
    """b's header is wrong by a known movement; the points of the head must come back within a millimetre,
    those of a mouse's, a tenth of its size, within a tenth."""
    shape = (44, 60, 50)
    true = affine_of("SPL", (4, 3, 3), shape)
    movement = affine_of("RAS", (1, 1, 1), (1, 1, 1), turn_deg, middle=shift_mm)
    b = replace(pet(true, shape), affine=movement @ true)
    a = mri(affine_of("SPL", (3, 2.5, 2.5), (48, 64, 56)), (48, 64, 56))
    smaller = np.diag([size, size, size, 1])
    a, b = (replace(x, affine=smaller @ x.affine) for x in (a, b))
    moved, report = geometry.align(a, b, "rigid")
    assert report.repeatability_mm is not None and report.repeatability_mm < 2 * size
    report = replace(report, matrix=(np.linalg.inv(smaller) @ report.matrix @ smaller).tolist())
    points = np.array([(x, y, z, 1) for x in (-50, 50) for y in (-60, 60) for z in (-40, 40)], float)
    error = np.linalg.norm((points @ (np.array(report.matrix) - movement).T)[:, :3], axis=1)
    assert error.max() < 1.0, f"{error.max():.2f} mm, report {report}"
    assert report.mutual_information is not None
    assert report.mutual_information[1] < report.mutual_information[0] - 0.05
    assert report.rotation_deg == pytest.approx(
        np.degrees(np.arccos((np.trace(movement[:3, :3]) - 1) / 2)), abs=1
    )


@pytest.mark.parametrize(
    ("size", "apart_mm", "words"),
    [
        (1.0, 2.9, ""),
        (1.0, 3.1, "3.1 mm away (expected up to 3 mm)"),
        (0.1, 3.1, "0.31 mm away (expected up to 0.29 mm)"),
        (1.0, np.nan, "no place where the volumes overlap"),
    ],
)
def test_rigid_runs_that_end_apart_are_said(
    size: float,
    apart_mm: float,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ends, smaller = iter((0.0, apart_mm)), np.diag([size, size, size, 1])
    a, b = (
        replace(x, affine=smaller @ x.affine)
        for x in (mri(), pet(affine_of(), SHAPE, notes=("of the reader",)))
    )
    times = geometry._magnified(a, b) * size

    def descend(*_: object) -> tuple[np.ndarray, float, float]:
        if np.isnan(end := next(ends)):
            raise InputError("rigid registration failed")
        return affine_of("RAS", (1, 1, 1), (1, 1, 1), middle=(end * times, 0, 0)), -0.1, -0.5

    monkeypatch.setattr(rigid, "descend", descend)
    moved, report = geometry.align(a, b, "rigid")
    assert (report.repeatability_mm or np.nan) == pytest.approx(apart_mm * size, nan_ok=True)
    assert report.shift_mm == 0
    assert moved.notes[0] == "of the reader"
    record: dict[str, Any] = {"registration": report.entry(), "b": {"notes": list(moved.notes)}}
    volumes._summarise(argparse.Namespace(quiet=True), SimpleNamespace(record=record))
    said = capsys.readouterr().err
    if not words:
        assert len(moved.notes) == 1 and not said
    else:
        assert words in moved.notes[1] and "Spatial Registration" in moved.notes[1]
        assert f"warning: {moved.notes[1]}" in said
    for side in "ab":
        record[side] = {"limits": (0, 1), "limits_from": "x", "notes": record.get(side, {}).get("notes", [])}
    record |= {"palette": None, "plane": "axial"}
    derivations: list[str] = []
    monkeypatch.setattr(
        outputs.dicom_write, "derived", lambda *_, **words: derivations.append(words["derivation"])
    )
    image = replace(mri(), label=(("Source", "x"),))
    outputs.dataset_of(volume.Fused(image, image, "axial", record, "lagn"), image, b)
    assert (geometry.UNSURE in derivations[0]) is bool(words)


def test_rigid_finds_what_elastix_and_ants_find() -> None:
    """On real averages, where nobody knows the truth: two other programs' answers, from benchmarks/."""
    folder = data_root() / "templates"
    if not folder.is_dir():
        pytest.skip(f"templates not found at {folder}; set MMIF_DATA to the folder that holds templates/")
    rows = json.loads((REPO / "benchmarks" / "results" / "registration.json").read_text())["rows"]
    theirs = {x["program"]: x["middle_moves_mm"] for x in rows if (x["a"], x["b"]) == ("T1", "PET")}
    whole, b = mmif_trt.read(folder / "T1.nii"), mmif_trt.read(folder / "PET.nii")
    assert whole.affine is not None
    # Of 4 mm: as near to theirs as the 2 mm of the file, in a quarter of the time.
    a = whole.with_data(whole.data[::2, ::2, ::2].copy(), affine=whole.affine @ np.diag([2.0, 2, 2, 1]))
    matrix, report = geometry.register_rigid(a, b)
    assert a.affine is not None
    middle = a.affine @ [*((np.array(a.data.shape) - 1) / 2), 1]
    for program in ("elastix", "ANTs"):
        apart = np.linalg.norm((matrix @ middle - middle)[:3] - theirs[program])
        assert apart < 0.3, f"{apart:.2f} mm from {program}"
    assert report.repeatability_mm is not None and report.repeatability_mm < 0.5


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    a = mmif_trt.read(write_mr(tmp_path / "a", affine_of()))
    refused = {
        "different frames of reference": {"FrameOfReferenceUID": "1.2.3"},
        "different patients": {"PatientID": "PLANTED-B"},
    }
    for i, (words, tags) in enumerate(refused.items()):
        b = mmif_trt.read(write_pet(tmp_path / f"b{i}", affine_of(), **tags))
        with pytest.raises(InputError, match=words) as caught:
            mmif_trt.fuse(a, b)
        assert "PLANTED" not in str(caught.value)
    b = mmif_trt.read(write_pet(tmp_path / "nameless", affine_of(), FrameOfReferenceUID=""))
    assert "no Frame of Reference UID in" in geometry.align(a, b)[0].notes[-1]
    with pytest.raises(InputError, match="scanner space and .* in mni space"):
        geometry.align(b, replace(a, headers=(), frame=None, space="mni"))
    far = pet(affine_of(middle=(900, 0, 0)), SHAPE)
    options: dict[str, object]
    for b, options, words in (
        (far, {}, "does not overlap"),
        (pet(affine_of(), SHAPE), {"registration": "none"}, "--assume-aligned .*assume_aligned=True"),
        (pet(affine_of(), (20, 40, 40)), {"registration": "none", "assume_aligned": True}, "one grid"),
        (pet(affine_of(), SHAPE), {"registration": "affine"}, "header, rigid, none"),
        (pet(affine_of(), SHAPE), {"palette": "RAINBOW"}, "HOT_IRON"),
        (pet(affine_of(), SHAPE), {"plane": "oblique"}, "axial, coronal, sagittal"),
        (pet(affine_of(), SHAPE, modality=None), {}, "--modality-b ct, pet or spect .*modality_b"),
        (pet(affine_of(), SHAPE, modality=None), {"modality_b": "PET"}, "modality_b 'PET'; expected mri, ct"),
        (pet(affine_of(), SHAPE), {"modality_b": "ct"}, "pet by its header"),
        (pet(affine_of(), SHAPE, value_range=None), {}, "no fixed black and white"),
        (pet(affine_of(), SHAPE), {"percentiles_b": (50, 50)}, "percentiles"),
        (
            pet(affine_of(), SHAPE),
            {"percentiles_b": 5},
            r"--percentiles-b \(percentiles_b\): 5; expected two numbers",
        ),
        (mri().data[3], {}, "a picture"),
        (pet(affine_of(), (3, 40, 40)), {"registration": "rigid"}, "3 x 40 x 40 voxels; expected 4 along"),
        (replace(a, data=np.zeros_like(a.data)), {"registration": "rigid"}, "all voxels are equal"),
    ):
        with pytest.raises(InputError, match=words):
            mmif_trt.fuse(a, b, **options)
    for stranger, words in ((({"plane": "axial"},), "options: dict"), ((), "b: ndarray")):
        with pytest.raises(InputError, match=words):
            mmif_trt.Fuser().fuse_volumes(a, a if stranger else a.data, *stranger)
    with pytest.raises(InputError, match="did a and b swap"):
        mmif_trt.fuse(pet(affine_of(), SHAPE), a)
    with pytest.raises(InputError, match="palette: expected only with volumes"):
        mmif_trt.fuse(mri().data[3], mri().data[3], palette="PET")


def test_limits_are_set_once_per_volume_and_recorded() -> None:
    hounsfield = replace(mri(), modality="ct", units="HU", value_range=None)
    assert normalise.volume_limits(hounsfield, None) == ((-100.0, 900.0), "fixed for ct in HU")
    limits, how = normalise.volume_limits(hounsfield, (1, 99))
    np.testing.assert_allclose(limits, np.percentile(hounsfield.data, (1, 99)))
    assert how == "percentiles 1 and 99 of the volume"
    # A slice's own extremes must not matter: the same slice among others fuses to the same.
    a, b = mri(), pet(affine_of(), SHAPE)
    told: list[tuple[int, int]] = []
    on_slice = lambda done, slices: told.append((done, slices))  # noqa: E731
    whole = mmif_trt.Fuser().fuse_volumes(a, b, volume.Options(plane="axial"), on_slice)
    assert told == [(done, len(told)) for done in range(1, len(told) + 1)] and told, "each slice once"
    dimmer = replace(
        b, data=np.where(np.arange(24)[:, None, None] == 12, b.data, b.data / 3).astype(np.float32)
    )
    again = mmif_trt.Fuser().fuse_volumes(a, dimmer, volume.Options(plane="axial"))
    np.testing.assert_array_equal(whole.image.data[12], again.image.data[12])
    # Limits per slice would make the two alike; the MRI, which is the same in both, keeps them near.
    assert again.luma.data[11].mean() < 0.97 * whole.luma.data[11].mean(), "a dim slice stays dim"
    assert (
        whole.record["b"]["limits"] == [0.0, 1000.0]
        and whole.record["palette"]["uid"] == "1.2.840.10008.1.5.2"
    )


def test_ct_stays_grey_in_16_bits_and_black_stays_black() -> None:
    a = mri()
    a.data[:3] = 0  # slices with nothing in them: elsewhere the network decides
    ct = replace(a, data=a.data - 100, modality="ct", units="HU", value_range=None)
    fused = mmif_trt.Fuser().fuse_volumes(a, ct)
    assert fused.image.data.dtype == np.uint16 and not fused.image.is_colour
    assert fused.plane == "axial" and fused.luma.data.max() > 0.5
    assert not fused.image.data[:3].any() and fused.image.data[12].any()


@pytest.mark.parametrize("plane", volume.PLANES)
@pytest.mark.parametrize("orientation", ["SPL", "IAR", "LIP", "PSL"])
def test_display_order_is_the_radiologists_and_nothing_moves(plane: str, orientation: str) -> None:
    affine = affine_of(orientation, (5, 3, 2), SHAPE, (4, 3, 2))
    data = head(grid(affine, SHAPE)).astype(np.float32)
    view, turned = volume.orient(data, affine, plane)
    np.testing.assert_allclose(view, head(grid(turned, view.shape)), atol=1e-3)
    assert Image(view, affine=turned).orientation == volume.PLANES[plane] and np.shares_memory(view, data)


@pytest.mark.parametrize("name", palettes.PALETTES)
def test_palettes_are_the_standards(name: str) -> None:
    """The tables of PS3.6 annex B start black and end white, and a UID names the same one."""
    np.testing.assert_array_equal(palettes.table(name), palettes.table(palettes.PALETTES[name]))
    assert (palettes.table(name)[0] == 0).all() and (palettes.table(name)[255] == 1).all()
    # PS3.6 table B.1.1: HOT IRON is red alone up to entry 127, B.1.3: blue first.
    assert (palettes.table("HOT_IRON")[1:127, 1:] == 0).all() and palettes.table("HOT_METAL_BLUE")[
        30
    ].argmax() == 2
    unit = np.array([0.0, 0.5, 1.0], np.float32)
    np.testing.assert_array_equal(palettes.apply(unit, name), palettes.table(name)[[0, 128, 255]])
