"""Which DICOM series belong together: one patient, one study, one frame of reference, an MRI and another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mmif_trt.io.dicom_values import MODALITY

KEYS = (
    "PatientID",
    "StudyInstanceUID",
    "FrameOfReferenceUID",
    "SeriesInstanceUID",
    "Modality",
    "SOPInstanceUID",
)


@dataclass
class Series:
    """One series as it lies on disk. key: hash of patient, study and frame of reference, no patient value."""

    uid: str
    modality: str  # mri, ct, pet or spect
    key: str
    frame: str
    number: int
    paths: dict[str, str] = field(default_factory=dict)  # SOP Instance UID -> file

    @property
    def tag(self) -> str:
        return hashlib.sha256(self.uid.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Case:
    """One fusion to be made. a, b: files (or one folder or file each)."""

    name: str
    a: tuple[str, ...]
    b: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)


def collect(found: Iterable[tuple[str, Any]]) -> list[Series]:
    """found: (path, dataset without pixels). Localizers, derived pictures and other modalities are left out;
    an instance that lies there twice counts once."""
    series: dict[str, Series] = {}
    for path, dataset in found:
        modality = MODALITY.get(str(dataset.get("Modality")))
        kind = [str(value) for value in dataset.get("ImageType", None) or []]
        if modality is None or "LOCALIZER" in kind or kind[:2] == ["DERIVED", "SECONDARY"]:
            continue
        uid = str(dataset.get("SeriesInstanceUID", ""))
        frame = str(dataset.get("FrameOfReferenceUID", ""))
        parts = [str(dataset.get(key, "")) for key in ("PatientID", "IssuerOfPatientID", "StudyInstanceUID")]
        key = hashlib.sha256("\0".join([*parts, frame]).encode()).hexdigest()[:12]
        # A series whose instances name two patients or two frames becomes two: neither is paired unseen.
        one = series.setdefault(
            f"{uid}/{key}/{modality}",
            Series(uid, modality, key, frame, int(dataset.get("SeriesNumber") or 0)),
        )
        one.paths.setdefault(str(dataset.get("SOPInstanceUID", path)), path)
    return sorted(series.values(), key=lambda one: (one.key, one.modality, one.number, one.uid))


def pair(series: list[Series]) -> tuple[list[Case], list[str]]:
    """(cases, why the rest is not paired). Every CT, PET and SPECT goes with the MRI of its group that has
    the most slices (of equals the first by number)."""
    cases, left = [], []
    for key in sorted({one.key for one in series}):
        group = [one for one in series if one.key == key]
        mri = sorted((one for one in group if one.modality == "mri"), key=lambda one: -len(one.paths))
        others = [one for one in group if one.modality != "mri"]
        for one in others:
            if not one.frame:
                left.append(f"{one.modality} series {one.tag}: no frame of reference")
            elif not mri:
                left.append(
                    f"{one.modality} series {one.tag}: no MRI of its patient, study and frame of reference"
                )
            else:
                name = f"{key}_{mri[0].tag}_{one.modality}_{one.tag}"
                a, b = (tuple(sorted(x.paths.values())) for x in (mri[0], one))
                cases.append(Case(name, a, b))
        for one in mri if not others else mri[1:]:
            why = "no partner" if not others else "another MRI of its group has more slices"
            left.append(f"mri series {one.tag}: {why}")
    return cases, left
