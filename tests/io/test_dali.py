"""io/dali: DALI on the CPU gives io.read's pixels bit for bit, and no bad file ends the run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import REPO

from mmif_trt import InputError, io
from mmif_trt.image import CardImage
from mmif_trt.io import dali

pytest.importorskip("nvidia.dali", reason="nvidia-dali-cuda130 is not installed")
torch = pytest.importorskip("torch")
cuda, from_dlpack = torch.cuda, torch.from_dlpack
TYPES = ("png", "tif", "jp2", "jpg")
JPEG_2000 = [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000]


def picture(dtype: str, channels: int, seed: int, size: tuple[int, int] = (40, 56)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, np.iinfo(dtype).max + 1, (*size, channels)).astype(dtype)
    return x if channels == 3 else x[..., 0]


def save(path: Path, x: np.ndarray) -> str:
    assert cv2.imwrite(str(path), x, JPEG_2000 if path.suffix == ".jp2" else [])
    return str(path)


@pytest.mark.parametrize("suffix", TYPES)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_opencvs(
    tmp_path: Path, suffix: str, dtype: str, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if suffix == "jpg" and dtype == "uint16":
        pytest.skip("JPEG holds 8 bits")
    arrays = [picture(dtype, channels, seed, (40 + 8 * seed, 56)) for seed in range(5)]
    arrays[0] //= 16  # 0..4095 in 16 bits, which DALI's default type would turn into 0..16
    files = [save(tmp_path / f"{i}.{suffix}", x) for i, x in enumerate(arrays)]
    expected = [io.read(file).data for file in files]
    monkeypatch.setattr(dali, "_by_opencv", lambda pair: pytest.fail("DALI must have decoded it"))
    pairs = list(dali.read_pairs(files, files[::-1], batch=2))
    assert [pair.index for pair in pairs] == list(range(5))
    for pair in pairs:
        assert pair.a is not None and pair.b is not None and not pair.error
        for image, index in ((pair.a, pair.index), (pair.b, 4 - pair.index)):
            np.testing.assert_array_equal(image.data, expected[index])
            assert image.data.dtype == dtype and image.source == files[index]
            if suffix != "jpg":
                raw = cv2.imread(files[index], cv2.IMREAD_UNCHANGED)
                np.testing.assert_array_equal(image.data, raw[..., ::-1] if channels == 3 else raw)


def test_a_gpu_is_told_to_interpolate_the_chroma_of_a_jpeg() -> None:
    """A GPU repeats each sample by default. The CPU always interpolates: only the pipeline shows it."""
    built = dali.decoder(("uint8", "uint8"), None, 1, 1, source=lambda: ([], []))
    asked = re.findall(rb"jpeg_fancy_upsampling\x12\x04bool0(.)", built.serialize(), re.DOTALL)
    assert asked == [b"\x01"] * 2


def test_a_tensor_outlives_its_turn(tmp_path: Path) -> None:
    """What stays on a card is read later, perhaps after its pipeline is gone; here, on the CPU."""
    files = [Path(save(tmp_path / f"{i}.png", picture("uint8", 1, i))) for i in range(9)]
    streams = iter([np.frombuffer(file.read_bytes(), np.uint8)] for file in files)

    def source() -> tuple[list[np.ndarray], list[np.ndarray]]:
        one = next(streams)
        return one, one

    built = dali.decoder(("uint8", "uint8"), None, 1, 1, source=source)
    first = built.run()[0][0]
    for _ in files[1:]:
        built.run()
    with pytest.raises(StopIteration):
        built.run()
    del built
    np.testing.assert_array_equal(np.array(first)[..., 0], io.read(files[0]).data)


def test_on_a_card_only_colour_jpeg_may_differ_and_by_one_level(tmp_path: Path) -> None:
    if not cuda.is_available():
        pytest.skip("no CUDA device")
    x = picture("uint8", 3, 0) // 2
    x[10:30, 10:40] = (255, 0, 0)
    files = [save(tmp_path / f"{kind}-{y.ndim}.{kind}", y) for kind in TYPES for y in (x, x[..., 0])]
    for pair in dali.read_pairs(files, files, on_card=lambda a, b: True):
        assert isinstance(pair.a, CardImage), pair.error
        decoded = from_dlpack(pair.a.pixels).cpu().numpy()
        apart = np.abs(decoded.astype(int) - io.read(files[pair.index]).data.astype(int)).max()
        assert apart <= files[pair.index].endswith("-3.jpg"), files[pair.index]


def test_mixed_types_palettes_and_alpha_stay_in_order(tmp_path: Path) -> None:
    grey8, grey16 = picture("uint8", 1, 0), picture("uint16", 1, 1)
    files = [save(tmp_path / f"{i}.png", grey16 if i % 3 == 1 else grey8) for i in range(7)]
    opaque = np.dstack([picture("uint8", 3, 2), np.full(grey8.shape, 255, np.uint8)])
    files.append(save(tmp_path / "alpha.png", opaque))
    files.append(save(tmp_path / "float.tiff", grey8.astype(np.float32) / 255))
    for pair, file in zip(dali.read_pairs(files, files, batch=3), files, strict=True):
        assert pair.a is not None
        np.testing.assert_array_equal(pair.a.data, io.read(file).data)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "flipped": lambda data: data[:60] + bytes([data[60] ^ 0xFF]) + data[61:],
    "text": lambda data: b"no picture",
}


def test_bad_files_among_a_thousand_are_named(tmp_path: Path) -> None:
    good = save(tmp_path / "good.png", picture("uint8", 1, 0))
    files = [good] * 1000
    for i, (name, damage) in zip((0, 3, 500, 999), DAMAGE.items(), strict=True):
        bad = tmp_path / f"{name}.png"
        bad.write_bytes(damage(Path(good).read_bytes()))
        files[i] = str(bad)
    files[700] = str(tmp_path / "missing.png")
    failed = {}
    for pair in dali.read_pairs(files, [good] * 1000):
        if pair.error:
            failed[pair.index] = pair.error
        else:
            assert pair.a is not None and pair.b is not None
    assert sorted(failed) == [0, 3, 500, 700, 999]
    assert all(error.startswith(files[i]) for i, error in failed.items()), failed


def test_a_file_that_only_dali_refuses_does_not_stop_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with damaged data passes the checks: DALI ends its pipeline, and the other files are still
    read."""
    good = save(tmp_path / "good.jp2", picture("uint16", 1, 0))
    data = bytearray(Path(good).read_bytes())
    bad = tmp_path / "bad.jp2"
    bad.write_bytes(data)
    real = dali.raster.check

    def check(content: bytes, name: str) -> object:
        kind, proven = real(content, name)
        if name == str(bad):
            proven = dali.Checked(b"not JPEG 2000", proven.shape, proven.dtype)
            bad.write_bytes(data[:200])
        return kind, proven

    monkeypatch.setattr(dali.raster, "check", check)
    files = [good] * 20
    files[7] = str(bad)
    pairs = list(dali.read_pairs(files, [good] * 20, batch=4))
    assert [pair.index for pair in pairs] == list(range(20))
    assert [bool(pair.error) for pair in pairs] == [i == 7 for i in range(20)]
    assert pairs[7].error.startswith(str(bad))


def test_shards_cover_every_pair_once(tmp_path: Path) -> None:
    files = [save(tmp_path / f"{i}.png", picture("uint8", 1, i)) for i in range(7)]
    seen = [[pair.index for pair in dali.read_pairs(files, files, shard=i, shards=3)] for i in range(3)]
    assert sum(seen, []) == list(range(7)) and all(2 <= len(part) <= 3 for part in seen)
    with pytest.raises(InputError, match="shard 3 of 3; expected 0 to 2"):
        next(dali.read_pairs(files, files, shard=3, shards=3))
    with pytest.raises(InputError, match="7 and 6 files; expected two lists of equal length"):
        next(dali.read_pairs(files, files[1:]))


def test_ahead_raises_in_every_worker() -> None:
    def pairs() -> Iterator[dali.Decoded]:
        yield dali.Decoded(0, error="x.png: bad")
        raise RuntimeError("the disk is gone")

    ahead = dali.Ahead(pairs(), 4)
    with pytest.raises(InputError, match="x.png: bad"):
        ahead.read(0)
    for index in (1, 2):
        with pytest.raises(RuntimeError, match="the disk is gone"):
            ahead.read(index)
    ahead.close()


def test_ahead_keeps_to_its_limit_and_skips_what_nobody_reads(tmp_path: Path) -> None:
    file = save(tmp_path / "x.png", picture("uint8", 1, 0))
    made: list[int] = []

    def pairs() -> Iterator[dali.Decoded]:
        for i in range(100):
            made.append(i)
            yield dali.Decoded(i, io.read(file), io.read(file))

    ahead = dali.Ahead(pairs(), 4)
    for i in range(0, 100, 3):  # two of three pairs failed before they were read
        assert ahead.read(i)[0].size == (40, 56)
        assert len(made) <= i + 6
    ahead.close()
    ahead = dali.Ahead(pairs(), 4)
    ahead.close()
    with pytest.raises(InputError, match="was closed"):
        ahead.read(50)


def test_the_command_line_takes_it(tmp_path: Path) -> None:
    for side in "ab":
        (tmp_path / side).mkdir()
        for i in range(12):
            save(tmp_path / side / f"{i:02}.png", picture("uint8", 1 if side == "a" else 3, i, (64, 64)))
    (tmp_path / "a" / "05.png").write_bytes(b"broken")
    for decode in ("opencv", "dali"):
        command = [sys.executable, "-m", "mmif_trt", "fuse", "a", "b", "-o", decode, "--decode", decode]
        command += ["--report", f"{decode}.json", "--threads", "1", "--quiet"]
        done = subprocess.run(
            command, cwd=tmp_path, env={"PYTHONPATH": str(REPO)}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1 and "05.png: begins with b'broken'" in done.stderr, done.stderr
        report = json.loads((tmp_path / f"{decode}.json").read_text())
        assert (report["totals"]["done"], report["totals"]["failed"]) == (11, 1)
    for path in sorted((tmp_path / "opencv").iterdir()):
        assert path.read_bytes() == (tmp_path / "dali" / path.name).read_bytes()
