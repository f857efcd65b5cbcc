"""The study's configuration: one JSON file, every entry checked before a picture is read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmif_trt.files import read_regular
from mmif_trt.image import MODALITIES, InputError
from mmif_trt.study.plan import PAIRED, SCALE

MAX_READERS, MAX_METHODS = 500, 20
QUESTION = "Which fused picture would you rather work with?"


@dataclass(frozen=True)
class Scale:
    """A five-point scale: its heading and the words of 1 to 5, worst first."""

    title: str
    anchors: tuple[str, str, str, str, str]


SCALES = {
    "detail": Scale(
        "Anatomical detail",
        ("lost", "mostly lost", "partly kept", "mostly kept", "kept as in the MRI"),
    ),
    "colour": Scale(
        "Colour, or the bone of a CT",
        ("misleading", "much changed", "changed in parts", "nearly faithful", "faithful to the source"),
    ),
    "lesion": Scale(
        "Conspicuity of the finding",
        ("not visible", "barely visible", "visible on search", "clearly visible", "visible at once"),
    ),
    "artefacts": Scale(
        "Artefacts",
        ("unusable", "disturbing", "noticeable", "slight", "none"),
    ),
    "confidence": Scale(
        "Diagnostic confidence",
        ("none", "low", "moderate", "high", "very high"),
    ),
}


@dataclass(frozen=True)
class Set:
    """Cases of one modality. sources holds mri/ and the modality's folder; methods: name -> fused folder."""

    modality: str
    sources: Path
    methods: dict[str, Path]


@dataclass(frozen=True)
class Config:
    """readers: personal links. repeats: share from 0 to 0.5. items: of a kind a reader at
    most. window: "fixed", or "logged" (readers may change it, and the answer keeps it). too_fast_s:
    seconds.
    """

    title: str
    sets: list[Set]
    readers: int
    repeats: float = 0.1
    seed: int = 0
    paired: bool = True
    question: str = QUESTION
    scales: list[str] = field(default_factory=list)
    items: int | None = None
    window: str = "fixed"
    too_fast_s: float = 1.0
    value_range: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def kinds(self) -> tuple[str, ...]:
        return (PAIRED,) * self.paired + (SCALE,) * bool(self.scales)

    @property
    def methods(self) -> list[str]:
        return list(self.sets[0].methods)

    def shown(self) -> dict[str, Any]:
        """The parts that pages and analysis need, without the folders."""
        names = (
            "title",
            "question",
            "paired",
            "scales",
            "window",
            "too_fast_s",
            "repeats",
            "seed",
            "readers",
        )
        return {name: getattr(self, name) for name in names}


REQUIRED = {"title": str, "sets": list, "readers": int}
OPTIONAL = {
    "repeats": (int, float),
    "seed": int,
    "paired": bool,
    "question": str,
    "scales": list,
    "items": int,
    "window": str,
    "too_fast_s": (int, float),
    "value_range": dict,
}

KINDS: dict[Any, str] = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    (int, float): "a number",
}


def read_config(path: str | Path) -> Config:
    """The configuration in a JSON file; its folders are relative to it. Raises InputError for anything
    else."""
    try:
        found = json.loads(read_regular(path).decode())
        json.dumps(found, ensure_ascii=False).encode()  # \ud800 alone is JSON, but no text
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; expected a study's JSON configuration") from None
    except UnicodeEncodeError as error:
        letter = error.object[error.start]
        raise InputError(f"{path}: {letter!r} in a text, half a letter; expected names in UTF-8") from None
    except ValueError as error:
        raise InputError(f"{path}: {error}; expected JSON in UTF-8") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: {_kind(found)}; expected a JSON object")
    known = REQUIRED | OPTIONAL
    if lacking := REQUIRED.keys() - found:
        raise InputError(f"{path}: lacks {', '.join(sorted(lacking))}; required are {', '.join(REQUIRED)}")
    for name, value in found.items():
        if name not in known:
            raise InputError(f"{path}: unknown key {name!r}; expected {', '.join(known)}")
        kind: Any = known[name]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise InputError(f"{path}: {name} is {_kind(value)}; expected {KINDS[kind]}")
    ranges = {name: _range(path, name, value) for name, value in found.pop("value_range", {}).items()}
    sets = [_set(path, i, entry) for i, entry in enumerate(found.pop("sets"))]
    config = Config(sets=sets, value_range=ranges, **found)
    _check(path, config)
    return config


def _check(path: str | Path, config: Config) -> None:
    def require(holds: bool, name: str, received: object, expected: str) -> None:
        if not holds:
            raise InputError(f"{path}: {name} {received}; expected {expected}")

    require(bool(config.sets), "sets", "is empty", "one set or more")
    require(1 <= config.readers <= MAX_READERS, "readers", config.readers, f"1 to {MAX_READERS}")
    require(0 <= config.repeats <= 0.5, "repeats", config.repeats, "a share from 0 to 0.5")
    require(config.items is None or config.items >= 2, "items", config.items, "2 or more")
    require(config.window in ("fixed", "logged"), "window", repr(config.window), "fixed or logged")
    require(0 <= config.too_fast_s <= 60, "too_fast_s", config.too_fast_s, "0 to 60 seconds")
    require(0 < len(config.title) <= 200, "title", repr(config.title[:20]), "1 to 200 characters")
    require(bool(config.kinds), "paired", "false without scales", "true, or scales")
    for scale in config.scales:
        require(
            isinstance(scale, str) and scale in SCALES, "scales", repr(scale), f"any of {', '.join(SCALES)}"
        )
    require(len(set(config.scales)) == len(config.scales), "scales", config.scales, "each scale once")
    for other in config.sets:
        names = sorted(other.methods)
        require(2 <= len(names) <= MAX_METHODS, "methods", names, f"2 to {MAX_METHODS} methods")
        taken = [name for name in names if name in ("mri", "other", "equal", "")]
        require(not taken, "methods", taken, "names other than mri, other and equal")
        require(names == sorted(config.methods), "methods", names, f"the same in every set, {config.methods}")


def _set(path: str | Path, index: int, entry: Any) -> Set:
    where = f"{path}: sets[{index}]"
    keys = {"modality", "sources", "methods"}
    if not isinstance(entry, dict) or entry.keys() != keys:
        received = ", ".join(sorted(entry)) if isinstance(entry, dict) else _kind(entry)
        raise InputError(f"{where}: {received}; expected an object of modality, sources and methods")
    if entry["modality"] not in MODALITIES[1:]:
        raise InputError(f"{where}.modality: {entry['modality']!r}; expected {', '.join(MODALITIES[1:])}")
    methods = entry["methods"]
    if not isinstance(methods, dict) or not all(
        isinstance(v, str) for v in [entry["sources"], *methods.values()]
    ):
        received = f"sources {_kind(entry['sources'])}, methods {_kind(methods)}"
        raise InputError(
            f"{where}: {received}; expected sources as the text of a folder, and methods as an object of "
            "name: folder"
        )
    folder = Path(path).parent
    named = {name: folder / where_it_lies for name, where_it_lies in methods.items()}
    return Set(entry["modality"], folder / entry["sources"], named)


def _range(path: str | Path, name: str, value: Any) -> tuple[float, float]:
    if name not in (*MODALITIES, "fused"):
        raise InputError(f"{path}: value_range.{name}; expected {', '.join(MODALITIES)}, fused")
    numbers = isinstance(value, list) and len(value) == 2 and all(isinstance(v, int | float) for v in value)
    if not numbers or not value[0] < value[1]:
        raise InputError(f"{path}: value_range.{name} {value}; expected [black, white], black < white")
    return float(value[0]), float(value[1])


def _kind(value: Any) -> str:
    return "null" if value is None else KINDS[type(value)]
