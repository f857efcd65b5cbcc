"""normalise: every level there and back, by the stated limits and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from mmif_trt.image import Image
from mmif_trt.stages.normalise import from_unit, to_unit


def round_trip(image: Image) -> np.ndarray:
    assert image.value_range is not None
    return from_unit(to_unit(image), image.data.dtype, image.value_range)


@pytest.mark.parametrize(
    ("dtype", "value_range"),
    [
        ("uint8", None),
        ("uint16", None),
        ("uint16", (0, 4095)),
        ("uint16", (100, 40000)),
        ("uint8", (-10, 300)),
        ("uint16", (-1024, 3071)),  # the zero of the file lies inside the range
    ],
)
def test_every_level_comes_back_and_has_its_own_value(
    dtype: str, value_range: tuple[float, float] | None
) -> None:
    levels = np.arange(np.iinfo(dtype).max + 1, dtype=dtype).reshape(-1, 16)
    image = Image(levels, value_range)
    assert image.value_range is not None
    inside = (image.data >= image.value_range[0]) & (image.data <= image.value_range[1])
    unit, back = to_unit(image), round_trip(image)
    assert unit.dtype == np.float32 and back.dtype == dtype
    np.testing.assert_array_equal(back[inside], image.data[inside])
    assert (np.diff(unit[inside]) > 0).all()


def test_float_with_negative_black_comes_back() -> None:
    hu = np.linspace(-1024, 3071, 64 * 64, dtype=np.float32).reshape(64, 64)
    image = Image(hu, (-1024, 3071))
    unit = to_unit(image)
    assert unit.min() == 0 and unit.max() == 1
    np.testing.assert_allclose(round_trip(image), hu, atol=1e-3)
    zero = np.zeros((16, 16), np.float32)
    assert (from_unit(zero, np.dtype("float32"), (-1024, 3071)) == -1024).all(), "black is exactly black"


def test_values_outside_the_range_saturate() -> None:
    data = np.tile(np.array([0, 99, 100, 200, 201, 65535], np.uint16), (16, 4))
    unit = to_unit(Image(data, (100, 200)))
    np.testing.assert_array_equal(unit[0, :6], [0, 0, 0, 1, 1, 1])
    over = np.array([[-0.5, 0, 1, 1.5]], np.float32)
    np.testing.assert_array_equal(from_unit(over, np.dtype("uint8"), (0, 255)), [[0, 0, 255, 255]])
    np.testing.assert_array_equal(from_unit(over, np.dtype("uint8"), (-20, 300)), [[0, 0, 255, 255]])


def test_rounds_to_nearest() -> None:
    unit = np.array([[9.4, 9.6]], np.float32) / 255
    np.testing.assert_array_equal(from_unit(unit, np.dtype("uint8"), (0, 255)), [[9, 10]])


@pytest.mark.parametrize("order", ["<", ">"])
def test_byte_order_does_not_matter(order: str) -> None:
    for dtype in ("u2", "f4"):
        data = (np.arange(256).reshape(16, 16) / (1 if dtype == "u2" else 256)).astype(order + dtype)
        np.testing.assert_array_equal(to_unit(Image(data)), to_unit(Image(data.astype(dtype))))


def test_no_stretch_to_an_images_own_extremes() -> None:
    faint = np.full((16, 16), 10, np.uint8)
    faint[:, 8:] = 20
    np.testing.assert_allclose(np.unique(to_unit(Image(faint))), np.array([10, 20]) / 255, rtol=1e-6)
    bright = faint.copy()
    bright[0, 0] = 255
    np.testing.assert_array_equal(to_unit(Image(bright))[1:], to_unit(Image(faint))[1:])
