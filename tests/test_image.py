"""image: what an Image takes, what it fills in, and that its errors say what was found and is expected."""

from __future__ import annotations

import dataclasses
from typing import Any

import cv2
import numpy as np
import pytest

from mmif_trt.image import DTYPE_RANGE, MODALITIES, Image, InputError

GREY = np.zeros((16, 20), np.uint8)
NAN = np.full((16, 16), np.nan, np.float32)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ([[0]], {}, r"scan: list; expected an array of uint8, uint16 or float32"),
        (
            GREY.astype(np.float64),
            {},
            r"scan: dtype float64; expected an array of uint8, uint16 or float32",
        ),
        (GREY.astype(np.int32), {}, r"scan: dtype int32; expected"),
        (GREY.astype(bool), {}, r"scan: dtype bool; expected"),
        (GREY[0], {}, r"scan: shape \(20,\); expected \[H, W\] grey, \[H, W, 3\] RGB"),
        (np.zeros((16, 16, 4), np.uint8), {}, r"scan: shape \(16, 16, 4\); expected"),
        (np.zeros((2, 16, 16, 3), np.uint8), {}, r"scan: shape \(2, 16, 16, 3\); expected"),
        (GREY[:15], {}, r"scan: 15 x 20 px; expected 16 to 4096 px per side"),
        (np.broadcast_to(np.uint8(0), (16, 4097)), {}, r"scan: 16 x 4097 px; expected 16 to 4096 px"),
        (NAN, {}, r"scan: NaN or infinite pixels; expected finite values"),
        (np.full((16, 16, 3), np.inf, np.float32), {}, r"scan: NaN or infinite pixels"),
        (
            np.ma.masked_invalid(np.where(np.eye(16) > 0, np.float32(1), np.float32(np.nan))),
            {},
            r"scan: 240 masked pixels; expected a value for each",
        ),
        (np.zeros((2, 16, 16), np.uint8), {"affine": "eye"}, r"scan: affine eye; expected a finite \[4, 4\]"),
        (GREY, {"modality": "MR"}, r"scan: modality 'MR'; expected mri, ct, pet, spect"),
        (GREY, {"value_range": (5, 5)}, r"scan: value range \(5, 5\); expected .*black < white"),
        (GREY, {"value_range": (9, 5)}, r"scan: value range \(9, 5\)"),
        (GREY, {"value_range": (0, np.inf)}, r"scan: value range \(0, inf\)"),
        (GREY, {"value_range": (np.nan, 1)}, r"scan: value range \(nan, 1\)"),
        (GREY, {"value_range": (0, 1e39)}, r"scan: value range \(0, 1e\+39\); .*in float32"),
        (GREY, {"value_range": (-3e38, 3e38)}, r"scan: value range .*in float32"),
        (GREY, {"value_range": (0, 1e-46)}, r"scan: value range \(0, 1e-46\)"),
        (GREY, {"value_range": (0, 10**400)}, r"scan: value range \(0, 10"),
    ],
)
def test_a_wrong_image_is_refused_in_one_line(data: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match="^" + message) as caught:
        Image(data, source="scan", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("side", [16, 4096])
def test_the_limits_of_size_are_taken(side: int) -> None:
    assert Image(np.broadcast_to(np.uint8(0), (side, 16))).size == (side, 16)


def test_value_range_follows_the_type_unless_stated() -> None:
    for dtype, white in (("uint8", 255), ("uint16", 65535), ("float32", 1)):
        assert Image(np.zeros((16, 16), dtype)).value_range == (0.0, float(white))
    assert Image(GREY + 7).value_range == (0, 255), "never the image's own extremes"
    assert Image(GREY, (-1024, 3071)).value_range == (-1024.0, 3071.0)
    assert set(DTYPE_RANGE) == {"uint8", "uint16", "float32"}


def test_an_array_without_masked_pixels_is_plain() -> None:
    image = Image(np.ma.MaskedArray(GREY))
    assert type(image.data) is np.ndarray and np.shares_memory(image.data, GREY)


def test_frozen() -> None:
    image = Image(GREY)
    for name in ("data", "value_range", "modality"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(image, name, None)


def test_with_data_keeps_the_meaning_and_checks_again() -> None:
    image = Image(GREY, (0, 100), "ct", (0.5, 0.7), np.eye(4), "scan")
    other = image.with_data(GREY + 1, modality="pet")
    assert other.data[0, 0] == 1 and other.value_range == (0, 100) and other.modality == "pet"
    assert other.spacing_mm == (0.5, 0.7) and other.affine is image.affine and other.source == "scan"
    assert image.modality == "ct" and not image.data.any()
    with pytest.raises(InputError, match="scan: shape"):
        image.with_data(GREY[0])


def test_repr_says_what_it_is() -> None:
    assert repr(Image(GREY)) == (
        "Image(16 x 20, grey, uint8, range 0 to 255, modality unknown, spacing unknown; image)"
    )
    rgb = Image(np.zeros((16, 20, 3), np.uint16), (0, 4095), MODALITIES[2], (0.9, 1.25), source="p.png")
    assert rgb.is_colour and rgb.size == (16, 20)
    assert repr(rgb) == "Image(16 x 20, RGB, uint16, range 0 to 4095, pet, spacing 0.9 x 1.25 mm; p.png)"


def test_an_image_is_an_array() -> None:
    image = Image(GREY + 7)
    assert np.asarray(image) is image.data and np.asarray(image, np.float32).dtype == np.float32
    assert not np.shares_memory(np.array(image), image.data)
    with pytest.raises(ValueError, match="uint8 to float32 needs a copy"):
        image.__array__(np.float32, copy=False)


def test_a_notebook_shows_the_value_range() -> None:
    def shown(image: Image) -> np.ndarray:
        png = image._repr_png_()
        assert png is not None
        return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)

    ramp = np.broadcast_to(np.linspace(-100, 300, 20, dtype=np.float32), (16, 20))
    grey = shown(Image(ramp, (0, 200)))
    assert grey.dtype == np.uint8 and grey[0, 0] == 0 and grey[0, -1] == 255
    assert grey[0, 10] == round((ramp[0, 10] / 200) * 255)
    red = np.zeros((16, 20, 3), np.uint8)
    red[..., 0] = 200
    assert shown(Image(red))[0, 0].tolist() == [0, 0, 200], "OpenCV reads blue first"
    stack = np.stack([GREY, GREY + 9, GREY])
    volume = Image(stack, (0, 9), affine=np.eye(4))
    assert (shown(volume) == 255).all(), "the middle slice"
    assert Image(stack, affine=np.eye(4))._repr_png_() is None, "nobody stated black and white"
