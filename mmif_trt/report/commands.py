"""Methods that are commands: run on the sources and on copies with planted lesions, then scored."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmif_trt.image import InputError
from mmif_trt.measure.baselines import PICTURES
from mmif_trt.measure.lesion_folder import plant_folder, read_fused, write_planted
from mmif_trt.measure.lesions import Kept, judge, summarise
from mmif_trt.measure.planting import Planted, kinds_for
from mmif_trt.measure.scores import Ranges, match_folders, read_8_bit, source_folders

PLACES = ("{mri}", "{other}", "{out}")
CROP_PX = 56  # of a picture in the gallery, around a lesion


def is_command(text: str) -> bool:
    """Whether the text after NAME= is a command: it has one of the places at least; `run` asks for all."""
    return any(place in text for place in PLACES)


def run(name: str, command: str, mri: Path, other: Path, out: Path) -> None:
    """Runs a method without a shell, its three places filled in. Raises InputError if it cannot be started or
    fails."""
    for place in PLACES:
        if place not in command:
            raise InputError(
                f"--method {name}={command}: no {place}; expected {', '.join(PLACES)} in a command"
            )
    given = dict(zip(PLACES, map(str, (mri, other, out)), strict=True))
    try:
        words = shlex.split(command)
    except ValueError:
        raise InputError(f"--method {name}={command}: a quote without its end; expected it closed") from None
    for place, path in given.items():
        words = [word.replace(place, path) for word in words]
    out.mkdir(parents=True)
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise InputError(
            f"--method {name}: {words[0]}: {error.strerror}; expected a program that can be started"
        ) from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing said").splitlines()[-1][:200]
        raise InputError(
            f"--method {name}: exit code {done.returncode} ({said}); expected 0: try it by itself, with "
            "folders of pictures for {mri} and {other} and a new one for {out}"
        )
    if not any(out.iterdir()):
        raise InputError(f"--method {name}: it wrote nothing; expected a picture per pair in {{out}}")


@dataclass(frozen=True)
class Shown:
    """One picture of the gallery: [H, W] or [H, W, 3] uint8. share: of the lesion, None for a source."""

    name: str
    pixels: np.ndarray
    share: float | None = None


@dataclass(frozen=True)
class Judged:
    """folders: of each command's fused sources. lesions: what reader.reader_table takes. gallery: per kind of
    lesion the pictures of one: its source without and with it, then every method."""

    folders: dict[str, Path]
    lesions: dict[str, dict[str, float]]
    gallery: list[tuple[str, list[Shown]]]


def judge_all(
    sources: Path,
    commands: Mapping[str, str],
    scratch: Path,
    *,
    per_kind: int,
    seed: int,
    baselines: bool,
    ranges: Ranges | None = None,
    done: Callable[[str], Any] = lambda what: None,
) -> Judged:
    """Runs every command on the sources and on planted copies, both in `scratch`, and scores the lesions.

    done: called after each step, with its name. Raises InputError.
    """
    planted = plant_folder(sources, per_kind=per_kind, seed=seed, ranges=ranges)
    write_planted(scratch / "planted", planted, seed=seed)
    done("planting")
    a, b = source_folders(sources)
    planted_b = scratch / "planted" / b.name
    folders, kept, pictures = dict[str, Path](), dict[str, list[Kept]](), dict[str, list[list[np.ndarray]]]()
    for number, (name, command) in enumerate(commands.items()):
        folders[name] = scratch / f"fused-{number}"
        run(name, command, a, b, folders[name])
        done(name)
        out = scratch / f"planted-{number}"
        run(name, command, scratch / "planted" / "mri", planted_b, out)
        kept[name] = read_fused(scratch / "planted", planted, out, ranges=ranges)
        pictures[name] = _with_lesions(scratch / "planted", out, planted, ranges)
        done(f"{name}, planted")
    for name, fuse in (PICTURES if baselines else {}).items():
        kept[name] = judge(fuse, planted)
        pictures[name] = [[fuse(*scene) for scene in one.scenes] for one in planted]
        done(name)
    summaries = {name: summarise(rows) for name, rows in kept.items()}
    lesions = {n: {k: float(getattr(s, k)) for k in ("mean", "worst", "lost")} for n, s in summaries.items()}
    return Judged(folders, lesions, gallery(planted, kept, pictures))


def _with_lesions(
    folder: Path, fused: Path, planted: Sequence[Planted], ranges: Ranges | None
) -> list[list[np.ndarray]]:
    paths = {name: made for name, _, made in match_folders([folder / "mri", fused])}
    found = []
    for one in planted:
        names = [f"{one.name}_lesions{scene:02d}" for scene in range(len(one.scenes))]
        found.append([read_8_bit([paths[name]], False, ("fused",), ranges)[0] for name in names])
    return found


def gallery(
    planted: Sequence[Planted],
    kept: Mapping[str, Sequence[Kept]],
    pictures: Mapping[str, Sequence[Sequence[np.ndarray]]],
) -> list[tuple[str, list[Shown]]]:
    """Of each kind the lesion whose mean share over the methods is the median: neither best nor worst.

    kept: of each method all lesions, in the order of planted. pictures: method -> pair -> scene.
    """
    places = [(pair, lesion) for pair, one in enumerate(planted) for lesion in one.lesions]
    mean = np.mean([[row.share for row in rows] for rows in kept.values()], axis=0)
    shown = []
    for kind in kinds_for(planted[0].modality) if planted else ():
        own = [i for i, (_, lesion) in enumerate(places) if lesion.kind == kind.name]
        if not own:
            continue
        index = sorted(own, key=lambda i: float(mean[i]))[len(own) // 2]
        pair, lesion = places[index]
        side = "ab".index(kind.source)
        one = planted[pair]
        cut = _cut(one.a.shape, lesion.centre)
        row = [
            Shown("source without", (one.a, one.b)[side][cut]),
            Shown("source with", one.scenes[lesion.scene][side][cut]),
        ]
        row += [
            Shown(name, pictures[name][pair][lesion.scene][cut], rows[index].share)
            for name, rows in kept.items()
        ]
        shown.append((kind.name, row))
    return shown


def _cut(shape: tuple[int, ...], centre: tuple[int, int]) -> tuple[slice, slice]:
    """CROP_PX per side about a centre (row, column), within the picture."""
    starts = [max(0, min(c - CROP_PX // 2, n - CROP_PX)) for c, n in zip(centre, shape[:2], strict=True)]
    return slice(starts[0], starts[0] + CROP_PX), slice(starts[1], starts[1] + CROP_PX)
