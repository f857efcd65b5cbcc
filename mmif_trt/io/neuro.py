"""Volumes of other programs: FreeSurfer's MGH and MGZ and .hdr/.img pairs by nibabel, NRRD and MetaImage by
ITK.

All sizes are checked in the header before the voxels are read.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from mmif_trt.files import is_regular, one_sum, open_regular, read_regular, sha256_of
from mmif_trt.image import MAX_VOXELS, RAS_LPS, Image, InputError
from mmif_trt.io import nifti
from mmif_trt.io.which import Which

_MGH_HEADER_BYTES = 284
_MGH_BYTES = {0: 1, 1: 4, 3: 4, 4: 2}  # of a voxel, by MRI_UCHAR, MRI_INT, MRI_FLOAT, MRI_SHORT
_MGH_FOOTER_BYTES = 1 << 20
_KIND = "NRRD_kinds[pixel]"  # by ITK: of the axis that is not in space
_META_HEAD_BYTES = 65_536
_META_PLACE = {  # what ITK takes for 1 mm, no turn and 0 where none is said -> its names in MetaImage
    "ElementSpacing": ("ElementSpacing", "ElementSize"),
    "TransformMatrix": ("TransformMatrix", "Rotation", "Orientation"),
    "Offset": ("Offset", "Position", "Origin"),
}
_REORDER = [2, 1, 0, 3]


def read_mgh(name: str, which: Which) -> Image:
    """.mgh or .mgz, plain or gzipped whatever the name says. Raises InputError, OSError."""
    return _read(lambda: _mgh(read_regular(name), name, which), name, "MGH", name)


def _mgh(data: bytes, name: str, which: Which) -> Image:
    import nibabel

    packed = data[:2] == b"\x1f\x8b"
    start = nifti.unpacked(data, _MGH_HEADER_BYTES) if packed else data[:_MGH_HEADER_BYTES]
    version, *shape, kind = struct.unpack_from(">6i", start)
    if version != 1 or kind not in _MGH_BYTES or min(shape) < 1:
        raise InputError("not an MGH of a known type; expected version 1 of uchar, int, float or short")
    _judge(shape[:3], shape[3:])
    size = _MGH_HEADER_BYTES + int(np.prod(shape)) * _MGH_BYTES[kind]
    if packed:
        data = nifti.unpacked(data, size + _MGH_FOOTER_BYTES)
    if len(data) < size:
        raise InputError(f"an MGH of {len(data)} bytes that announces {size}; expected a complete file")
    index, notes = nifti.pick(tuple(shape[3:]), which)
    image = nibabel.MGHImage.from_bytes(data)
    voxels = np.asarray(image.dataobj)
    known = bool(image.header["goodRASFlag"])
    return _image(
        voxels[..., index] if voxels.ndim == 4 else voxels,
        np.asarray(image.affine, np.float64),
        "scanner" if known else "none",
        name,
        (*notes, *(() if known else ("no geometry in the file (goodRASFlag 0)",))),
    )


def read_pair(name: str, which: Which) -> Image:
    """One of the two files .hdr and .img, NIfTI or Analyze 7.5; the other is beside it."""
    return _read(lambda: _pair(name, which), name, "pair of .hdr and .img", *_both(name))


def _both(name: str) -> list[str]:
    """The header and the voxels of a pair, by the name of either."""
    return [name[:-4] + end for end in ((".HDR", ".IMG") if name[-4:].isupper() else (".hdr", ".img"))]


def _pair(name: str, which: Which) -> Image:
    import nibabel

    files = _both(name)
    if absent := [file for file in files if not os.path.isfile(file)]:
        raise InputError(f"no {absent[0]} beside it; expected both .hdr and .img")
    header = read_regular(files[0])
    if header[344:347] in (b"ni1", b"n+1") or header[4:7] in (b"ni2", b"n+2"):
        return nifti.decode_pair(header, read_regular(files[1]), name, which)
    kind = nibabel.Spm2AnalyzeImage
    try:
        shape = kind.header_class(header[:348], check=True).get_data_shape()
    except Exception:  # nibabel may raise anything on bad bytes
        raise InputError("not a header of NIfTI or Analyze 7.5; expected a valid pair") from None
    _judge(shape[:3], shape[3:])
    index, notes = nifti.pick(tuple(shape[3:]), which)
    image = kind.from_filename(files[0])
    voxels = np.asarray(image.dataobj)
    return _image(
        voxels.reshape(*shape[:3], -1)[..., index],
        np.asarray(image.affine, np.float64),
        "none",
        name,
        (*notes, "Analyze 7.5 has no geometry that programs agree on"),
    )


def read_nrrd(name: str, which: Which) -> Image:
    """.nrrd or .nhdr, of a space that names the patient's sides."""
    alone = not name.lower().endswith(".nhdr")  # its data file has any name
    return _read(lambda: _nrrd(name, which), name, "NRRD", *([name] if alone else []))


def _read(work: Callable[[], Image], name: str, kind: str, *files: str) -> Image:
    image = nifti.guarded(work, name, kind)
    return replace(image, sha256=one_sum(hashlib.sha256(read_regular(path)).hexdigest() for path in files))


def _nrrd(name: str, which: Which) -> Image:
    reader = _begun("NrrdImageIO", "NRRD", name)
    size, values = reader.GetSize(), reader.GetNumberOfComponents()
    kind = reader.GetMetaData(_KIND) if reader.HasMetaDataKey(_KIND) else ""
    is_list = len(size) == 3 and kind == "list"  # 3D Slicer's sequences and diffusion: volumes, not vectors
    if values > 1 and not is_list:
        raise InputError(
            f"NRRD of {values} values per voxel ({kind or 'no kind'}); expected one, or volumes (kind list)"
        )
    index, notes = nifti.pick((values,) if is_list else tuple(size[3:]), which)
    voxels, affine = _executed(reader, "NRRD")
    space = reader.GetMetaData("NRRD_space") if reader.HasMetaDataKey("NRRD_space") else ""
    known = "left" in space or "right" in space
    if len(size) == 4:
        voxels = voxels[..., index]
    return _image(
        voxels[index] if is_list and values > 1 else voxels,
        affine,
        "scanner" if known else "none",
        name,
        (*notes, *(() if known else ("no geometry in the file (no space of the patient's sides)",))),
    )


def read_meta(name: str, which: Which) -> Image:
    """.mha, or .mhd with its data file: MetaImage."""
    return nifti.guarded(lambda: _meta(name, which), name, "MetaImage")


def _meta(name: str, which: Which) -> Image:
    (head, offset), files = _meta_head(name), [name]
    if (data := head.get("ElementDataFile", "")).upper() != "LOCAL":
        offset = 0
        files.append(os.path.join(os.path.dirname(name), data))
        if not is_regular(files[1]):  # LIST and patterns, of a file per slice, too
            raise InputError(f"no data file {data!r} beside it; expected LOCAL, or one file there")
    # ITK would read the header's text as voxels.
    if offset and head.get("HeaderSize", "0") not in ("0", "-1"):
        raise InputError("HeaderSize with LOCAL voxels; expected it for a data file alone")
    reader = _begun("MetaImageIO", "MetaImage", name)
    size = reader.GetSize()
    if (values := reader.GetNumberOfComponents()) > 1:
        raise InputError(f"MetaImage of {values} values per voxel; expected one")
    index, notes = nifti.pick(tuple(size[3:]), which)
    voxels, affine = _executed(reader, "MetaImage")
    if head.get("CompressedData", "")[:1] in ("T", "t", "1"):  # as ITK takes it
        _inflate(files[-1], offset, head.get("CompressedDataSize", ""), voxels.nbytes)
    absent = [key for key, names in _META_PLACE.items() if not any(name in head for name in names)]
    image = _image(
        voxels[..., index] if len(size) == 4 else voxels,
        affine,
        "none" if absent else None,
        name,
        (*notes, *((f"no geometry in the file (no {', '.join(absent)})",) if absent else ())),
    )
    return replace(image, sha256=one_sum(sha256_of(path) for path in files))


def _meta_head(name: str) -> tuple[dict[str, str], int]:
    """(the lines "KEY = VALUE" before the voxels, their bytes). ElementDataFile is the last."""
    head, offset = dict[str, str](), 0
    with open_regular(name) as file:
        lines = file.read(_META_HEAD_BYTES).splitlines(keepends=True)
    for line in lines:
        offset += len(line)
        key, _, value = line.decode("utf-8", "replace").partition("=")
        head[key.strip()] = value.strip()
        if key.strip() == "ElementDataFile":
            return head, offset
    raise InputError("no ElementDataFile; expected the header of a MetaImage")


def _inflate(path: str, offset: int, announced: str, size: int) -> None:
    """Raises InputError, ValueError or zlib.error unless the bytes from `offset` on, as many as announced,
    are `size` bytes deflated: ITK leaves what is missing to chance."""
    inflater, count, left = zlib.decompressobj(wbits=47), 0, int(announced or 0)
    if not left and offset:
        raise InputError("compressed without CompressedDataSize; expected that, or a data file of its own")
    left = left or os.path.getsize(path)
    with open_regular(path) as file:
        file.seek(offset)
        while left > 0 and not inflater.eof and (packed := file.read(min(left, 1 << 20))):
            left -= len(packed)
            while packed and not inflater.eof:
                count += len(inflater.decompress(packed, 1 << 20))
                packed = inflater.unconsumed_tail
    if count != size or not inflater.eof:
        raise InputError(f"{count} bytes of voxels, {size} announced; expected a complete file")


def _begun(by: str, kind: str, name: str) -> Any:
    """ITK's reader of 3 or 4 axes, none of which is too long; it has read no voxel yet."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetImageIO(by)
    reader.SetFileName(name)
    try:
        reader.ReadImageInformation()
    except RuntimeError:  # ITK's message is a page long
        raise InputError(
            f"not a {kind} that ITK reads; expected a complete file, with its data file beside it"
        ) from None
    size = reader.GetSize()
    if len(size) not in (3, 4):
        raise InputError(f"{kind} of {len(size)} axes; expected 3, or 4 with a volume chosen")
    _judge(size[:3], (*size[3:], reader.GetNumberOfComponents()))
    return reader


def _executed(reader: Any, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """(voxels [C, R, S, ...], affine of (column, row, slice) to RAS+ mm)."""
    import SimpleITK as sitk

    try:
        image = reader.Execute()
    except RuntimeError:
        raise InputError(f"a truncated or damaged {kind}; expected a complete file") from None
    lps, count = np.eye(4), image.GetDimension()
    lps[:3, :3] = (np.reshape(image.GetDirection(), (count, count)) * image.GetSpacing())[:3, :3]
    lps[:3, 3] = image.GetOrigin()[:3]
    return sitk.GetArrayFromImage(image).T, RAS_LPS @ lps


def _judge(shape: Any, more: Any) -> None:
    voxels = int(np.prod([*map(int, shape)], dtype=object))
    if min(map(int, shape)) < 1 or voxels > MAX_VOXELS:
        raise InputError(f"{tuple(map(int, shape))} voxels announced; expected 1 to {MAX_VOXELS} in all")
    if voxels * int(np.prod([*map(int, more)], dtype=object)) > nifti.MAX_SERIES_VOXELS:
        raise InputError(
            f"{len(more)} further axes of {tuple(more)}; expected {nifti.MAX_SERIES_VOXELS} in all"
        )


def _image(
    voxels: np.ndarray, affine: np.ndarray, space: str | None, name: str, notes: tuple[str, ...]
) -> Image:
    """voxels: [C, R, S] as stored; affine: of (column, row, slice) to RAS+ mm."""
    if voxels.dtype.kind not in "iuf":
        raise InputError(f"voxels of type {voxels.dtype}; expected real numbers")
    data = voxels.T
    exact = data.dtype.newbyteorder("=") in (np.dtype(np.uint8), np.dtype(np.uint16))
    data = np.ascontiguousarray(data, data.dtype.newbyteorder("=") if exact else np.float32)
    data, missing = nifti.without_nan(data)
    return Image(data, None, affine=affine[:, _REORDER], source=name, space=space, notes=(*notes, *missing))
