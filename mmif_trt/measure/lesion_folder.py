"""Planted lesions as folders: written for a method to fuse, read back with its results.

FOLDER/mri/NAME.png FOLDER/ct/NAME.png                          a pair as it is (or pet/, spect/)
FOLDER/mri/NAME_lesions00.png FOLDER/ct/NAME_lesions00.png      the same pair with lesions
FOLDER/lesions.json                                             the lesions and their places
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from numpy import ndarray

from mmif_trt import io
from mmif_trt.files import prove_writable, write_atomic
from mmif_trt.image import Image, InputError
from mmif_trt.measure.lesions import Kept, read
from mmif_trt.measure.planting import Lesion, Pair, Planted, kinds_for, plant
from mmif_trt.measure.reader import MARGIN_PX
from mmif_trt.measure.scores import Ranges, match_folders, read_8_bit, source_folders
from mmif_trt.measure.uptake import recover
from mmif_trt.running import why

MANIFEST = "lesions.json"
HOW = "expected a folder that `mmif-trt eval SOURCES --plant FOLDER` wrote"


def is_planted(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def plant_folder(sources: Path, *, per_kind: int, seed: int, ranges: Ranges | None = None) -> list[Planted]:
    """Lesions in the pairs of a folder that holds mri/ and one of ct/, pet/, spect/; see planting.plant.

    ranges: black and white by folder; see scores.evaluate.
    """
    a_folder, b_folder = source_folders(sources)
    names = match_folders([a_folder, b_folder])

    def pairs() -> Iterator[Pair]:
        for name, *paths in names:
            a, b = read_8_bit(paths, True, ("mri", b_folder.name), ranges)
            yield name, a, b

    planted = plant(pairs(), b_folder.name, per_kind=per_kind, seed=seed)
    if not any(one.lesions for one in planted):
        raise InputError(
            f"{sources}: no place for a lesion in {len(planted)} pairs; expected brain slices, 12-bit ones "
            "with --range-mri 0 4095 and its kin"
        )
    return planted


def refuse_used(folder: Path) -> None:
    """Raises InputError if something is there."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: exists and is not empty; expected a new or empty folder")


def write_planted(folder: Path, planted: Sequence[Planted], *, seed: int) -> int:
    """Writes the pictures, the list last; returns how many pairs of pictures a method has to fuse.

    Raises InputError if the folder is not empty, and for a pair named like a picture with lesions.
    """
    refuse_used(folder)
    modality = planted[0].modality
    pictures: dict[str, tuple[ndarray, ndarray]] = {}
    for one in planted:
        for name, pair in zip(_names(one), [(one.a, one.b), *one.scenes], strict=True):
            if name in pictures:
                raise InputError(f"{name}: two pictures would have this name; expected pairs without it")
            pictures[name] = pair
    hashes = {}
    for side, kind in enumerate(("mri", modality)):
        prove_writable(folder / kind)
        for name, pair in pictures.items():
            path = folder / kind / f"{name}.png"
            io.write(path, Image(pair[side], source=str(path)), durable=False)
            hashes[f"{kind}/{path.name}"] = _hash(path)
    pairs = [{"name": one.name, "lesions": [asdict(lesion) for lesion in one.lesions]} for one in planted]
    whole = {"modality": modality, "seed": seed, "pairs": pairs, "sha256": hashes}
    write_atomic(folder / MANIFEST, (json.dumps(whole, indent=1, allow_nan=False) + "\n").encode())
    return len(pictures)


def read_planted(folder: Path) -> list[Planted]:
    """Reads what write_planted wrote. Raises InputError for any other folder, and for changed pictures."""
    path = folder / MANIFEST
    try:
        whole: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        modality, hashes = whole["modality"], whole["sha256"]
        kinds = {kind.name for kind in kinds_for(modality)}
        listed = [
            (pair["name"], [_lesion(given, kinds) for given in pair["lesions"]]) for pair in whole["pairs"]
        ]
        sources = {kind: [x for x in hashes if x.startswith(f"{kind}/")] for kind in ("mri", modality)}
        if not all(sources.values()):
            raise InputError("no pictures")
        if not any(lesions for _, lesions in listed):
            raise InputError("no lesions")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: {why(error)}; {HOW}") from error
    for name, wanted in hashes.items():
        if not (folder / name).is_file() or _hash(folder / name) != wanted:
            raise InputError(f"{folder / name}: missing, or changed since planting; expected it as written")
    planted = []
    for name, lesions in listed:
        one = Planted(name, modality, *_pair(folder, modality, name), None, [], lesions)
        for lesion in lesions:
            if any(
                not MARGIN_PX <= at < n - MARGIN_PX for at, n in zip(lesion.centre, one.a.shape, strict=True)
            ):
                raise InputError(f"{path}: {name}: a lesion at {lesion.centre} of {one.a.shape} px; {HOW}")
        one.palette = None if modality == "ct" else recover(one.b)
        scenes = 1 + max((lesion.scene for lesion in lesions), default=-1)
        one.scenes = [_pair(folder, modality, _scene_name(name, scene)) for scene in range(scenes)]
        planted.append(one)
    return planted


def read_fused(
    folder: Path,
    planted: Sequence[Planted],
    fused: Path,
    done: Callable[[], Any] = lambda: None,
    ranges: Ranges | None = None,
) -> list[Kept]:
    """What a method's pictures keep of the lesions. fused: pictures with the names in folder/mri, apart from
    the suffix. ranges: "fused" has their black and white. Raises InputError for missing or extra names,
    sizes that differ, and unreadable files.
    """
    matched = match_folders([folder / "mri", fused])
    paths = {name: [source, made] for name, source, made in matched}
    kept = []
    for one in planted:
        pictures = [read_8_bit(paths[name], False, ("", "fused"), ranges)[1] for name in _names(one)]
        kept += read(one, pictures[0], pictures[1:])
        done()
    return kept


def _names(one: Planted) -> list[str]:
    return [one.name, *(_scene_name(one.name, scene) for scene in range(len(one.scenes)))]


def _scene_name(name: str, scene: int) -> str:
    return f"{name}_lesions{scene:02d}"


def _pair(folder: Path, modality: str, name: str) -> tuple[ndarray, ndarray]:
    a, b = (io.read(folder / kind / f"{name}.png").data for kind in ("mri", modality))
    return a, b


def _lesion(given: dict[str, Any], kinds: set[str]) -> Lesion:
    found = Lesion(**{**given, "centre": (int(given["centre"][0]), int(given["centre"][1]))})
    if found.kind not in kinds or not found.d_source > 0 or not found.scene >= 0:
        raise InputError(f"no lesion of a known kind: {given}")
    return found


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
