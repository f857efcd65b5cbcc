"""Pictures and volumes in and out of files: read(path), write(path, image), and one table of formats.

A file is decoded completely or refused in one line (InputError), and written atomically (OutputError).
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmif_trt.files import kind_of_entry, name_of, open_regular, write_atomic
from mmif_trt.image import DTYPE_RANGE, Image, InputError, as_array
from mmif_trt.io import dicom, neuro, nifti, raster
from mmif_trt.io.dicom import registration as dicom_registration
from mmif_trt.io.which import Which
from mmif_trt.running import lacking

__all__ = [
    "FORMATS",
    "Format",
    "format_of",
    "read",
    "read_registration",
    "write",
]

# The largest picture (4096 x 4096 RGB float32) takes 201 MB; a file over twice that is something else.
MAX_FILE_BYTES = 402_653_184
MAX_VOLUME_BYTES = 2 << 30
_HEAD_BYTES = 65_536  # of a gzipped file, to hold a header


@dataclass(frozen=True)
class Format:
    """What a suffix stands for. decode(bytes, name) and encode(image) do not touch the file system; encode's
    InputError does not name the file, write() adds it. decode of volumes takes a Which as third argument."""

    name: str
    dtypes: tuple[str, ...]  # that encode accepts
    decode: Callable[..., Image]
    encode: Callable[[Image], bytes]
    is_volume: bool = False
    by_path: Callable[[str, Which], Image] | None = None  # instead of decode, if a volume is several files

    @property
    def is_written(self) -> bool:
        """By `write`: not what is only read, and not DICOM, which needs the study of its sources."""
        return self.encode not in (_read_only, _not_by_write)


def _read_only(image: Image) -> bytes:
    raise InputError("a read-only format; expected .nii or .nii.gz")


def _not_by_write(image: Image) -> bytes:
    raise InputError("DICOM belongs to a study; write it with mmif-trt fuse A B -o OUT.dcm")


_VOLUME = tuple(DTYPE_RANGE)  # also of what is not written: its encode says why
_MGH = Format("MGH", _VOLUME, nifti.decode, _read_only, True, neuro.read_mgh)
_PAIR = Format("pair of .hdr and .img", _VOLUME, nifti.decode, _read_only, True, neuro.read_pair)
_NRRD = Format("NRRD", _VOLUME, nifti.decode, _read_only, True, neuro.read_nrrd)
_META = Format("MetaImage", _VOLUME, nifti.decode, _read_only, True, neuro.read_meta)
_DICOM = Format("DICOM", _VOLUME, dicom.decode, _not_by_write, True)
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
    ".hdr": _PAIR,
    ".img": _PAIR,
    ".mgh": _MGH,
    ".mgz": _MGH,
    ".nrrd": _NRRD,
    ".nhdr": _NRRD,
    ".mha": _META,
    ".mhd": _META,
    ".dcm": _DICOM,
    ".dcm.gz": _DICOM,
    ".ima": _DICOM,
    ".zip": Format("zip of DICOM", _VOLUME, dicom.decode_zip, _not_by_write, True),
}
PICTURES = tuple(suffix for suffix, form in FORMATS.items() if not form.is_volume)


WRITTEN = tuple(suffix for suffix, form in FORMATS.items() if form.is_written)


def format_of(path: str | os.PathLike[str], expected: Iterable[str] = FORMATS) -> Format:
    """The format of a file name, by its suffix in any case. expected: for the message. Raises InputError for
    an unknown one."""
    name = name_of(path)
    for suffix, form in FORMATS.items():
        if name.lower().endswith(suffix):
            return form
    received = os.path.splitext(name)[1] or "none"
    raise InputError(f"{name}: suffix {received}; expected one of {' '.join(expected)}")


def read(path: str | os.PathLike[str], *, series: str | int = "", volume: int | None = None) -> Image:
    """The picture or volume in a file, as stored: [H, W] grey or [H, W, 3] RGB; uint8, uint16 or float32.

    NIfTI and DICOM with geometry are returned as volumes (see Image); a folder is one DICOM series; a file
    without a known suffix may be DICOM.

    series: which of several DICOM series in a folder or zip, by UID, number or description. volume: which of
    several volumes of a series (echoes, time points, b-values) or a 4-D file, from 1.

    An RGB file with equal channels stays RGB. Image.source is the path as given. Raises InputError, one line
    that names the file, for anything that is not one complete picture (see raster/) or cannot be read.
    """
    name, which = name_of(path), Which(str(series), volume)
    try:
        if os.path.isdir(name):
            return dicom.read_folder(name, which)
        if (form := _format_to_read(name)).by_path is not None:
            return form.by_path(name, which)
        name, form, data = read_bytes(path)
        if which.is_given and not form.is_volume:
            raise InputError(f"{name}: a picture; expected DICOM or NIfTI where a series or volume is chosen")
        image = form.decode(data, name, which) if form.is_volume else form.decode(data, name)
        return replace(image, sha256=hashlib.sha256(data).hexdigest())
    except ModuleNotFoundError as error:
        raise InputError(f"{name}: {lacking(str(error.name))}") from None
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror}); expected a readable file") from error


def foresee(path: str, which: Which) -> None:
    """Raises InputError where `read` will, as far as a file's name, first bytes and DICOM headers tell."""
    form = _DICOM if os.path.isdir(path) else _format_to_read(path)
    if form is _DICOM:
        dicom.foresee(path, which)
    elif form in (FORMATS[".nii"], FORMATS[".nii.gz"]):
        try:
            with open_regular(path) as file:
                nifti.foresee(file.read(_HEAD_BYTES), which)
        except zlib.error:
            raise InputError(f"{path}: damaged gzip; expected a complete file") from None


def read_registration(path: str | os.PathLike[str], a: Image, b: Image) -> tuple[np.ndarray, str]:
    """([4, 4] a's RAS+ mm to b's, its origin as text) from a DICOM Spatial Registration file. Raises
    InputError, see dicom.registration.decode."""
    name, _, data = read_bytes(path)
    return dicom_registration.decode(data, name, dicom_registration.side_of(a), dicom_registration.side_of(b))


def _format_to_read(name: str) -> Format:
    """Raises InputError for anything but a regular file."""
    try:
        status = os.stat(name)
    except FileNotFoundError:
        raise InputError(f"{name}: no such file; expected one of {' '.join(FORMATS)}") from None
    if kind := kind_of_entry(status.st_mode):
        raise InputError(f"{name}: {kind}; expected one picture file")
    form = _DICOM if _is_nameless_dicom(name) else format_of(name)
    most = MAX_VOLUME_BYTES if form.is_volume else MAX_FILE_BYTES
    if status.st_size > most:
        raise InputError(f"{name}: {status.st_size} bytes; expected at most {most}")
    return form


def read_bytes(path: str | os.PathLike[str]) -> tuple[str, Format, bytes]:
    """(name, format, content) of one file, not examined yet. Raises InputError."""
    name = name_of(path)
    try:
        form = _format_to_read(name)
        with open_regular(name) as file:
            # Read its size, not the limit: read(n) allocates n bytes first.
            return name, form, file.read(os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror}); expected a readable file") from error


def _is_nameless_dicom(name: str) -> bool:
    """DICOM files often have no suffix, or a number for one."""
    if name.lower().endswith(tuple(FORMATS)):
        return False
    return dicom.begins_as_dicom(name)


def write(path: str | os.PathLike[str], image: Any, *, durable: bool = True) -> None:
    """Writes `image`, an `Image`, or a picture as a NumPy array or torch tensor, in the format of the suffix,
    atomically. JPEG is lossy, the others are exact. An array says nothing of its origin, nor does its file.

    Raises InputError for an unknown suffix and for a dtype that the format cannot hold (nothing is reduced
    silently), OutputError if the file cannot be written. durable: see write_atomic.
    """
    name, form = name_of(path), format_of(path, WRITTEN)
    if not isinstance(image, Image):
        image = Image(as_array(image, "image", "or an mmif_trt.Image"))
    dtype = image.data.dtype.name
    fit = [suffix for suffix in WRITTEN if FORMATS[suffix].is_volume == image.is_volume]
    if form.is_written and image.is_volume and not form.is_volume:
        raise InputError(f"{name}: a volume, {form.name} holds a picture; expected {' '.join(fit)}")
    if dtype not in form.dtypes:
        better = " ".join(suffix for suffix in fit if dtype in FORMATS[suffix].dtypes)
        raise InputError(
            f"{name}: {dtype} pixels, {form.name} holds {', '.join(form.dtypes)}; expected {better}"
        )
    try:
        data = form.encode(image)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    write_atomic(name, data, durable=durable)
