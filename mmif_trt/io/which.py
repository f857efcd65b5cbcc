"""Which of several volumes of a file or folder is meant."""

from __future__ import annotations

from dataclasses import dataclass
from operator import index

from mmif_trt.image import InputError


@dataclass(frozen=True)
class Which:
    """series: the Series Instance UID, Series Number or Series Description of a DICOM series; "": there is
    only one. volume: which volume of a series or a 4-D file, from 1; None: there is only one."""

    series: str = ""
    volume: int | None = None

    def __post_init__(self) -> None:
        if self.volume is None:
            return
        try:
            number = index(self.volume)
        except TypeError:  # text, or a fraction
            number = 0
        if number < 1:
            raise InputError(f"volume {self.volume!r}; expected a number from 1")
        object.__setattr__(self, "volume", number)  # of NumPy's, say: JSON takes none

    @property
    def is_given(self) -> bool:
        return bool(self.series) or self.volume is not None


ANY = Which()
