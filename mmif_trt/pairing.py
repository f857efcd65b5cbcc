"""Which DICOM series belong together: one patient, one study, one frame of reference, an MRI and another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mmif_trt import pseudonym
from mmif_trt.io.dicom_values import MODALITY

# What pairing asks of a header (see console/decoder.py, which reads them in a child process).
KEYS = (
    "PatientID",
    "IssuerOfPatientID",
    "StudyInstanceUID",
    "FrameOfReferenceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "Modality",
    "SOPInstanceUID",
    "ImageType",
)


@dataclass
class Series:
    """One series as it lies on disk. key: pseudonym of patient, study and frame of reference; tag: of the
    series. group: what key stands for: never in a name or a message."""

    uid: str
    modality: str  # mri, ct, pet or spect
    group: str
    key: str
    tag: str
    frame: str
    number: int
    paths: dict[str, str] = field(default_factory=dict)  # SOP Instance UID -> file


@dataclass(frozen=True)
class Case:
    """One fusion to be made. a, b: files (or one folder or file each)."""

    name: str
    a: tuple[str, ...]
    b: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)


def collect(found: Iterable[tuple[str, Any]], secret: bytes) -> list[Series]:
    """found: (path, header: a dict of KEYS). secret: the key of the pseudonyms. Localizers, derived pictures
    and other modalities are left out; an instance that lies there twice counts once.

    In the order of patient and study: the same on every machine, whatever the key."""
    series: dict[str, Series] = {}
    for path, dataset in found:
        modality = MODALITY.get(str(dataset.get("Modality")))
        kind = [str(value) for value in dataset.get("ImageType", None) or []]
        if modality is None or "LOCALIZER" in kind or kind[:2] == ["DERIVED", "SECONDARY"]:
            continue
        uid = str(dataset.get("SeriesInstanceUID", ""))
        frame = str(dataset.get("FrameOfReferenceUID", ""))
        parts = [str(dataset.get(key, "")) for key in ("PatientID", "IssuerOfPatientID", "StudyInstanceUID")]
        group = "\0".join([*parts, frame])
        # A series whose instances name two patients or two frames becomes two: neither is paired unseen.
        one = series.get(f"{uid}/{group}/{modality}")
        if one is None:
            key, tag = pseudonym.name_of(secret, group, 12), pseudonym.name_of(secret, uid, 8)
            one = Series(uid, modality, group, key, tag, frame, _number(dataset.get("SeriesNumber")))
            series[f"{uid}/{group}/{modality}"] = one
        one.paths.setdefault(str(dataset.get("SOPInstanceUID", path)), path)
    return sorted(series.values(), key=lambda one: (one.group, one.modality, one.number, one.uid))


def _number(value: Any) -> int:
    try:
        return int(value or 0)
    except (TypeError, ValueError):
        return 0


def pair(series: list[Series]) -> tuple[list[Case], list[str]]:
    """(cases, why the rest is not paired). Every CT, PET and SPECT goes with the MRI of its group that has
    the most slices (of equals the first by number)."""
    cases, left = [], []
    for key in dict.fromkeys(one.key for one in series):
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
