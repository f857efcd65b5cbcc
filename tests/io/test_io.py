"""io: files to Image and back, whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
from pictures import GREY, GREY16, RGB, RGB16, picture

import mmif_trt.io as mio
from mmif_trt import files
from mmif_trt.files import OutputError, write_atomic
from mmif_trt.image import Image, InputError

LOSSLESS = [".png", ".tif", ".tiff", ".jp2", ".j2k"]
REPO = Path(__file__).resolve().parents[2]


def files_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("size", [(16, 16), (40, 53), (257, 19)])
@pytest.mark.parametrize("colour", [False, True], ids=["grey", "rgb"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("suffix", LOSSLESS)
def test_round_trip_keeps_every_bit(
    tmp_path: Path, suffix: str, dtype: str, colour: bool, size: tuple[int, int]
) -> None:
    pixels, path = picture(dtype, colour, *size), tmp_path / f"x{suffix.upper()}"
    if suffix in (".jp2", ".j2k") and dtype != "float32" and min(size) < 32:  # OpenCV does not write these
        with pytest.raises(InputError, match=r"x\..*: \d+ x \d+ px; expected 32 px per side"):
            mio.write(path, Image(pixels))
        return
    if dtype == "float32" and not suffix.startswith(".tif"):
        with pytest.raises(InputError, match=r"x\..*: float32 pixels.*expected \.tif \.tiff"):
            mio.write(path, Image(pixels))
        return
    mio.write(path, Image(pixels))
    image = mio.read(path)
    assert image.source == str(path) and image.data.dtype == pixels.dtype
    np.testing.assert_array_equal(image.data, pixels)
    assert sorted(os.listdir(tmp_path)) == [path.name]


def test_pixels_that_are_not_plain_memory(tmp_path: Path) -> None:
    for name, view in {
        "slice": RGB[::2, ::-1],
        "order": GREY16.astype(">u2"),
        "planes": RGB.transpose(1, 0, 2),
    }.items():
        mio.write(tmp_path / f"{name}.png", Image(view))
        np.testing.assert_array_equal(mio.read(tmp_path / f"{name}.png").data, view)


def test_arrays_and_tensors_are_written(tmp_path: Path) -> None:
    """As `fuse` returns them where they were passed; the README writes what it returns."""
    torch = pytest.importorskip("torch")
    mio.write(tmp_path / "array.png", RGB)
    mio.write(tmp_path / "tensor.png", torch.from_numpy(RGB.copy()))
    for name in ("array.png", "tensor.png"):
        np.testing.assert_array_equal(mio.read(tmp_path / name).data, RGB)
    for wrong in ("other.png", RGB.tolist(), None):
        with pytest.raises(
            InputError, match="^image: .*; expected a NumPy array, a torch tensor, or an mmif"
        ):
            mio.write(tmp_path / "wrong.png", wrong)
    with pytest.raises(InputError, match="^image: shape"):
        mio.write(tmp_path / "wrong.png", np.stack([RGB, RGB]))


def test_opencv_reads_what_we_write(tmp_path: Path) -> None:
    for suffix in [".png", ".tif", ".jp2", ".j2k"]:
        mio.write(tmp_path / f"x{suffix}", Image(RGB16))
        other = cv2.imread(str(tmp_path / f"x{suffix}"), cv2.IMREAD_UNCHANGED)
        assert other is not None
        np.testing.assert_array_equal(other[..., ::-1], RGB16)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".mgz", ".nrrd", ".mha", ".hdr", ".zip"])
@pytest.mark.parametrize("is_volume", [False, True])
def test_what_a_refusal_to_write_names_can_be_written(tmp_path: Path, suffix: str, is_volume: bool) -> None:
    """Of the suffixes in the message each takes the picture, or those of volumes the volume."""
    pixels = np.zeros((3, 40, 40) if is_volume else (40, 40), np.float32)
    image = Image(pixels, affine=np.eye(4) if is_volume else None)
    with pytest.raises(InputError) as refused:
        mio.write(tmp_path / f"x{suffix}", image)
    named = re.findall(r"(?<!\S)\.[a-z0-9.]+", str(refused.value).partition("; ")[2])
    if suffix == ".bmp":  # no format at all: all that are written
        named = [one for one in named if mio.FORMATS[one].is_volume == is_volume]
        named = [one for one in named if "float32" in mio.FORMATS[one].dtypes]
    elif suffix == ".zip":
        assert "mmif-trt fuse A B -o OUT.dcm" in str(refused.value)
        return
    elif not is_volume and suffix in (".mgz", ".nrrd", ".mha", ".hdr"):
        assert "a read-only format" in str(refused.value)
        return
    assert named
    for one in named:
        mio.write(tmp_path / f"y{one}", image)


def test_jpeg_is_close_and_keeps_chroma(tmp_path: Path) -> None:
    smooth = cv2.GaussianBlur(RGB, (0, 0), 2)
    mio.write(tmp_path / "x.jpg", Image(smooth))
    assert np.abs(mio.read(tmp_path / "x.jpg").data.astype(int) - smooth).max() <= 6
    with PIL.Image.open(tmp_path / "x.jpg") as file:
        assert [layer[1:3] for layer in vars(file)["layer"]] == [(1, 1)] * 3
    with pytest.raises(InputError, match=r"y\.jpeg: uint16 pixels, JPEG holds uint8; expected \.png"):
        mio.write(tmp_path / "y.jpeg", Image(GREY16))


def test_the_real_pictures_equal_opencv(harvard: Path) -> None:
    for path in sorted(harvard.glob("*/val/*/*.png"))[::10]:
        expected = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert expected is not None
        expected = expected[..., ::-1] if expected.ndim == 3 else expected
        np.testing.assert_array_equal(mio.read(path).data, expected)


def test_4096_px_of_16_bit_colour(tmp_path: Path) -> None:
    """The largest picture that is read: 16.8 million pixels of 6 bytes each."""
    pixels = np.zeros((4096, 4096, 3), np.uint16)
    pixels[::5, ::3] = 60_000
    mio.write(tmp_path / "x.png", Image(pixels))
    assert (mio.read(tmp_path / "x.png").data == pixels).all()
    mio.write(tmp_path / "x.tif", Image((pixels >> 8).astype(np.uint8)))
    assert (mio.read(tmp_path / "x.tif").data == pixels >> 8).all()


# Files that are not pictures


def refused(path: object, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        mio.read(path)  # type: ignore[arg-type]
    message = str(caught.value)
    assert str(path) in message and "\n" not in message, message
    assert "expected" in message, message
    assert all(word in message for word in words), message


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not a picture")
    os.mkfifo(tmp_path / "pipe.png")
    os.symlink(tmp_path / "nowhere.png", tmp_path / "link.png")
    os.symlink(tmp_path / "loop.png", tmp_path / "loop.png")
    refused(tmp_path / "folder.png", "a folder without DICOM")
    refused(tmp_path / "empty.png", "empty")
    refused(tmp_path / "text.png", "begins with b'not a pi'")
    refused(tmp_path / "pipe.png", "a named pipe")
    refused(tmp_path / "link.png", "no such file")
    refused(tmp_path / "loop.png", "cannot be read")
    refused(tmp_path / "missing.png", "no such file")
    refused(tmp_path / "text.png" / "x.png", "cannot be read")
    for name in ["text.gif", "text", "png", ".hidden"]:
        (tmp_path / name).write_text("not a picture")
        refused(tmp_path / name, "suffix", ".png .tif")
    for path in [3, None, b"x.png", "", "a\0b.png", GREY16]:
        with pytest.raises(InputError, match=r"\Apath: .*; expected a str or os.PathLike [^\n]*\Z"):
            mio.read(path)  # type: ignore[arg-type]
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(mio.MAX_FILE_BYTES + 1)  # a hole, no bytes on the disk
    refused(tmp_path / "huge.png", "402653185 bytes")


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mio.write(tmp_path / "x.png", Image(GREY))
    os.chmod(tmp_path / "x.png", 0)
    if os.access(tmp_path / "x.png", os.R_OK):  # root reads everything: let open refuse

        def denied(*_: object, **__: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(os, "open", denied)
    refused(tmp_path / "x.png", "Permission denied")


def test_the_content_decides(tmp_path: Path) -> None:
    PIL.Image.fromarray(RGB).save(tmp_path / "x.png", "TIFF")
    np.testing.assert_array_equal(mio.read(tmp_path / "x.png").data, RGB)


# Files written whole or not at all


def not_written(path: Path, *words: str) -> None:
    before = files_in(path.parent) if path.parent.is_dir() else []
    with pytest.raises(OutputError) as caught:
        mio.write(path, Image(GREY))
    message = str(caught.value)
    assert isinstance(caught.value, InputError) and isinstance(caught.value, OSError)
    assert message.startswith(f"{path}: ") and "expected" in message and "\n" not in message, message
    assert all(word in message for word in words), message
    assert not path.parent.is_dir() or files_in(path.parent) == before


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")  # for a device: a bug that replaces it must harm nobody
    os.symlink(tmp_path / "pipe", tmp_path / "device.png")
    not_written(tmp_path / "folder.png", "no regular file")
    not_written(tmp_path / "device.png", "no regular file")
    not_written(tmp_path / "missing" / "x.png", "No such file or directory", "existing")
    not_written(tmp_path / "file" / "x.png", "Not a directory")
    not_written(tmp_path / ("x" * 300 + ".png"), "name too long")
    with pytest.raises(InputError, match=r"x\.gif: suffix \.gif; expected one of \.png"):
        mio.write(tmp_path / "x.gif", Image(GREY))
    assert files_in(tmp_path) == ["device.png", "file", "folder.png", "pipe"]


@pytest.mark.parametrize(
    ("call", "number"),
    [("open", errno.EROFS), ("fsync", errno.ENOSPC), ("fsync", errno.EDQUOT), ("replace", errno.EACCES)],
)
def test_failures_leave_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    mio.write(tmp_path / "x.png", Image(RGB))

    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fails)
    not_written(tmp_path / "x.png", os.strerror(number))
    monkeypatch.undo()  # reading opens by os.open too
    np.testing.assert_array_equal(mio.read(tmp_path / "x.png").data, RGB)


def test_durable_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    mio.write(tmp_path / "x.png", Image(GREY), durable=False)
    assert synced == [] and files_in(tmp_path) == ["x.png"]
    mio.write(tmp_path / "x.png", Image(GREY))
    assert len(synced) == 2  # the file, and the folder that holds its name


def test_interrupted_by_the_keyboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mio.write(tmp_path / "x.png", Image(GREY))
    assert files_in(tmp_path) == []


def in_another_process(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    head = "import os, resource, signal, sys, mmif_trt.io as mio, mmif_trt.image as im, numpy as np\n"
    head += "from mmif_trt import files\n"
    command = [sys.executable, "-c", head + code, str(folder)]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)


def test_a_disk_that_fills_up_half_way(tmp_path: Path) -> None:
    """The file size limit of the process: the kernel takes the first 4096 bytes and refuses the rest."""
    code = """
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    files.write_atomic(os.path.join(sys.argv[1], "x.json"), bytes(100_000))
except files.OutputError as error:
    print(error)
"""
    done = in_another_process(code, tmp_path)
    assert done.returncode == 0 and "x.json: cannot be written (File too large)" in done.stdout, done
    assert files_in(tmp_path) == []


def test_killed_before_the_name_is_given(tmp_path: Path) -> None:
    mio.write(tmp_path / "x.png", Image(RGB))
    code = """
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
mio.write(os.path.join(sys.argv[1], "x.png"), im.Image(np.zeros((40, 40), np.uint8)))
"""
    assert in_another_process(code, tmp_path).returncode == -signal.SIGKILL
    np.testing.assert_array_equal(mio.read(tmp_path / "x.png").data, RGB)
    left = [name for name in files_in(tmp_path) if name != "x.png"]
    assert len(left) == 1 and left[0].startswith(".") and left[0].endswith(files.TMP_SUFFIX)


def test_links_and_permissions(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    os.symlink(tmp_path / "real" / "x.png", tmp_path / "link.png")
    mio.write(tmp_path / "link.png", Image(GREY))
    mio.write(tmp_path / "link.png", Image(RGB))
    assert files_in(tmp_path) == ["link.png", "real"] and files_in(tmp_path / "real") == ["x.png"]
    assert (tmp_path / "link.png").is_symlink()
    mask = os.umask(0o027)
    try:
        write_atomic(tmp_path / "report.json", b"{}")
    finally:
        os.umask(mask)
    assert (tmp_path / "report.json").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "report.json").read_bytes() == b"{}"
