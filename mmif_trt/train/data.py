"""Registered pairs for training, read once into memory; every batch is a pure function of (seed, step)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from mmif_trt.image import MODALITIES, Image, InputError
from mmif_trt.measure.scores import luma_8_bit

SETS = MODALITIES[1:]
DECODERS = ("opencv", "dali")
# With one of these chunks, libpng computes OpenCV's grey of a colour PNG in linear light.
GAMMA_CHUNKS = (b"gAMA", b"sRGB", b"iCCP", b"cICP")
TWELVE_BITS = 15  # what white of a 12-bit picture is in 8 bits if its file says 16
MIN_FOREGROUND = 0.1  # a crop of almost only background teaches nothing


@dataclass(frozen=True)
class Pairs:
    """All pairs of one set: modality "ct", "pet" or "spect"; a, b [n, H, W] uint8 luma; names without suffix.

    generated: [2, n, H, W] uint8, what the diffusion model makes of each a from its b, and of each b from
    its a.
    """

    modality: str
    a: np.ndarray
    b: np.ndarray
    names: tuple[str, ...]
    generated: np.ndarray | None = None


def read_luma(path: Path) -> np.ndarray:
    picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if picture is None:
        raise InputError(f"{path}: not a readable picture; expected PNG, TIFF or JPEG")
    return picture


def decoded(a: Sequence[Path], b: Sequence[Path], decode: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """[H, W] uint8 luma of each pair of files, identical by "opencv" and "dali". Raises InputError that names
    the file."""
    if decode not in DECODERS:
        raise InputError(f"decode {decode!r}; expected {', '.join(DECODERS)}")
    if decode == "opencv":
        yield from ((read_luma(x), read_luma(y)) for x, y in zip(a, b, strict=True))
        return
    from mmif_trt.io import dali

    for pair in dali.read_pairs([str(x) for x in a], [str(y) for y in b]):
        if not (isinstance(pair.a, Image) and isinstance(pair.b, Image)):
            raise InputError(pair.error)
        yield _luma(pair.a, a[pair.index]), _luma(pair.b, b[pair.index])


def _luma(image: Image, path: Path) -> np.ndarray:
    """The result of read_luma; from the decoded pixels if these suffice."""
    if image.data.dtype != np.uint8:
        return read_luma(path)
    if image.is_colour and any(x in path.read_bytes().partition(b"IDAT")[0] for x in GAMMA_CHUNKS):
        return read_luma(path)
    return luma_8_bit(image).astype(np.uint8)


def has_16_bits(path: Path) -> bool:
    """By the header of a PNG."""
    with path.open("rb") as file:
        return file.read(25)[24:] == b"\x10"


def read_pairs(root: Path, modality: str, split: str, decode: str = "opencv") -> Pairs:
    """Read root/mri-MODALITY/SPLIT/{mri,MODALITY}/NAME.png. Raises InputError naming what is missing, unequal
    or nearly black."""
    folders = [root / f"mri-{modality}" / split / kind for kind in ("mri", modality)]
    for folder in folders:
        if not folder.is_dir():
            raise InputError(
                f"{folder}: no such folder; expected mri-{modality}/{split}/ with mri/ and {modality}/"
            )
    names_a, names_b = ({p.stem: p for p in folder.glob("*.png")} for folder in folders)
    if not names_a or names_a.keys() != names_b.keys():
        odd = sorted(names_a.keys() ^ names_b.keys())[:3]
        raise InputError(
            f"{folders[0].parent}: names on one side only, or none: {odd}; expected equal names of .png files"
        )
    names = sorted(names_a)
    files_a, files_b = ([table[name] for name in names] for table in (names_a, names_b))
    a, b = zip(*decoded(files_a, files_b, decode), strict=True)
    for folder, files, pictures in zip(folders, (files_a, files_b), (a, b), strict=True):
        brightest = max(int(picture.max()) for picture in pictures)
        if brightest <= TWELVE_BITS and any(has_16_bits(path) for path in files):
            expected = "expected 8 bits, or 16 in full, not 12 in a file of 16"
            raise InputError(f"{folder}: nothing above {brightest} of 255, nearly black; {expected}")
    sizes = {picture.shape for picture in a + b}
    if len(sizes) != 1:
        raise InputError(f"{folders[0].parent}: sizes {sorted(sizes)}; expected one size for all pairs")
    return Pairs(modality, np.stack(a), np.stack(b), tuple(names))


def read_sets(root: str | Path, split: str, decode: str = "opencv") -> list[Pairs]:
    """The sets that exist under root, in the order of SETS; at least one must."""
    root = Path(root)
    present = [modality for modality in SETS if (root / f"mri-{modality}").is_dir()]
    if not present:
        raise InputError(
            f"{root}: none of the folders mri-ct, mri-pet, mri-spect; expected at least one of them"
        )
    return [read_pairs(root, modality, split, decode) for modality in present]


def case(name: str) -> str | None:
    """The patient of a slice named CASE_SLICE, or None if the name does not tell."""
    head, underscore, _ = name.partition("_")
    return head if underscore else None


def read_splits(root: str | Path, decode: str = "opencv") -> tuple[list[Pairs], list[Pairs]]:
    """The training and the validation sets. Raises InputError also if a patient is in both: neighbouring
    slices are nearly the same, and scores on them would be meaningless.
    """
    training, validation = read_sets(root, "train", decode), read_sets(root, "val", decode)
    known = {(p.modality, case(name)) for p in training for name in p.names}
    for pairs in validation:
        for name in pairs.names:
            if case(name) and (pairs.modality, case(name)) in known:
                raise InputError(
                    f"{Path(root) / f'mri-{pairs.modality}'}: {case(name)} is in train and in val; expected "
                    "a split by case, so at least two cases"
                )
    return training, validation


def sources(sets: list[Pairs]) -> dict[str, str]:
    """For `checkpoints.State`: SHA-256 of the sets' names and pictures, and of their generated images."""
    made = hashlib.sha256("\n".join(digest(pairs) for pairs in sets).encode()).hexdigest()
    generated = [pairs.generated.tobytes() for pairs in sets if pairs.generated is not None]
    of_generated = hashlib.sha256(b"".join(generated)).hexdigest() if generated else "none"
    return {"data": made, "generated": of_generated}


def digest(pairs: Pairs) -> str:
    """SHA-256 of the pairs' names and pixels."""
    made = hashlib.sha256("\n".join(pairs.names).encode())
    made.update(pairs.a.tobytes())
    made.update(pairs.b.tobytes())
    return made.hexdigest()


def check_crop(crop_px: int, multiple: int, sets: list[Pairs], validation: list[Pairs]) -> None:
    """Raises InputError unless crops fit into the pictures of `sets`, and the network's `multiple` into those
    of `validation`, which are shown whole."""
    largest = min(min(pairs.a.shape[1:]) for pairs in sets)
    if crop_px % multiple or not 0 < crop_px <= largest:
        raise InputError(
            f"crop_px {crop_px}; expected multiples of {multiple}, at most {largest} for this data"
        )
    for pairs in validation:
        height, width = pairs.a.shape[1:]
        if min(height, width) < multiple:
            expected = f"expected at least {multiple} each way"
            raise InputError(f"mri-{pairs.modality}/val: pictures of {width} x {height} px; {expected}")


def crop(pairs: Pairs, rng: np.random.Generator, side: int) -> np.ndarray:
    """[2, side, side] uint8 with some foreground in it, flipped and turned at random.

    [4, side, side] with generated images: a, b, generated a, generated b.
    """
    height, width = pairs.a.shape[1:]
    for _ in range(8):
        i = rng.integers(len(pairs.names))
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        window = (slice(top, top + side), slice(left, left + side))
        pair = np.stack([pairs.a[i][window], pairs.b[i][window]])
        if (pair.max(0) > 2).mean() > MIN_FOREGROUND:
            break
    if pairs.generated is not None:
        pair = np.concatenate([pair, pairs.generated[:, i][(slice(None), *window)]])
    if rng.random() < 0.5:
        pair = pair[:, :, ::-1]
    return np.rot90(pair, int(rng.integers(4)), (1, 2)).copy()


def batch(sets: list[Pairs], seed: int, step: int, size: int, side: int) -> tuple[Tensor, Tensor, list[str]]:
    """a, b [size, 1, side, side] float32 in [0, 1], and the modality of each; the sets take turns.

    With generated images [size, 2, side, side]: the original, then what the diffusion model made of it.
    A quarter of the pairs is dimmed, each source by its own factor, so that the network does not rely on
    full range.
    """
    rng = np.random.default_rng((seed, step))
    chosen = [sets[(step * size + k) % len(sets)] for k in range(size)]
    pairs = np.stack([crop(pairs, rng, side) for pairs in chosen]).astype(np.float32) / 255
    gain = np.where(rng.random((size, 1)) < 0.25, rng.uniform(0.3, 1.0, (size, 2)), 1.0).astype(np.float32)
    pairs = pairs.reshape(size, -1, 2, side, side) * gain[:, None, :, None, None]
    a, b = torch.from_numpy(pairs).unbind(2)
    return a.contiguous(), b.contiguous(), [pairs.modality for pairs in chosen]
