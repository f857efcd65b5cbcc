"""What the stored values of a DICOM image mean: Hounsfield units, SUV by body weight, windows."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from mmif_trt.image import InputError

MODALITY = {"MR": "mri", "CT": "ct", "PT": "pet", "NM": "spect"}
# How many of Rescale Slope and Intercept the values of CT and PET need (type 1 in PS3.3 C.8.2.1, C.8.9.4).
RESCALED_BY, NOT_RESCALED = {"CT": 2, "PT": 1}, "not rescaled"
MIN_DOSE_BQ = 1e6  # less is not an adult dose, but one written in MBq, a known vendor fault
MAX_WEIGHT_KG = 500.0  # more must be in grams
MAX_DELAY_S = 86_400.0
# (7053,xx00): from rescaled counts to SUVbw; (7053,xx09): to Bq/ml, if the first is missing (QIBA).
PHILIPS, PHILIPS_GROUP, PHILIPS_SUV, PHILIPS_BQML = "Philips PET Private Group", 0x7053, 0x00, 0x09
ONE_OF = ("Units", "SUVType", "DecayCorrection", "PatientWeight")  # of a PET series


# Defined terms that a message may quote (PS3.3 C.8.9.1, C.11.1.1.2); any other text may identify a patient.
# fmt: off
TERMS = {
    "HU", "US", "OD", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT", "CNTS", "NONE", "CM2", "CM2ML", "PCNT",
    "CPS", "BQML", "MGMINML", "UMOLMINML", "MLMING", "MLG", "1CM", "UMOLML", "PROPCNTS", "PROPCPS",
    "MLMINML", "GML", "STDDEV", "BW", "LBM", "BSA", "LBMJAMES128", "LBMJANMA", "IBW", "START", "ADMIN",
}
# fmt: on


def term(value: Any) -> str:
    """A value as a message may show it."""
    text = str(value or "")
    return text if text in TERMS else "not a defined term" if text else "missing"


def units(datasets: list[Any], rescaled: str) -> tuple[str | None, float, tuple[str, ...]]:
    """(units, factor to apply to the rescaled values, notes) of one series. rescaled: its Rescale Type, see
    planes.meaning; "" if the header has none.

    CT: HU, unless Rescale Type says otherwise. PET: SUVbw if it can be computed by the rules of the QIBA
    FDG-PET/CT profile, otherwise the stored unit, with a note that says why. Others: None, arbitrary.
    """
    dataset = datasets[0]
    modality = dataset.get("Modality")
    varying = [word for word in ONE_OF if len({str(x.get(word)) for x in datasets}) > 1]
    if modality == "PT" and varying:
        raise InputError(f"slices that differ in {', '.join(varying)}; expected one PET series")
    if rescaled == NOT_RESCALED:
        what = (
            "CT without Rescale Slope and Intercept: HU"
            if modality == "CT"
            else "PET without Rescale Slope: SUVbw"
        )
        return None, 1.0, (f"{what} cannot be computed",)
    if modality == "CT":
        kind = rescaled or "HU"
        return (
            ("HU", 1.0, ())
            if kind == "HU"
            else (None, 1.0, (f"CT values of Rescale Type {term(kind)}, not HU",))
        )
    if modality != "PT":
        return None, 1.0, ()
    stored = str(dataset.get("Units", "") or "")
    if stored == "GML":
        kind = dataset.get("SUVType", "BW") or "BW"
        return (
            ("SUVbw", 1.0, ())
            if kind == "BW"
            else (None, 1.0, (f"SUV of type {term(kind)}, not body weight",))
        )
    to_bqml, notes = 1.0, tuple[str, ...]()
    if stored == "CNTS":
        factor = _philips_factor(datasets, PHILIPS_SUV)
        if factor is not None:
            return "SUVbw", factor, ("SUVbw by Philips's private factor",)
        to_bqml = _philips_factor(datasets, PHILIPS_BQML) or 0.0
        if not to_bqml:
            return None, 1.0, ("PET counts without a calibration: SUVbw cannot be computed",)
        notes = ("Bq/ml by Philips's private factor",)
    elif stored != "BQML":
        return None, 1.0, (f"PET units {term(stored)}; SUVbw is computed from BQML",)
    try:
        return "SUVbw", to_bqml * suv_factor(datasets), notes
    except InputError as error:
        return "BQML", to_bqml, (*notes, str(error))


def suv_factor(datasets: list[Any]) -> float:
    """g/ml for 1 Bq/ml: weight_g / (dose decayed to the time to which the image is corrected).

    Decay Correction START: images are corrected to the scan's start, which is the series time, or the first
    acquisition time if post-processing gave the series a later one. ADMIN: corrected to the injection, with
    the full dose. Raises InputError (without patient values) if the header does not allow SUVbw.
    """
    dataset = datasets[0]
    corrected = {str(item) for item in _values(dataset.get("CorrectedImage"))}
    if missing := {"ATTN", "DECY"} - corrected:
        raise InputError(f"Corrected Image lacks {' and '.join(sorted(missing))}: no SUVbw")
    doses = dataset.get("RadiopharmaceuticalInformationSequence") or []
    if len(doses) != 1:
        raise InputError(f"{len(doses)} radiopharmaceuticals: no SUVbw; expected one")
    weight_kg = _number(dataset, "PatientWeight", "Patient's Weight")
    dose_bq = _number(doses[0], "RadionuclideTotalDose", "Radionuclide Total Dose")
    half_life_s = _number(doses[0], "RadionuclideHalfLife", "Radionuclide Half Life")
    if weight_kg > MAX_WEIGHT_KG:
        raise InputError("Patient's Weight over 500 kg (grams?): no SUVbw")
    if dose_bq < MIN_DOSE_BQ:
        raise InputError("Radionuclide Total Dose under 1e6 Bq (written in MBq?): no SUVbw")
    kind = dataset.get("DecayCorrection")
    if kind == "ADMIN":
        return weight_kg * 1000 / dose_bq
    if kind != "START":
        raise InputError(f"Decay Correction {term(kind)}: no SUVbw; expected START or ADMIN")
    start = min(_scan_start(one) for one in datasets)
    delay_s = (start - _injection(start, doses[0], dataset)).total_seconds()
    if not 0 <= delay_s <= MAX_DELAY_S:
        raise InputError("the scan starts before the injection or over a day after it: no SUVbw")
    return weight_kg * 1000 / (dose_bq * 2 ** (-delay_s / half_life_s))


def _scan_start(dataset: Any) -> datetime:
    series = _moment(dataset.get("SeriesDate"), dataset.get("SeriesTime"))
    acquired = _moment(dataset.get("AcquisitionDate"), dataset.get("AcquisitionTime"))
    if series is None and acquired is None:
        raise InputError("neither a series nor an acquisition time: no SUVbw")
    return min(moment for moment in (series, acquired) if moment is not None)


def _injection(start: datetime, dose: Any, dataset: Any) -> datetime:
    """When the tracer was given, by the clock of the scan's times."""
    stamp = str(dose.get("RadiopharmaceuticalStartDateTime") or "").strip()
    clock = re.split("[+-]", stamp)[0]
    moment = _moment(clock[:8], clock[8:]) if len(clock) >= 12 else None
    theirs, ours = _offset(stamp[len(clock) :]), _offset(dataset.get("TimezoneOffsetFromUTC"))
    if moment is not None and theirs is not None and ours is not None:
        moment += ours - theirs
    # Time only: the day of the scan, or the day before if that would be later than the scan.
    if moment is None:
        moment = _moment(start.strftime("%Y%m%d"), dose.get("RadiopharmaceuticalStartTime"))
        if moment is not None and moment > start:
            moment -= timedelta(days=1)
    if moment is None:
        raise InputError("no time of injection: no SUVbw")
    return moment


def _offset(value: Any) -> timedelta | None:
    """+0100 as an hour (PS3.5 6.2, VR DT); None where it is not stated."""
    found = re.fullmatch(r"([+-])(\d\d)(\d\d)", str(value or "").strip())
    if found is None:
        return None
    return timedelta(hours=int(found[2]), minutes=int(found[3])) * (-1 if found[1] == "-" else 1)


def _moment(date: Any, time: Any) -> datetime | None:
    date, time = str(date or ""), str(time or "")
    try:
        day, clock = datetime.strptime(date, "%Y%m%d"), float(time[4:] or 0)
        return day + timedelta(hours=int(time[:2]), minutes=int(time[2:4] or 0), seconds=clock)
    except ValueError:
        return None


def _number(dataset: Any, keyword: str, words: str) -> float:
    try:
        number = float(dataset.get(keyword))
    except (TypeError, ValueError):
        number = 0.0
    if not (np.isfinite(number) and number > 0):
        raise InputError(f"{words} is missing or not above 0: no SUVbw")
    return number


def _philips_factor(datasets: list[Any], element: int) -> float | None:
    """The private factor if every slice has it, and the same one, otherwise InputError. Some write 0 for
    "none"."""
    found = set()
    for dataset in datasets:
        try:
            found.add(float(dataset.private_block(PHILIPS_GROUP, PHILIPS)[element].value))
        except (KeyError, TypeError, ValueError):
            return None
    if len(found) > 1:
        raise InputError("slices of several private SUV factors; expected one PET series")
    factor = found.pop()
    return factor if np.isfinite(factor) and factor > 0 else None


def _values(value: Any) -> list[Any]:
    """A DICOM value of any multiplicity as a list."""
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str | float | int) else list(value)


def window(dataset: Any) -> tuple[float, float] | None:
    """Black and white of the first window (PS3.3 C.11.2.1.2), in rescaled values; None without one."""
    try:
        centre = float(_values(dataset.get("WindowCenter"))[0])
        width = float(_values(dataset.get("WindowWidth"))[0])
    except (IndexError, TypeError, ValueError):
        return None
    if not (np.isfinite([centre, width]).all() and width > 1):
        return None
    if dataset.get("VOILUTFunction") == "LINEAR_EXACT":  # C.11.2.1.3.2
        return centre - width / 2, centre + width / 2
    # LINEAR: from centre - 0.5 - (width - 1) / 2 to centre - 0.5 + (width - 1) / 2.
    return centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
