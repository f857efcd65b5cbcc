"""Pictures and volumes in and out of files: read(path), write(path, image), and one table of formats.

A file is decoded whole or refused with one line (InputError), and written whole or not at all (OutputError).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mmif_trt.files import kind_of_entry, name_of, open_regular, write_atomic
from mmif_trt.image import DTYPE_RANGE, Image, InputError
from mmif_trt.io import dicom, nifti, raster
from mmif_trt.io.dicom import registration as dicom_registration

__all__ = [
    "FORMATS",
    "Format",
    "format_of",
    "read",
    "read_registration",
    "write",
]

# The largest picture (4096 x 4096 RGB float32) has 201 MB; a file of more than twice that is something else.
MAX_FILE_BYTES = 402_653_184
MAX_VOLUME_BYTES = 2 << 30


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
    name = name_of(path)
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
    name = name_of(path)
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
    name = name_of(path)
    try:
        status = os.stat(name)
        if kind := kind_of_entry(status.st_mode):
            raise InputError(f"{name}: {kind}; accepted is one picture file")
        form = _DICOM if _is_nameless_dicom(name) else format_of(name)
        most = MAX_VOLUME_BYTES if form.is_volume else MAX_FILE_BYTES
        if status.st_size > most:
            raise InputError(f"{name}: {status.st_size} bytes; accepted are {most} at most")
        with open_regular(name) as file:
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
    with open_regular(name) as file:
        return dicom.is_dicom(file.read(132))


def write(path: str | os.PathLike[str], image: Image, *, durable: bool = True) -> None:
    """Writes `image` in the format of the suffix, whole or not at all. JPEG is lossy, the others are exact.

    Raises InputError for a suffix not in the table and for a dtype that the format does not hold (nothing is
    reduced silently), OutputError where the file cannot be written. durable: see write_atomic.
    """
    name, form, dtype = name_of(path), format_of(path), image.data.dtype.name
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
