"""fuser: every kind of input, what comes back, what holds for any weights, and what is refused."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from pictures import picture

from mmif_trt import Fuser, Image, InputError, fuse, read, sample, write
from mmif_trt.stages import colour, tiling

pytestmark = pytest.mark.usefixtures("fresh_graphs")

SAMPLES = ("mri-ct", "mri-pet", "mri-spect")
DTYPES = ("uint8", "uint16", "float32")
WHITE = {"uint8": 255, "uint16": 65535, "float32": 1}


@pytest.fixture(scope="module")
def fuser() -> Fuser:
    return Fuser(threads=1)


def pair(dtype: str = "uint8", rgb: bool = False, height: int = 40, width: int = 53) -> tuple[Any, Any]:
    """A grey and another picture, with a corner that is black in both and one that is black in a only."""
    a, b = picture(dtype, False, height, width)[::-1].copy(), picture(dtype, rgb, height, width)
    a[: height // 2, : width // 2] = 0
    b[: height // 3, : width // 3] = 0
    return a, b


def grey(x: np.ndarray) -> np.ndarray:
    return x.max(-1) if x.ndim == 3 else x


def check_bounds(fused: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    """What LAGN keeps by construction, whatever its weights; all in [0, 1], fused as luma."""
    weaker, stronger = np.minimum(a, grey(b)), np.maximum(a, colour.luma(b))
    assert (fused <= np.minimum(1, stronger + weaker) + 0.005).all()
    assert (fused >= stronger - 2 * weaker - 0.005).all()


# Kinds and types


@pytest.mark.parametrize("rgb", [False, True], ids=["grey", "rgb"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_keep_type_size_and_colour(fuser: Fuser, dtype: str, rgb: bool) -> None:
    a, b = pair(dtype, rgb)
    kept = a.copy(), b.copy()
    fused = fuser(a, b)
    assert isinstance(fused, np.ndarray) and fused.dtype == dtype and fused.shape == b.shape
    np.testing.assert_array_equal(a, kept[0])
    np.testing.assert_array_equal(b, kept[1])
    batch = fuser(np.stack([a, a[::-1]]), np.stack([b, b[::-1]]))
    assert batch.shape == (2, *b.shape) and batch.dtype == dtype
    np.testing.assert_array_equal(batch[0], fused)
    np.testing.assert_array_equal(batch[1], fuser(a[::-1], b[::-1]))
    assert not np.array_equal(batch[1], fused)
    unit_a, unit_b = (x.astype(np.float32) / WHITE[dtype] for x in (a, b))
    check_bounds(colour.luma(fused.astype(np.float32) / WHITE[dtype]), unit_a, unit_b)


@pytest.mark.parametrize("dtype_a", DTYPES)
@pytest.mark.parametrize("dtype_b", DTYPES)
def test_the_result_has_the_wider_type(fuser: Fuser, dtype_a: str, dtype_b: str) -> None:
    a, b = pair(dtype_a)[0], pair(dtype_b)[1]
    fused = fuser(a, b)
    assert fused.dtype == max(dtype_a, dtype_b, key=DTYPES.index)
    unit = fused.astype(np.float32) / WHITE[fused.dtype.name]
    check_bounds(unit, a.astype(np.float32) / WHITE[dtype_a], b.astype(np.float32) / WHITE[dtype_b])
    assert unit.max() > 0.5


@pytest.mark.parametrize("size", [(16, 16), (17, 100), (255, 257), (33, 300)])
def test_any_size(fuser: Fuser, size: tuple[int, int]) -> None:
    a, b = pair("uint8", True, *size)
    fused = fuser(a, b)
    assert fused.shape == (*size, 3)
    black = (a == 0) & (grey(b) == 0)
    assert black.any() and not fused[black].any() and fused.any()


def test_views_and_foreign_byte_order(fuser: Fuser) -> None:
    a, b = pair("uint16")
    expected = fuser(a, b)
    np.testing.assert_array_equal(fuser(np.repeat(a, 2, 1)[:, ::2], b.T.copy().T), expected)
    for result in (
        fuser(a.astype(">u2"), b),
        fuser(a, b.astype(">u2")),
        fuser(a.astype(">u2"), b.astype(">u2")),
    ):
        np.testing.assert_array_equal(result, expected)
        assert result.dtype == np.dtype("uint16") and result.dtype.isnative
    x, y = pair("float32")
    np.testing.assert_array_equal(fuser(x.astype(">f4"), y.astype(">f4")), fuser(x, y))


def test_tensors(fuser: Fuser) -> None:
    torch = pytest.importorskip("torch")
    for dtype in ("uint8", "float32", "uint16"):
        a, b = pair(dtype, True)
        fused = fuser(torch.from_numpy(a), torch.from_numpy(b))
        assert isinstance(fused, torch.Tensor) and fused.dtype == getattr(torch, dtype)
        assert fused.device.type == "cpu"
        np.testing.assert_array_equal(fused.numpy(), fuser(a, b))
    expected = fuser(a, b)
    assert isinstance(fuser(torch.from_numpy(a), b), torch.Tensor), "the kind that a is"
    result = fuser(a, torch.from_numpy(b))
    assert isinstance(result, np.ndarray) and np.array_equal(result, expected)
    with_grad = torch.rand(20, 20, requires_grad=True)
    assert not fuser(with_grad, torch.rand(20, 20)).requires_grad
    for dtype in (torch.bfloat16, torch.float64, torch.int64):
        with pytest.raises(InputError, match=r"a: dtype .*(bfloat16|float64|int64).*; expected"):
            fuser(torch.zeros(20, 20, dtype=dtype), b)
    for tensor in (torch.zeros(20, 20, device="meta"), torch.zeros(20, 20).to_sparse()):
        with pytest.raises(InputError, match=r"a: dtype .*(sparse_coo|on meta).*; expected a dense"):
            fuser(tensor, b)
    a, b = (torch.from_numpy(x) for x in pair("float32"))

    class MetaTensor(torch.Tensor): ...  # type: ignore[misc]  # MONAI's

    for same in (a.as_subclass(MetaTensor), torch._neg_view(-a)):
        result = fuser(same, b)
        assert isinstance(result, torch.Tensor) and torch.equal(result.as_subclass(torch.Tensor), fuser(a, b))
    if torch.cuda.is_available():
        a, b = (x.numpy() for x in (a, b))
        expected = fuser(a, b)
        on_gpu = fuser(torch.from_numpy(a).cuda(), torch.from_numpy(b).cuda())
        assert on_gpu.is_cuda and np.array_equal(on_gpu.cpu().numpy(), expected)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".jp2"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_paths(fuser: Fuser, tmp_path: Path, suffix: str, dtype: str) -> None:
    if (suffix, dtype) == (".jpg", "uint16"):
        pytest.skip("JPEG holds 8 bits")
    a, b = pair(dtype, True)
    paths = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    for path, pixels in zip(paths, (a, b), strict=True):
        write(path, Image(pixels))
    stored = [read(path).data for path in paths]
    fused = fuser(*paths)
    assert isinstance(fused, Image) and fused.data.dtype == dtype and fused.is_colour
    assert all(str(path) in fused.source for path in paths)
    np.testing.assert_array_equal(fused.data, fuser(*stored))
    if suffix != ".jpg":
        np.testing.assert_array_equal(fused.data, fuser(a, b))
    for mixed in ((str(paths[0]), stored[1]), (stored[0], paths[1]), (Image(stored[0]), str(paths[1]))):
        result = fuser(*mixed)
        assert isinstance(result, Image)
        np.testing.assert_array_equal(result.data, fused.data)


def test_an_image_keeps_the_geometry_of_a(fuser: Fuser) -> None:
    x, y = pair()
    a = Image(x, modality="mri", spacing_mm=(0.5, 0.75), affine=np.diag([1.0, 2, 3, 1]), source="t1")
    fused = fuser(a, Image(y, modality="ct", spacing_mm=(2, 2), source="ct"))
    assert fused.spacing_mm == (0.5, 0.75) and fused.affine is a.affine and fused.modality is None
    assert fused.source == "t1 + ct" and fused.value_range == (0, 255)


def test_fuse_is_the_one_liner(fuser: Fuser) -> None:
    a, b = pair("uint16")
    result = fuse(a, b, value_range=(0, 60000), precision="fp32")
    expected = Fuser(precision="fp32", threads=1)(a, b, value_range=(0, 60000))
    assert np.abs(result.astype(int) - expected).max() <= 2  # thread counts may differ in the last bits


# What must hold for any weights


@pytest.mark.parametrize("name", SAMPLES)
def test_background_of_the_samples_is_exactly_black(fuser: Fuser, name: str) -> None:
    a, b = sample(name)
    fused = fuser(a, b)
    black = (a.data == 0) & (grey(b.data) == 0)
    assert black.sum() > 1000 and not fused.data[black].any()
    assert fused.data[~black].any()


def test_bit_depth_is_kept(fuser: Fuser) -> None:
    a, b = sample("mri-ct")
    fused = fuser(a, b)
    assert fused.data.dtype == np.uint16 and fused.value_range == (0, 4095)
    assert len(np.unique(fused.data)) > 256 and fused.data.max() <= 4095
    np.testing.assert_array_equal(fuser(a.data, b.data, value_range=(0, 4095)), fused.data)


@pytest.mark.parametrize("rgb", [False, True], ids=["grey", "rgb"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_empty_and_constant_images(fuser: Fuser, dtype: str, rgb: bool) -> None:
    zero = np.zeros((40, 53), dtype)
    zero_b = np.zeros((40, 53, 3) if rgb else (40, 53), dtype)
    assert not fuser(zero, zero_b).any()
    level = np.asarray(0.4 * WHITE[dtype]).astype(dtype)
    constant = fuser(zero + level, zero_b + level) / WHITE[dtype]
    assert np.isfinite(constant).all() and constant.min() >= 0.29 and constant.max() <= 0.54
    one_sided = fuser(zero, zero_b + level) / WHITE[dtype]
    assert np.isfinite(one_sided).all() and one_sided.max() <= 0.51
    white = fuser(zero + np.array(WHITE[dtype], dtype), zero_b + np.array(WHITE[dtype], dtype))
    assert white.max() <= WHITE[dtype] and white.min() >= 0.74 * WHITE[dtype]


def test_no_stretch(fuser: Fuser) -> None:
    a, b = sample("mri-ct")
    full = fuser(a, b).data
    dim = fuser(a.with_data(a.data // 4), b.with_data(b.data // 4)).data
    assert (dim <= a.data // 4 + b.data // 4 + 8).all()
    assert 0.75 < dim.mean() / (full.mean() / 4) < 1.4  # a stretch would give 4
    x, y = pair("float32")
    faint = fuser(x * np.float32(0.01), y * np.float32(0.01))
    assert 0 < faint.max() <= 0.0126


def test_value_range(fuser: Fuser) -> None:
    a, b = pair("uint16")
    a, b = a // 16, b // 16  # 12 bits
    stated, unstated = fuser(a, b, value_range=(0, 4095)), fuser(a, b)
    assert stated.max() > 2048 and stated.max() <= 4095
    assert np.abs(stated.astype(int) - unstated).max() > 16, "the range must reach the network"
    images = fuser(Image(a, (0, 4095)), Image(b, (0, 4095)))
    np.testing.assert_array_equal(images.data, stated)
    np.testing.assert_array_equal(fuser(a, b * 16, value_range_a=(0, 4095), value_range_b=(0, 65520)), stated)
    np.testing.assert_array_equal(fuser(a, b * 16, value_range=(0, 4095), value_range_b=(0, 65520)), stated)
    np.testing.assert_array_equal(
        fuser(Image(a, (0, 9)), Image(b), value_range=(0, 4095)).data, stated, "said in the call, it wins"
    )


def test_value_ranges_and_options_that_a_configuration_holds(fuser: Fuser) -> None:
    a, b = pair("uint16")
    expected = fuser(a, b, value_range=(0, 4095))
    given = {"value_range_a": np.array([0, 4095]), "value_range_b": [0, 4095]}
    given |= json.loads('{"registration": "header"}')  # a string, but not the default itself
    np.testing.assert_array_equal(fuser(a, b, **given), expected)
    with pytest.raises(InputError, match=r"a: value range \(\); expected"):
        fuser(a, b, value_range_a=(), value_range=(0, 4095))


def test_value_range_of_the_wider_source(fuser: Fuser) -> None:
    a, b = pair("uint8")[0], pair("uint16")[1] // 16
    fused = fuser(Image(a), Image(b, (0, 4095)))
    assert fused.value_range == (0, 4095) and 255 < fused.data.max() <= 4095
    swapped = fuser(Image(a.astype(np.uint16), (0, 255)), Image(b, (0, 4095)))
    assert swapped.value_range == (0, 255) and swapped.data.max() <= 255, "a's where both have the type"


def test_negative_black(fuser: Fuser) -> None:
    a, b = pair("float32")
    hu = b * np.float32(4095) - np.float32(1024)
    fused = fuser(a, hu, value_range_b=(-1024, 3071))
    assert (fused[(a == 0) & (hu == -1024)] == 0).all() and fused.min() >= 0, "a's range"
    hounsfield = fuser(Image((a * 255).astype(np.uint8)), Image(hu, (-1024, 3071)))
    assert hounsfield.value_range == (-1024, 3071)
    assert (hounsfield.data[(a == 0) & (hu == -1024)] == -1024).all() and hounsfield.data.min() >= -1024
    assert hounsfield.data.max() > 1000


def test_values_outside_the_range_saturate(fuser: Fuser) -> None:
    a, b = pair("float32")
    low, high = a < 0.1, a > 0.6
    beyond = np.where(low, -a, np.where(high, 1 + a, a))
    clipped = np.clip(beyond, 0, 1)
    assert low.any() and high.any()
    np.testing.assert_array_equal(fuser(beyond, b), fuser(clipped, b))


@pytest.mark.parametrize("side", [0, 1])
def test_float_pixels_on_another_scale_are_refused(fuser: Fuser, side: int) -> None:
    """0 to 255 as float would come out white, without a word; stated, it is fused as the same levels."""
    sources = list(pair("float32"))
    right = fuser(*sources)
    sources[side] = sources[side] * np.float32(255)
    with pytest.raises(InputError, match=f"{'ab'[side]}: float pixels from 0 to 2.*; expected 0 to 1, or"):
        fuser(*sources)
    stated: dict[str, Any] = {f"value_range_{'ab'[side]}": (0, 255)}
    scale = 255 if side == 0 else 1  # the result has a's range where both are float
    np.testing.assert_allclose(fuser(*sources, **stated), right * scale, atol=1e-3 * scale)


def test_same_input_same_output(fuser: Fuser) -> None:
    a, b = sample("mri-pet")
    first = fuser(a, b).data
    np.testing.assert_array_equal(fuser(a, b).data, first)
    np.testing.assert_array_equal(Fuser(threads=1)(a, b).data, first)


def test_what_was_fused_before_does_not_matter() -> None:
    jobs = [pair("float32", False, 32 * rows, 64) for rows in range(1, 8)]
    forward, backward = Fuser(threads=1), Fuser(threads=1)
    expected = [forward(*job) for job in jobs]
    result = [backward(*job) for job in jobs[::-1]][::-1]
    for x, y in zip(result, expected, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("runtime", ["openvino", "torch"])
def test_threads_give_what_one_thread_gives(runtime: str) -> None:
    pytest.importorskip(runtime)
    jobs = [pair("uint16", rgb, *size) for size in ((40, 53), (64, 130), (33, 97)) for rgb in (False, True)]
    jobs += [(a[::-1], b[::-1]) for a, b in jobs]
    serial, shared = Fuser(runtime, threads=1), Fuser(runtime, threads=1)
    with ThreadPoolExecutor(4) as pool:  # first: the graphs are made in the race
        results = list(pool.map(lambda job: shared(*job), jobs * 3))
    expected = [serial(*job) for job in jobs] * 3
    for result, want in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, want)


# Colour


def test_luma_of_the_result_is_the_fused_luma(fuser: Fuser) -> None:
    a, b = sample("mri-pet")
    unit_a, unit_b = (x.data.astype(np.float32) / 255 for x in (a, b))
    y = tiling.run(fuser.runtime.infer, unit_a, colour.planes(unit_b))
    fused = fuser(a, b).data
    luma = colour.luma(fused.astype(np.float32) / 255)
    assert np.abs(luma - y).max() * 255 <= 0.51  # three channels, each rounded
    exact = fuser(unit_a, unit_b)
    assert np.abs(colour.luma(exact) - y).max() < 1e-5
    coloured = np.ptp(unit_b, -1) > 0.2
    assert coloured.any() and (np.ptp(fused, -1)[coloured] > 0).mean() > 0.9, "chroma of b"
    in_grey = fuser(unit_a, colour.luma(unit_b))
    assert (np.abs(in_grey - y)[coloured] > 1 / 255).mean() > 0.5, (
        "a colour is fused in another way than a grey"
    )


def test_grey_stored_as_rgb(fuser: Fuser) -> None:
    a, b = pair("uint16", True)
    rgb_a = np.dstack([a] * 3)
    np.testing.assert_array_equal(fuser(rgb_a, b), fuser(a, b))
    fused = fuser(a, rgb_a)
    assert fused.shape == (40, 53, 3) and (fused == fused[..., :1]).all()
    np.testing.assert_array_equal(fused[..., 0], fuser(a, a))
    np.testing.assert_array_equal(fuser(rgb_a[None], b[None])[0], fuser(a, b))


# Refused

A, B = pair()
NAN = np.full((40, 53), np.nan, np.float32)
WIDE = np.broadcast_to(np.uint8(0), (16, 4097))


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (A, B[:-1], r"a is 40 x 53 px and b is 39 x 53 px; expected registered images of equal size"),
        (A, B.T, r"a is 40 x 53 px and b is 53 x 40 px"),
        (NAN, NAN, r"a: NaN or infinite pixels; expected finite values"),
        (A, NAN, r"b: NaN or infinite pixels"),
        (A.astype(np.float64), B, r"a: dtype float64; expected an array of uint8, uint16 or float32"),
        (A, B.astype(np.int32), r"b: dtype int32; expected an array of"),
        (A, B > 3, r"b: dtype bool; expected an array of"),
        (A[0], B, r"a: shape \(53,\); expected \[H, W\] grey, \[H, W, 3\] RGB"),
        (np.uint8(3) + np.zeros((), np.uint8)[...], B, r"a: .*; expected"),
        (
            A,
            np.dstack([B] * 4),
            r"a has shape \(40, 53\) and b \(40, 53, 4\); expected two images, or two",
        ),
        (np.stack([A] * 2), B, r"a has shape \(2, 40, 53\) and b \(40, 53\); expected two images"),
        (
            np.stack([A] * 2),
            np.stack([B] * 3),
            r"a has shape \(2, 40, 53\) and b \(3, 40, 53\); .*one length",
        ),
        (A[None][:0], B[None][:0], r"a has shape \(0, 40, 53\); expected batches of one image or more"),
        (np.stack([A, A[::-1]]), np.stack([B, B])[:, :-1], r"a\[0\] is 40 x 53 px and b\[0\] is 39 x 53 px"),
        (np.stack([A / np.float32(255), NAN]), np.stack([B, B]), r"a\[1\]: NaN or infinite"),
        (A[:15], B[:15], r"a: 15 x 53 px; expected 16 to 4096 px per side"),
        (WIDE, WIDE, r"a: 16 x 4097 px; expected 16 to 4096 px per side"),
        (np.dstack([A, A, A + 1]), B, r"a: a colour image; expected a grey MRI as the first source"),
        ([[1, 2]], B, r"a: list; expected a NumPy array, a torch tensor, a path or an mmif_trt.Image"),
        (A, None, r"b: NoneType; expected a NumPy array"),
        ("no such file.png", B, r"no such file\.png: no such file; expected one of"),
        (A, "", r"path: ''; expected"),
        (PIL.Image.new("L", (53, 40)), B, r"a: PIL\.Image\.Image; expected a NumPy array, .*mmif_trt\.Image"),
    ],
)
def test_bad_input_is_refused_in_one_line(fuser: Fuser, a: Any, b: Any, message: str) -> None:
    with pytest.raises(InputError, match="^" + message) as caught:
        fuser(a, b)
    assert "\n" not in str(caught.value)


def test_files_are_named(fuser: Fuser, tmp_path: Path) -> None:
    text, small, rgb = tmp_path / "text.png", tmp_path / "small.png", tmp_path / "rgb.png"
    text.write_text("this is not a picture")
    write(small, Image(A[:20]))
    write(rgb, Image(pair("uint8", True)[1]))
    with pytest.raises(InputError, match=re.escape(str(text)) + r": begins with b'this is '; expected"):
        fuser(text, B)
    with pytest.raises(InputError, match=r"^a is 40 x 53 px and .*small\.png is 20 x 53 px; expected"):
        fuser(A, small)
    with pytest.raises(InputError, match=r"rgb\.png: a colour image; .*did a and b swap"):
        fuser(str(rgb), B)
    with pytest.raises(InputError, match="b: shape"):
        fuser(rgb, np.stack([B] * 2))
    with pytest.raises(InputError, match=r"^b: ndarray; expected an mmif_trt\.Image"):
        fuser.fuse_images(Image(A), B)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^image: a volume; expected a picture, or fuse_volumes"):
        fuser.fuse_images(Image(A), Image(np.stack([A] * 3), affine=np.eye(4)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "cuda"}, r"runtime 'cuda'; expected auto, tensorrt, openvino, torch"),
        ({"precision": "int8"}, r"precision 'int8'; expected auto, fp32, bf16"),
        ({"threads": 0}, r"threads 0; expected a whole number, 1 or more"),
        ({"threads": "2"}, r"threads '2'; expected a whole number"),
        ({"streams": 0}, r"streams 0; expected a whole number, 1 or more"),
        ({"precision": "fp16"}, r"precision 'fp16' is TensorRT's alone: "),
        ({"runtime": "torch", "precision": "bf16"}, r"precision 'bf16': .*; expected auto, fp32"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    if options.get("precision") == "bf16":
        pytest.importorskip("torch")
    with pytest.raises(InputError, match="^" + message):
        Fuser(**options)
    if not {"threads", "streams"} & set(options):
        with pytest.raises(InputError, match="^" + message):
            fuse(A, B, **options)
