"""Generate with the latent diffusion: python -m mmif_trt.train.generate --data HARVARD --out runs/generated

For every pair, writes the MRI expected from the other image, and the other expected from the MRI, into
DIR/SPLIT.safetensors for the training of LAGN; and contact sheets of those and of pairs drawn from the joint
distribution, DIR/cross-MODALITY.png and DIR/joint-MODALITY.png.
DDIM (Song et al., ICLR 2021) without added noise draws images. The training uses their expectation, the
denoiser's answer to pure noise beside the given half: random detail of a draw would look like knowledge.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from mmif_trt import files
from mmif_trt.image import InputError
from mmif_trt.machine import usable_cores
from mmif_trt.models.autoencoder import STRIDE, Autoencoder
from mmif_trt.models.denoiser import MODALITIES, TIMES, Denoiser, alpha_sigma
from mmif_trt.running import explain
from mmif_trt.train import checkpoints, data, diffusion, loop
from mmif_trt.train.flags import whole
from mmif_trt.weights import sha256, verified_diffusion

STEPS = (10, 50)  # allowed numbers of DDIM steps, beside 1
DRAW_STEPS = 20  # of the draws on the contact sheets
BATCH = 8


@torch.no_grad()
def sample(
    model: Denoiser,
    noise: Tensor,
    modality: str,
    given: tuple[int, Tensor] | None = None,
    steps: int = 20,
    guidance: float = 1.0,
    precision: str = "bf16",
) -> Tensor:
    """Latents [B, 2 channels, h, w] of the joint distribution, or of a conditional if a half is given.

    noise: shaped as the result, N(0, 1); the same noise gives the same latents. given: (0, z of the MRI) or
    (1, z of the other), [B, channels, h, w]. steps: 1 gives the mean of all possible draws, because pure
    noise carries no information beside the given half. guidance: 1 is the conditional as learnt; above 1, it
    moves away from the unconditional half (Ho and Salimans, 2022). precision: of the
    denoiser, "bf16" or "fp32".
    Raises InputError for a number of steps outside STEPS.
    """
    check_steps(steps)
    halves = list(noise.chunk(2, 1))
    alone = None if given is None else halves[given[0]]
    if given is not None:
        halves[given[0]] = given[1]
    index = torch.full((len(noise),), MODALITIES.index(modality), device=noise.device)

    def v_of(halves: list[Tensor], t: float, at: float | None) -> list[Tensor]:
        """v of both halves; at: the time of the given half."""
        times = [torch.full((len(noise),), t, device=noise.device) for _ in halves]
        if given is not None and at is not None:
            times[given[0]] = torch.full_like(times[0], at)
        with torch.autocast(noise.device.type, torch.bfloat16, enabled=precision == "bf16"):
            return list(model(torch.cat(halves, 1), *times, index).chunk(2, 1))

    grid = torch.linspace(TIMES, 0, steps + 1)
    for now, then in zip(grid[:-1], grid[1:], strict=True):
        v = v_of(halves, float(now), None if given is None else 0.0)
        if given is not None and alone is not None and guidance != 1:
            free = v_of(
                [alone if i == given[0] else h for i, h in enumerate(halves)], float(now), float(TIMES)
            )
            v = [f + guidance * (x - f) for x, f in zip(v, free, strict=True)]
        (alpha, sigma), (alpha_then, sigma_then) = (alpha_sigma(t) for t in (now, then))
        for i, (z, direction) in enumerate(zip(halves, v, strict=True)):
            if given is None or i != given[0]:
                clean, random = alpha * z - sigma * direction, sigma * z + alpha * direction
                halves[i] = alpha_then * clean + sigma_then * random
    return torch.cat(halves, 1)


def noise_like(shape: torch.Size, seed: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(tuple(shape), np.float32))


@torch.no_grad()
def cross_generate(
    joint: Autoencoder,
    model: Denoiser,
    pairs: data.Pairs,
    steps: int,
    samples: int,
    seed: int = 0,
    precision: str = "bf16",
) -> np.ndarray:
    """[2, n, H, W] uint8: each MRI as expected from its other image, and each other as expected from its
    MRI."""
    height, width = pairs.a.shape[1:]
    size = diffusion.padded_size([pairs], model.config.multiple)
    latents = diffusion.encoded(joint, pairs, size, (False,))[0]
    out = np.empty((2, *pairs.a.shape), np.uint8)
    bar = tqdm(total=2 * len(latents), unit="image", desc=f"mri-{pairs.modality}", mininterval=5)
    for wanted, kind in enumerate(("mri", pairs.modality)):
        for start in range(0, len(latents), BATCH):
            z = latents[start : start + BATCH].to(loop.device())
            given = (1 - wanted, z.chunk(2, 1)[1 - wanted])
            total = torch.zeros(len(z), 1, *(STRIDE * n for n in z.shape[2:]), device=z.device)
            for k in range(samples):
                noise = noise_like(z.shape, (seed, wanted, start, k)).to(z.device)
                drawn = sample(model, noise, pairs.modality, given, steps, precision=precision)
                total += joint.decode(kind, drawn.chunk(2, 1)[wanted])
            if not total.isfinite().all():
                raise InputError(
                    f"mri-{pairs.modality}: values that are not finite; expected networks that give images"
                )
            mean = (255 * total / samples).round().byte().cpu().numpy()
            out[wanted, start : start + len(z)] = mean[:, 0, :height, :width]
            bar.update(len(z))
    bar.close()
    return out


@torch.no_grad()
def joint_samples(
    joint: Autoencoder,
    model: Denoiser,
    modality: str,
    count: int,
    shape: tuple[int, int],
    steps: int,
    seed: int = 0,
    precision: str = "bf16",
) -> np.ndarray:
    """[2, count, H, W] uint8: pairs of MRI and other drawn from the joint distribution; shape: (H, W)."""
    side = STRIDE * model.config.multiple
    size = [(n + side - 1) // side * model.config.multiple for n in shape]
    out = []
    for start in range(0, count, BATCH):
        many = min(BATCH, count - start)
        noise = noise_like(torch.Size((many, 2 * model.config.channels, *size)), (seed, start))
        z = sample(model, noise.to(loop.device()), modality, None, steps, precision=precision)
        pictures = [joint.decode(kind, x) for kind, x in zip(("mri", modality), z.chunk(2, 1), strict=True)]
        out.append(
            (255 * torch.stack(pictures)).round().byte().cpu().numpy()[:, :, 0, : shape[0], : shape[1]]
        )
    return np.concatenate(out, 1)


def attach(path: Path, sets: list[data.Pairs]) -> list[data.Pairs]:
    """The sets with the generated images of path. Raises InputError if they were made from other pairs."""
    out = []
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            for pairs in sets:
                if metadata.get(pairs.modality) != data.digest(pairs):
                    raise InputError(
                        f"{path}: not of these mri-{pairs.modality} pairs; expected what "
                        "train/generate.py wrote for the same folder and split"
                    )
                out.append(replace(pairs, generated=file.get_tensor(pairs.modality)))
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0].removesuffix(f": {path}")
        raise InputError(f"{path}: {reason}; expected a file that train/generate.py wrote") from error
    return out


def sheet(rows: list[list[np.ndarray]]) -> np.ndarray:
    """Pictures of one size as a grid, four pixels apart."""
    return np.vstack([np.hstack([np.pad(x, 2, constant_values=64) for x in row]) for row in rows])


def write_sheets(
    out: Path, joint: Autoencoder, model: Denoiser, pairs: data.Pairs, seed: int, precision: str
) -> None:
    """cross-MODALITY.png, rows MRI, as expected, as drawn, other, as expected, as drawn; and
    joint-MODALITY.png, rows MRI and other of pairs drawn from the joint distribution.
    """
    assert pairs.generated is not None
    chosen = np.linspace(0, len(pairs.names) - 1, min(8, len(pairs.names))).round().astype(int)
    some = replace(pairs, a=pairs.a[chosen], b=pairs.b[chosen], generated=None)
    drawn = cross_generate(joint, model, some, DRAW_STEPS, 1, seed, precision)
    expected = pairs.generated[:, chosen]
    cross = sheet([list(plane) for plane in (some.a, expected[0], drawn[0], some.b, expected[1], drawn[1])])
    shape = (pairs.a.shape[1], pairs.a.shape[2])
    both = joint_samples(joint, model, pairs.modality, 8, shape, DRAW_STEPS, seed, precision)
    for name, picture in (("cross", cross), ("joint", sheet([list(plane) for plane in both]))):
        _, png = cv2.imencode(".png", picture)
        files.write_atomic(out / f"{name}-{pairs.modality}.png", png.tobytes())


def check_steps(steps: int) -> None:
    if steps != 1 and not STEPS[0] <= steps <= STEPS[1]:
        raise InputError(f"steps {steps}; expected 1, or {STEPS[0]} to {STEPS[1]}")


def run(given: argparse.Namespace) -> Path:
    check_steps(given.steps)  # before minutes of reading
    sets = data.read_sets(given.data, given.split, given.decode)
    if (given.autoencoder is None) != (given.diffusion is None):
        raise InputError("--autoencoder or --diffusion alone; expected both of one training, or neither")
    first = given.autoencoder or verified_diffusion("autoencoder")
    second = given.diffusion or verified_diffusion("denoiser")
    joint, model = diffusion.load_both(first, second)
    files.prove_writable(given.out)
    tensors: dict[str, Tensor] = {}
    told = {"autoencoder": first, "diffusion": second}
    metadata = {k: sha256(path) for k, path in told.items()}
    metadata |= {"steps": str(given.steps), "samples": str(given.samples), "seed": str(given.seed)}
    for pairs in sets:
        images = cross_generate(joint, model, pairs, given.steps, given.samples, given.seed, given.precision)
        write_sheets(given.out, joint, model, replace(pairs, generated=images), given.seed, given.precision)
        tensors[pairs.modality], metadata[pairs.modality] = torch.from_numpy(images), data.digest(pairs)
    path: Path = given.out / f"{given.split}.safetensors"
    checkpoints.write_tensors(path, tensors, metadata)
    print(json.dumps({"out": str(path)} | metadata, indent=1))
    return path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m mmif_trt.train.generate", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with mri-ct, mri-pet, mri-spect")
    shipped = "; the shipped one by default"
    parser.add_argument("--autoencoder", type=Path, help=f"checkpoint of the first training{shipped}")
    parser.add_argument("--diffusion", type=Path, help=f"checkpoint of the second{shipped}")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--split", default="train", help="folder within each set; default: train")
    steps = f"1: the expectation, {STEPS[0]} to {STEPS[1]}: draws by DDIM"
    parser.add_argument("--steps", type=int, default=1, help=steps)
    parser.add_argument("--samples", type=whole(1), default=4, help="to take the mean of")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the noise; default: 0")
    slow = "fp32 is ten times faster on a processor that only emulates bfloat16"
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help=slow)
    parser.add_argument("--threads", type=whole(1), default=usable_cores(), help="default: all usable cores")
    what = "the same bits by both"
    parser.add_argument("--decode", choices=data.DECODERS, default="opencv", help=what)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    try:
        run(given)
    except (InputError, OSError) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
