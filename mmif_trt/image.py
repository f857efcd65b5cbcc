"""The one currency between stages: pixels that carry what they mean. Imports nothing of the package."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

RAS_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # mm of NIfTI and of Image to those of DICOM and ITK, and back
MODALITIES = ("mri", "ct", "pet", "spect")
SPACES = (
    "none",
    "scanner",
    "aligned",
    "talairach",
    "mni",
    "template",
)  # NIfTI's sform and qform codes 0 to 5
SHOWN = {"mri": "MRI", "ct": "CT", "pet": "PET", "spect": "SPECT"}  # on screens and pages
MIN_SIDE_PX, MAX_SIDE_PX = 16, 4096
MAX_VOXELS = 1 << 28  # of a volume: 512 x 512 x 1024
_LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))  # towards which an axis runs, along x, y, z of RAS+
# Black and white by default: the whole range of the type, never the image's own extremes.
DTYPE_RANGE: dict[str, tuple[float, float]] = {"uint8": (0, 255), "uint16": (0, 65535), "float32": (0, 1)}

_TINY, _HUGE = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


class InputError(ValueError):
    """A user's mistake. The message names the file or argument, what was found and what is expected."""


@dataclass(frozen=True, eq=False)
class Image:
    """One 2-D picture, or one volume of slices, with its meaning.

    data: [H, W] grey or [H, W, 3] RGB; with an affine also a volume [S, H, W] or [S, H, W, 3]; uint8, uint16
        or float32; 16 to 4096 px per side, 2^28 voxels at most; finite.
    value_range: the values of black and white. None: the whole range of the dtype (float32: 0 to 1), for
        pictures only; for a volume, None means that they are not known, and fusing asks for them.
    modality: one of "mri", "ct", "pet", "spect", or None where it is not known.
    spacing_mm: pitch (row, column), of a volume (slice, row, column), in millimetres, or None where it is not
        known. A volume's is computed from its affine.
    affine: [4, 4] voxel index in the order of the array's axes (slice, row, column) to patient millimetres
        (RAS+: right, anterior, superior), or None where it is not known. A volume must have one.
    source: its origin, for messages; a path or an argument's name.
    units: of the values: "HU", "SUVbw", "BQML", or None where they are not known.
    frame: Frame of Reference UID (DICOM), or None. Two images with different ones share no coordinates.
    space: of NIfTI and its kin, in which the affine lies: one of SPACES, or None where the format has none.
        "none": the file has no geometry, and the affine is a guess that means nothing for another image.
    headers: the pydicom datasets of the source instances without their pixels, in slice order; () for others.
    notes: what a reader had to decide or could not do, as text.
    sha256: of the file it was read from; for several files, of their sorted sums, one per line, as
        `sha256sum FILES | cut -c1-64 | sort | sha256sum` has it. "" where there is no file.
    label: of a fused image, how it was made, as (keyword, text); see label.py. () for others.

    Raises InputError for another shape, type or size, for NaN, infinity or masked pixels, for a value range
    that is empty in float32, and for a volume without invertible geometry.
    """

    data: np.ndarray
    value_range: tuple[float, float] | None = None
    modality: str | None = None
    spacing_mm: tuple[float, ...] | None = None
    affine: np.ndarray | None = None
    source: str = "image"
    units: str | None = None
    frame: str | None = None
    space: str | None = None
    headers: tuple[Any, ...] = ()
    notes: tuple[str, ...] = ()
    sha256: str = ""
    label: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        data = self.data
        if not isinstance(data, np.ndarray) or data.dtype.name not in DTYPE_RANGE:
            received = f"dtype {data.dtype}" if isinstance(data, np.ndarray) else type(data).__name__
            raise InputError(f"{self.source}: {received}; expected an array of uint8, uint16 or float32")
        if isinstance(data, np.ma.MaskedArray):
            if np.ma.is_masked(data):
                masked = np.ma.count_masked(data)
                raise InputError(
                    f"{self.source}: {masked} masked pixels; expected a value for each, such as x.filled(0)"
                )
            object.__setattr__(self, "data", data := data.data)
        if not (data.ndim == 2 or (data.ndim == 3 and data.shape[2] == 3)):
            if self.affine is None or data.ndim not in (3, 4) or (data.ndim == 4 and data.shape[3] != 3):
                raise InputError(
                    f"{self.source}: shape {data.shape}; expected [H, W] grey, [H, W, 3] RGB, or "
                    "[S, H, W] or [S, H, W, 3] with an affine"
                )
            self._check_volume()
        height, width = self.size
        if not (min(height, width) >= MIN_SIDE_PX and max(height, width) <= MAX_SIDE_PX):
            raise InputError(
                f"{self.source}: {height} x {width} px; expected {MIN_SIDE_PX} to {MAX_SIDE_PX} px per side"
            )
        if data.dtype.kind == "f" and not np.isfinite(data).all():
            raise InputError(f"{self.source}: NaN or infinite pixels; expected finite values")
        if self.modality is not None and self.modality not in MODALITIES:
            raise InputError(f"{self.source}: modality {self.modality!r}; expected {', '.join(MODALITIES)}")
        if self.is_volume and self.value_range is None:
            return
        given = DTYPE_RANGE[data.dtype.name] if self.value_range is None else self.value_range
        try:
            low, high = (float(value) for value in given)
        except (TypeError, ValueError, OverflowError):
            low = high = 0.0
        if not (low < high and high - low >= _TINY and max(-low, high, high - low) <= _HUGE):
            raise InputError(
                f"{self.source}: value range {given}; expected a finite (black, white), black < white, in "
                "float32"
            )
        object.__setattr__(self, "value_range", (low, high))

    def _check_volume(self) -> None:
        try:
            affine = np.array(self.affine, np.float64)
        except (TypeError, ValueError):  # text, or rows of different lengths
            affine = np.empty(0)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or (affine[3] != (0, 0, 0, 1)).any():
            found = self.affine.tolist() if isinstance(self.affine, np.ndarray) else self.affine
            raise InputError(f"{self.source}: affine {found}; expected a finite [4, 4] of RAS+ mm")
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        if not (spacing > 0).all() or abs(np.linalg.det(affine[:3, :3] / spacing)) < 0.1:
            raise InputError(f"{self.source}: affine axes do not span space; expected an invertible affine")
        voxels = int(np.prod(self.data.shape[:3], dtype=np.int64))
        if not 1 <= voxels <= MAX_VOXELS:
            raise InputError(f"{self.source}: {voxels} voxels; expected 1 to {MAX_VOXELS}")
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "spacing_mm", tuple(round(float(mm), 6) for mm in spacing))

    @property
    def is_colour(self) -> bool:
        return self.data.ndim > 2 and self.data.shape[-1] == 3

    @property
    def is_volume(self) -> bool:
        return self.data.ndim - self.is_colour == 3

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels, of each slice."""
        height, width = self.data.shape[:-1][-2:] if self.is_colour else self.data.shape[-2:]
        return height, width

    @property
    def orientation(self) -> str | None:
        """Towards which side each axis runs, such as "SPL" for axial slices from the feet up in DICOM's row
        and column order; the nearest anatomical axis where oblique. None without an affine."""
        if self.affine is None:
            return None
        return "".join(letter_of(self.affine[:3, axis]) for axis in range(self.data.ndim - self.is_colour))

    def with_data(self, data: np.ndarray, **changes: Any) -> Image:
        """The same metadata with other pixels."""
        return replace(self, data=data, **changes)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """np.asarray(image): the pixels as stored, without their meaning; no copy unless asked for."""
        if copy is False and dtype is not None and np.dtype(dtype) != self.data.dtype:
            raise ValueError(f"{self.source}: {self.data.dtype} to {np.dtype(dtype)} needs a copy")
        data = self.data if dtype is None else self.data.astype(dtype, copy=False)
        return data.copy() if copy else data

    def _repr_png_(self) -> bytes | None:
        """The picture a notebook shows: 8 bits, black and white by value_range; of a volume, the middle
        slice.

        None, so that the notebook prints the repr, where the value range is not known.
        """
        if self.value_range is None:
            return None
        import cv2

        low, high = self.value_range
        pixels = self.data[len(self.data) // 2] if self.is_volume else self.data
        unit = (pixels.astype(np.float32) - low) / (high - low)
        shown = np.rint(np.clip(unit, 0, 1) * 255).astype(np.uint8)
        return cv2.imencode(".png", shown[..., ::-1] if self.is_colour else shown)[1].tobytes()

    def __repr__(self) -> str:
        shape = self.data.shape[: self.data.ndim - self.is_colour]
        low, high = self.value_range or (None, None)
        parts = [
            " x ".join(str(side) for side in shape),
            "RGB" if self.is_colour else "grey",
            self.data.dtype.name,
            "range unknown" if low is None else f"range {low:g} to {high:g}",
            self.modality or "modality unknown",
            "spacing unknown"
            if self.spacing_mm is None
            else "spacing " + " x ".join(f"{s:g}" for s in self.spacing_mm) + " mm",
        ]
        if self.is_volume:
            parts += [f"axes to {self.orientation}", self.units or "units unknown"]
        return f"Image({', '.join(parts)}; {self.source})"


def is_tensor(x: Any) -> bool:
    """torch's, or of a subclass (MONAI's MetaTensor, torchvision's Image); does not import torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def as_array(x: Any, name: str, others: str = "a path or an mmif_trt.Image") -> np.ndarray:
    """A NumPy array as it is; a torch tensor on the host, without a copy if it is there. others: what else
    the caller takes. Raises InputError."""
    if isinstance(x, np.ndarray):
        return x
    if is_tensor(x):
        try:
            array: np.ndarray = x.detach().cpu().resolve_conj().resolve_neg().numpy()
        except (TypeError, NotImplementedError):  # bfloat16 and others that NumPy lacks; sparse; "meta"
            raise InputError(
                f"{name}: dtype {x.dtype}, {x.layout}, on {x.device}; expected a dense tensor of uint8, "
                "uint16 or float32"
            ) from None
        return array
    kind = f"{type(x).__module__}.{type(x).__qualname__}".removeprefix("builtins.")
    raise InputError(f"{name}: {kind}; expected a NumPy array, a torch tensor, {others}")


def stored_text(header: Any, keyword: str) -> str:
    """A value of a DICOM header as it was read, "" if absent. Decoding would replace bytes outside the
    declared character set."""
    element = header.get_item(keyword) if keyword in header else None
    value = b"" if element is None else element.value
    return (value.decode("latin-1") if isinstance(value, bytes) else str(value or "")).strip(" \0")


@dataclass(frozen=True, eq=False)
class CardImage:
    """A picture that a decoder left on the GPU: for `Fuser.fuse_images`, which takes it there.

    pixels: [H, W] grey or [H, W, 3] RGB, uint8, C-contiguous, by DLPack; `shape` is theirs. The rest: as in
    Image.
    """

    pixels: Any
    shape: tuple[int, ...]
    source: str
    sha256: str
    value_range: tuple[float, float] = DTYPE_RANGE["uint8"]

    @property
    def size(self) -> tuple[int, int]:
        return self.shape[0], self.shape[1]

    def with_data(self, data: np.ndarray, **changes: Any) -> Image:
        """The same metadata with other pixels, on the host."""
        mine = {"value_range": self.value_range, "source": self.source, "sha256": self.sha256}
        return Image(data, **(mine | changes))


Picture = Image | CardImage


def letter_of(direction: np.ndarray) -> str:
    """The patient side (R L A P S I) that a RAS+ direction [3] is nearest to."""
    axis = int(np.abs(direction).argmax())
    return _LETTERS[axis][int(direction[axis] > 0)]
