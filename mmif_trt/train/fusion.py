"""Train LAGN on registered pairs: python -m mmif_trt.train.fusion --data HARVARD --out runs/v0

Third of the three trainings; with --generated (train/generate.py) the pictures of the diffusion model take
part in the loss, without it the first two are not needed. The network runs in bfloat16, as on the CPU later,
in channels-last order; losses and weights are FP32. Where that leaves it too far from FP32, a further term
(--rounding) or stage (--init) brings the two together. Losses are those of `losses.py`, all sets together.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from mmif_trt.image import InputError
from mmif_trt.models.lagn import BRANCHES, LAGN, LAGNConfig
from mmif_trt.train import data, generate, loop
from mmif_trt.train.losses import LossWeights, fusion_loss, rounding_loss


@dataclass(frozen=True)
class FusionConfig(loop.Schedule):
    """All that decides the result, beside the data and the code."""

    crop_px: int = 128
    model: LAGNConfig = field(default_factory=LAGNConfig)
    loss: LossWeights = field(default_factory=LossWeights)


def new_state(config: FusionConfig) -> loop.State:
    return loop.new_state(config, lambda: LAGN(config.model))


def forward(model: LAGN, a: Tensor, b: Tensor, precision: str) -> Tensor:
    """The fused image in float32, the layers in "bf16" (autocast) or "fp32"."""
    with torch.autocast(a.device.type, torch.bfloat16, enabled=precision == "bf16"):
        fused: Tensor = model(a, b)
    return fused


def objective(model: LAGN, config: FusionConfig, sets: list[data.Pairs]) -> loop.Objective:
    def step_loss(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        rank, world = loop.rank_and_world()
        drawn = data.batch(sets, config.seed, step * world + rank, config.batch_size, config.crop_px)
        (a, *generated_a), (b, *generated_b) = (x.to(loop.device()).split(1, 1) for x in drawn[:2])
        fused = forward(model, a, b, config.precision)
        generated = (generated_a[0], generated_b[0]) if generated_a else None
        loss, terms = fusion_loss(fused, a, b, drawn[2], config.loss, generated)
        if config.loss.rounding:
            other = forward(model, a, b, "fp32" if config.precision == "bf16" else "bf16")
            rounding = rounding_loss(fused, other).mean()
            loss, terms["rounding"] = loss + config.loss.rounding * rounding, rounding.detach()
        return loss, terms

    return step_loss


@torch.no_grad()
def log_pictures(writer: SummaryWriter, state: loop.State, sets: list[data.Pairs]) -> None:
    """One row MRI, other, fused for the middle pair of each set."""
    average = state.average
    assert isinstance(average, LAGN)
    for pairs in sets:
        i = len(pairs.names) // 2
        a, b = (
            torch.from_numpy(x[i]).float()[None, None].to(loop.device()) / 255 for x in (pairs.a, pairs.b)
        )
        multiple = average.config.multiple
        height, width = (n // multiple * multiple for n in a.shape[2:])
        a, b = a[..., :height, :width], b[..., :height, :width]
        writer.add_image(f"val/{pairs.modality}", torch.cat([a, b, average(a, b)], 3)[0], state.step)


def train(
    config: FusionConfig,
    root: Path,
    out: Path,
    init: Path | None = None,
    generated: Path | None = None,
    stop_after: int | None = None,
    checkpoint_every: int = 500,
    decode: str = "opencv",
) -> Path:
    """Train to the end, or go on from out/checkpoint.safetensors; returns the checkpoint's path.

    init: a checkpoint of an earlier stage to start from. generated: the file that train/generate.py wrote
    for the training pairs. stop_after: end at this step, with the learning rate of the whole schedule.
    decode: what reads the pictures, the same bits.
    Raises InputError for data, generated images or checkpoints that do not fit,
    FloatingPointError on a loss that is not finite (the last checkpoint stays).
    """
    sets, validation = data.read_splits(root, decode)
    data.check_crop(config.crop_px, config.model.multiple, sets)
    if generated is not None:
        sets = generate.attach(generated, sets)
    elif config.loss.generated_fused or config.loss.predictability:
        raise InputError("--generated: none; accepted is a file of train/generate.py with these loss weights")
    out.mkdir(parents=True, exist_ok=True)
    state, path = new_state(config), out / "checkpoint.safetensors"
    if not loop.resume(path, state, config) and init is not None:
        loop.start_from(init, state, config.model)
    assert isinstance(state.model, LAGN)
    step = objective(state.model, config, sets)
    return loop.run(
        state, config, path, step, lambda w: log_pictures(w, state, validation), stop_after, checkpoint_every
    )


def main(arguments: list[str] | None = None) -> int:
    defaults = FusionConfig()
    parser = loop.parser("fusion", __doc__.splitlines()[0], defaults)
    parser.add_argument("--init", type=Path, help="checkpoint of an earlier stage to start from")
    parser.add_argument("--generated", type=Path, help="generated images of the training pairs")
    parser.add_argument("--branches", choices=BRANCHES, default="both", help="of the network, for ablations")
    parser.add_argument("--crop-px", type=int, default=defaults.crop_px)
    for name, value in asdict(defaults.loss).items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=float, default=value, help="weight of the loss term"
        )
    given = parser.parse_args(arguments)
    loss = LossWeights(**{name: getattr(given, name) for name in asdict(defaults.loss)})
    model = LAGNConfig(branches=given.branches)
    config = FusionConfig(**loop.shared(given), crop_px=given.crop_px, model=model, loss=loss)

    def run() -> Path:
        paths = (given.data, given.out, given.init, given.generated)
        return train(config, *paths, given.stop_after, decode=given.decode)

    return loop.main(given, config, run)


if __name__ == "__main__":
    sys.exit(main())
