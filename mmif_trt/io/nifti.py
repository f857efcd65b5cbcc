"""NIfTI-1 and NIfTI-2 volumes, plain and gzipped, by nibabel; sizes are checked before unpacking."""

from __future__ import annotations

import gzip
import io
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from mmif_trt.about import VERSION
from mmif_trt.image import MAX_VOXELS, SPACES, Image, InputError
from mmif_trt.io.which import ANY, Which

MAX_SERIES_VOXELS = 1 << 30  # of all volumes of a 4-D file
MAX_TRAILING_BYTES = 1 << 20  # padding that some writers append to the voxels
CIFTI = range(3000, 3100)  # intent codes of CIFTI-2
_HEADER_BYTES = 544  # of NIfTI-2, the longer, with the extension flag
_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units: unknown means millimetres, as in other programs
_REORDER = [2, 1, 0, 3]  # nibabel's (column, row, slice) to our (slice, row, column)


def decode(data: bytes, name: str, which: Which = ANY) -> Image:
    """data: the bytes of a .nii or .nii.gz file. Axes become (slice, row, column), and the affine follows.

    which: its volume picks one of a 4-D file. Stored scaling is applied; value_range is the header's cal_min
    and cal_max if stated. If sform and qform are both set and differ, the sform is used, as in SPM and
    dcm2niix, and a note says so. NaN is background (as SPM and FSL write it): black, counted in a note.
    Raises InputError, which starts with `name`, for several volumes, complex voxels, infinity, wrong sizes.
    """
    return guarded(lambda: _decode(data, name, which), name, "NIfTI")


def guarded(work: Callable[[], Image], name: str, kind: str) -> Image:
    """The result of `work`; its errors become one line that starts with the name."""
    try:
        return work()
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(name) else f"{name}: {text}") from None
    except (zlib.error, struct.error, EOFError, ValueError, OverflowError):
        raise InputError(f"{name}: truncated or damaged {kind}; expected a complete file") from None


def _decode(data: bytes, name: str, which: Which) -> Image:
    packed = data[:2] == b"\x1f\x8b"
    start = unpacked(data, _HEADER_BYTES) if packed else data[:_HEADER_BYTES]
    header, is_pair = _header(start)
    if is_pair:
        raise InputError("the header of a pair of files; expected the name .hdr, beside .img")
    if int(header["intent_code"]) in CIFTI:
        raise InputError(
            "CIFTI: values along surfaces and parcels; expected a volume (wb_command separates it)"
        )
    shape, dtype = _shape(header), header.get_data_dtype()
    offset = int(header["vox_offset"])
    size = offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if packed:
        data = unpacked(data, size, whole=True)
    if not 352 <= offset <= size <= len(data):
        raise InputError(f"a NIfTI of {len(data)} bytes that announces {size}; expected a complete file")
    return _image(header, data, offset, name, which)


def foresee(start: bytes, which: Which = ANY) -> None:
    """Raises InputError where the first bytes of a file tell already that `decode` would."""
    header, _ = _header(unpacked(start, _HEADER_BYTES) if start[:2] == b"\x1f\x8b" else start)
    pick(_shape(header)[3:], which)


def decode_pair(header: bytes, data: bytes, name: str, which: Which = ANY) -> Image:
    """Like decode, for the bytes of an .hdr and an .img file."""

    def work() -> Image:
        parsed, is_pair = _header(header)
        offset = int(parsed["vox_offset"]) if is_pair else 0
        size = offset + int(np.prod(_shape(parsed), dtype=np.int64)) * parsed.get_data_dtype().itemsize
        if not 0 <= offset <= size <= len(data):
            raise InputError(
                f"an .img of {len(data)} bytes where {size} are announced; expected a complete file"
            )
        return _image(parsed, data, offset, name, which)

    return guarded(work, name, "pair of .hdr and .img")


def _image(header: Any, data: bytes, offset: int, name: str, which: Which) -> Image:
    shape, dtype = _shape(header), header.get_data_dtype()
    if dtype.kind not in "iufV" or (dtype.kind == "V" and dtype.names != ("R", "G", "B")):
        raise InputError(f"voxels of type {dtype}; expected real numbers or RGB24")
    index, chosen = pick(shape[3:], which)
    each = int(np.prod(shape[:3]))
    voxels = np.frombuffer(data, dtype, each, offset + index * each * dtype.itemsize)
    affine, space, notes = _affine(header)
    limits = (float(header["cal_min"]), float(header["cal_max"]))
    values, missing = without_nan(_values(voxels.reshape(shape[2::-1]), header))
    return Image(
        values,
        limits if limits[0] < limits[1] else None,
        affine=affine,
        source=name,
        space=space,
        notes=(*chosen, *notes, *missing),
    )


def pick(more: tuple[int, ...], which: Which) -> tuple[int, tuple[str, ...]]:
    """(which volume from 0, a note) of the axes after the third. Raises InputError if none is chosen."""
    count = int(np.prod(more, dtype=np.int64))
    if which.series:
        raise InputError("a series was chosen; expected that only for DICOM")
    if which.volume is None and count > 1:
        raise InputError(
            f"{count} volumes (axes after the third: {' x '.join(map(str, more))}); expected one: choose by "
            f"--volume-a or --volume-b 1 to {count} (Python: read(path, volume=N); manifest: volume_a, "
            "volume_b)"
        )
    number = which.volume or 1
    if number > count:
        raise InputError(f"volume {number} of {count}; expected 1 to {count}")
    return number - 1, ((f"volume {number} of {count}",) if count > 1 else ())


def without_nan(values: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """The values with NaN as black, and a note that counts them. Black is 0, or the smallest finite value
    where that is less: inside a mask the smallest one may be brain."""
    if values.dtype.kind != "f":
        return values, ()
    missing = np.isnan(values)
    count = int(missing.sum())
    if not count:
        return values, ()
    if count == values.size:
        raise InputError("all voxels are NaN; expected numbers")
    if np.isinf(values).any():
        raise InputError(
            f"{int(np.isinf(values).sum())} infinite voxels; expected finite ones, or NaN outside"
        )
    black = min(values[~missing].min(), values.dtype.type(0))
    share = f"{count} voxels ({count / values.size:.0%})"
    note = f"{share} are NaN: background, shown as {black:g}"
    return np.where(missing, black, values), (note,)


def unpacked(data: bytes, size: int, *, whole: bool = False) -> bytes:
    """At most `size` bytes of a gzip file (and the allowed padding), also of several members, as bgzip and
    pigz write them (RFC 1952, 2.2); whole: to its end, with checksums verified."""
    most = size + (MAX_TRAILING_BYTES if whole else 0)
    out, rest, is_whole = bytearray(), data, False
    while rest[:2] == b"\x1f\x8b" and len(out) < most:
        stream = zlib.decompressobj(wbits=31)
        out += stream.decompress(rest, most - len(out))
        is_whole, rest = stream.eof, stream.unused_data
        if not stream.eof:
            break
    goes_on = len(out) >= most or rest[:2] == b"\x1f\x8b"
    if whole and (not is_whole or len(out) < size or rest[:2] == b"\x1f\x8b" and any(rest)):
        received = "goes on after its announced end" if goes_on else f"ends after {len(out)} bytes"
        raise InputError(
            f"a gzipped NIfTI that announces {size} bytes and {received}; expected a complete file"
        )
    return bytes(out)


def _header(start: bytes) -> tuple[Any, bool]:
    """(the header, whether its voxels are in a separate .img file)."""
    import nibabel

    for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header):
        length, magics = (
            (348, (b"n+1\0", b"ni1\0")) if kind is nibabel.Nifti1Header else (540, (b"n+2\0", b"ni2\0"))
        )
        at = 344 if length == 348 else 4
        magic = start[at : at + 4]
        if magic in magics and len(start) >= length:
            try:
                return kind(start[:length], check=True), magic[1:2] == b"i"
            except (nibabel.spatialimages.HeaderDataError, nibabel.wrapstruct.WrapStructError) as error:
                raise InputError(f"damaged NIfTI header ({error}); expected a valid one") from None
            except (KeyError, ValueError):
                raise InputError("damaged NIfTI header; expected a valid one") from None
    raise InputError("not a single-file NIfTI (magic n+1 or n+2); expected .nii or .nii.gz")


def _shape(header: Any) -> tuple[int, ...]:
    """The shape: at least three axes, all volumes together within the limit."""
    try:
        shape = tuple(int(side) for side in header.get_data_shape())
    except Exception:
        raise InputError("damaged NIfTI header (dim); expected a valid one") from None
    if len(shape) < 3:
        raise InputError(f"NIfTI of shape {shape}; expected a 3-D volume")
    voxels = int(np.prod([*shape[:3]], dtype=object))
    if (
        min(shape) < 1
        or voxels > MAX_VOXELS
        or voxels * int(np.prod(shape[3:], dtype=object)) > MAX_SERIES_VOXELS
    ):
        more = f" x {' x '.join(map(str, shape[3:]))} volumes" if shape[3:] else ""
        raise InputError(f"NIfTI that announces {shape[:3]} voxels{more}; expected 1 to {MAX_VOXELS} in all")
    return shape


def _affine(header: Any) -> tuple[np.ndarray, str, tuple[str, ...]]:
    """([4, 4] in millimetres and our axis order, its space of SPACES, notes); sform before qform. If
    neither is set: along the axes by the voxels' size, which does not tell where the volume lies."""
    sform = header.get_sform() if header["sform_code"] > 0 else None
    try:
        qform = header.get_qform() if header["qform_code"] > 0 else None
    except Exception:  # an invalid quaternion
        qform = None
    notes: tuple[str, ...] = ()
    if sform is not None and qform is not None and not _spans_space(sform):
        sform, notes = None, ("the sform does not span space: the qform is used",)
    if sform is not None and qform is not None and not np.allclose(sform, qform, atol=0.1):
        notes = ("sform and qform differ: the sform is used",)
    if sform is None and qform is None:
        affine, code = np.array(header.get_base_affine(), np.float64), 0
        what = "its qform is no rotation" if header["qform_code"] > 0 else "sform and qform code 0"
        notes = (f"no geometry in the file ({what})",)
    else:
        affine = np.array(qform if sform is None else sform, np.float64)
        code = int(header["qform_code"] if sform is None else header["sform_code"])
    affine[:3] *= _MM.get(int(header["xyzt_units"]) & 7, 1.0)
    return affine[:, _REORDER], SPACES[min(code, len(SPACES) - 1)], notes


def _spans_space(affine: np.ndarray) -> bool:
    return bool(np.isfinite(affine).all() and np.linalg.matrix_rank(affine[:3, :3]) == 3)


def _values(voxels: np.ndarray, header: Any) -> np.ndarray:
    """[S, H, W] or [S, H, W, 3]: integers unchanged if no scaling applies and one of our types holds them,
    otherwise float32."""
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
    """The bytes of a .nii file: RGB24 for colour, otherwise the pixels unchanged; sform and qform in mm."""
    import nibabel

    if not image.is_volume or image.affine is None:
        raise InputError("a picture without geometry; NIfTI holds a volume: write a PNG or TIFF")
    if image.is_colour:
        if image.data.dtype != np.uint8:
            raise InputError(f"{image.data.dtype} colour; expected uint8, which NIfTI calls RGB24")
        rgb = np.dtype([(channel, "u1") for channel in "RGB"])
        voxels = np.ascontiguousarray(image.data).view(rgb)[..., 0]
    else:
        voxels = image.data
    file = nibabel.Nifti1Image(voxels.T, image.affine[:, _REORDER])
    file.header.set_xyzt_units("mm")
    _say(file.header, image)
    if image.value_range is not None and not image.is_colour:
        file.header["cal_min"], file.header["cal_max"] = image.value_range
    code = SPACES.index(image.space) if image.space else 1 if image.frame else 2
    file.set_sform(image.affine[:, _REORDER], code)
    try:
        file.set_qform(image.affine[:, _REORDER], code, strip_shears=False)
    except nibabel.spatialimages.HeaderDataError:  # a sheared grid has no quaternion
        file.set_qform(None, 0)
    stream = io.BytesIO()
    file.to_stream(stream)
    return stream.getvalue()


def _say(header: Any, image: Image) -> None:
    """What the volume is: briefly in descrip (80 bytes), in full in a comment extension (ecode 6)."""
    from nibabel.nifti1 import Nifti1Extension

    lines = "\n".join(f"{keyword}: {text}" for keyword, text in image.label)
    network = re.search(r"fused by (\S+), weights sha256 ([0-9a-f]{8})", lines)
    by = f", {network[1]} {network[2]}" if network else ""
    header["descrip"] = f"mmif_trt {VERSION}{by}: research use only".encode()[:79]
    if lines:
        header.extensions.append(Nifti1Extension(6, lines.encode("ascii")))


def encode_gz(image: Image) -> bytes:
    """Like encode, gzipped without a time stamp: the same volume gives the same bytes."""
    return gzip.compress(encode(image), 6, mtime=0)
