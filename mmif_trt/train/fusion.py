"""Train LAGN on registered pairs: python -m mmif_trt.train.fusion --data HARVARD --out runs/v0

The network runs in bfloat16, as on the CPU later, in channels-last order; losses and weights are FP32. Where
that leaves it too far from FP32, a further term (--rounding) or stage (--init) brings the two together.
Losses are those of `losses.py`, all sets together. Every batch is a function of (seed, step), so a run that
was stopped at any moment goes on from its last checkpoint to the same result. Checkpoints are safetensors,
written whole or not at all.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from mmif_trt.image import InputError
from mmif_trt.models.lagn import LAGN, LAGNConfig
from mmif_trt.train import data
from mmif_trt.train.losses import LossWeights, fusion_loss, rounding_loss


@dataclass(frozen=True)
class FusionConfig:
    """All that decides the result, beside the data and the code."""

    steps: int = 4200
    batch_size: int = 6
    crop_px: int = 128
    learning_rate: float = 1.5e-3
    warmup_steps: int = 200
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    ema_decay: float = 0.998
    seed: int = 0
    precision: str = "bf16"  # of the forward pass: bf16 or fp32
    model: LAGNConfig = field(default_factory=LAGNConfig)
    loss: LossWeights = field(default_factory=LossWeights)


@dataclass
class State:
    """What a checkpoint holds: the network, its running average, the optimiser's moments, and the step."""

    model: LAGN
    average: LAGN
    optimiser: torch.optim.AdamW
    step: int = 0

    def tensors(self) -> dict[str, Tensor]:
        out = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        out |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            moments = self.optimiser.state.get(parameter, {})
            out |= {f"optimiser.{name}.{k}": v for k, v in moments.items()}
        return {k: v.contiguous() for k, v in out.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.average.load_state_dict(part("average."))
        for name, parameter in self.model.named_parameters():
            self.optimiser.state[parameter] = part(f"optimiser.{name}.")


def learning_rate(config: FusionConfig, step: int) -> float:
    """Linear warm-up, then a cosine to a hundredth."""
    warm = min(1.0, (step + 1) / config.warmup_steps)
    return config.learning_rate * warm * (0.01 + 0.99 * (1 + math.cos(math.pi * step / config.steps)) / 2)


def new_state(config: FusionConfig) -> State:
    torch.manual_seed(config.seed)
    # Channels last: bfloat16 convolutions run twice as fast on the CPU.
    model = LAGN(config.model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = LAGN(config.model).requires_grad_(False)
    average.load_state_dict(model.state_dict())
    return State(model, average, torch.optim.AdamW(model.parameters(), weight_decay=config.weight_decay))


def as_json(config: FusionConfig) -> str:
    return json.dumps(asdict(config), sort_keys=True)


def save_checkpoint(path: Path, state: State, config: FusionConfig) -> None:
    temporary = path.with_suffix(".tmp")
    save_file(state.tensors(), temporary, {"step": str(state.step), "config": as_json(config)})
    os.replace(temporary, path)


def open_checkpoint(path: Path) -> Any:
    """The opened safetensors file; InputError where it is missing, damaged or of another program."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; accepted is a checkpoint.safetensors of this program")
    try:
        file = safe_open(path, "pt")
        if not {"config", "step"} <= (file.metadata() or {}).keys():
            raise ValueError("no step and configuration inside")
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: {reason}; accepted is a checkpoint.safetensors of this program") from error
    return file


def load_checkpoint(path: Path, state: State, config: FusionConfig) -> None:
    with open_checkpoint(path) as checkpoint:
        came = checkpoint.metadata()["config"]
        if came != as_json(config):
            raise InputError(
                f"{path}: made with another configuration: {came}; accepted is the same one, or --out NEW"
            )
        state.load({key: checkpoint.get_tensor(key) for key in checkpoint.keys()})  # noqa: SIM118
        state.step = int(checkpoint.metadata()["step"])


def forward(model: LAGN, a: Tensor, b: Tensor, precision: str) -> Tensor:
    """The fused image in float32, the layers in "bf16" (autocast) or "fp32"."""
    with torch.autocast(a.device.type, torch.bfloat16, enabled=precision == "bf16"):
        fused: Tensor = model(a, b)
    return fused


def train_step(state: State, config: FusionConfig, sets: list[data.Pairs]) -> tuple[float, dict[str, Tensor]]:
    """One optimiser step on the batch of state.step; FloatingPointError on a loss that is not finite."""
    a, b, modalities = data.batch(sets, config.seed, state.step, config.batch_size, config.crop_px)
    for group in state.optimiser.param_groups:
        group["lr"] = learning_rate(config, state.step)
    fused = forward(state.model, a, b, config.precision)
    loss, terms = fusion_loss(fused, a, b, modalities, config.loss)
    if config.loss.rounding:
        other = forward(state.model, a, b, "fp32" if config.precision == "bf16" else "bf16")
        rounding = rounding_loss(fused, other).mean()
        loss, terms["rounding"] = loss + config.loss.rounding * rounding, rounding.detach()
    if not torch.isfinite(loss):
        raise FloatingPointError(f"loss is {loss.item()} at step {state.step} (batch of seed {config.seed})")
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.clip_norm)
    state.optimiser.step()
    decay = min(config.ema_decay, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        for average, parameter in zip(state.average.parameters(), state.model.parameters(), strict=True):
            average.lerp_(parameter, 1 - decay)
    state.step += 1
    return loss.item(), terms


@torch.no_grad()
def log_pictures(writer: SummaryWriter, state: State, sets: list[data.Pairs]) -> None:
    """One row MRI, other, fused for the middle pair of each set."""
    for pairs in sets:
        i = len(pairs.names) // 2
        a, b = (torch.from_numpy(x[i]).float()[None, None] / 255 for x in (pairs.a, pairs.b))
        multiple = state.average.config.multiple
        height, width = (n // multiple * multiple for n in a.shape[2:])
        a, b = a[..., :height, :width], b[..., :height, :width]
        writer.add_image(f"val/{pairs.modality}", torch.cat([a, b, state.average(a, b)], 3)[0], state.step)


def check_crop(config: FusionConfig, sets: list[data.Pairs]) -> None:
    largest, multiple = min(min(pairs.a.shape[1:]) for pairs in sets), config.model.multiple
    if config.crop_px % multiple or not 0 < config.crop_px <= largest:
        raise InputError(
            f"crop_px {config.crop_px}; accepted are multiples of {multiple}, at most {largest} for this data"
        )


def start_from(path: Path, state: State) -> None:
    """Both networks from the running average of another run's checkpoint; the optimiser starts anew."""
    with open_checkpoint(path) as file:
        names = [key for key in file.keys() if key.startswith("average.")]  # noqa: SIM118
        tensors = {key.removeprefix("average."): file.get_tensor(key) for key in names}
    try:
        state.model.load_state_dict(tensors)
        state.average.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{path}: another network; accepted is one of {state.model.config}") from error


def train(
    config: FusionConfig,
    root: Path,
    out: Path,
    init: Path | None = None,
    stop_after: int | None = None,
    checkpoint_every: int = 500,
) -> Path:
    """Train to the end, or go on from out/checkpoint.safetensors; returns the checkpoint's path.

    init: a checkpoint of an earlier stage to start from. stop_after: end at this step, with the learning rate
    of the whole schedule. Raises InputError for data or checkpoints that do not fit,
    FloatingPointError on a loss that is not finite (the last checkpoint stays).
    """
    sets, validation = data.read_sets(root, "train"), data.read_sets(root, "val")
    check_crop(config, sets)
    out.mkdir(parents=True, exist_ok=True)
    state, path = new_state(config), out / "checkpoint.safetensors"
    if path.exists():
        load_checkpoint(path, state, config)
    elif init is not None:
        start_from(init, state)
    (out / "config.json").write_text(as_json(config) + "\n")  # not before: a refused run changes nothing
    writer = SummaryWriter(str(out))
    last = min(config.steps, stop_after or config.steps)
    bar = tqdm(total=config.steps, initial=state.step, unit="step", mininterval=5)
    try:
        while state.step < last:
            loss, terms = train_step(state, config, sets)
            bar.update()
            if state.step % 50 == 0:
                bar.set_postfix(loss=f"{loss:.4f}")
                writer.add_scalar("loss/total", loss, state.step)
                for name, term in terms.items():
                    writer.add_scalar(f"loss/{name}", term.item(), state.step)
            if state.step % checkpoint_every == 0 or state.step == last:
                log_pictures(writer, state, validation)
                save_checkpoint(path, state, config)
    finally:
        bar.close()
        writer.close()
    return path


def source_commit() -> str:
    """The commit of the code in use, "-dirty" where it was changed, or "unknown" outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, FusionConfig]:
    parser = argparse.ArgumentParser("python -m mmif_trt.train.fusion", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with mri-ct, mri-pet, mri-spect")
    parser.add_argument("--out", type=Path, required=True, help="run folder; an unfinished run in it goes on")
    parser.add_argument("--init", type=Path, help="checkpoint of an earlier stage to start from")
    parser.add_argument("--stop-after", type=int, help="end at this step of the schedule")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    for name, kind in (
        ("steps", int),
        ("batch-size", int),
        ("crop-px", int),
        ("learning-rate", float),
        ("seed", int),
    ):
        parser.add_argument(f"--{name}", type=kind, default=getattr(FusionConfig, name.replace("-", "_")))
    parser.add_argument("--precision", choices=("bf16", "fp32"), default=FusionConfig.precision)
    for name, value in asdict(LossWeights()).items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=float, default=value, help="weight of the loss term"
        )
    given = parser.parse_args(arguments)
    loss = LossWeights(**{name: getattr(given, name) for name in asdict(LossWeights())})
    config = FusionConfig(
        steps=given.steps,
        batch_size=given.batch_size,
        crop_px=given.crop_px,
        learning_rate=given.learning_rate,
        seed=given.seed,
        precision=given.precision,
        loss=loss,
    )
    return given, config


def main(arguments: list[str] | None = None) -> int:
    given, config = parse(arguments)
    torch.set_num_threads(given.threads)
    print(json.dumps(asdict(config) | {"data": str(given.data), "commit": source_commit()}, indent=1))
    if given.dry_run:
        return 0
    started = time.time()
    try:
        path = train(config, given.data, given.out, given.init, given.stop_after)
    except (InputError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    print(f"{path}: {config.steps} steps, {time.time() - started:.0f} s in this process")
    return 0


if __name__ == "__main__":
    sys.exit(main())
