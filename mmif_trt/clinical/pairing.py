"""Which DICOM series belong together: one patient, one study, an MRI and another, in one frame of reference,
in two that a Spatial Registration of the study ties, or in any two where the pair is to be registered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmif_trt.clinical import choice, keys, pseudonym
from mmif_trt.clinical.case import Case
from mmif_trt.clinical.series import PLACE, Series
from mmif_trt.io.dicom.objects import is_localizer
from mmif_trt.io.dicom.values import MODALITY

STUDY = ("PatientID", "IssuerOfPatientID", "StudyInstanceUID")
SHARED = "instances of several patients or studies bear its UID: not fused"


@dataclass(frozen=True)
class Tie:
    """A Spatial Registration of a study. when: its content date and time."""

    study: str
    frames: frozenset[str]
    when: str
    path: str


@dataclass
class Found:
    """All series, in the order of patient and study, the same on every machine, whatever the key; ties, the
    newest first; left: what was left out and why, as text; others: how many instances of each kind were."""

    series: list[Series]
    ties: list[Tie]
    left: list[str]
    others: Counter[str] = field(default_factory=Counter)


def collect(found: Iterable[tuple[str, Any]], secret: bytes) -> Found:
    """found: (path, header: a dict of keys.py). secret: the key of the pseudonyms. Localizers and other
    modalities are left out; a duplicate instance counts once."""
    series: dict[str, Series] = {}
    places: dict[str, list[list[float]]] = {}
    ties: list[Tie] = []
    others: Counter[str] = Counter()
    for path, header in found:
        study = study_of(header)
        if tied := header.get(keys.TIED):
            when = f"{header.get('ContentDate', '')} {header.get('ContentTime', '')}"
            ties.append(Tie(study, frozenset(tied), when, path))
            continue
        modality = MODALITY.get(str(header.get("Modality")))
        kind = tuple(str(value) for value in header.get("ImageType", None) or [])
        if header.get(keys.NO_IMAGE) or modality is None or is_localizer(header):
            others[
                header.get(keys.NO_IMAGE) or ("localizer" if modality else "image of another modality")
            ] += 1
            continue
        frame = str(header.get("FrameOfReferenceUID", ""))
        group = f"{study}\0{frame}"
        # A series whose instances name two patients or two frames becomes two, and neither is paired
        # silently.
        name = f"{header.get('SeriesInstanceUID', '')}/{group}/{modality}"
        if name not in series:
            series[name] = _new(header, modality, group, frame, kind, secret)
            places[name] = []
        one = series[name]
        if one.paths.setdefault(str(header.get("SOPInstanceUID", path)), path) != path:
            one.copies += 1
            continue
        one.why = one.why or header.get(keys.WHY, "")
        places[name] += header.get(keys.PLACES, [])
    for name, one in series.items():
        one.places = np.array(places[name], float).reshape(-1, PLACE)
    ordered = sorted(series.values(), key=lambda one: (one.group, one.modality, one.number, one.uid))
    left = [f"{choice.words(one)}: {one.copies} copies of its instances" for one in ordered if one.copies]
    return Found(ordered, sorted(ties, key=lambda tie: (tie.when, tie.path), reverse=True), left, others)


def take_out(found: Found, shared: Container[str]) -> list[Series]:
    """Removes the series with these UIDs, some of whose instances belong to another patient or study: nothing
    says which of them are wrong, and the rest would be fused silently."""
    gone = [one for one in found.series if one.uid in shared]
    found.series = [one for one in found.series if one.uid not in shared]
    return gone


def study_of(header: Any) -> str:
    """Patient and study of one instance, as in Series.study: pairs are within one study."""
    return "\0".join(str(header.get(key, "")) for key in STUDY)


def _new(header: Any, modality: str, group: str, frame: str, kind: tuple[str, ...], secret: bytes) -> Series:
    uid = str(header.get("SeriesInstanceUID", ""))
    return Series(
        uid,
        modality,
        group,
        pseudonym.name_of(secret, group, 12),
        pseudonym.name_of(secret, uid, 8),
        frame,
        _number(header.get("SeriesNumber")),
        description=str(header.get("SeriesDescription", "")).strip(),
        sequence=str(header.get("SequenceName", "")),
        kind=kind,
        has_contrast=bool(header.get(keys.CONTRAST)),
    )


def _number(value: Any) -> int:
    try:
        return int(value or 0)
    except (TypeError, ValueError):
        return 0


def pair(found: Found, across: bool = False) -> tuple[list[Case], list[str]]:
    """(cases, what is left out and why). Every CT, PET and SPECT is paired with one MRI of its patient and
    study: in its frame of reference; otherwise in a frame that a tie leads to; otherwise, with across, in
    any. Among several, choice.best decides. A derived CT, PET or SPECT, or one of several volumes, yields to
    an original."""
    cases, left = list[Case](), list(found.left)
    for study in dict.fromkeys(one.study for one in found.series):
        members = [one for one in found.series if one.study == study]
        mri = [one for one in members if one.modality == "mri"]
        known = [tie for tie in found.ties if tie.study == study]
        parts = Counter(one.uid for one in members)  # a series whose instances disagree is several here
        chosen: dict[str, tuple[Series, Series]] = {}  # frame -> the last pair with an MRI of it
        used = set[tuple[str, str]]()
        for one in (x for x in members if x.modality != "mri"):
            if why := _yields(one, members):
                left.append(f"{choice.words(one)}: {why}")
                continue
            whole = [x for x in mri if parts[one.uid] == parts[x.uid] == 1]
            partner, why, registration = _partner(one, mri, whole, known, across)
            if partner is None:
                left.append(f"{choice.words(one)}: {why}")
                continue
            chosen[partner.frame] = (partner, one)
            used.add((partner.uid, partner.group))
            name = f"{partner.key}_{partner.tag}_{one.modality}_{one.tag}"
            a, b = (tuple(sorted(x.paths.values())) for x in (partner, one))
            words = f"{choice.words(partner)}, {why} + {choice.words(one)}"
            faults = [(x.modality, choice.fault(x)) for x in (partner, one)]
            words += "".join(f"; {kind} will be refused: {fault}" for kind, fault in faults if fault)
            uids = (partner.uid, one.uid)
            cases.append(Case(name, a, b, registration=registration, words=words, series=uids))
        for one in (x for x in mri if (x.uid, x.group) not in used):
            pair_of = chosen.get(one.frame)
            why = choice.why_not(one, *pair_of) if pair_of else "no partner"
            left.append(f"{choice.words(one)}: {why}")
    return cases, left


def _yields(one: Series, members: list[Series]) -> str:
    """Why a CT, PET or SPECT is not a case of its own, or ""."""
    if not one.images and "no geometry" in one.why:
        return one.why
    rivals = [x for x in members if x is not one and (x.modality, x.frame) == (one.modality, one.frame)]
    if not choice.is_one_volume(one) and one.images > 1 and any(choice.is_one_volume(x) for x in rivals):
        return "several volumes in one series; another of its modality is one volume"
    if one.is_derived and any(not x.is_derived and choice.is_one_volume(x) for x in rivals):
        return "derived; the original of its modality is fused"
    return ""


def _partner(
    one: Series, mri: list[Series], whole: list[Series], ties: list[Tie], across: bool
) -> tuple[Series | None, str, str]:
    """(the MRI for a series, the reason, the file of the tie between them); or None and why there is none.
    whole: the MRI that may be paired across frames."""
    if same := [other for other in mri if one.frame and other.frame == one.frame]:
        return *choice.best(same, one), ""
    for tie in ties:
        tied = [x for x in whole if one.frame and x.frame and {one.frame, x.frame} <= tie.frames]
        if tied:
            return *choice.best(tied, one), tie.path
    if across and whole:
        return *choice.best(whole, one), ""
    frame = "no MRI of its patient, study and frame of reference"
    return None, frame if one.frame else "no frame of reference", ""
