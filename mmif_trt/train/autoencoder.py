"""Train the joint latent space: python -m mmif_trt.train.autoencoder --data HARVARD --out runs/ae

First of the three trainings. Each modality is rebuilt from its own latent; the loss is L1 and the squared
error of the picture, the L1 of its gradient, and a faint KL term that keeps the latents bounded and smooth.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmif_trt.models.autoencoder import KINDS, STRIDE, Autoencoder, AutoencoderConfig
from mmif_trt.ops import reference
from mmif_trt.train import checkpoints, data, flags, loop
from mmif_trt.train.losses import FOREGROUND

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True)
class AutoencoderTraining(loop.Schedule):
    steps: int = 7000
    batch_size: int = 8
    learning_rate: float = 2e-3
    crop_px: int = 64
    squared: float = 30.0
    gradient: float = 0.02
    kl: float = 1e-7
    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)


def by_kind(a: Tensor, b: Tensor, modalities: list[str]) -> dict[str, Tensor]:
    """The images of a batch by modality: [n, 1, H, W] each."""
    out = {"mri": a}
    for kind in KINDS[1:]:
        if places := [i for i, modality in enumerate(modalities) if modality == kind]:
            out[kind] = b[places]
    return out


def reconstruction_loss(model: Autoencoder, kind: str, x: Tensor, config: AutoencoderTraining) -> Tensor:
    """[4]: L1, squared error, L1 of the Sobel gradient, KL divergence to N(0, 1) per latent number."""
    image = model.images[kind]
    with torch.autocast(x.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        mean, log_variance = image.moments(x)  # type: ignore[operator, union-attr]
        z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        rebuilt = image.decode(z)  # type: ignore[operator, union-attr]
    difference = rebuilt - x
    dx, dy = reference.sobel(difference)
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance)
    parts = (difference.abs(), difference**2, (dx.abs() + dy.abs()) / 2, kl)
    return torch.stack([part.mean() for part in parts])


def objective(model: Autoencoder, config: AutoencoderTraining, sets: list[data.Pairs]) -> loop.Objective:
    def loss(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        rank, world = loop.rank_and_world()
        batch = data.batch(sets, config.seed, step * world + rank, config.batch_size, config.crop_px)
        images = by_kind(*batch)
        torch.manual_seed((config.seed << 32) + step * world + rank)  # for the latents' noise
        weight = torch.tensor([1.0, config.squared, config.gradient, config.kl], device=loop.device())
        total = torch.zeros((), device=loop.device())
        terms: dict[str, Tensor] = {}
        for kind, x in images.items():
            parts = reconstruction_loss(model, kind, x.to(loop.device()), config)
            total = total + (weight * parts).sum()
            terms |= {f"{kind}/l1": parts[0].detach(), f"{kind}/kl": parts[3].detach()}
        return total, terms

    return loss


def slices(sets: list[data.Pairs], kind: str) -> list[Tensor]:
    """Every slice of a modality, [n, 1, H, W] float32 in [0, 1] per set, cropped to multiples of the
    stride."""
    out = []
    for pairs in sets:
        if kind in ("mri", pairs.modality):
            x = torch.from_numpy(pairs.a if kind == "mri" else pairs.b)[:, None]
            height, width = (n // STRIDE * STRIDE for n in x.shape[2:])
            out.append(x[..., :height, :width].float() / 255)
    return out


@torch.no_grad()
def measure_scale(model: Autoencoder, sets: list[data.Pairs]) -> None:
    """Set model.scale: the standard deviation of each modality's latent over its foreground."""
    for i, kind in enumerate(KINDS):
        found = []
        for x in (image for images in slices(sets, kind) for image in images.split(8)):
            mean, _ = model.images[kind].moments(x.to(loop.device()))  # type: ignore[operator, union-attr]
            there = torch.nn.functional.max_pool2d(x, STRIDE) > FOREGROUND
            found.append(mean.cpu().movedim(1, -1)[there[:, 0]])
        model.scale[i] = torch.cat(found).std() if found else 1.0


@torch.no_grad()
def psnr(model: Autoencoder, sets: list[data.Pairs]) -> dict[str, float]:
    """PSNR in dB of each modality's rebuilt slices, over all foreground pixels (above 2 of 255) together."""
    out = {}
    for kind in KINDS:
        squared, count = 0.0, 0
        for x in (image for images in slices(sets, kind) for image in images.split(8)):
            x = x.to(loop.device())
            rebuilt = model.decode(kind, model.encode(kind, x))
            there = x > FOREGROUND
            squared += ((rebuilt - x)[there].double() ** 2).sum().item()
            count += int(there.sum())
        if count:
            out[kind] = -10 * torch.log10(torch.tensor(squared / count)).item()
    return out


@torch.no_grad()
def log_pictures(writer: SummaryWriter, state: checkpoints.State, sets: list[data.Pairs]) -> None:
    """Original beside rebuilt for the middle slice of each modality, and its PSNR."""
    model = state.average
    assert isinstance(model, Autoencoder)
    for kind in KINDS:
        if images := slices(sets, kind):
            x = images[0][len(images[0]) // 2][None].to(loop.device())
            rebuilt = model.decode(kind, model.encode(kind, x))
            writer.add_image(f"val/{kind}", torch.cat([x, rebuilt], 3)[0], state.step)
    for kind, value in psnr(model, sets).items():
        writer.add_scalar(f"psnr_db/{kind}", value, state.step)


def train(
    config: AutoencoderTraining, root: Path, out: Path, stop_after: int | None = None, decode: str = "opencv"
) -> Path:
    """Train to the end, or continue from out/checkpoint.safetensors; returns the checkpoint's path.

    decode: what reads the pictures, with identical results.

    Raises InputError for data or checkpoints that do not fit, FloatingPointError on a loss that is not finite
    (the last checkpoint stays).
    """
    sets, validation = data.read_splits(root, decode)
    data.check_crop(config.crop_px, STRIDE, sets, validation)
    state, path = loop.new_state(config, lambda: Autoencoder(config.model)), out / "checkpoint.safetensors"
    state.sources = data.sources(sets)
    loop.resume(path, state, config)
    assert isinstance(state.model, Autoencoder) and isinstance(state.average, Autoencoder)

    def pictures(writer: SummaryWriter) -> None:
        assert isinstance(state.average, Autoencoder)
        if state.step == config.steps:  # of the finished network: the scale is stored with its weights
            measure_scale(state.average, sets)
            print(f"val PSNR in dB, foreground: {psnr(state.average, validation)}")
        log_pictures(writer, state, validation)

    return loop.run(state, config, path, objective(state.model, config, sets), pictures, stop_after)


def load(path: Path) -> Autoencoder:
    """The running average of a finished training: the scale of the latents is measured at its end.

    Raises InputError if path is not such a checkpoint."""
    tensors, config = checkpoints.read_average(path)
    checkpoints.refuse_unfinished(path)
    model = checkpoints.built(path, lambda: Autoencoder(AutoencoderConfig(**config["model"])), tensors)
    return model.to(loop.device())  # type: ignore[no-any-return]


def main(arguments: list[str] | None = None) -> int:
    defaults = AutoencoderTraining()
    given = flags.parser("autoencoder", __doc__.splitlines()[0], defaults).parse_args(arguments)
    config = AutoencoderTraining(**flags.shared(given))
    return loop.main(
        given, config, lambda: train(config, given.data, given.out, given.stop_after, given.decode)
    )


if __name__ == "__main__":
    sys.exit(main())
