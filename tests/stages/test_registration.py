"""A movement that somebody else found: as an array, as a DICOM Spatial Registration, and in a study."""

from __future__ import annotations

import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pytest
from peers import Node, needs, storescu, until
from phantoms import affine_of, grid, head, uptake, write_mr, write_pet, write_registration
from ports import free_port

import mmif_trt
from mmif_trt import volume
from mmif_trt.cli import main
from mmif_trt.clinical import planning
from mmif_trt.clinical.decoder import Decoder
from mmif_trt.image import Image, InputError
from mmif_trt.stages import geometry

SECRET = bytes(range(32))
SHAPE, SHAPE_B = (24, 60, 48), (20, 48, 44)
TRUE = affine_of("SPL", (6, 4, 4), SHAPE_B)  # where b lies
MOVEMENT = affine_of(
    "RAS", (1, 1, 1), (1, 1, 1), (6, -4, 8), middle=(9.0, -12.0, 5.0)
)  # what its header adds
OTHER_FRAME = "1.2.826.0.1.3680043.8.498.4711.3"
ATLAS = "1.2.840.10008.1.4.1.1"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mr in one frame; pt in another, whose coordinates are off by MOVEMENT; true: pt as it should lie."""
    root = tmp_path_factory.mktemp("study")
    write_mr(root / "mr", affine_of())
    write_pet(root / "true", TRUE, SHAPE_B)
    values = 20 * uptake(grid(TRUE, SHAPE_B))
    parts = phantoms.slices(values, MOVEMENT @ TRUE, "PT", FrameOfReferenceUID=OTHER_FRAME)
    phantoms.write_series(root / "pt", parts)
    return root


def into(matrix: np.ndarray) -> np.ndarray:
    """RAS+ to the LPS of DICOM."""
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    return np.asarray(flip @ matrix @ flip)


BACK = into(np.linalg.inv(MOVEMENT))  # from b's frame to a's
FORTH = into(affine_of("RAS", (1, 1, 1), (1, 1, 1), (0, 20, 0), middle=(100, 0, 0)))
WAYS: dict[str, tuple[str, list[tuple[str, list[np.ndarray]]]]] = {
    "into a's frame": (phantoms.FRAME, [(phantoms.FRAME, [np.eye(4)]), (OTHER_FRAME, [BACK])]),
    "a unnamed, being the frame itself": (phantoms.FRAME, [(OTHER_FRAME, [BACK])]),
    "into b's frame": (OTHER_FRAME, [(phantoms.FRAME, [into(MOVEMENT)])]),
    "both into a third": (ATLAS, [(phantoms.FRAME, [FORTH]), (OTHER_FRAME, [FORTH @ BACK])]),
    "of two matrices": (phantoms.FRAME, [(OTHER_FRAME, [BACK @ np.linalg.inv(FORTH), FORTH])]),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_spatial_registration_takes_b_to_its_place(study: Path, tmp_path: Path, way: str) -> None:
    frame, items = WAYS[way]
    path = write_registration(tmp_path / "reg.dcm", frame, items)
    a, b, true = (mmif_trt.read(study / name) for name in ("mr", "pt", "true"))
    with pytest.raises(InputError, match="different frames of reference"):
        mmif_trt.fuse(a, b)
    fused = mmif_trt.Fuser().fuse_volumes(a, b, volume.Options(registration=path))
    entry = fused.record["registration"]
    np.testing.assert_allclose(entry["matrix"], MOVEMENT, atol=1e-4)
    assert entry["registration"].startswith("Spatial Registration 1.2.") and 10 < entry["rotation_deg"] < 12
    placed = geometry.align(a, true)[0]
    moved = geometry.align(a, b, geometry.Stated(np.array(entry["matrix"])))[0]
    np.testing.assert_allclose(moved.data, placed.data, atol=0.02)
    with Decoder() as decoder:  # what crosses to the child and back
        stated = decoder.registration(str(path), a, b)
    assert stated.by == entry["registration"]
    np.testing.assert_allclose(stated.matrix, MOVEMENT, atol=1e-4)


def test_images_listed_stand_for_their_frame(study: Path, tmp_path: Path) -> None:
    a, b = mmif_trt.read(study / "mr"), mmif_trt.read(study / "pt")
    uids = [str(header.SOPInstanceUID) for header in b.headers]
    path = write_registration(tmp_path / "reg.dcm", phantoms.FRAME, [(uids, [BACK])])
    fused = mmif_trt.Fuser().fuse_volumes(a, b, volume.Options(registration=str(path)))
    np.testing.assert_allclose(fused.record["registration"]["matrix"], MOVEMENT, atol=1e-4)
    path = write_registration(tmp_path / "other.dcm", phantoms.FRAME, [([*uids, "1.2.3"], [BACK])])
    with pytest.raises(InputError, match="does not mention the frame of reference"):
        mmif_trt.fuse(a, b, registration=path)


def test_dciodvfy_takes_the_phantom_for_a_spatial_registration(tmp_path: Path) -> None:
    needs("dciodvfy")
    path = write_registration(tmp_path / "reg.dcm", *WAYS["into a's frame"])
    said = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    lines = (said.stdout + said.stderr).splitlines()
    assert "SpatialRegistration" in lines and not [line for line in lines if line.startswith("Error")], lines


MIRROR = np.diag([-1.0, 1.0, 1.0, 1.0])
WRONG: dict[str, dict[str, Any]] = {
    "expected a Spatial Registration": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.3"},
    "name different patients": {"PatientID": "PLANTED-9"},
    "does not mention the frame of reference": {"RegistrationSequence": []},
}


@pytest.mark.parametrize("words", WRONG)
def test_what_does_not_register_the_two_is_refused(study: Path, tmp_path: Path, words: str) -> None:
    path = write_registration(tmp_path / "reg.dcm", *WAYS["into a's frame"], **WRONG[words])
    a, b = mmif_trt.read(study / "mr"), mmif_trt.read(study / "pt")
    with pytest.raises(InputError, match=words) as caught:
        mmif_trt.fuse(a, b, registration=path)
    assert "PLANTED" not in str(caught.value)


@pytest.mark.parametrize(
    ("matrices", "words"),
    [
        ([[MIRROR]], "mirrors"),
        ([[BACK * 3]], "homogeneous"),
        ([[np.diag([3.0, 3, 3, 1]) @ BACK]], "stretches"),
        ([[BACK], [FORTH]], "several matrices"),
        ([[np.full((4, 4), np.nan)]], "homogeneous|damaged"),
    ],
)
def test_a_matrix_that_is_not_a_rigid_movement_is_refused(
    study: Path, tmp_path: Path, matrices: list[list[np.ndarray]], words: str
) -> None:
    path = write_registration(tmp_path / "reg.dcm", phantoms.FRAME, [(OTHER_FRAME, m) for m in matrices])
    with pytest.raises(InputError, match=words):
        mmif_trt.fuse(study / "mr", study / "pt", registration=path)


def test_an_array_is_taken_as_it_is() -> None:
    a = Image(head(grid(affine_of(), SHAPE)).astype(np.float32), (0, 800), "mri", affine=affine_of())
    b = Image(uptake(grid(TRUE, SHAPE_B)).astype(np.float32), (0, 1000), "pet", affine=MOVEMENT @ TRUE)
    there = mmif_trt.fuse(a, replace(b, affine=TRUE))
    fused = mmif_trt.fuse(a, b, registration=MOVEMENT)
    assert np.abs(fused.data.astype(int) - there.data).max() <= 1
    for wrong in (MIRROR, np.eye(3), np.zeros((4, 4))):
        with pytest.raises(InputError, match="registration: a .* array; expected a"):
            mmif_trt.fuse(a, b, registration=wrong)


def planned(root: Path, *options: str) -> tuple[list[Any], list[str]]:
    return planning.plan(str(root), SECRET, "rigid" in options)


def test_a_study_across_frames(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Never by the headers alone; by the newest registration of the study; by --registration rigid."""
    root, out = tmp_path / "root", tmp_path / "out"
    for name in ("mr", "pt"):
        (root / name).mkdir(parents=True)
        for path in (study / name).iterdir():
            (root / name / path.name).write_bytes(path.read_bytes())
    found, left = planned(root)
    assert not found and [line.split()[0] for line in left] == ["pet", "mri"]
    found, left = planned(root, "rigid")
    assert len(found) == 1 and not left and not found[0].registration
    old = {"ContentDate": "20260101", "SOPInstanceUID": "1.2.3.1"}
    write_registration(root / "a reg", phantoms.FRAME, [(OTHER_FRAME, [FORTH])], **old)
    write_registration(root / "other study", *WAYS["into a's frame"], StudyInstanceUID="1.2.9")
    write_registration(root / "other frames", phantoms.FRAME, [(ATLAS, [FORTH])])
    newest = write_registration(root / "b reg", *WAYS["into a's frame"])
    found, left = planned(root)
    assert len(found) == 1 and not left and found[0].registration == str(newest)
    assert planned(root, "rigid")[0][0].registration == str(newest), "what is known is not searched for"
    assert main(["batch", str(root), "-o", str(out), "--format", "dcm", "--quiet"]) == 0
    (made,) = out.glob("*.dcm")
    single = ["fuse", str(root / "mr"), str(root / "pt"), "-o", str(tmp_path / "one.dcm")]
    assert main([*single, "--registration", str(newest), "--quiet"]) == 0
    theirs, ours = mmif_trt.read(tmp_path / "one.dcm"), mmif_trt.read(made)
    np.testing.assert_array_equal(ours.data, theirs.data)
    assert "Spatial Registration 1.2." in ours.headers[0].DerivationDescription
    capsys.readouterr()
    assert main([*single[:-1], str(tmp_path / "two.dcm"), "--registration", "affine"]) == 2
    assert "expected header, rigid, none, the file of a DICOM" in capsys.readouterr().err


def test_a_series_of_two_frames_is_not_paired_across_them(tmp_path: Path) -> None:
    write_mr(tmp_path / "root" / "mr", affine_of())
    parts = phantoms.slices(20 * uptake(grid(TRUE, SHAPE_B)), TRUE, "PT", FrameOfReferenceUID=OTHER_FRAME)
    for part in parts[:9]:
        part.FrameOfReferenceUID = ATLAS
    phantoms.write_series(tmp_path / "root" / "pt", parts)
    write_registration(tmp_path / "root" / "reg", *WAYS["into a's frame"])
    for options in ((), ("rigid",)):
        found, left = planned(tmp_path / "root", *options)
        assert not found and len(left) == 3, found


def test_the_node_waits_for_the_registration_of_its_study(study: Path, tmp_path: Path) -> None:
    pytest.importorskip("pynetdicom", reason="needs the clinical extra")
    needs("storescu")
    (tmp_path / "reg").mkdir()
    write_registration(tmp_path / "reg" / "1", *WAYS["into a's frame"])
    node = Node(tmp_path / "node", free_port(), "--quiet-s", "1")
    node.start()
    try:
        assert storescu(node.port, study / "mr") == storescu(node.port, study / "pt") == 0
        time.sleep(4)
        assert node.metric("fusions_total") == node.metric("fusions_failed_total") == 0
        assert storescu(node.port, tmp_path / "reg") == 0
        (made,) = until(lambda: list((node.folder / "spool" / "outgoing").glob("*.dcm")))
        fused = mmif_trt.read(made)
        direct = mmif_trt.fuse(study / "mr", study / "pt", registration=tmp_path / "reg" / "1")
        np.testing.assert_array_equal(fused.data, direct.data)
        assert "Spatial Registration 1.2." in fused.headers[0].DerivationDescription
    finally:
        node.kill()
