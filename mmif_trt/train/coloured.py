"""Pairs in colour for the training of LAGN, and its batches: each crop twice, without and with lesions.

The other two trainings see luma only (`data.py`). Here PET and SPECT keep their colours, the place of each
pixel on its palette (true uptake, by the palette's inverse) and the palette itself. Every batch is a pure
function of (seed, step).
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmif_trt.image import InputError
from mmif_trt.measure import uptake
from mmif_trt.stages import colour
from mmif_trt.train import data, lesions, randomise, synthetic, workers
from mmif_trt.train.fidelity_losses import TOP_UPTAKE
from mmif_trt.train.randomise import Crop

MIN_FOREGROUND = 0.25  # of a crop: lesions need room
ATTEMPTS = 8
FLAT_PX = (32, 96)  # all border, and larger than what a pixel sees
SAME_LEVEL = 0.3  # share of the grey pairs
CASE_PICTURES = 12  # at most, evenly spaced, to recover the palette of a case from


@dataclass(frozen=True, eq=False)
class ColouredPairs:
    """pairs: as in `data.py`. PET and SPECT also have rgb [n, H, W, 3] uint8, uptake [n, H, W] uint8 (255 is
    the palette's end), palette [n, 256, 3] float32 in [0, 1], of each pair's case, and strong [n], the uptake
    in [0, 1] from which on a pixel is of the strongest fifth of its slice; 2 where there is none."""

    pairs: data.Pairs
    rgb: np.ndarray | None = None
    uptake: np.ndarray | None = None
    palette: np.ndarray | None = None
    strong: np.ndarray | None = None

    @cached_property
    def palettes(self) -> list[np.ndarray]:
        """That of each of its cases, [256, 3]."""
        if self.palette is None:
            return []
        first = {data.case(name): i for i, name in reversed([*enumerate(self.pairs.names)])}
        return [self.palette[i] for i in sorted(first.values())]


@dataclass(frozen=True, eq=False)
class Batch:
    """2 n crops: the n originals, then the same with lesions. Images are float32 in [0, 1].

    a, b: [2 n, 1, H, W], MRI and luma of the other. planes: [2 n, 2, H, W], that and its `above`, as the
    network reads the other (`colour.planes`). rgb: [2 n, 3, H, W], the other in its colours (grey for
    CT). uptake: [2 n, 1, H, W], 0 for CT. strong: [2 n], the uptake of the slice's strongest fifth.
    repainted: [2 n] bool, whether in another palette than the archive's, or of no patient.
    modalities: of all 2 n. generated: what the diffusion model expects a and b to be, or None; known [2 n]
    says where it does, and does not just hold the sources again. sites: where lesions lie; a site's index is
    that of its crop within the first n.
    """

    a: Tensor
    b: Tensor
    planes: Tensor
    rgb: Tensor
    uptake: Tensor
    strong: Tensor
    repainted: Tensor
    modalities: list[str]
    generated: tuple[Tensor, Tensor] | None
    known: Tensor
    sites: list[lesions.Site]

    def to(self, device: torch.device) -> Batch:
        moved = {
            k: getattr(self, k).to(device)
            for k in ("a", "b", "planes", "rgb", "uptake", "strong", "repainted", "known")
        }
        if self.generated is not None:
            moved["generated"] = tuple(x.to(device) for x in self.generated)
        return replace(self, **moved)


def read_colours(root: Path, split: str, pairs: data.Pairs) -> ColouredPairs:
    """The set in colour. Raises InputError if a picture cannot be read in the size of its luma."""
    if pairs.modality == "ct":
        return ColouredPairs(pairs)
    folder = root / f"mri-{pairs.modality}" / split / pairs.modality
    pictures = np.stack([_read_rgb(folder / f"{name}.png", pairs.b.shape[1:]) for name in pairs.names])
    places = np.zeros(pairs.b.shape, np.uint8)
    palettes = np.zeros((len(pictures), uptake.ENTRIES, 3), np.float32)
    cases = [data.case(name) for name in pairs.names]
    for case in sorted(set(cases), key=str):
        members = [i for i, other in enumerate(cases) if other == case]
        some = members[:: max(1, len(members) // CASE_PICTURES)]
        palette = uptake.recover(*pictures[some])
        if palette is None:  # an empty case: grey, no uptake
            palette = uptake.Palette(np.repeat(np.arange(256.0)[:, None], 3, 1))
        for i in members:
            places[i] = np.rint(255 * palette.place(pictures[i]))
        palettes[members] = palette.rgb.astype(np.float32) / 255
    strong = np.array([strongest(rgb, place) for rgb, place in zip(pictures, places, strict=True)])
    return ColouredPairs(pairs, pictures, places, palettes, strong)


def strongest(rgb: np.ndarray, place: np.ndarray) -> float:
    """Of a whole slice, rgb [H, W, 3] and place [H, W] uint8: the uptake in [0, 1] that its strongest fifth
    reaches; 2 where there is no uptake."""
    unit = place / np.float32(255)
    inside = uptake.foreground(rgb, unit)
    return float(np.quantile(unit[inside], TOP_UPTAKE)) if inside.any() else 2.0


def _read_rgb(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None or picture.shape[:2] != shape:
        raise InputError(f"{path}: not readable in colour; expected a PNG of {shape} px")
    return picture[..., ::-1]


def without(sets: list[data.Pairs], held_out: Collection[str]) -> list[data.Pairs]:
    """The sets less the cases held out, each "MODALITY:CASE" as in ct:case37. Raises InputError for one that
    is not there, and where nothing is left."""
    wanted = set(held_out)
    there = {f"{p.modality}:{data.case(name)}" for p in sets for name in p.names}
    if lacking := sorted(wanted - there):
        known = sorted(case for case in there if not case.endswith(":None"))
        expected = f"some of {known}" if known else "none, since no name tells its case as CASE_SLICE does"
        raise InputError(f"--hold-out: {', '.join(lacking)} not in the data; expected {expected}")
    out = []
    for pairs in sets:
        keep = [
            i for i, name in enumerate(pairs.names) if f"{pairs.modality}:{data.case(name)}" not in wanted
        ]
        if not keep:
            raise InputError(f"--hold-out: no case of {pairs.modality} is left; expected one at least")
        generated = None if pairs.generated is None else pairs.generated[:, keep]
        names = tuple(pairs.names[i] for i in keep)
        out.append(replace(pairs, a=pairs.a[keep], b=pairs.b[keep], names=names, generated=generated))
    return out


def crop(source: ColouredPairs, rng: np.random.Generator, side: int) -> Crop:
    """A crop with some foreground, flipped and turned at random, in the colours of its modality."""
    pairs = source.pairs
    height, width = pairs.a.shape[1:]
    for _ in range(ATTEMPTS):
        i = int(rng.integers(len(pairs.names)))
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        window = (slice(top, top + side), slice(left, left + side))
        if (np.maximum(pairs.a[i][window], pairs.b[i][window]) > 2).mean() > MIN_FOREGROUND:
            break
    flip, turns = rng.random() < 0.5, int(rng.integers(4))

    def cut(picture: np.ndarray) -> np.ndarray:
        """[H, W] or [H, W, 3] uint8 -> its window, float32 in [0, 1]."""
        part = picture[window]
        part = np.rot90(part[:, ::-1] if flip else part, turns)
        return np.ascontiguousarray(part, np.float32) / np.float32(255)

    generated = None
    if pairs.generated is not None:
        generated = (cut(pairs.generated[0][i]), cut(pairs.generated[1][i]))
    if source.rgb is None or source.uptake is None or source.palette is None:
        b = cut(pairs.b[i])
        return Crop(cut(pairs.a[i]), np.repeat(b[..., None], 3, 2), None, None, generated)
    strong = 2.0 if source.strong is None else float(source.strong[i])
    pictures = cut(pairs.a[i]), cut(source.rgb[i]), cut(source.uptake[i])
    return Crop(*pictures, source.palette[i], generated, strong)


@dataclass(frozen=True)
class Mixture:
    """What batches are made of: the seed; how many crops, of how many pixels per side; the share of them
    changed to look like another scanner's (`randomise.py`); whether each has a twin with lesions
    (`lesions.py`); and the share that are of no patient (`synthetic.py`)."""

    seed: int
    size: int
    side: int
    randomised: float
    planted: bool
    synthetic: float = 0.0


def batch(sets: list[ColouredPairs], mixture: Mixture, step: int) -> Batch:
    """A batch of crops, the sets in turn, and their twins with lesions if planted (otherwise only the
    originals)."""
    size, side = mixture.size, mixture.side
    rng = np.random.default_rng((mixture.seed, step))
    archive = [palette for source in sets for palette in source.palettes]
    chosen = [sets[(step * size + k) % len(sets)] for k in range(size)]
    crops = []
    for source in chosen:
        if mixture.synthetic and rng.random() < mixture.synthetic:
            one = synthetic.crop(rng, source.pairs.modality, side, archive)
        else:
            one = crop(source, rng, side)
        if rng.random() < mixture.randomised:
            one = randomise.randomised(one, rng, archive)
        crops.append(one)
    sites: list[lesions.Site] = []
    if mixture.planted:
        for k in range(size):
            twin, found = lesions.planted(crops[k], rng, k)
            crops.append(twin)
            sites += found
    modalities = [source.pairs.modality for source in chosen] * (2 if mixture.planted else 1)
    return _stacked(crops, modalities, sites)


class Batches(Dataset[tuple[int, Batch]]):
    """The batches of a training by number. Called with ascending numbers it makes them ahead, in `workers`
    processes, where a GPU would wait for them; with 0 workers it makes each when asked. The same batches.
    Close it at the end, or the interpreter's own end finds workers at work."""

    def __init__(self, sets: list[ColouredPairs], mixture: Mixture, workers: int = 0) -> None:
        self.sets, self.mixture, self.workers = sets, mixture, workers
        self._ahead: Any = None  # an iterator, from the first batch asked for

    def __getitem__(self, number: int) -> tuple[int, Batch]:
        return number, batch(self.sets, self.mixture, number)

    def of(self, number: int, apart: int = 1) -> Batch:
        """The batch of this number; the next one asked for is `number + apart`."""
        if not self.workers:
            return self[number][1]
        if self._ahead is None:
            loader: DataLoader[Any] = DataLoader(
                self,
                batch_size=None,
                sampler=range(number, sys.maxsize, apart),
                num_workers=self.workers,
                prefetch_factor=4,
                worker_init_fn=workers.outlast,
                # A fork would copy whatever threads and connections this process has.
                multiprocessing_context="spawn",
            )
            with workers.starting():
                self._ahead = iter(loader)
        found, made = next(self._ahead)
        assert found == number, "batches are asked for in turn"
        batch: Batch = made
        return batch

    def close(self) -> None:
        if self._ahead is not None:
            # A library's threads make a worker abort at its end now and then: torch raises that here.
            with suppress(RuntimeError):
                self._ahead._shutdown_workers()  # dropping it is not enough: a traceback may hold it
            self._ahead = None


def flat(seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Two pairs of pictures without any content, a [2, 1, side, side] and b [2, 2, side, side] in [0, 1]: a
    level and another one or, at times, the same, both grey; and a level with a colour. Nothing in them may be
    brighter than the brighter source, nor vary. side: each of FLAT_PX in turn."""
    side = FLAT_PX[step % len(FLAT_PX)]
    rng = np.random.default_rng((seed, step, side))
    levels, colours = rng.random((2, 1, 1, 1), np.float32), rng.random((2, 1, 1, 3), np.float32)
    colours[0] = levels[0] if rng.random() < SAME_LEVEL else colours[0, 0, 0, 0]
    a, b = (torch.from_numpy(x) for x in (levels, colour.planes(colours)))
    return a.repeat(1, 1, side, side), b.repeat(1, 1, side, side)


def _stacked(crops: list[Crop], modalities: list[str], sites: list[lesions.Site]) -> Batch:
    a = np.stack([c.a for c in crops])[:, None]
    rgb = np.stack([c.rgb for c in crops])
    planes = colour.planes(rgb)
    b = np.ascontiguousarray(planes[:, :1])
    places = np.stack([np.zeros_like(c.a) if c.uptake is None else c.uptake for c in crops])[:, None]
    known = np.array([c.generated is not None for c in crops])
    generated = None
    if known.any():
        pairs = [c.generated or (c.a, b[i, 0]) for i, c in enumerate(crops)]
        of_a, of_b = (torch.from_numpy(np.stack(x)[:, None].copy()) for x in zip(*pairs, strict=True))
        generated = (of_a, of_b)
    return Batch(
        a=torch.from_numpy(a),
        b=torch.from_numpy(b),
        planes=torch.from_numpy(planes),
        rgb=torch.from_numpy(np.ascontiguousarray(rgb.transpose(0, 3, 1, 2))),
        uptake=torch.from_numpy(places),
        strong=torch.tensor([c.strong for c in crops], dtype=torch.float32),
        repainted=torch.tensor([c.repainted for c in crops]),
        modalities=modalities,
        generated=generated,
        known=torch.from_numpy(known),
        sites=sites,
    )
