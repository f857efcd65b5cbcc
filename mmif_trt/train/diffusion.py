"""Train the latent diffusion: python -m mmif_trt.train.diffusion --data HARVARD --autoencoder A --out runs/ld

Second of the three trainings: the joint distribution of MRI and other modality in the latent space of the
first. v-prediction (Salimans and Ho, ICLR 2022) of both halves, each with its own time; see
models/denoiser.py.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmif_trt.image import InputError
from mmif_trt.models.autoencoder import STRIDE, Autoencoder
from mmif_trt.models.denoiser import MODALITIES, TIMES, Denoiser, DenoiserConfig, both_halves
from mmif_trt.train import autoencoder, checkpoints, data, flags, loop

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

JOINT, GIVEN = 0.3, 0.25  # share of the batch: both halves at one time; MRI given; other given; the rest free
FULL_SIGMA = 0.45  # share of noise from which an error of v counts in full
MAX_SHIFT = 2  # latent positions by which a slice is moved at random


@dataclass(frozen=True)
class DiffusionTraining(loop.Schedule):
    steps: int = 8000
    batch_size: int = 8
    learning_rate: float = 1e-3
    ema_decay: float = 0.998
    model: DenoiserConfig = field(default_factory=DenoiserConfig)


def padded(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Zero-padded at the bottom and the right to (height, width)."""
    return F.pad(x, (0, size[1] - x.shape[-1], 0, size[0] - x.shape[-2]))


def padded_size(sets: list[data.Pairs], multiple: int) -> tuple[int, int]:
    """Height and width in pixels, multiples of `multiple` latent positions, that hold the pictures of all
    sets: a batch has one size."""
    side = STRIDE * multiple
    height, width = (
        max(pairs.a.shape[axis] + -pairs.a.shape[axis] % side for pairs in sets) for axis in (1, 2)
    )
    return height, width


@torch.no_grad()
def encoded(
    model: Autoencoder, pairs: data.Pairs, size: tuple[int, int], mirrors: tuple[bool, ...] = (False, True)
) -> Tensor:
    """[len(mirrors), n, 2 channels, h, w] latents of every pair, as it is (False) or mirrored left to right
    (True), padded to size, (height, width) in pixels; float32 on the CPU.
    """
    out = []
    for mirrored in mirrors:
        halves = []
        for kind, images in (("mri", pairs.a), (pairs.modality, pairs.b)):
            x = torch.from_numpy(images[..., ::-1].copy() if mirrored else images)[:, None].float() / 255
            x = padded(x, size)
            halves.append(
                torch.cat([model.encode(kind, part.to(loop.device())).cpu() for part in x.split(8)])
            )
        out.append(torch.cat(halves, 1))
    return torch.stack(out)


def draw_times(rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor]:
    """Times of either half for a batch: joint, either half given (0), or free, with a dropped half in
    between.
    """
    t_a, t_b = rng.uniform(0, TIMES, (2, size))
    kind = rng.random(size)
    joint, given_a = kind < JOINT, (kind >= JOINT) & (kind < JOINT + GIVEN)
    given_b = (kind >= JOINT + GIVEN) & (kind < JOINT + 2 * GIVEN)
    t_b = np.where(joint, t_a, t_b)
    free = ~(joint | given_a | given_b)
    dropped = free & (rng.random(size) < 0.5)
    first = rng.random(size) < 0.5
    t_a = np.where(given_a, 0, np.where(dropped & first, TIMES, t_a))
    t_b = np.where(given_b, 0, np.where(dropped & ~first, TIMES, t_b))
    return torch.from_numpy(t_a), torch.from_numpy(t_b)


def diffused(z: Tensor, noise: Tensor, t_a: Tensor, t_b: Tensor) -> tuple[Tensor, Tensor]:
    """The noisy latents at the two times and the v that a denoiser should give: v = alpha noise - sigma z."""
    alpha, sigma = both_halves(z, t_a, t_b)
    return alpha * z + sigma * noise, alpha * noise - sigma * z


def batch(
    latents: list[Tensor], modalities: list[str], seed: int, step: int, size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """z, noise [size, C, h, w], t_a, t_b [size], modality [size]; the sets take turns, slices move a
    little.
    """
    rng = np.random.default_rng((seed, step))
    chosen = [(step * size + k) % len(latents) for k in range(size)]
    z = []
    for i in chosen:
        mirrored, n = rng.integers(2), rng.integers(latents[i].shape[1])
        dy, dx = rng.integers(-MAX_SHIFT, MAX_SHIFT + 1, 2)
        z.append(torch.roll(latents[i][mirrored, n], (int(dy), int(dx)), (-2, -1)))
    joined = torch.stack(z)
    noise = torch.from_numpy(rng.standard_normal(joined.shape, np.float32))
    t_a, t_b = draw_times(rng, size)
    return joined, noise, t_a, t_b, torch.tensor([MODALITIES.index(modalities[i]) for i in chosen])


def error_weight(z: Tensor, t_a: Tensor, t_b: Tensor) -> Tensor:
    """[B, C, 1, 1]: weight of v's squared error: 1 from FULL_SIGMA on, its fourth power below.

    An error of the clean latent is one of v over sigma: with equal weights the last traces of noise, the
    texture, outweigh the anatomy (measured after equal steps; compare the min-SNR weights of Hang et al.,
    ICCV 2023).
    """
    _, sigma = both_halves(z, t_a, t_b)
    return (sigma / FULL_SIGMA).clamp(max=1) ** 4


def objective(
    model: Denoiser, config: DiffusionTraining, latents: list[Tensor], modalities: list[str]
) -> loop.Objective:
    def loss(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        rank, world = loop.rank_and_world()
        return batch_loss(model, config, latents, modalities, step * world + rank)

    return loss


def batch_loss(
    model: Denoiser, config: DiffusionTraining, latents: list[Tensor], modalities: list[str], number: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss on the batch of this number, and its terms."""
    drawn = batch(latents, modalities, config.seed, number, config.batch_size)
    z, noise, t_a, t_b, modality = (x.to(loop.device()) for x in drawn)
    noisy, v = diffused(z, noise, t_a, t_b)
    with torch.autocast(z.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        predicted = model(noisy, t_a, t_b, modality)
    a, b = (x.mean((1, 2, 3)) for x in (error_weight(z, t_a, t_b) * (predicted - v) ** 2).chunk(2, 1))
    # A given half has no noise: its v is the noise itself, which cannot be known. A dropped one has
    # nothing else: its v is -z, the mean of what z may be.
    a, b = a * (t_a > 0), b * (t_b > 0)
    return (a + b).mean().float(), {"mri": a.mean().detach(), "other": b.mean().detach()}


@torch.no_grad()
def validation_loss(
    model: Denoiser, precision: str, latents: list[Tensor], modalities: list[str]
) -> dict[str, float]:
    """Mean squared error of v on held-out pairs, over 64 fixed draws, by layers in "bf16" or "fp32"."""
    total = {"mri": 0.0, "other": 0.0}
    fixed = DiffusionTraining(batch_size=8, precision=precision)
    for number in range(8):
        _, terms = batch_loss(model, fixed, latents, modalities, number)
        for name, term in terms.items():
            total[name] += term.item() / 8
    return total


def train(
    config: DiffusionTraining,
    root: Path,
    first: Path,
    out: Path,
    stop_after: int | None = None,
    decode: str = "opencv",
) -> Path:
    """Train to the end, or continue from out/checkpoint.safetensors; first: the autoencoders' checkpoint.

    decode: what reads the pictures, with identical results.

    Raises InputError for data or checkpoints that do not fit, FloatingPointError on a loss that is not finite
    (the last checkpoint stays).
    """
    sets, validation = data.read_splits(root, decode)
    joint = autoencoder.load(first)
    if joint.config.channels != config.model.channels:
        raise InputError(f"{first}: {joint.config.channels} channels; expected {config.model.channels}")
    state, path = loop.new_state(config, lambda: Denoiser(config.model)), out / "checkpoint.safetensors"
    state.sources = data.sources(sets) | {"autoencoder": checkpoints.digest(joint.state_dict())}
    loop.resume(path, state, config)
    assert isinstance(state.model, Denoiser) and isinstance(state.average, Denoiser)
    size, held_out_size = (padded_size(split, config.model.multiple) for split in (sets, validation))
    latents = [encoded(joint, pairs, size) for pairs in sets]
    held_out = [encoded(joint, pairs, held_out_size) for pairs in validation]
    modalities, held_out_modalities = [p.modality for p in sets], [p.modality for p in validation]

    def pictures(writer: SummaryWriter) -> None:
        assert isinstance(state.average, Denoiser)
        found = validation_loss(state.average, config.precision, held_out, held_out_modalities)
        for name, value in found.items():
            writer.add_scalar(f"val/{name}", value, state.step)

    step = objective(state.model, config, latents, modalities)
    return loop.run(state, config, path, step, pictures, stop_after)


def load(path: Path) -> Denoiser:
    """The running average of a training. Raises InputError if path is not such a checkpoint."""
    tensors, config = checkpoints.read_average(path)
    model = checkpoints.built(path, lambda: Denoiser(DenoiserConfig(**config["model"])), tensors)
    return model.to(loop.device())  # type: ignore[no-any-return]


def load_both(first: Path, second: Path) -> tuple[Autoencoder, Denoiser]:
    """The autoencoders and the denoiser of one training. Raises InputError as both loads do, and if the
    denoiser was trained on the latents of other autoencoders."""
    joint, model = autoencoder.load(first), load(second)
    with checkpoints.open_checkpoint(second) as file:
        known = checkpoints.recorded_sources(file.metadata()).get("autoencoder")
    if known not in (None, checkpoints.digest(joint.state_dict())) or (
        joint.config.channels != model.config.channels
    ):
        raise InputError(f"{second}: not trained on the latents of {first}; expected both of one training")
    return joint, model


def main(arguments: list[str] | None = None) -> int:
    defaults = DiffusionTraining()
    parser = flags.parser("diffusion", __doc__.splitlines()[0], defaults)
    parser.add_argument("--autoencoder", type=Path, required=True, help="checkpoint of the first training")
    given = parser.parse_args(arguments)
    config = DiffusionTraining(**flags.shared(given))

    def run() -> Path:
        paths = (given.data, given.autoencoder, given.out)
        return train(config, *paths, given.stop_after, given.decode)

    return loop.main(given, config, run)


if __name__ == "__main__":
    sys.exit(main())
