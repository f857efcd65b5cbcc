"""The stored values of DICOM instances: decompressed by whichever codec can, rescaled, as a volume."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mmif_trt.image import MAX_VOXELS, InputError
from mmif_trt.io.dicom import codestream
from mmif_trt.io.dicom.extent import announced
from mmif_trt.io.dicom.syntaxes import NOT_USED
from mmif_trt.running import why

if TYPE_CHECKING:
    from mmif_trt.io.dicom.planes import Plane

# pydicom returns RGB for all of the last four; any other it would return unconverted.
PHOTOMETRIC = (
    "MONOCHROME1",
    "MONOCHROME2",
    "PALETTE COLOR",
    "RGB",
    "YBR_FULL",
    "YBR_FULL_422",
    "YBR_ICT",
    "YBR_RCT",
)
REQUIRED = ("SamplesPerPixel", "BitsAllocated", "BitsStored", "PixelRepresentation")  # to decode
AIR_HU = -1000.0
UNCONVERTED = ("YBR_PARTIAL_420", "YBR_PARTIAL_422", "HSV", "ARGB", "CMYK", "XYB")


def volume(planes: list[Plane], factor: float, units: str | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """([S, H, W] float32 (uint8, uint16 if there is nothing to rescale), or [S, H, W, 3] uint8; notes).

    Rescaled by the Modality LUT (PS3.3 C.11.1): its table if there is one, otherwise slope and intercept.
    units: of the rescaled values, see values.units; what padding becomes depends on them.
    """
    voxels = sum(plane.size[0] * plane.size[1] for plane in planes)
    if voxels > MAX_VOXELS:
        raise InputError(f"a series of {voxels} voxels; expected at most {MAX_VOXELS}")
    plain = all(
        (plane.slope * factor, plane.intercept, plane.has_table) == (1.0, 0.0, False) for plane in planes
    )
    cache, outside = dict[int, np.ndarray](), dict[int, np.ndarray]()
    out: np.ndarray | None = None
    for i, plane in enumerate(planes):
        key = id(plane.dataset)
        if key not in cache:
            cache = {key: frames(plane.dataset)}
        values = cache[key][plane.frame]
        if not values.dtype.isnative:  # two files of a series may have two byte orders
            values = values.astype(values.dtype.newbyteorder("="))
        if plane.tile is not None:
            values = values[plane.tile]
        if (mask := padded(values, plane.dataset)) is not None:
            outside[i] = mask
        if values.ndim == 2 and not (plain and values.dtype in (np.uint8, np.uint16)):
            values = _rescaled(values, plane, factor)
        if out is None:
            out = np.empty((len(planes), *values.shape), values.dtype)
        if values.shape != out.shape[1:] or values.dtype != out.dtype:
            raise InputError("slices of several kinds of pixels; expected one kind")
        out[i] = values
    assert out is not None
    return out, without_padding(out, outside, units)


def padded(stored: np.ndarray, dataset: Any) -> np.ndarray | None:
    """Where a grey frame has Pixel Padding Value, or a value from there to Pixel Padding Range Limit (PS3.3
    C.7.5.1.1.2); None for nowhere."""
    first, last = dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")
    if first is None or stored.ndim != 2 or stored.dtype.kind not in "iu":
        return None
    kind = np.iinfo(stored.dtype)
    try:
        ends = [int(x) for x in (first, first if last is None else last)]
    except (TypeError, ValueError):
        return None
    # Some state -2000 as 63536: the same bits.
    ends = [x if kind.min <= x <= kind.max else x - (x > 0 or -1) * (1 << kind.bits) for x in ends]
    if not kind.min <= min(ends) <= max(ends) <= kind.max:
        return None
    mask: np.ndarray = (stored >= min(ends)) & (stored <= max(ends))
    return mask if mask.any() else None


def without_padding(values: np.ndarray, masks: dict[int, np.ndarray], units: str | None) -> tuple[str, ...]:
    """Padding of the slices of `values`, which change, as black; notes. Black is air or 0, or the lowest of
    the other values where that is less, as for NaN in NIfTI. masks: see padded, by slice.

    What lies among the other values is no padding, whatever the header says: it would make holes.
    """
    if not masks:  # of most series: their values are not read once more
        return ()
    rest, filled = list[Any](), list[Any]()
    for i, plane in enumerate(values):
        mask = masks.get(i)
        inside = plane if mask is None else plane[~mask]
        rest += [inside.min(), inside.max()] if inside.size else []
        filled += [] if mask is None else [plane[mask].min(), plane[mask].max()]
    if not rest:
        return ()
    if max(filled) >= min(rest) and min(filled) <= max(rest):
        return ("Pixel Padding Value lies among the other values: not taken for padding",)
    black = min(float(min(rest)), AIR_HU if units == "HU" and values.dtype.kind == "f" else 0.0)
    if min(filled) == max(filled) == black:
        return ()
    for i, mask in masks.items():
        values[i][mask] = black
    count = sum(int(mask.sum()) for mask in masks.values())
    return (f"{count} voxels ({count / values.size:.0%}) are padding: background, shown as {black:g}",)


def _rescaled(stored: np.ndarray, plane: Plane, factor: float) -> np.ndarray:
    if plane.has_table:
        from pydicom.pixels import apply_modality_lut

        stored = apply_modality_lut(stored, plane.dataset)
    return ((stored * np.float64(plane.slope) + plane.intercept) * factor).astype(np.float32)


def frames(dataset: Any) -> np.ndarray:
    """[F, H, W] or [F, H, W, 3] stored values of an instance, decompressed; colour as RGB uint8.

    Raises InputError, quoting no header value, if the pixels are truncated or cannot be decoded.
    """
    from pydicom.pixels import apply_color_lut

    shape = announced(dataset)
    colour = int(dataset.get("SamplesPerPixel", 1) or 1) > 1
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    if photometric not in PHOTOMETRIC:
        received = (
            photometric if photometric in UNCONVERTED else "missing or unknown"
        )  # never free text from a header
        raise InputError(
            f"{dataset.filename}: Photometric Interpretation {received}; expected {', '.join(PHOTOMETRIC)}"
        )
    if photometric.startswith("MONO") and (how := dataset.get("PixelPresentation")) in ("COLOR", "MIXED"):
        raise InputError(
            f"{dataset.filename}: Pixel Presentation {how} (colours over grey by a supplemental palette); "
            "expected the grey image alone, or RGB"
        )
    try:
        if colour and int(dataset.BitsAllocated) != 8:
            raise InputError(f"{dataset.filename}: colour of {dataset.BitsAllocated} bits; expected 8")
        pixels = _decoded(dataset, shape)  # YBR is returned as RGB
        if photometric == "PALETTE COLOR":
            pixels, colour = _eight_bits(apply_color_lut(pixels, dataset), str(dataset.filename)), True
    except InputError:
        raise
    except Exception as error:  # codecs may raise anything
        raise InputError(f"{dataset.filename}: {_why_not(dataset, shape, error)}") from None
    if pixels.ndim == (3 if colour else 2):
        pixels = pixels[None]
    if pixels.shape[:3] != shape:
        raise InputError(
            f"{dataset.filename}: {pixels.shape[:3]} pixels, {shape} announced; expected a complete file"
        )
    return pixels


def _why_not(dataset: Any, shape: tuple[int, int, int], error: Exception) -> str:
    """Only sizes and our own terms: a codec's message may quote the file."""
    if absent := [keyword for keyword in REQUIRED if dataset.get(keyword) in (None, "")]:
        return f"no {', '.join(absent)} in the header; expected a complete one"
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        bits = int(dataset.get("BitsStored") or 0)
        return (
            f"pixels of {syntax.name} in {bits} bits that no codec here decodes: "
            "truncated, damaged or of an unsupported kind; expected a complete file, or an uncompressed copy "
            "(dcmdjpeg, gdcmconv --raw)"
        )
    samples = int(dataset.get("SamplesPerPixel", 1) or 1)
    size = int(np.prod(shape)) * samples * int(dataset.get("BitsAllocated") or 8) // 8
    if len(dataset.PixelData) < size:
        return (
            f"{len(dataset.PixelData)} bytes of pixels, {size} announced: truncated; expected a complete file"
        )
    return f"unreadable pixels ({why(error)}); expected a valid header"


def _decoded(dataset: Any, shape: tuple[int, int, int]) -> np.ndarray:
    """By the first codec that accepts the stream: one may refuse 12 bits or a marker that another reads.
    Never by NOT_USED."""
    from pydicom.pixels import get_decoder, pixel_array

    syntax = dataset.file_meta.TransferSyntaxUID
    shift = _shift(dataset)
    # pydicom takes High Bit for that.
    bits: dict[str, Any] = {"bits_stored": int(dataset.HighBit) + 1} if shift else {}
    if syntax.is_transfer_syntax and not syntax.is_encapsulated:
        return _lowered(pixel_array(dataset, **bits), shift, dataset)
    try:
        codecs = [name for name in get_decoder(syntax).available_plugins if name != NOT_USED]
    except NotImplementedError:
        codecs = []
    if not codecs:
        known = "".join(c if c.isalnum() or c in ".- ()@," else " " for c in str(syntax.name))[:80]
        raise InputError(
            f"{dataset.filename}: transfer syntax {known}, which no codec here decodes; "
            "expected uncompressed, RLE, JPEG, JPEG-LS or JPEG 2000 (convert it first)"
        )
    codestream.check(dataset, *shape)
    first: Exception | None = None
    for name in codecs:
        try:
            if syntax == codestream.RLE:  # packs cells as they are; JPEG's streams hold samples
                return _lowered(pixel_array(dataset, decoding_plugin=name, **bits), shift, dataset)
            return _signed(pixel_array(dataset, decoding_plugin=name), dataset)
        except Exception as error:
            first = first or error
    assert first is not None
    raise first


def _shift(dataset: Any) -> int:
    """How many bits a sample lies above the bottom of its cell (PS3.5 8.1.1, before 2014): High Bit 15 of 12
    Bits Stored is 4. pydicom ignores it."""
    stored, high = int(dataset.get("BitsStored") or 0), dataset.get("HighBit")
    if high is None or not 0 < stored <= int(high) < int(dataset.BitsAllocated):
        return 0
    return int(high) + 1 - stored


def _lowered(cells: np.ndarray, shift: int, dataset: Any) -> np.ndarray:
    """The samples of cells whose samples end at High Bit. A wrong High Bit is one whose samples need only
    the Bits Stored at the bottom, and need the lowest of them too."""
    if not shift:
        return cells
    whole = cells.view(np.dtype(f"{cells.dtype.byteorder}u{cells.dtype.itemsize}"))
    is_wrong = not (whole >> int(dataset.BitsStored)).any() and (whole & ((1 << shift) - 1)).any()
    return cells if is_wrong else cells >> shift


def _signed(samples: np.ndarray, dataset: Any) -> np.ndarray:
    """JPEG-LS knows no sign: one coded in more bits than are stored, as dcmcjpls does, has lost it."""
    from pydicom.uid import JPEGLSTransferSyntaxes

    stored = int(dataset.get("BitsStored") or 0)
    spare = 8 * samples.dtype.itemsize - stored
    if (
        samples.dtype.kind != "i"
        or spare <= 0
        or dataset.file_meta.TransferSyntaxUID not in JPEGLSTransferSyntaxes
    ):
        return samples
    if samples.min() < 0 or samples.max() >= 1 << stored:  # it has its sign, or more bits than stated
        return samples
    return (samples << spare) >> spare


def _eight_bits(rgb: np.ndarray, name: str) -> np.ndarray:
    """Palettes of 16 bits to 8, by their high byte (PS3.3 C.7.6.3.1.6)."""
    if rgb.dtype == np.uint8:
        return rgb
    if (
        0 < rgb.max() < 256
    ):  # a fault of old writers: 8-bit entries under a 16-bit descriptor would look black
        raise InputError(f"{name}: a palette of 16 bits with entries under 256; expected 16-bit entries")
    return (rgb >> 8).astype(np.uint8)
