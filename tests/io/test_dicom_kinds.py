"""DICOM as scanners, archives and old exports write it: the right volume, or one line that names it."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pydicom
import pytest
from conftest import REPO
from phantoms import affine_of, encoded, grid, head, slices, write_mr, write_series
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRBigEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless, generate_uid

import mmif_trt
from mmif_trt.clinical import keys
from mmif_trt.clinical.keys import keys_of
from mmif_trt.image import Image, InputError
from mmif_trt.io import dicom
from mmif_trt.io.walk import walk

SHAPE = (9, 60, 48)
ROOT = "1.2.840.10008.5.1.4.1.1"


def parts_of(affine: np.ndarray | None = None, modality: str = "MR", **tags: Any) -> list[Dataset]:
    affine = affine_of(shape=SHAPE) if affine is None else affine
    return slices(head(grid(affine, SHAPE)), affine, modality, **tags)


def is_the_head(image: Image, tolerance: float = 1.0) -> None:
    assert image.affine is not None
    assert np.abs(image.data - head(grid(image.affine, image.data.shape))).max() <= tolerance
    assert image.data.max() > 300


def refused(path: Path, *words: str, **which: Any) -> None:
    with pytest.raises(InputError) as caught:
        mmif_trt.read(path, **which)
    message = str(caught.value)
    assert all(word in message for word in words) and "expected" in message, message
    assert "\n" not in message and not any(x in message for x in phantoms.PLANTED.values()), message


def mosaic(affine: np.ndarray, sign: int = 1, **tags: Any) -> Dataset:
    """The head as a Siemens mosaic of 3 x 3 tiles with a CSA header. sign: of the slices' normal."""
    parts = parts_of(affine)[::sign]
    one = parts[0]
    tiles = np.stack([np.frombuffer(part.PixelData, "<u2").reshape(SHAPE[1:]) for part in parts])
    sheet = tiles.reshape(3, 3, *SHAPE[1:]).transpose(0, 2, 1, 3).reshape(3 * SHAPE[1], 3 * SHAPE[2])
    axes = np.array([float(x) for x in one.ImageOrientationPatient])
    step = [float(x) for x in one.PixelSpacing]
    corner = np.array([float(x) for x in one.ImagePositionPatient])
    corner = corner - axes[:3] * step[1] * SHAPE[2] - axes[3:] * step[0] * SHAPE[1]
    one.ImagePositionPatient = [f"{x:.6f}" for x in corner]
    one.Rows, one.Columns = sheet.shape
    one.PixelData, one.ImageType = sheet.tobytes(), ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    one.SpacingBetweenSlices = one.SliceThickness
    normal = sign * np.cross(axes[:3], axes[3:])
    block = one.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    block.add_new(
        0x10, "OB", csa({"NumberOfImagesInMosaic": ["9"], "SliceNormalVector": [f"{x:.8f}" for x in normal]})
    )
    for keyword, value in tags.items():
        setattr(one, keyword, value)
    return one


def csa(tags: dict[str, list[str]]) -> bytes:
    """A CSA2 header, as nibabel documents the format."""
    out = b"SV10\4\3\2\1" + np.array([len(tags), 77], "<u4").tobytes()
    for name, items in tags.items():
        count = len(items)
        out += name.encode().ljust(64, b"\0") + np.array([count], "<i4").tobytes() + b"FD\0\0"
        out += np.array([3, count, 77], "<i4").tobytes()
        for item in items:
            data = item.encode() + b"\0"
            out += np.array([len(data)] * 4, "<i4").tobytes() + data + b"\0" * (-len(data) % 4)
    return out


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("turn", [(0, 0, 0), (13, -7, 21)])
def test_a_mosaic_is_its_volume(tmp_path: Path, turn: tuple[float, float, float], sign: int) -> None:
    affine = affine_of(shape=SHAPE, turn_deg=turn)
    image = mmif_trt.read(write_series(tmp_path / "m", [mosaic(affine, sign)]))
    assert image.data.shape == SHAPE
    is_the_head(image)


def test_reading_a_mosaic_warns_of_nothing(tmp_path: Path) -> None:
    """nibabel warns, once per process, that its CSA reader is experimental: so in a process of its own."""
    folder = write_series(tmp_path / "m", [mosaic(affine_of(shape=SHAPE))])
    code = f"import mmif_trt; print(mmif_trt.read({str(folder)!r}).data.shape)"
    command = [sys.executable, "-W", "always", "-c", code]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == str(SHAPE) and "experimental" not in done.stderr, done.stderr


def test_a_real_mosaic_is_what_dcm2niix_makes_of_it(tmp_path: Path) -> None:
    import nibabel
    from test_dicom_read import same_as_dcm2niix

    packed = Path(nibabel.__file__).parent / "nicom" / "tests" / "data" / "siemens_dwi_1000.dcm.gz"
    if not packed.exists():
        pytest.skip("nibabel's test data is not installed")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.dcm").write_bytes(gzip.decompress(packed.read_bytes()))
    same_as_dcm2niix(tmp_path / "in", tmp_path)
    np.testing.assert_array_equal(mmif_trt.read(packed).data, mmif_trt.read(tmp_path / "in").data)


def test_a_mosaic_without_its_header_is_refused_by_name(tmp_path: Path) -> None:
    bare = mosaic(affine_of(shape=SHAPE))
    del bare[0x0029, 0x1010]
    refused(write_series(tmp_path / "m", [bare]), "a Siemens mosaic without the number of its tiles")
    times = [mosaic(affine_of(shape=SHAPE), SeriesInstanceUID="1.2.3", AcquisitionNumber=k) for k in (1, 2)]
    refused(write_series(tmp_path / "f", times), "9 places with 2 images each", "acquisition 1 and 2")
    is_the_head(mmif_trt.read(tmp_path / "f", volume=2))


@pytest.mark.parametrize("modality", ["MR", "NM"])
def test_frames_without_a_position_are_refused(tmp_path: Path, modality: str) -> None:
    parts = parts_of()
    one = parts[0]
    one.Modality, one.NumberOfFrames = modality, len(parts)
    one.PixelData = b"".join(part.PixelData for part in parts)
    one.SpacingBetweenSlices, one.ImageType = "5", ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"]
    refused(write_series(tmp_path / "top", [one]), "9 frames without their own positions")
    del one.ImagePositionPatient, one.ImageOrientationPatient
    refused(write_series(tmp_path / "none", [one]), "9 frames without a position")


def enhanced_ct(kind: str) -> Dataset:
    parts = parts_of(modality="CT")
    one, shared = parts[0], Dataset()
    one.SOPClassUID, one.NumberOfFrames = f"{ROOT}.2.1", len(parts)
    measures, orientation, transformation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = one.PixelSpacing, one.SliceThickness
    orientation.ImageOrientationPatient = one.ImageOrientationPatient
    transformation.RescaleSlope, transformation.RescaleIntercept, transformation.RescaleType = (
        "1",
        "-1024",
        kind,
    )
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    shared.PixelValueTransformationSequence = [transformation]
    one.SharedFunctionalGroupsSequence, one.PerFrameFunctionalGroupsSequence = [shared], []
    for part in parts:
        group, place = Dataset(), Dataset()
        place.ImagePositionPatient = part.ImagePositionPatient
        group.PlanePositionSequence = [place]
        one.PerFrameFunctionalGroupsSequence.append(group)
    one.PixelData = b"".join(part.PixelData for part in parts)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(one, keyword)
    del one.RescaleSlope, one.RescaleIntercept
    return one


@pytest.mark.parametrize("undefined", [False, True])
def test_a_header_longer_than_what_was_read_is_not_taken_for_whole(
    tmp_path: Path, undefined: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pydicom takes elements behind the end for absent: "9 frames, 4 functional groups"."""
    one = enhanced_ct("HU")
    one["PerFrameFunctionalGroupsSequence"].is_undefined_length = undefined
    write_series(tmp_path / "ct", [one])
    (path,) = map(str, (tmp_path / "ct").iterdir())
    whole, size = Path(path).read_bytes(), Path(path).read_bytes().index(b"\x20\x00\x13\x91") + 300
    monkeypatch.setattr(dicom, "HEADERS_BYTES", (200, size))
    dicom.foresee(path)
    found = keys_of(path)
    assert found is not None and len(found[1][keys.PLACES]) == SHAPE[0]
    monkeypatch.setattr(dicom, "BEGINNING_BYTES", size)
    Path(path).write_bytes(whole[:size])
    assert keys_of(path) is None
    with pytest.raises(InputError, match="damaged DICOM"):
        dicom.foresee(path)


@pytest.mark.parametrize(("kind", "units"), [("HU", "HU"), ("US", None), ("Z_EFF", None)])
def test_what_enhanced_ct_measures_is_read_from_its_functional_groups(
    tmp_path: Path, kind: str, units: str | None
) -> None:
    image = mmif_trt.read(write_series(tmp_path / "ct", [enhanced_ct(kind)]))
    is_the_head(image)
    assert image.units == units
    assert units or any(f"Rescale Type {kind}, not HU" in note for note in image.notes)


def test_a_modality_lut_is_applied(tmp_path: Path) -> None:
    parts = parts_of(modality="CT")
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [4096, 0, 16], "HU"
    table.add_new(0x00283006, "OW", (np.arange(4096) * 3).astype("<u2").tobytes())
    for part in parts:
        del part.RescaleSlope, part.RescaleIntercept
        part.ModalityLUTSequence = [table]
    image = mmif_trt.read(write_series(tmp_path / "ct", parts))
    assert image.units == "HU"
    is_the_head(image.with_data(image.data / 3 - 1024))


@pytest.mark.parametrize("code", ["native", "rle", "big endian"])
@pytest.mark.parametrize("signed", [0, 1])
def test_samples_end_at_the_high_bit(tmp_path: Path, signed: int, code: str) -> None:
    """12 bits at the top of 16, and an overlay in the lowest, as before 2014; dcmtk reads the same."""
    parts = parts_of(modality="CT", BitsStored=12, HighBit=15, PixelRepresentation=signed)
    for part in parts:
        values = np.frombuffer(part.PixelData, "<u2").astype(int) - 1024 * signed - 1200 * signed
        part.RescaleIntercept = "1200" if signed else "-1024"
        cells = (values << 4 | 1).astype("<u2")
        part.PixelData = cells.astype(">u2" if code == "big endian" else "<u2").tobytes()
        if code == "big endian":
            part.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        elif code == "rle":
            part.file_meta.TransferSyntaxUID = RLELossless
            part.PixelData = encapsulate([rle_of(cells.tobytes())])
            part["PixelData"].VR, part["PixelData"].is_undefined_length = "OB", True
    is_the_head(mmif_trt.read(write_series(tmp_path / "ct", parts)))


def rle_of(cells: bytes) -> bytes:
    """A frame of 16 bits in literal runs (PS3.5, annex G)."""

    def packed(plane: bytes) -> bytes:
        runs = [plane[at : at + 128] for at in range(0, len(plane), 128)]
        return b"".join(bytes([len(run) - 1]) + run for run in runs)

    high, low = packed(cells[1::2]), packed(cells[::2])
    even = high + b"\x80" * (len(high) % 2)
    return (
        np.array([2, 64, 64 + len(even), *[0] * 13], "<u4").tobytes() + even + low + b"\x80" * (len(low) % 2)
    )


def test_a_high_bit_that_the_samples_contradict_is_not_used(tmp_path: Path) -> None:
    is_the_head(mmif_trt.read(write_series(tmp_path / "mr", parts_of(BitsStored=12, HighBit=15))))


def test_jpeg_ls_in_more_bits_than_are_stored_keeps_its_sign(tmp_path: Path) -> None:
    """dcmcjpls codes 12 signed bits, with zeros above them, in 16: pydicom finds no sign in the highest."""
    parts = parts_of(modality="CT", BitsStored=16, HighBit=15)
    for part in parts:
        values = np.frombuffer(part.PixelData, "<u2").astype(int) - 1024 - 300
        part.PixelData = (values & 0xFFF).astype("<u2").tobytes()
        part.compress(JPEGLSLossless)
        part.BitsStored, part.HighBit, part.PixelRepresentation, part.RescaleIntercept = 12, 11, 1, "300"
    is_the_head(mmif_trt.read(write_series(tmp_path / "ct", parts)))


@pytest.mark.parametrize(
    ("modality", "words"), [("CT", "HU cannot be computed"), ("PT", "SUVbw cannot be computed")]
)
def test_values_without_a_rescale_have_no_unit(tmp_path: Path, modality: str, words: str) -> None:
    """Type 1 for CT and PET: stored values taken for HU are 1024 too bright, one slice of them too."""
    parts = parts_of(modality=modality)
    del parts[3].RescaleSlope, parts[3].RescaleIntercept
    refused(write_series(tmp_path / "one", parts), "1 of 9 slices without Rescale Slope or Intercept")
    for part in parts[:3] + parts[4:]:
        del part.RescaleSlope, part.RescaleIntercept
    image = mmif_trt.read(write_series(tmp_path / "all", parts))
    assert image.units is None and image.data.dtype == np.uint16
    assert any(words in note for note in image.notes), image.notes


PADDING: dict[str, tuple[str, int, dict[str, Any], float]] = {  # modality, stored, header, what it becomes
    "above": ("MR", 65535, {"PixelPaddingValue": 65535}, 0),
    "below": ("CT", -2000, {"PixelPaddingValue": -2000}, -1000),
    "below, stated as unsigned": ("CT", -2000, {"PixelPaddingValue": 63536}, -1000),
    "a range": ("CT", 30_000, {"PixelPaddingValue": 29_000, "PixelPaddingRangeLimit": 31_000}, -1000),
    "among the values": ("MR", 350, {"PixelPaddingValue": 350}, 350),
}


@pytest.mark.parametrize("kind", PADDING)
def test_padding_is_black(tmp_path: Path, kind: str) -> None:
    """Corners that no detector saw: white, or at the end of every percentile, if taken for values."""
    modality, stored, header, becomes = PADDING[kind]
    signed = int(modality == "CT")
    parts = parts_of(modality=modality, PixelRepresentation=signed)
    for part in parts:
        for keyword, value in header.items():
            part.add_new(tag_for_keyword(keyword), "US" if value > 0 else "SS", value)
        values = np.frombuffer(part.PixelData, "<u2").astype("<i4").reshape(SHAPE[1:]).copy()
        values[:4] = stored
        part.PixelData = values.astype("<i2" if signed else "<u2").tobytes()
    image = mmif_trt.read(write_series(tmp_path / "s", parts))
    assert (image.data[:, :4] == becomes).all()
    said = " ".join(image.notes)
    expected = "lies among the other values" if becomes == 350 else "1728 voxels (7%) are padding: background"
    assert expected in said, said
    rest = image.data[:, 4:] - head(grid(affine_of(shape=SHAPE), SHAPE))[:, 4:]
    assert np.abs(rest).max() <= 1
    del parts[0].ImagePositionPatient
    (tmp_path / "x.dcm").write_bytes(encoded(parts[0]))
    picture = mmif_trt.read(tmp_path / "x.dcm")
    assert not picture.is_volume and (becomes == 350 or (picture.data[:4] == becomes).all())


def test_one_slice_is_as_thick_as_it_says(tmp_path: Path) -> None:
    part = parts_of(modality="CT", SliceThickness="1", SpacingBetweenSlices="40")[4]
    image = mmif_trt.read(write_series(tmp_path / "ct", [part]))
    assert image.spacing_mm is not None and image.spacing_mm[0] == 1.0


def test_a_thinned_series_says_so(tmp_path: Path) -> None:
    image = mmif_trt.read(write_series(tmp_path / "ct", parts_of(SliceThickness="1")))
    assert "slices of 1 mm lie 5 mm apart: what is between them is interpolated" in image.notes


def at_places(places: Sequence[float], numbers: list[int] | None = None) -> list[Dataset]:
    """The CT slices of the head at `places`, mm from its feet; Instance Numbers count them unless given."""
    affine, kept = affine_of(spacing=(1.0, 3.0, 3.0), shape=(60, 60, 48)), []
    for at, place in enumerate(places):
        here = affine.copy()
        here[:3, 3] += place * affine[:3, 0]
        number = at + 1 if numbers is None else numbers[at]
        kept += slices(head(grid(here, (1, 60, 48))), here, "CT", series="1.2.3", InstanceNumber=number)
    return kept


def test_two_blocks_are_resampled_by_each_slices_position(tmp_path: Path) -> None:
    places = [4, 8, 12, 16, 20, 27, 34, 41, 48]
    image = mmif_trt.read(write_series(tmp_path / "ct", at_places(places)))
    assert image.data.shape[0] == 45 and image.spacing_mm is not None and image.spacing_mm[0] == 1.0
    assert any(note.startswith("5 slices 4 mm apart, then 5 slices 7 mm apart") for note in image.notes)
    assert image.affine is not None
    truth = head(grid(image.affine, image.data.shape))
    for place in places:
        assert np.abs(image.data[place - 4] - truth[place - 4]).max() <= 1, f"the slice at {place} mm"
    between = 0.5 * (truth[16] + truth[16 + 7])  # halfway: the mean of both neighbours
    np.testing.assert_allclose((image.data[19] + image.data[20]) / 2, between, atol=1)


@pytest.mark.parametrize("size", [1.0, 0.05, 0.01])
def test_a_pitch_that_drifts_is_resampled_by_each_slices_place(tmp_path: Path, size: float) -> None:
    """1 mm and then 1.1: no gap is unusual, but halfway an even grid would be 0.75 mm off. A mouse's slices
    of 50 micrometres, and those of a micro-CT, are judged by their own size."""
    parts = at_places(np.cumsum([1.0] * 30 + [1.1] * 30).tolist())
    for part in parts:
        for keyword in ("ImagePositionPatient", "PixelSpacing"):
            setattr(part, keyword, [f"{float(x) * size:.6f}" for x in part[keyword].value])
    image = mmif_trt.read(write_series(tmp_path / "ct", parts))
    words = f"slices {size:g} to {1.1 * size:g} mm apart: resampled"
    assert any(words in note for note in image.notes), image.notes
    assert image.data.shape[0] == 60 and image.affine is not None
    is_the_head(image.with_data(image.data, affine=np.diag([1 / size] * 3 + [1]) @ image.affine), 2)


def test_places_rounded_to_a_tenth_of_a_millimetre_are_even(tmp_path: Path) -> None:
    places = np.round(np.arange(60) * 0.33, 1)
    image = mmif_trt.read(write_series(tmp_path / "ct", at_places(places.tolist())))
    assert image.data.shape[0] == 60 and not any("resampled" in note for note in image.notes)
    assert image.spacing_mm is not None and abs(image.spacing_mm[0] - 0.33) < 0.002


@pytest.mark.parametrize(
    ("places", "numbers"),
    [
        ([k / 10 for k in range(40) if k != 17], None),
        ([0, 5, 10, 15, 25, 30, 35], None),
        ([0, 5, 10, 20, 30, 35, 40], None),
        ([0, 5, 10, 15, 20, 35], None),
        ([0, 5, 10, 15, 25, 35, 45], [1, 2, 3, 4, 6, 8, 10]),
    ],
)
def test_missing_slices_are_not_blocks(
    tmp_path: Path, places: list[float], numbers: list[int] | None
) -> None:
    refused(write_series(tmp_path / "ct", at_places(places, numbers)), "missing slices")


VARIES: dict[str, tuple[str, list[Any], str]] = {
    "echo": ("EchoTime", [10, 80], "echo time (ms) 10 and 80"),
    "time": ("TemporalPositionIdentifier", [1, 2, 3], "time point 1 to 3 (3 values)"),
    "b-value": ("DiffusionBValue", [0.0, 1000.0], "b-value (s/mm2) 0 and 1000"),
    "flip": ("FlipAngle", [5, 26], "flip angle (degrees) 5 and 26"),
    "phase": (
        "ImageType",
        [["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]],
        "kind of image M and P",
    ),
    "nothing": ("InstanceNumber", [1, 1], "image at its place, by instance number 1 and 2"),
}


@pytest.mark.parametrize("what", VARIES)
def test_several_volumes_are_named_and_chosen(tmp_path: Path, what: str) -> None:
    keyword, values, words = VARIES[what]
    parts = []
    for at, value in enumerate(values):
        of = parts_of(series="1.2.3", **{keyword: value})
        for part in of:
            part.PixelData = (np.frombuffer(part.PixelData, "<u2") + 7 * at).astype("<u2").tobytes()
        parts += of
    folder = write_series(tmp_path / "s", parts)
    refused(folder, f"9 places with {len(values)} images each", words, "--volume-a")
    if what != "nothing":
        for at in range(len(values)):
            image = mmif_trt.read(folder, volume=at + 1)
            is_the_head(image.with_data(image.data.astype(np.float32) - 7 * at))
            assert any(note.startswith(f"volume {at + 1} of {len(values)}") for note in image.notes)
    refused(folder, f"volume 9 of {len(values)}", volume=9)


def test_a_series_is_chosen_by_number_uid_or_description(tmp_path: Path) -> None:
    write_mr(tmp_path / "s" / "a", affine_of(), SeriesDescription="t1 mprage")
    uid = generate_uid()
    write_series(tmp_path / "s" / "b", parts_of(series=uid, SeriesNumber=7, SeriesDescription="FLAIR"))
    refused(
        tmp_path / "s",
        "of 2 series: series 1 't1 mprage' (24 files); series 7 'FLAIR' (9 files)",
        "--series-a",
    )
    for series in ("7", 7, "flair", uid):
        assert mmif_trt.read(tmp_path / "s", series=series).data.shape == SHAPE
    assert mmif_trt.read(tmp_path / "s", series="T1 MPRAGE").data.shape[0] == 24
    refused(tmp_path / "s", "no series '3'", "series 7 'FLAIR'", series="3")
    for volume in (0, "1", 1.0):
        with pytest.raises(InputError, match="expected a number from 1"):
            mmif_trt.read(tmp_path / "s", series=7, volume=volume)


@pytest.mark.parametrize("syntax", ["implicit", "explicit", "big", "no preamble"])
@pytest.mark.parametrize("count", [3, 9])
def test_files_without_a_preamble_are_read(tmp_path: Path, syntax: str, count: int) -> None:
    folder = write_mr(tmp_path / "s", affine_of(shape=SHAPE), SHAPE)
    for path in sorted(folder.iterdir())[-count:]:
        if syntax == "no preamble":
            path.write_bytes(path.read_bytes()[132:])
            continue
        dataset = pydicom.dcmread(path)
        if syntax == "big":
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
        with open(path, "wb") as file:
            pydicom.dcmwrite(
                file,
                strip(dataset),
                implicit_vr=syntax == "implicit",
                little_endian=syntax != "big",
                force_encoding=True,
            )
        assert path.read_bytes()[128:132] != b"DICM"
    is_the_head(mmif_trt.read(folder))


def strip(dataset: Any) -> Dataset:
    out = Dataset()
    out.update(dataset)
    return out


def other(sop_class: str, modality: str, **tags: Any) -> Dataset:
    one = parts_of(series=generate_uid(), **tags)[0]
    del one.PixelData
    one.SOPClassUID, one.Modality = sop_class, modality
    return one


def test_what_is_not_an_image_is_passed_over_and_counted(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", parts_of())
    directory = other("1.2.840.10008.1.3.10", "MR")
    directory.DirectoryRecordSequence = []
    (folder / "DIRFILE").write_bytes(encoded(directory))
    for at, uid in enumerate(("88.11", "481.3", "66", "11.1", "66")):
        (folder / f"other{at}").write_bytes(encoded(other(f"{ROOT}.{uid}", "OT", PatientID="")))
    (folder / "seg").write_bytes(encoded(parts_of(series="1.2", SOPClassUID=f"{ROOT}.66.4")[0]))
    (folder / "readme.txt").write_text("no DICOM")
    image = mmif_trt.read(folder)
    is_the_head(image)
    said = " ".join(image.notes)
    for words in ("1 x DICOM directory (DICOMDIR)", "2 x Raw Data", "1 x Basic Text SR", "1 x Segmentation"):
        assert words in said, said
    assert "1 files that are not DICOM" in said and "readme.txt" in said
    with zipfile.ZipFile(tmp_path / "cd.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    is_the_head(mmif_trt.read(tmp_path / "cd.zip"))
    refused(folder / "other0", "1 x Basic Text SR, no image")
    refused(folder / "DIRFILE", "DICOM directory (DICOMDIR), no image")


@pytest.mark.parametrize("series", ["1.2.3", "1.2.4"])
def test_a_localizer_is_passed_over_beside_the_series(tmp_path: Path, series: str) -> None:
    """In the series itself, as some CT write it, or beside it; `batch` leaves it out too."""
    folder = write_series(tmp_path / "s", parts_of(series="1.2.3"))
    across = affine_of("LIP", (4.0, 2.5, 2.5), (3, 60, 48))
    kind = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    for part in slices(
        head(grid(across, (3, 60, 48))), across, series=series, ImageType=kind, SeriesNumber=9
    ):
        (folder / f"scout{part.InstanceNumber}").write_bytes(encoded(part))
    image = mmif_trt.read(folder)
    is_the_head(image)
    assert "ignored: 3 x localizer" in image.notes
    if series != "1.2.3":
        alone = mmif_trt.read(folder, series="9")
        assert alone.data.shape[0] == 3 and alone.orientation == "RIP"


def test_links_are_followed_and_nothing_waits_for_a_pipe(tmp_path: Path) -> None:
    store = write_mr(tmp_path / "annex", affine_of(shape=SHAPE), SHAPE)
    folder = tmp_path / "bids"
    (folder / "sub").mkdir(parents=True)
    for path in store.iterdir():
        (folder / f"{path.name}.dcm").symlink_to(path)
    (folder / "again").symlink_to(folder)
    (folder / "loop").symlink_to("loop")
    (folder / "whole").symlink_to(store)
    os.mkfifo(folder / "sub" / "pipe")
    image = mmif_trt.read(folder)
    is_the_head(image)
    said = " ".join(image.notes)
    assert "loop: a link to itself" in said and "ignored: " in said
    found = walk(str(folder))
    assert len(found.files) == 9 and any("pipe: a pipe" in line for line in found.passed)
    (folder / "gone.dcm").symlink_to(tmp_path / "nowhere")
    refused(folder, "1 files cannot be read", "gone.dcm: a link to nothing", "datalad get")


def test_copies_of_an_instance_count_once_and_others_of_its_name_do_not(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", parts_of())
    one = sorted(folder.iterdir())[3]
    shutil.copy(one, folder / "copy of it")
    image = mmif_trt.read(folder)
    is_the_head(image)
    assert any("duplicate instances" in note and "copy of it" in note for note in image.notes)
    dataset = pydicom.dcmread(one)
    dataset.PixelData = bytes(len(dataset.PixelData))
    (folder / "copy of it").write_bytes(encoded(dataset))
    refused(folder, "the same instance twice, with different pixels", "copy of it")


def test_gzipped_files_of_several_members_are_read(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", parts_of())
    for path in list(folder.iterdir()):
        data = path.read_bytes()
        packed = b"".join(gzip.compress(data[at : at + 2000]) for at in range(0, len(data), 2000))
        path.with_name(path.name + ".dcm.gz").write_bytes(packed)
        path.unlink()
    is_the_head(mmif_trt.read(folder))
    one = sorted(folder.iterdir())[0]
    assert mmif_trt.read(one).data.shape == (1, 60, 48)
    one.write_bytes(one.read_bytes()[:-9])
    refused(folder, "a truncated gzipped file")


def test_a_stream_that_the_first_codec_refuses_goes_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pydicom.pixels.decoders import JPEG2000LosslessDecoder

    parts = parts_of()
    for part in parts:
        part.compress(JPEG2000Lossless)
    folder = write_series(tmp_path / "s", parts)
    good = dict(JPEG2000LosslessDecoder._available)
    assert good

    def fails(*_: object) -> bytes:
        raise RuntimeError("not by me")

    monkeypatch.setattr(JPEG2000LosslessDecoder, "_available", {"first": fails, **good})
    is_the_head(mmif_trt.read(folder))
    monkeypatch.setattr(JPEG2000LosslessDecoder, "_available", {"first": fails})
    refused(folder, "that no codec here decodes: truncated, damaged")


@pytest.mark.parametrize(
    ("uid", "words"), [("100", "MPEG2 Main Profile"), ("200", "1.2.840.10008.1.2.4.200")]
)
def test_a_syntax_that_no_codec_decodes_is_named(tmp_path: Path, uid: str, words: str) -> None:
    part = parts_of()[0]
    part.PixelData = encapsulate([b"\0\0\1\xb3" + bytes(100)])
    part["PixelData"].is_undefined_length = True
    part.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"
    data = encoded(part).replace(b"10008.1.2.4.100", f"10008.1.2.4.{uid}".encode())
    (tmp_path / "x.dcm").write_bytes(data)
    refused(tmp_path / "x.dcm", f"transfer syntax {words}", "no codec here decodes")


def test_colours_over_grey_are_not_read_as_grey(tmp_path: Path) -> None:
    """Values above a threshold index a supplemental palette (PS3.3 C.7.6.19): as grey they are white."""
    folder = write_series(tmp_path / "s", parts_of(PixelPresentation="MIXED"))
    refused(folder, "Pixel Presentation MIXED", "supplemental palette")
    is_the_head(mmif_trt.read(write_series(tmp_path / "grey", parts_of(PixelPresentation="MONOCHROME"))))


@pytest.mark.parametrize("keyword", ["BitsStored", "PixelRepresentation", "SamplesPerPixel"])
def test_what_a_header_lacks_is_named(tmp_path: Path, keyword: str) -> None:
    parts = parts_of()
    delattr(parts[4], keyword)
    refused(write_series(tmp_path / "s", parts), f"no {keyword} in the header")


def test_a_picture_without_geometry_keeps_what_it_means(tmp_path: Path) -> None:
    part = parts_of(modality="CT", BitsStored=12, HighBit=11)[4]
    del part.ImagePositionPatient
    (tmp_path / "x.dcm").write_bytes(encoded(part))
    image = mmif_trt.read(tmp_path / "x.dcm")
    assert (image.modality, image.value_range, image.is_volume) == ("ct", (-1024.0, 3071.0), False)
    assert image.data.min() >= -1 and image.data.max() > 300
    part.WindowCenter, part.WindowWidth = "40", "80"
    (tmp_path / "x.dcm").write_bytes(encoded(part))
    assert mmif_trt.read(tmp_path / "x.dcm").value_range == (0.0, 79.0)
