"""Bundled sample pairs: a real average T1 slice, and a CT, PET or SPECT slice simulated from its tissue maps.

README.md here has the licence of the T1, the physics of the simulation and the conventions; make.py made the
files. None is a patient image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmif_trt.image import Image, InputError

SPACING_MM = (0.9, 0.9)  # (row, column); both pictures of a pair share one grid
SIDE_PX = 256
FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Pair:
    """A bundled pair. z_mm: axial plane in MNI space; white: the level of full white; black is 0."""

    other: str
    z_mm: int
    white: int


# CT and its MRI have 12-bit levels in 16-bit PNG, to show that bit depth is kept; the others are 8-bit.
PAIRS = {
    "mri-ct": Pair("ct", 16, 4095),
    "mri-pet": Pair("pet", 3, 255),
    "mri-spect": Pair("spect", -17, 255),
}


def path(name: str, modality: str) -> Path:
    """The bundled PNG of one side of a pair."""
    return FOLDER / f"{name}_{modality}.png"


def sample(name: str) -> tuple[Image, Image]:
    """The bundled pair (MRI, other) by name: "mri-ct", "mri-pet" or "mri-spect".

    MRI: [256, 256] grey, real (an average of 152 heads, skull removed). Other: simulated; CT [256, 256] grey,
    PET and SPECT [256, 256, 3] RGB. The mri-ct pair is uint16 with value_range (0, 4095), the others uint8.
    Axial plane, anterior up, the patient's left on the right of the picture; background exactly 0.
    Raises InputError for an unknown name.
    """
    if name not in PAIRS:
        raise InputError(f"sample name: {name!r}; expected {', '.join(PAIRS)}")
    pair = PAIRS[name]
    return (
        _read(name, "mri", f"icbm152 average t1 sample ({name})", pair.white),
        _read(name, pair.other, f"simulated {pair.other} sample ({name})", pair.white),
    )


def _read(name: str, modality: str, source: str, white: int) -> Image:
    from mmif_trt import io  # here, because it imports cv2

    data = io.read(path(name, modality)).data
    return Image(data, value_range=(0, white), modality=modality, spacing_mm=SPACING_MM, source=source)
