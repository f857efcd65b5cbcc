"""A DICOM series on disk, by what its headers tell."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np

PLACE = 13  # numbers per image, see keys._places


@dataclass
class Series:
    """One series on disk. key: pseudonym of patient, study and frame of reference; tag: of the series. group:
    what key stands for, never in a name or a message. places: [N, PLACE] of every image, see keys.py. why:
    what is wrong with its geometry. kind: Image Type."""

    uid: str
    modality: str  # mri, ct, pet or spect
    group: str
    key: str
    tag: str
    frame: str
    number: int
    paths: dict[str, str] = field(default_factory=dict)  # SOP Instance UID -> file
    description: str = ""
    sequence: str = ""
    kind: tuple[str, ...] = ()
    why: str = ""
    has_contrast: bool = False
    copies: int = 0
    places: np.ndarray = field(default_factory=lambda: np.zeros((0, PLACE)))

    @property
    def study(self) -> str:
        """Patient and study, of the group."""
        return self.group.rsplit("\0", 1)[0]

    @property
    def images(self) -> int:
        return len(self.places)

    @property
    def size(self) -> tuple[int, int] | None:
        return (int(self.places[0, 0]), int(self.places[0, 1])) if self.images else None

    @property
    def is_derived(self) -> bool:
        """An MPR, an anonymiser's copy, a computed map: ranks after an original."""
        return self.kind[:1] == ("DERIVED",)

    @property
    def folder(self) -> str:
        first = sorted(self.paths.values())[0]
        return first if len(self.paths) == 1 else os.path.dirname(first)
