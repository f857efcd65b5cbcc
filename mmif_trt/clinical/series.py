"""Which DICOM series belong together: one patient, one study, an MRI and another, in one frame of reference,
in two that a Spatial Registration of the study ties, or in any two where the pair is to be registered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mmif_trt.clinical import pseudonym
from mmif_trt.clinical.case import Case
from mmif_trt.io.dicom.values import MODALITY

# What pairing asks of a header (see clinical/decoder.py, which reads them in a child process).
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
    "ContentDate",
    "ContentTime",
)
TIED = "TiedFrames"  # beside KEYS: the frames that a Spatial Registration ties together


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

    @property
    def study(self) -> str:
        """Patient and study, of the group."""
        return self.group.rsplit("\0", 1)[0]


@dataclass(frozen=True)
class Tie:
    """A Spatial Registration of a study. when: its content date and time."""

    study: str
    frames: frozenset[str]
    when: str
    path: str


def collect(found: Iterable[tuple[str, Any]], secret: bytes) -> tuple[list[Series], list[Tie]]:
    """found: (path, header: a dict of KEYS and TIED). secret: the key of the pseudonyms. Localizers, derived
    pictures and other modalities are left out; an instance that lies there twice counts once.

    Series in the order of patient and study, the same on every machine, whatever the key; of ties the newest
    first."""
    series: dict[str, Series] = {}
    ties: list[Tie] = []
    for path, dataset in found:
        parts = [str(dataset.get(key, "")) for key in ("PatientID", "IssuerOfPatientID", "StudyInstanceUID")]
        if tied := dataset.get(TIED):
            when = f"{dataset.get('ContentDate', '')} {dataset.get('ContentTime', '')}"
            ties.append(Tie("\0".join(parts), frozenset(tied), when, path))
            continue
        modality = MODALITY.get(str(dataset.get("Modality")))
        kind = [str(value) for value in dataset.get("ImageType", None) or []]
        if modality is None or "LOCALIZER" in kind or kind[:2] == ["DERIVED", "SECONDARY"]:
            continue
        uid = str(dataset.get("SeriesInstanceUID", ""))
        frame = str(dataset.get("FrameOfReferenceUID", ""))
        group = "\0".join([*parts, frame])
        # A series whose instances name two patients or two frames becomes two: neither is paired unseen.
        one = series.get(f"{uid}/{group}/{modality}")
        if one is None:
            key, tag = pseudonym.name_of(secret, group, 12), pseudonym.name_of(secret, uid, 8)
            one = Series(uid, modality, group, key, tag, frame, _number(dataset.get("SeriesNumber")))
            series[f"{uid}/{group}/{modality}"] = one
        one.paths.setdefault(str(dataset.get("SOPInstanceUID", path)), path)
    ordered = sorted(series.values(), key=lambda one: (one.group, one.modality, one.number, one.uid))
    return ordered, sorted(ties, key=lambda tie: (tie.when, tie.path), reverse=True)


def _number(value: Any) -> int:
    try:
        return int(value or 0)
    except (TypeError, ValueError):
        return 0


def pair(series: list[Series], ties: list[Tie], across: bool = False) -> tuple[list[Case], list[str]]:
    """(cases, why the rest is not paired). Every CT, PET and SPECT goes with one MRI of its patient and
    study: of its frame of reference; else of a frame that a tie leads to; else, across, of any. Of several
    that with the most slices (of equals the first by number)."""
    cases, left, used = [], [], set[str]()
    for study in dict.fromkeys(one.study for one in series):
        members = [one for one in series if one.study == study]
        mri = sorted((one for one in members if one.modality == "mri"), key=lambda one: -len(one.paths))
        known = [tie for tie in ties if tie.study == study]
        parts = Counter(one.uid for one in members)  # a series whose instances disagree is several here
        for one in (x for x in members if x.modality != "mri"):
            whole = [x for x in mri if parts[one.uid] == parts[x.uid] == 1]
            partner, registration = _partner(one, mri, whole, known, across)
            if partner is None:
                frame = "no MRI of its patient, study and frame of reference"
                why = frame if one.frame else "no frame of reference"
                left.append(f"{one.modality} series {one.tag}: {why}")
                continue
            used |= {partner.uid, partner.key}
            name = f"{partner.key}_{partner.tag}_{one.modality}_{one.tag}"
            a, b = (tuple(sorted(x.paths.values())) for x in (partner, one))
            cases.append(Case(name, a, b, registration=registration))
        for one in (x for x in mri if x.uid not in used):
            why = "another MRI of its group has more slices" if one.key in used else "no partner"
            left.append(f"mri series {one.tag}: {why}")
    return cases, left


def _partner(
    one: Series, mri: list[Series], whole: list[Series], ties: list[Tie], across: bool
) -> tuple[Series | None, str]:
    """The MRI for a series, and the file of the tie between them, where it is one that leads there. whole: of
    the MRI those that may be paired across frames."""
    for other in mri:
        if one.frame and other.frame == one.frame:
            return other, ""
    for tie in ties:
        for other in whole:
            if one.frame and other.frame and {one.frame, other.frame} <= tie.frames:
                return other, tie.path
    return (whole[0], "") if across and whole else (None, "")
