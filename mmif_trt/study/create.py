"""`mmif-trt study create`: check every picture, re-encode it under a random name, draw the readers'
orders.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mmif_trt import __version__, io
from mmif_trt.files import read_regular, write_atomic
from mmif_trt.image import SHOWN, Image, InputError
from mmif_trt.measure.scores import DIM_MAX, match_folders, source_folders
from mmif_trt.stages.normalise import as_rgb8
from mmif_trt.study.config import Config, Set
from mmif_trt.study.plan import Used, reader_items
from mmif_trt.study.store import FILE, initialise, insert_items, token_hash
from mmif_trt.study.volumes import are_volumes, volumes_of

LINKS = "links.csv"


@dataclass(frozen=True)
class Case:
    name: str
    modality: str
    paths: dict[str, str]  # "mri", "other", then methods


def create(config: Config, folder: str | Path, warn: Callable[[str], Any] = lambda text: None) -> list[str]:
    """Makes the study folder, all or nothing; returns the readers' tokens, which it stores only in
    links.csv. warn: called with a line for each folder of pictures that readers would see as nearly black.

    Raises InputError for a folder that exists, a missing or unreadable picture, names or sizes that differ,
    a set that is not of its modality, and a full disk.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: exists; expected a new folder for the study")
    cases = [case for one in config.sets for case in _cases(one)]
    _check_names(cases)
    building = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        building.mkdir(parents=True, mode=0o700)  # the database has the readers' answers
        tokens = _fill(building, config, cases, warn)
        if folder.exists():
            folder.rmdir()
        building.rename(folder)
    except (OSError, sqlite3.Error) as error:
        if isinstance(error, InputError):
            raise
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{folder}: cannot be made ({why}); expected a folder with room") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return tokens


def _cases(one: Set) -> list[Case]:
    sources = list(source_folders(one.sources))
    if sources[1].name != one.modality:
        raise InputError(
            f"{one.sources}: holds {sources[1].name}/; expected {one.modality}/, the set's modality"
        )
    for method, fused in one.methods.items():
        if not fused.is_dir():
            raise InputError(f"{fused}: no such folder; expected the folder of {method}'s fused pictures")
    keys = ("mri", "other", *one.methods)
    matched = match_folders([*sources, *one.methods.values()])
    return [Case(name, one.modality, dict(zip(keys, paths, strict=True))) for name, *paths in matched]


def _check_names(cases: list[Case]) -> None:
    """Each case has a name of its own, by which the analysis knows it; SQLite keeps UTF-8 only."""
    seen: dict[tuple[str, str], Case] = {}
    for case in cases:
        try:
            case.name.encode()
        except UnicodeEncodeError:
            name = os.fsencode(case.paths["mri"]).decode(errors="backslashreplace")
            raise InputError(f"{name}: a name that is not UTF-8; expected one that is") from None
        before = seen.setdefault((case.modality, case.name), case)
        if before is not case:
            two = f"{before.paths['mri']} and {case.paths['mri']}"
            raise InputError(
                f"{two}: two {SHOWN[case.modality]} cases named {case.name}; expected a different name for "
                "each case of a modality, over all sets"
            )


def _fill(folder: Path, config: Config, cases: list[Case], warn: Callable[[str], Any]) -> list[str]:
    db = initialise(folder / FILE)
    try:
        db.execute("BEGIN")
        volumes = are_volumes([path for case in cases for path in case.paths.values()])
        meta = {**config.shown(), "created": _now(), "mmif_trt": __version__, "cases": len(cases)}
        meta["volumes"] = volumes
        db.executemany(
            "INSERT INTO meta VALUES (?,?)", [(key, json.dumps(value)) for key, value in meta.items()]
        )
        db.executemany("INSERT INTO method VALUES (?,?)", list(enumerate(config.methods, 1)))
        brightest: dict[tuple[Path, str], int] = {}
        for number, case in enumerate(cases, 1):
            files = volumes_of(case.paths, case.modality, config.value_range) if volumes else None
            if files is None:
                pictures = _pictures(db, case, config, brightest)
            else:
                pictures = _insert_volumes(db, case, files)
            _insert_case(db, number, case, config, pictures)
        for (where, kind), most in brightest.items():
            if most <= DIM_MAX:
                warn(
                    f"{where}: 16-bit pictures, none above {most} of 65535, are nearly black to "
                    f'readers; for 12-bit data state "value_range": {{"{kind}": [0, 4095]}}'
                )
        used: Used = Counter()
        tokens = [secrets.token_urlsafe(24) for _ in range(config.readers)]
        for reader, token in enumerate(tokens, 1):
            db.execute("INSERT INTO reader VALUES (?,?)", (reader, token_hash(token)))
            items = reader_items(
                config.seed,
                reader,
                cases=len(cases),
                methods=len(config.methods),
                kinds=config.kinds,
                repeats=config.repeats,
                most=config.items,
                used=used,
            )
            insert_items(db, reader, items)
        db.execute("COMMIT")
    finally:
        db.close()
    text = "reader,link\n" + "".join(f"{i},/enter/{token}\n" for i, token in enumerate(tokens, 1))
    write_atomic(folder / LINKS, text.encode())
    for name in (LINKS, FILE):
        os.chmod(folder / name, 0o600)
    return tokens


def _insert_case(
    db: sqlite3.Connection, number: int, case: Case, config: Config, pictures: dict[str, int]
) -> None:
    row = (number, f"{case.modality}/{case.name}", case.modality, pictures.pop("mri"), pictures.pop("other"))
    db.execute("INSERT INTO cases VALUES (?,?,?,?,?)", row)
    for number_of, method in enumerate(config.methods, 1):  # by name: each set has its own order
        db.execute("INSERT INTO fused VALUES (?,?,?)", (number, number_of, pictures[method]))


def _pictures(
    db: sqlite3.Connection, case: Case, config: Config, brightest: dict[tuple[Path, str], int]
) -> dict[str, int]:
    """brightest: by folder and kind, the most that pictures of 16 bit without a stated range reach."""
    pictures = {}
    size: tuple[int, int] | None = None
    for key, path in case.paths.items():
        image = io.read(path)
        kind = {"mri": "mri", "other": case.modality}.get(key, "fused")
        if kind in config.value_range:
            image = replace(image, value_range=config.value_range[kind])
        elif image.data.dtype.name == "uint16":
            place = (Path(path).parent, kind)
            brightest[place] = max(brightest.get(place, 0), int(image.data.max()))
        if size is not None and image.size != size:
            sizes = ["{} x {} px".format(*pair) for pair in (image.size, size)]
            raise InputError(f"{path}: {sizes[0]}; expected the size of {case.paths['mri']}, {sizes[1]}")
        size = image.size
        # Only pixels, as 8-bit RGB: neither metadata nor the file type may reveal a method.
        png = io.FORMATS[".png"].encode(Image(as_rgb8(image), source="picture"))
        pictures[key] = _insert_picture(db, png, path)
    return pictures


def _insert_volumes(db: sqlite3.Connection, case: Case, files: dict[str, bytes]) -> dict[str, int]:
    return {key: _insert_picture(db, data, case.paths[key]) for key, data in files.items()}


def _insert_picture(db: sqlite3.Connection, data: bytes, path: str) -> int:
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    row = (secrets.token_hex(16), data, digest)
    number = db.execute("INSERT INTO picture VALUES (NULL,?,?,?)", row).lastrowid
    assert number is not None
    return number


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def links(folder: str | Path, address: str) -> list[str]:
    """The readers' personal links at `address`, such as http://127.0.0.1:8000."""
    path = Path(folder) / LINKS
    try:
        lines = read_regular(path).decode(errors="replace").splitlines()[1:]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; expected a study folder with its {LINKS}") from None
    found = [re.fullmatch(r"\d+,(/enter/[\w-]+)", line) for line in lines if line.strip()]
    if not found or None in found:  # never the line itself: whoever has a link is its reader
        raise InputError(f"{path}: edited; expected lines of a number and a link, as study create wrote them")
    return [address + one[1] for one in found if one]
