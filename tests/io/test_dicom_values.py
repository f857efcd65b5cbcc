"""What stored DICOM values mean: NM volumes, vendors' PET factors, colour in its codings, streams that lie
about their size. Each is read correctly, against a known truth, or refused in one line."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pydicom
import pytest
from phantoms import affine_of, encoded, grid, head, slices
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

import mmif_trt
from mmif_trt.cli import main
from mmif_trt.image import Image, InputError
from mmif_trt.io import dicom

SHAPE = (16, 48, 40)
AFFINE = affine_of("SPL", (6.0, 3.5, 3.0), SHAPE, (4, 3, 0))


def nm(affine: np.ndarray, shuffled: bool = False, **tags: Any) -> Dataset:
    """The head as one NM RECON TOMO instance; shuffled: frames in an order that the Slice Vector gives."""
    parts = slices(head(grid(affine, SHAPE)), affine)
    one = parts[0]
    one.SOPClassUID, one.Modality = "1.2.840.10008.5.1.4.1.1.20", "NM"
    one.ImageType = ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"]
    order = np.random.default_rng(0).permutation(SHAPE[0]) if shuffled else np.arange(SHAPE[0])
    one.NumberOfFrames, one.SliceVector = SHAPE[0], [int(i) + 1 for i in order]
    one.FrameIncrementPointer = 0x00540080
    one.SpacingBetweenSlices = str(np.linalg.norm(affine[:3, 0]).round(6))
    detector = Dataset()
    detector.ImagePositionPatient, detector.ImageOrientationPatient = (
        one.ImagePositionPatient,
        one.ImageOrientationPatient,
    )
    one.DetectorInformationSequence = [detector]
    del one.ImagePositionPatient, one.ImageOrientationPatient, one.WindowCenter, one.WindowWidth
    one.PixelData = b"".join(parts[i].PixelData for i in order)
    for keyword, value in tags.items():
        setattr(one, keyword, value)
    return one


def is_the_head(image: Image) -> None:
    assert image.affine is not None
    assert np.abs(image.data - head(grid(image.affine, image.data.shape))).max() <= 1


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("down", [False, True])
def test_nm_recon_tomo_lies_where_it_lay(tmp_path: Path, shuffled: bool, down: bool) -> None:
    """down: slices from the head to the feet, against the normal, with a negative spacing (C.8.4.15)."""
    affine = AFFINE.copy()
    one = nm(affine, shuffled)
    if down:
        affine[:3, 3] += (SHAPE[0] - 1) * affine[:3, 0]
        affine[:3, 0] *= -1
        one = nm(affine, shuffled)
        one.SpacingBetweenSlices = f"-{one.SpacingBetweenSlices}"
    (tmp_path / "nm.dcm").write_bytes(encoded(one))
    image = mmif_trt.read(tmp_path / "nm.dcm")
    assert image.modality == "spect" and image.units is None and image.value_range is None
    assert image.data.shape == SHAPE
    is_the_head(image)


def test_dcm2niix_puts_nm_in_the_same_place(tmp_path: Path) -> None:
    """With a positive spacing: dcm2niix 1.0.20220720 ignores the sign, to which C.8.4.15 gives a meaning."""
    if not shutil.which("dcm2niix"):
        pytest.skip("dcm2niix is not installed (apt-get install dcm2niix)")
    (tmp_path / "nm.dcm").write_bytes(encoded(nm(AFFINE)))
    command = ["dcm2niix", "-f", "x", "-z", "n", "-o", str(tmp_path), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    is_the_head(mmif_trt.read(tmp_path / "x.nii"))


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "TOMO", "EMISSION"]}, "NM of type RECON TOMO"),
        (
            {"ImageType": ["ORIGINAL", "PRIMARY", "RECON GATED TOMO", "EMISSION"]},
            "NM of type RECON TOMO",
        ),
        ({"SliceVector": None, "NumberOfSlices": 8}, "16 frames of 8 slices and no Slice Vector"),
        ({"SpacingBetweenSlices": None}, "without Spacing Between Slices"),
        ({"SliceVector": [1] * SHAPE[0]}, "does not name each slice once"),
    ],
)
def test_nm_of_another_kind_is_refused(tags: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        dicom.decode(encoded(nm(AFFINE, **tags)), "nm")


def philips(values: np.ndarray, suv: str | None, bqml: str | None, implicit: bool) -> Image:
    parts = slices(values, AFFINE, "PT")
    for number, part in enumerate(parts):
        part.Units, part.RescaleSlope = "CNTS", "2"
        block = part.private_block(0x7053, "Philips PET Private Group", create=True)
        for element, value in ((0x00, suv), (0x09, bqml)):
            if value is not None:
                block.add_new(element, "DS", value if value != "varies" else f"{0.01 + number / 1000:.4f}")
        if implicit:
            part.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return dicom.series([dicom.parse(encoded(part), "philips") for part in parts], "philips")


@pytest.mark.parametrize("implicit", [False, True])
def test_philips_private_factors(implicit: bool) -> None:
    """(7053,1000) is SUVbw for a count; where it is missing or 0, (7053,1009) is Bq/ml for a count, and SUVbw
    is computed: 70 kg, 200 MBq left at the scan."""
    values = head(grid(AFFINE, SHAPE))
    counts = 2 * np.rint(values)
    direct = philips(values, "0.0125", "7.5", implicit)
    assert direct.units == "SUVbw" and "private factor" in " ".join(direct.notes)
    np.testing.assert_allclose(direct.data, counts * 0.0125, rtol=1e-6)
    for suv in (None, "0"):
        computed = philips(values, suv, "7.5", implicit)
        assert computed.units == "SUVbw"
        np.testing.assert_allclose(computed.data, counts * 7.5 * 70_000 / 200e6, rtol=1e-6)
    neither = philips(values, "0", None, implicit)
    assert neither.units is None and "counts without a calibration" in " ".join(neither.notes)
    with pytest.raises(InputError, match="several private SUV factors"):
        philips(values, "varies", None, implicit)


def test_suv_counts_from_the_earliest_slice(tmp_path: Path) -> None:
    """A series reformatted later: its own time is not the scan's, and slices have times of their own."""
    parts = slices(head(grid(AFFINE, SHAPE)), AFFINE, "PT", SeriesTime="120000")
    for number, part in enumerate(parts):
        part.AcquisitionTime = f"10{number:02}00"
    rng = np.random.default_rng(3)
    image = dicom.series([dicom.parse(encoded(parts[i]), "x") for i in rng.permutation(len(parts))], "x")
    np.testing.assert_allclose(image.data, np.rint(head(grid(AFFINE, SHAPE))) * 70_000 / 200e6, rtol=1e-6)
    parts[3].Units = "CNTS"
    with pytest.raises(InputError, match="differ in Units"):
        dicom.series([dicom.parse(encoded(part), "x") for part in parts], "x")


def colour_truth() -> np.ndarray:
    """[S, H, W, 3] uint8, smooth: subsampled chroma is a small error, a wrong coding a large one."""
    value = head(grid(AFFINE, SHAPE)) / 1000
    rgb = np.stack([value, value[:, ::-1] * 0.7, 0.2 + 0.6 * value[:, :, ::-1]], axis=-1)
    return np.asarray(np.rint(255 * rgb), np.uint8)


def coloured(rgb: np.ndarray, photometric: str = "RGB") -> list[Dataset]:
    parts = slices(np.zeros(SHAPE), AFFINE)
    for part, plane in zip(parts, rgb, strict=True):
        part.SamplesPerPixel, part.PlanarConfiguration, part.PhotometricInterpretation = 3, 0, photometric
        part.BitsAllocated = part.BitsStored = 8
        part.HighBit = 7
        part.PixelData = plane.tobytes()
        del part.WindowCenter, part.WindowWidth
    return parts


def ybr(rgb: np.ndarray) -> np.ndarray:
    """PS3.3 C.7.6.3.1.2: YBR_FULL."""
    matrix = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    return np.asarray(np.clip(np.rint(rgb @ matrix.T + (0, 128, 128)), 0, 255), np.uint8)


def read_colour(parts: list[Dataset]) -> Image:
    return dicom.series([dicom.parse(encoded(part), "colour") for part in parts], "colour")


def test_colour_codings_come_out_as_rgb(tmp_path: Path) -> None:
    truth = colour_truth()
    plain = read_colour(coloured(truth))
    np.testing.assert_array_equal(plain.data, truth)
    assert plain.value_range == (0, 255) and plain.is_colour
    full = read_colour(coloured(ybr(truth), "YBR_FULL"))
    assert np.abs(full.data.astype(int) - truth).max() <= 2
    packed = coloured(ybr(truth), "YBR_FULL")
    for part in packed:
        part.compress(RLELossless)
    assert packed[0].PhotometricInterpretation == "YBR_FULL"
    np.testing.assert_array_equal(read_colour(packed).data, full.data)
    halved = ybr(truth)
    for part, plane in zip(parts := coloured(truth, "YBR_FULL_422"), halved, strict=True):
        pairs = np.empty((*plane.shape[:1], plane.shape[1] // 2, 4), np.uint8)
        pairs[..., 0], pairs[..., 1] = plane[:, ::2, 0], plane[:, 1::2, 0]
        pairs[..., 2:] = plane[:, ::2, 1:]
        part.PixelData = pairs.tobytes()
    assert np.percentile(np.abs(read_colour(parts).data.astype(int) - truth), 99) <= 14
    lossless = coloured(truth, "YBR_RCT")  # asks the encoder for the reversible transform of RGB
    for part in lossless:
        part.compress(JPEG2000Lossless)
    assert lossless[0].PhotometricInterpretation == "YBR_RCT"
    np.testing.assert_array_equal(read_colour(lossless).data, truth)


def test_jpeg_ybr_full_422_of_dcmtk(tmp_path: Path) -> None:
    """dcmcjpeg's baseline stores YBR_FULL_422; our RGB must be the truth's, and close to dcmtk's own."""
    if not shutil.which("dcmcjpeg"):
        pytest.skip("dcmcjpeg is not installed (apt-get install dcmtk)")
    truth = colour_truth()
    parts, theirs = [], []
    for number, part in enumerate(coloured(truth)):
        plain, packed, back = (tmp_path / f"{number}{end}" for end in (".dcm", ".jpg.dcm", ".back.dcm"))
        plain.write_bytes(encoded(part))
        for command in (["dcmcjpeg", "+eb", "+q", "95", plain, packed], ["dcmdjpeg", packed, back]):
            subprocess.run([str(word) for word in command], check=True, capture_output=True)
        parts.append(pydicom.dcmread(packed))
        theirs.append(pydicom.dcmread(back).pixel_array)
    assert parts[0].PhotometricInterpretation == "YBR_FULL_422"
    assert parts[0].file_meta.TransferSyntaxUID == JPEGBaseline8Bit
    ours = read_colour(parts).data.astype(int)
    assert np.abs(ours - np.stack(theirs)).mean() < 1.5 and np.percentile(np.abs(ours - truth), 99) <= 16


@pytest.mark.parametrize("bits", [8, 16])
def test_palette_colour(bits: int) -> None:
    values = np.rint(head(grid(AFFINE, SHAPE)) / 4).astype(np.uint8)
    parts = slices(np.zeros(SHAPE), AFFINE)
    ramp = np.arange(256)
    tables = np.stack([ramp, 255 - ramp, (ramp * 3) % 256], axis=-1)
    for part, plane in zip(parts, values, strict=True):
        part.PhotometricInterpretation = "PALETTE COLOR"
        part.BitsAllocated = part.BitsStored = 8
        part.HighBit, part.PixelData = 7, plane.tobytes()
        for channel, name in enumerate(("Red", "Green", "Blue")):
            table = (
                tables[:, channel].astype("<u1")
                if bits == 8
                else (tables[:, channel] * 256 + 255 - ramp).astype("<u2")
            )
            setattr(part, f"{name}PaletteColorLookupTableDescriptor", [256, 0, bits])
            setattr(part, f"{name}PaletteColorLookupTableData", table.tobytes())
        del part.WindowCenter, part.WindowWidth
    np.testing.assert_array_equal(read_colour(parts).data, tables[values])
    if bits == 16:  # entries of 8 bits under a descriptor that says 16
        for part in parts:
            for channel, name in enumerate(("Red", "Green", "Blue")):
                setattr(
                    part, f"{name}PaletteColorLookupTableData", tables[:, channel].astype("<u2").tobytes()
                )
        with pytest.raises(InputError, match="entries under 256"):
            read_colour(parts)


def test_what_is_not_converted_is_refused(tmp_path: Path) -> None:
    for photometric in ("YBR_PARTIAL_420", "HSV", "CMYK", ""):
        with pytest.raises(InputError, match="Photometric Interpretation"):
            read_colour(coloured(colour_truth(), photometric))
    ct = slices(head(grid(AFFINE, SHAPE)) - 500, AFFINE, "CT", PhotometricInterpretation="MONOCHROME1")
    image = dicom.series([dicom.parse(encoded(part), "ct") for part in ct], "ct")
    assert np.abs(image.data - (head(grid(AFFINE, SHAPE)) - 500)).max() <= 0.51, "HU are HU, however shown"
    picture = slices(np.zeros((1, 48, 40)), AFFINE)[0]
    picture.PhotometricInterpretation = "MONOCHROME1"
    del picture.ImagePositionPatient
    with pytest.raises(InputError, match="MONOCHROME1"):
        dicom.decode(encoded(picture), "picture")


def lying(syntax: str) -> Dataset:
    """A small slice whose stream announces 60000 x 60000 px."""
    part = slices(head(grid(AFFINE, SHAPE)), AFFINE)[0]
    side = struct.pack(">H", 60_000)
    if syntax == JPEG2000Lossless:
        part.compress(JPEG2000Lossless)
        stream = bytearray(part.PixelData)
        at = stream.index(b"\xff\x4f\xff\x51")
        stream[at + 8 : at + 16] = struct.pack(">II", 60_000, 60_000)
        part.PixelData = bytes(stream)
    elif syntax == JPEGLSLossless:
        part.compress(JPEGLSLossless)
        stream = bytearray(part.PixelData)
        at = stream.index(b"\xff\xf7")
        stream[at + 5 : at + 9] = side + side
        part.PixelData = bytes(stream)
    elif syntax == RLELossless:  # 64 bytes for each 2: a bomb
        part.file_meta.TransferSyntaxUID = RLELossless
        segment = b"\x81\x00" * (1 << 20)
        header = struct.pack("<16I", 2, 64, 64 + len(segment), *[0] * 13)
        part.PixelData = encapsulate([header + segment + segment])
    else:
        part.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        stream = b"\xff\xd8\xff\xc0\x00\x0b\x08" + side + side + b"\x01\x01\x11\x00\xff\xd9"
        part.PixelData = encapsulate([stream])
    part["PixelData"].VR = "OB"
    part["PixelData"].is_undefined_length = True
    return part


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, RLELossless, JPEGBaseline8Bit])
def test_a_stream_that_announces_more_than_its_header_is_refused_unopened(syntax: str) -> None:
    data, start = encoded(lying(syntax)), time.process_time()
    with pytest.raises(InputError, match="JPEG of 60000 x 60000 px in 1 channels|bytes of RLE for a frame"):
        dicom.decode(data, "lying")
    assert time.process_time() - start < 2, "nothing of 60000 x 60000 px was made"


def test_declared_sizes_are_checked_before_anything_is_allocated(tmp_path: Path) -> None:
    picture = slices(np.zeros((1, 48, 40)), AFFINE)[0]
    del picture.ImagePositionPatient
    for keyword, value, words in (
        ("Rows", 65_535, "announces 1 x 65535 x 40; expected at most 4096 px per side"),
        ("NumberOfFrames", 2_000_000_000, "announces 2000000000 x"),
        ("BitsAllocated", 65_528, "bits per pixel"),
    ):
        changed = pydicom.dcmread(io.BytesIO(encoded(picture)))
        setattr(changed, keyword, value)
        with pytest.raises(InputError, match=words):
            dicom.decode(encoded(changed), "x")


@pytest.mark.parametrize("side", ["a", "b"])
def test_missing_limits_are_asked_for_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], side: str
) -> None:
    """An MRI without a window, a SPECT of counts: refused, and what the message says to pass works."""
    mri = slices(head(grid(AFFINE, SHAPE)), AFFINE)
    for part in mri if side == "a" else []:
        del part.WindowCenter, part.WindowWidth
    phantoms.write_series(tmp_path / "mri", mri)
    spect = nm(AFFINE)
    if side == "a":
        spect.WindowCenter, spect.WindowWidth = "500", "1000"
    (tmp_path / "nm.dcm").write_bytes(encoded(spect))
    out = tmp_path / "out.nii"
    command = ["fuse", str(tmp_path / "mri"), str(tmp_path / "nm.dcm"), "-o", str(out), "--quiet"]
    assert main(command) == 2 and not out.exists()
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "has no fixed black and white" in error
    for words in (
        f"--value-range-{side} LOW HIGH",
        f"--percentiles-{side} 1 99.5",
        f"low_{side}, high_{side}",
    ):
        assert words in error, error
    assert main([*command, f"--value-range-{side}", "0", "1000", "--modality-b", "SPECT"]) == 0
    assert main([*command, f"--percentiles-{side}", "1", "99.5", "--overwrite"]) == 0
