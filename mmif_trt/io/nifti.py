"""NIfTI-1 and NIfTI-2 volumes, plain and gzipped, by nibabel; sizes are proven before unpacking."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from typing import Any

import numpy as np

from mmif_trt.image import MAX_VOXELS, Image, InputError

MAX_TRAILING_BYTES = 1 << 20  # padding that some writers leave after the voxels
_HEADER_BYTES = 544  # of NIfTI-2, the longer, with the extension flag
_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units: unknown is millimetres, as everywhere
_REORDER = [2, 1, 0, 3]  # nibabel's (column, row, slice) to our (slice, row, column)


def decode(data: bytes, name: str) -> Image:
    """data: the bytes of a .nii or .nii.gz file. Axes become (slice, row, column), the affine with them.

    Stored scaling is applied; value_range is the header's cal_min and cal_max where stated. Where sform and
    qform are both set and differ, the sform counts, as in SPM and dcm2niix, and a note says so. Raises
    InputError, which begins with `name`, for no geometry, more than one volume, complex voxels, wrong sizes.
    """
    try:
        return _decode(data, name)
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(name) else f"{name}: {text}") from None
    except (zlib.error, struct.error, EOFError, ValueError, OverflowError):
        raise InputError(f"{name}: truncated or damaged NIfTI; accepted is a whole file") from None


def _decode(data: bytes, name: str) -> Image:
    start = _unpack(data, _HEADER_BYTES) if data[:2] == b"\x1f\x8b" else data[:_HEADER_BYTES]
    header = _header(start)
    shape, dtype = _shape(header), header.get_data_dtype()
    if dtype.kind not in "iufV" or (dtype.kind == "V" and dtype.names != ("R", "G", "B")):
        raise InputError(f"NIfTI voxels of type {dtype}; accepted are real numbers and RGB24")
    offset = int(header["vox_offset"])
    size = offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if data[:2] == b"\x1f\x8b":
        data = _unpack(data, size, whole=True)
    if not 352 <= offset <= size <= len(data):
        raise InputError(f"a NIfTI of {len(data)} bytes that announces {size}; accepted is a whole file")
    affine, notes = _affine(header)
    voxels = np.frombuffer(data, dtype, int(np.prod(shape)), offset).reshape(shape[::-1])
    limits = (float(header["cal_min"]), float(header["cal_max"]))
    return Image(
        _values(voxels, header),
        limits if limits[0] < limits[1] else None,
        affine=affine,
        source=name,
        notes=notes,
    )


def _unpack(data: bytes, size: int, *, whole: bool = False) -> bytes:
    """At most `size` bytes of a gzip stream (and the allowed padding); whole: to its end, checksum proven."""
    stream = zlib.decompressobj(wbits=31)
    unpacked = stream.decompress(data, size + (MAX_TRAILING_BYTES if whole else 0))
    if whole and not stream.eof:
        came = (
            "goes on after its announced end"
            if len(unpacked) >= size
            else f"ends after {len(unpacked)} bytes"
        )
        raise InputError(f"a gzipped NIfTI that announces {size} bytes and {came}; accepted is a whole file")
    return unpacked


def _header(start: bytes) -> Any:
    import nibabel

    for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header):
        length, magic = (348, b"n+1\0") if kind is nibabel.Nifti1Header else (540, b"n+2\0")
        at = 344 if length == 348 else 4
        if start[at : at + 4] == magic and len(start) >= length:
            try:
                return kind(start[:length], check=True)
            except (nibabel.spatialimages.HeaderDataError, nibabel.wrapstruct.WrapStructError) as error:
                raise InputError(f"damaged NIfTI header ({error}); accepted is a valid one") from None
            except (KeyError, ValueError):
                raise InputError("damaged NIfTI header; accepted is a valid one") from None
    raise InputError("no single-file NIfTI (magic n+1 or n+2); accepted are .nii and .nii.gz")


def _shape(header: Any) -> tuple[int, int, int]:
    try:
        shape = tuple(int(side) for side in header.get_data_shape())
    except Exception:
        raise InputError("damaged NIfTI header (dim); accepted is a valid one") from None
    if len(shape) < 3 or any(side != 1 for side in shape[3:]):
        raise InputError(f"NIfTI of shape {shape}; accepted is one 3-D volume")
    voxels = 1
    for side in shape[:3]:
        voxels *= side
    if min(shape) < 1 or voxels > MAX_VOXELS:
        raise InputError(f"NIfTI that announces {shape[:3]} voxels; accepted are {MAX_VOXELS} in all")
    return shape[0], shape[1], shape[2]


def _affine(header: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    """sform before qform, in millimetres and our axis order. Raises InputError where neither is set."""
    sform = header.get_sform() if header["sform_code"] > 0 else None
    try:
        qform = header.get_qform() if header["qform_code"] > 0 else None
    except Exception:  # a quaternion that is none
        qform = None
    if sform is None and qform is None:
        raise InputError("NIfTI without geometry (sform and qform code 0); accepted is a file with either")
    notes: tuple[str, ...] = ()
    if sform is not None and qform is not None and not np.allclose(sform, qform, atol=0.1):
        notes = ("sform and qform differ: the sform counts",)
    affine = np.array(qform if sform is None else sform, np.float64)
    affine[:3] *= _MM.get(int(header["xyzt_units"]) & 7, 1.0)
    return affine[:, _REORDER], notes


def _values(voxels: np.ndarray, header: Any) -> np.ndarray:
    """[S, H, W] or [S, H, W, 3]: integers as they are where no scaling applies and a type of ours holds them,
    else float32."""
    if voxels.dtype.kind == "V":
        return np.stack([voxels[channel] for channel in "RGB"], axis=-1)
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite(slope) or slope == 0:
        slope, intercept = 1.0, 0.0
    intercept = intercept if np.isfinite(intercept) else 0.0
    if (slope, intercept) == (1.0, 0.0) and voxels.dtype in (np.uint8, np.uint16):
        return voxels.astype(voxels.dtype.newbyteorder("="))
    with np.errstate(over="ignore", invalid="ignore"):
        values: np.ndarray = (voxels * slope + intercept).astype(np.float32)
    return values


def encode(image: Image) -> bytes:
    """The bytes of a .nii file: RGB24 for colour, else the pixels as they are; sform and qform in mm."""
    import nibabel

    if not image.is_volume or image.affine is None:
        raise InputError("a picture without geometry; accepted for NIfTI is a volume")
    if image.is_colour:
        if image.data.dtype != np.uint8:
            raise InputError(f"{image.data.dtype} colour; accepted for NIfTI RGB24 is uint8")
        rgb = np.dtype([(channel, "u1") for channel in "RGB"])
        voxels = np.ascontiguousarray(image.data).view(rgb)[..., 0]
    else:
        voxels = image.data
    file = nibabel.Nifti1Image(voxels.T, image.affine[:, _REORDER])
    file.header.set_xyzt_units("mm")
    file.header["descrip"] = b"mmif_trt: research use only"
    if image.value_range is not None and not image.is_colour:
        file.header["cal_min"], file.header["cal_max"] = image.value_range
    code = 1 if image.frame else 2
    file.set_sform(image.affine[:, _REORDER], code)
    try:
        file.set_qform(image.affine[:, _REORDER], code, strip_shears=False)
    except nibabel.spatialimages.HeaderDataError:  # a sheared grid has no quaternion
        file.set_qform(None, 0)
    stream = io.BytesIO()
    file.to_stream(stream)
    return stream.getvalue()


def encode_gz(image: Image) -> bytes:
    """As encode, gzipped without a time stamp: the same volume gives the same bytes."""
    return gzip.compress(encode(image), 6, mtime=0)
