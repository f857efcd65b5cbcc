"""Pictures and volumes in and out of files: read(path), write(path, image), and one table of formats.

A file is decoded whole or refused with one line (InputError), and written whole or not at all (OutputError).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mmif_trt.image import DTYPE_RANGE, Image, InputError
from mmif_trt.io import dicom, dicom_registration, nifti, raster

__all__ = [
    "FORMATS",
    "TMP_SUFFIX",
    "Format",
    "OutputError",
    "format_of",
    "read",
    "read_registration",
    "write",
    "write_atomic",
]

# The largest picture (4096 x 4096 RGB float32) has 201 MB; a file of more than twice that is something else.
MAX_FILE_BYTES = 402_653_184
MAX_VOLUME_BYTES = 2 << 30
# A file being written is ".<pid>-<random>" and this, beside its target; one that stays was left by a kill.
TMP_SUFFIX = ".mmif-tmp"


class OutputError(InputError, OSError):
    """A file could not be written; nothing of it is left behind. The cause is in __cause__."""


@dataclass(frozen=True)
class Format:
    """What a suffix stands for. decode(bytes, name) and encode(image) know nothing of the file system; an
    InputError of encode does not name the file, write() does."""

    name: str
    dtypes: tuple[str, ...]  # that encode takes
    decode: Callable[[bytes, str], Image]
    encode: Callable[[Image], bytes]
    is_volume: bool = False


def _not_by_write(image: Image) -> bytes:
    raise InputError("DICOM needs a study to belong to; accepted is mmif-trt fuse A B -o OUT.dcm")


_DICOM = Format("DICOM", tuple(DTYPE_RANGE), dicom.decode, _not_by_write, True)
_VOLUME = tuple(DTYPE_RANGE)
_PNG = Format("PNG", ("uint8", "uint16"), raster.decode, raster.encode_png)
_TIFF = Format("TIFF", ("uint8", "uint16", "float32"), raster.decode, raster.encode_tiff)
_JPEG = Format("JPEG", ("uint8",), raster.decode, raster.encode_jpeg)
FORMATS: dict[str, Format] = {
    ".png": _PNG,
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".jp2": Format("JPEG 2000", ("uint8", "uint16"), raster.decode, raster.encode_jp2),
    ".j2k": Format("JPEG 2000 codestream", ("uint8", "uint16"), raster.decode, raster.encode_j2k),
    ".nii": Format("NIfTI", _VOLUME, nifti.decode, nifti.encode, True),
    ".nii.gz": Format("gzipped NIfTI", _VOLUME, nifti.decode, nifti.encode_gz, True),
    ".dcm": _DICOM,
    ".ima": _DICOM,
    ".zip": Format("zip of DICOM", _VOLUME, dicom.decode_zip, _not_by_write, True),
}


def format_of(path: str | os.PathLike[str]) -> Format:
    """The format of a file name, by its suffix in any case. Raises InputError for another."""
    name = _name(path)
    for suffix, form in FORMATS.items():
        if name.lower().endswith(suffix):
            return form
    came = os.path.splitext(name)[1] or "none"
    raise InputError(f"{name}: suffix {came}; accepted are {' '.join(FORMATS)}")


def read(path: str | os.PathLike[str]) -> Image:
    """The picture or volume in a file, as stored: [H, W] grey or [H, W, 3] RGB; uint8, uint16 or float32.

    NIfTI and DICOM with geometry come as volumes (see Image); a folder is one DICOM series; a file without a
    known suffix may be DICOM.

    An RGB file with equal channels stays RGB. Image.source is the path as given. Raises InputError, one line
    that names the file, for everything that is not one whole picture (see raster.py) or cannot be read.
    """
    name = _name(path)
    try:
        if os.path.isdir(name):
            return dicom.read_folder(name)
        name, form, data = read_bytes(path)
        return form.decode(data, name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{name}: needs {error.name}; accepted with pip install 'mmif-trt[clinical]'"
        ) from None
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror}); accepted is a readable file") from error


def read_registration(path: str | os.PathLike[str], a: Image, b: Image) -> tuple[np.ndarray, str]:
    """([4, 4] a's RAS+ mm to b's, in words whose) of a DICOM Spatial Registration file. Raises InputError,
    see dicom_registration.decode."""
    name, _, data = read_bytes(path)
    return dicom_registration.decode(data, name, dicom_registration.side_of(a), dicom_registration.side_of(b))


def read_bytes(path: str | os.PathLike[str]) -> tuple[str, Format, bytes]:
    """(name, format, content) of one file, nothing of it looked at yet. Raises InputError."""
    name = _name(path)
    try:
        status = os.stat(name)  # before open, which would wait for a pipe's writer
        if not stat.S_ISREG(status.st_mode):
            came = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise InputError(f"{name}: {came}; accepted is one picture file")
        form = _DICOM if _is_nameless_dicom(name) else format_of(name)
        most = MAX_VOLUME_BYTES if form.is_volume else MAX_FILE_BYTES
        if status.st_size > most:
            raise InputError(f"{name}: {status.st_size} bytes; accepted are {most} at most")
        with open(name, "rb") as file:
            # Of its size and not of the limit: read(n) takes n bytes before it looks.
            return name, form, file.read(status.st_size)
    except FileNotFoundError:
        raise InputError(f"{name}: no such file; accepted are {' '.join(FORMATS)} files") from None
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror}); accepted is a readable file") from error


def _is_nameless_dicom(name: str) -> bool:
    """DICOM files often have no suffix, or a number for one."""
    if name.lower().endswith(tuple(FORMATS)):
        return False
    with open(name, "rb") as file:
        return dicom.is_dicom(file.read(132))


def write(path: str | os.PathLike[str], image: Image, *, durable: bool = True) -> None:
    """Writes `image` in the format of the suffix, whole or not at all. JPEG is lossy, the others are exact.

    Raises InputError for a suffix not in the table and for a dtype that the format does not hold (nothing is
    reduced silently), OutputError where the file cannot be written. durable: see write_atomic.
    """
    name, form, dtype = _name(path), format_of(path), image.data.dtype.name
    if dtype not in form.dtypes:
        better = " ".join(suffix for suffix, other in FORMATS.items() if dtype in other.dtypes)
        raise InputError(
            f"{name}: {dtype} pixels, {form.name} holds {', '.join(form.dtypes)}; accepted are {better}"
        )
    try:
        data = form.encode(image)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    write_atomic(name, data, durable=durable)


def write_atomic(
    path: str | os.PathLike[str], data: bytes, *more: bytes | memoryview, durable: bool = True
) -> None:
    """The whole of `data` (and `more`, after it) under `path`, or what was there before: also after a kill.

    durable: also after a power cut, for then the bytes reach the disk (fsync) before the name does. A second
    run over a folder skips finished names: none may stand for an empty file. It waits, at no cost of the CPU:
    0.3 ms a file on an idle machine, 8 ms with all its cores busy. A link is followed; the folder must exist.
    Raises OutputError and leaves no temporary file.
    """
    name = _name(path)
    target = os.path.realpath(name)
    temporary = os.path.join(os.path.dirname(target), f".{os.getpid()}-{secrets.token_hex(8)}{TMP_SUFFIX}")
    try:
        if os.path.exists(target) and not os.path.isfile(target):  # never replace a folder or a device
            raise OutputError(f"{name}: exists and is no regular file; accepted is a file name")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with open(descriptor, "wb") as file:
                for part in (data, *more):
                    file.write(part)
                file.flush()
                if durable:
                    os.fsync(descriptor)
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                os.unlink(temporary)
            raise
    except OutputError:
        raise
    except OSError as error:
        accepted = "accepted is a file name in an existing, writable folder with room"
        raise OutputError(f"{name}: cannot be written ({error.strerror}); {accepted}") from error


def _name(path: str | os.PathLike[str]) -> str:
    if not isinstance(path, str | os.PathLike) or not os.fspath(path) or "\0" in os.fsdecode(path):
        raise InputError(f"path: {path!r}; accepted are str and os.PathLike that name a file")
    return os.fsdecode(path)
