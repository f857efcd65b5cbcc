"""DICOM's well-known colour palettes (PS3.6 annex B) by name and UID; the tables themselves are pydicom's."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from mmif_trt.image import InputError

PALETTES = {
    "HOT_IRON": "1.2.840.10008.1.5.1",
    "PET": "1.2.840.10008.1.5.2",
    "HOT_METAL_BLUE": "1.2.840.10008.1.5.3",
    "PET_20_STEP": "1.2.840.10008.1.5.4",
}
# Those under which planted lesions stay most visible (benchmarks/repainted.py). CT stays grey unless one is
# asked for.
DEFAULT = {"pet": "PET", "spect": "HOT_IRON"}


def uid(name: str) -> str:
    """The UID of a palette given by name or UID. Raises InputError for an unknown one."""
    found = PALETTES.get(name, name)
    if found not in PALETTES.values():
        expected = ", ".join(f"{key} ({value})" for key, value in PALETTES.items())
        raise InputError(f"palette {name!r}; expected {expected}")
    return found


@lru_cache(maxsize=4)
def table(name: str) -> np.ndarray:
    """[256, 3] float32 RGB in [0, 1]. name: one of PALETTES, or its UID. Raises InputError for an unknown
    one."""
    from pydicom.pixels import apply_color_lut

    rgb: np.ndarray = apply_color_lut(np.arange(256, dtype=np.uint8), palette=uid(name))
    top = 255 if rgb.dtype == np.uint8 else 65535
    return rgb.astype(np.float32) / np.float32(top)


def apply(unit: np.ndarray, name: str) -> np.ndarray:
    """unit: [...] in [0, 1] -> [..., 3] float32 RGB in [0, 1], by the nearest of the 256 entries."""
    return table(name).take(np.rint(unit * 255).astype(np.uint8), axis=0)  # indexing is slower
