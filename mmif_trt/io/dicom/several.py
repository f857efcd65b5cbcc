"""Several volumes in one series: what varies between them, and the choice of one."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from mmif_trt.image import InputError
from mmif_trt.io.dicom.planes import Plane

SHOWN = 6  # volumes that a message lists
# Defined terms of Image Type and the complex component that a message may quote (PS3.3 C.8.3.1, C.8.13.3).
# fmt: off
KINDS = {
    "M", "P", "R", "I", "MAGNITUDE", "PHASE", "REAL", "IMAGINARY", "MIXED", "MAP", "ND", "NORM", "DIFFUSION",
    "ADC", "FA", "TRACEW", "NONE", "SE", "FFE", "IP", "OP", "WATER", "FAT", "IN", "DIXON", "MOSAIC", "DIS2D",
    "DIS3D", "AXIAL", "OTHER", "PHASEDIFF", "MEAN", "B0", "T1", "T2", "",
}
# fmt: on
Value = float | str | tuple[float, ...] | None


@dataclass(frozen=True)
class Part:
    """One of the volumes. words: what distinguishes it."""

    words: str
    planes: list[Plane]


def same_place_mm(step_mm: float) -> float:
    """How near two images of this pixel spacing are at one place: 0.01 mm, less in a micro-CT."""
    return min(0.01, step_mm / 10)


def choose(planes: list[Plane], number: int | None) -> tuple[list[Plane], tuple[str, ...]]:
    """(the planes of one volume, a note if it was chosen). number: which, from 1; None: there must be one.

    Raises InputError that says what varies, how often, and which volumes exist.
    """
    parts, found = _split(planes)
    if number is None:
        if len(parts) == 1:
            return planes, ()
        listed = "; ".join(
            f"{i}: {part.words} ({len(part.planes)})" for i, part in enumerate(parts[:SHOWN], 1)
        )
        more = f"; and {len(parts) - SHOWN} more" if len(parts) > SHOWN else ""
        raise InputError(
            f"{found}; expected one volume: choose by --volume-a or --volume-b N "
            f"(Python: read(path, volume=N); manifest: volume_a, volume_b) from {listed}{more}"
        )
    if not 1 <= number <= len(parts):
        raise InputError(f"volume {number} of {len(parts)}; expected 1 to {len(parts)}")
    chosen = parts[number - 1]
    if len(parts) == 1:
        return chosen.planes, ()
    return chosen.planes, (f"volume {number} of {len(parts)}: {chosen.words}",)


def _split(planes: list[Plane]) -> tuple[list[Part], str]:
    """The volumes, and why there are several."""
    grids = _by(planes, _grid)
    parts, words = list[Part](), list[str]()
    for number, group in enumerate(grids, 1):
        inner, why = _at_places(group)
        prefix = f"grid {number} of {len(grids)}" if len(grids) > 1 else ""
        parts += [Part(", ".join(x for x in (prefix, part.words) if x), part.planes) for part in inner]
        words += [why] if why else []
    if len(grids) > 1:
        words.insert(0, f"{_what_is_mixed(planes)}: {len(planes)} images in {len(grids)} grids")
    return parts, "; ".join(words[:3])


def _grid(plane: Plane) -> tuple[Any, ...]:
    return (*np.round(plane.axes, 2).tolist(), *np.round(plane.step_mm, 2).tolist(), *plane.size)


def _what_is_mixed(planes: list[Plane]) -> str:
    if len({tuple(np.round(plane.axes, 2)) for plane in planes}) > 1:
        return "mixed orientations (a localizer?)"
    if len({tuple(np.round(plane.step_mm, 2)) for plane in planes}) > 1:
        return "mixed pixel spacings"
    return f"slices of {len({plane.size for plane in planes})} sizes"


def _by(planes: list[Plane], key: Callable[[Plane], Any]) -> list[list[Plane]]:
    groups: dict[Any, list[Plane]] = {}
    for plane in planes:
        value = key(plane)
        near = next((other for other in groups if _near(other, value)), value)
        groups.setdefault(near, []).append(plane)
    return list(groups.values())


def _near(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return float(np.abs(np.subtract(one, other)).max()) <= 0.0101  # rounding must not separate equal values


def _at_places(planes: list[Plane]) -> tuple[list[Part], str]:
    """The volumes of images on one grid: one if all positions are distinct."""
    normal = np.cross(planes[0].axes[:3], planes[0].axes[3:])
    along = np.array([plane.position @ normal for plane in planes])
    order = np.argsort(along, kind="stable")
    places = np.empty(len(planes), int)
    apart = np.diff(along[order]) >= same_place_mm(planes[0].step_mm[0])
    places[order] = np.concatenate([[0], np.cumsum(apart)])
    counts = Counter(places.tolist())
    most = max(counts.values())
    if most == 1:
        return [Part("", planes)], ""
    names, values = _what_varies(planes, places, most)
    groups: dict[tuple[Value, ...], list[Plane]] = defaultdict(list)
    for plane, value in zip(planes, values, strict=True):
        groups[value].append(plane)
    parts = [
        Part(", ".join(_words(name, x) for name, x in zip(names, value, strict=True)), groups[value])
        for value in sorted(groups, key=_order)
    ]
    least = min(counts.values())
    each = f"{most}" if least == most else f"{least} to {most}"
    what = " and ".join(
        f"{name} {_range(sorted({value[i] for value in groups}, key=lambda x: _order((x,))))}"
        for i, name in enumerate(names)
    )
    return parts, f"{len(counts)} places with {each} images each (several slices at one place): {what}"


def _range(values: list[Value]) -> str:
    shown = [_plain(value) for value in values]
    return " and ".join(shown) if len(shown) <= 2 else f"{shown[0]} to {shown[-1]} ({len(shown)} values)"


def _order(value: tuple[Value, ...]) -> tuple[Any, ...]:
    return tuple(
        (x is not None, isinstance(x, str), x if isinstance(x, str | tuple) else 0, _real(x)) for x in value
    )


def _real(x: Value) -> float:
    return x if isinstance(x, float) else 0.0


def _plain(value: Value) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return "(" + " ".join(f"{x:g}" for x in value) + ")"
    if isinstance(value, str):  # never free text from a header
        return value if set(value.split("_")) <= KINDS else "another"
    return f"{value:g}"


def _words(name: str, value: Value) -> str:
    return f"{name} {_plain(value)}"


def _what_varies(
    planes: list[Plane], places: np.ndarray, most: int
) -> tuple[tuple[str, ...], list[tuple[Value, ...]]]:
    """(which of ATTRIBUTES distinguishes the images at one place, its value for every image).

    The one that gives complete volumes: each value once per place. One attribute before two; if none does,
    the order of the images at their place by instance and frame number.
    """
    table = {name: [_value(read, plane) for plane in planes] for name, read in ATTRIBUTES.items()}
    varying = [name for name, values in table.items() if len(set(values)) > 1]
    for size in (1, 2):
        for names in combinations(varying, size):
            values = list(zip(*(table[name] for name in names), strict=True))
            pairs = set(zip(places.tolist(), values, strict=True))
            if len(pairs) == len(planes) and len(set(values)) == most:
                return names, values
    ranks: dict[int, list[int]] = defaultdict(list)
    by_number = sorted(range(len(planes)), key=lambda i: (_instance(planes[i]), planes[i].frame))
    for i in by_number:
        ranks[int(places[i])].append(i)
    rank = {i: float(at + 1) for inside in ranks.values() for at, i in enumerate(inside)}
    return ("image at its place, by instance number",), [(rank[i],) for i in range(len(planes))]


def _instance(plane: Plane) -> int:
    try:
        return int(plane.dataset.get("InstanceNumber") or 0)
    except (TypeError, ValueError):
        return 0


def _value(read: Callable[[Plane], Any], plane: Plane) -> Value:
    try:
        found = read(plane)
        if found is None or found == "":
            return None
        if isinstance(found, str):
            return float(found) if found.isdecimal() else found
        if isinstance(found, Sequence) or hasattr(found, "__len__"):
            return tuple(round(float(x), 4) for x in found)
        return round(float(found), 4)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None


def _of(sequence: str, *keywords: str) -> Callable[[Plane], Any]:
    """The first of the keywords that a frame has."""
    return lambda plane: next(
        (x for key in keywords if (x := plane.look.get(sequence, key)) is not None), None
    )


def _private(group: int, creator: str, element: int) -> Callable[[Plane], Any]:
    return lambda plane: plane.dataset.private_block(group, creator)[element].value


def _b_value(plane: Plane) -> Any:
    standard = plane.look.get("MRDiffusionSequence", "DiffusionBValue")
    if standard is not None:
        return standard
    for read in (
        _private(0x0019, "SIEMENS MR HEADER", 0x0C),
        _private(0x2001, "Philips Imaging DD 001", 0x03),
        lambda plane: float(_private(0x0043, "GEMS_PARM_01", 0x39)(plane)[0]) % 1e6,  # some have 1e9 added
    ):
        found = _value(read, plane)
        if found is not None:
            return found
    return None


def _direction(plane: Plane) -> Any:
    inner = plane.look.get("MRDiffusionSequence", "DiffusionGradientDirectionSequence")
    if inner:
        return inner[0].DiffusionGradientOrientation
    standard = plane.dataset.get("DiffusionGradientOrientation")
    return standard if standard is not None else _private(0x0019, "SIEMENS MR HEADER", 0x0E)(plane)


def _kind(plane: Plane) -> Any:
    """M, P, R, I of Image Type (classic MR), or the complex component of an enhanced one."""
    component = plane.look.get("MRImageFrameTypeSequence", "ComplexImageComponent")
    types = list(
        plane.look.get("MRImageFrameTypeSequence", "FrameType") or plane.dataset.get("ImageType") or []
    )
    return "_".join([*([component] if component else []), *(str(x) for x in types[2:])])


ATTRIBUTES: dict[str, Callable[[Plane], Any]] = {
    "echo time (ms)": _of("MREchoSequence", "EffectiveEchoTime", "EchoTime"),
    "inversion time (ms)": _of("MRModifierSequence", "InversionTimes", "InversionTime"),
    "flip angle (degrees)": _of("MRTimingAndRelatedParametersSequence", "FlipAngle"),
    "b-value (s/mm2)": _b_value,
    "gradient direction": _direction,
    "time point": _of("FrameContentSequence", "TemporalPositionIndex", "TemporalPositionIdentifier"),
    "phase of the heart (%)": _of("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase"),
    "trigger time (ms)": _of(
        "CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime", "TriggerTime"
    ),
    "kind of image": _kind,
    "tube voltage (kV)": _of("CTXRayDetailsSequence", "KVP"),
    "stack": lambda plane: str(plane.look.get("FrameContentSequence", "StackID") or ""),
    "acquisition": lambda plane: plane.dataset.get("AcquisitionNumber"),
    "frame reference time (ms)": lambda plane: plane.dataset.get("FrameReferenceTime"),
    "acquisition time": lambda plane: float(plane.dataset.AcquisitionTime),
    "instance": lambda plane: plane.dataset.get("InstanceNumber"),
}
