"""What the three trainings share: state, checkpoints, one optimiser step, and the run to the end.

Each training's objective depends only on the step, so a run stopped at any moment continues from its last
checkpoint to the same result. Checkpoints are safetensors, written atomically. Under torchrun every process
takes its own batches and the gradients are averaged.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from mmif_trt import ops
from mmif_trt.image import InputError
from mmif_trt.running import Stop, stop_on_signal
from mmif_trt.train.differing import differing

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Objective = Callable[[int], tuple[Tensor, dict[str, Tensor]]]  # step -> loss, terms for the log


@dataclass(frozen=True)
class Schedule:
    """The fields of every training; each adds its own. Together with the data they determine the result."""

    steps: int = 4200
    batch_size: int = 6
    learning_rate: float = 1.5e-3
    warmup_steps: int = 200
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    ema_decay: float = 0.998
    seed: int = 0
    precision: str = "bf16"  # of the forward pass: bf16 or fp32


@dataclass
class State:
    """What a checkpoint holds: the network, its running average, the optimiser's moments, and the step."""

    model: nn.Module
    average: nn.Module
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
            if moments := part(f"optimiser.{name}."):  # none if it has had no gradient yet
                self.optimiser.state[parameter] = {k: like(v, parameter) for k, v in moments.items()}


def like(x: Tensor, parameter: Tensor) -> Tensor:
    """x on the parameter's device and, where their shapes agree, in its order of memory: fused AdamW walks
    through parameters, gradients and moments in parallel and ignores strides."""
    if x.shape != parameter.shape:
        return x.to(parameter.device)
    return torch.empty_like(parameter, dtype=x.dtype, requires_grad=False).copy_(x)


def new_state(config: Any, build: Callable[[], nn.Module]) -> State:
    """A network of the configuration's seed, its running average, and AdamW over it, on this process's
    device.
    """
    torch.manual_seed(config.seed)
    # Channels last: bfloat16 convolutions run twice as fast on the CPU.
    model = build().to(device=device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = build().to(device()).requires_grad_(False)
    average.load_state_dict(model.state_dict())
    # Fused: one call for all parameters, where the plain one takes a dozen for each.
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=config.weight_decay, fused=True)
    return State(model, average, optimiser)


def device() -> torch.device:
    """This process's device: the GPU of its LOCAL_RANK (torchrun), or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def rank_and_world() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def learning_rate(config: Any, step: int) -> float:
    """Linear warm-up, then a cosine to a hundredth."""
    warm = min(1.0, (step + 1) / config.warmup_steps)
    rate: float = (
        config.learning_rate * warm * (0.01 + 0.99 * (1 + math.cos(math.pi * step / config.steps)) / 2)
    )
    return rate


def as_json(config: Any) -> str:
    return json.dumps(asdict(config), sort_keys=True)


def save_checkpoint(path: Path, state: State, config: Any) -> None:
    temporary = path.with_suffix(".tmp")
    save_file(state.tensors(), temporary, {"step": str(state.step), "config": as_json(config)})
    os.replace(temporary, path)


def open_checkpoint(path: Path) -> Any:
    """The opened safetensors file; InputError if it is missing, damaged or from another program."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a checkpoint.safetensors of this program")
    try:
        file = safe_open(path, "pt")
        if not {"config", "step"} <= (file.metadata() or {}).keys():
            raise ValueError("no step and configuration inside")
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: {reason}; expected a checkpoint.safetensors of this program") from error
    return file


def load_checkpoint(path: Path, state: State, config: Any) -> None:
    with open_checkpoint(path) as checkpoint:
        received = checkpoint.metadata()["config"]
        if received != as_json(config):
            raise InputError(
                f"{path}: made with another configuration: {differing(json.loads(received), asdict(config))};"
                " expected the same one, or --out NEW"
            )
        state.load({key: checkpoint.get_tensor(key) for key in checkpoint.keys()})  # noqa: SIM118
        state.step = int(checkpoint.metadata()["step"])


def read_average(path: Path, part: str = "average") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A checkpoint's running average, or with "model" the network itself, and its configuration. Raises
    InputError as open_checkpoint does."""
    with open_checkpoint(path) as file:
        names = [key for key in file.keys() if key.startswith(f"{part}.")]  # noqa: SIM118
        tensors = {key.removeprefix(f"{part}."): file.get_tensor(key) for key in names}
        return tensors, json.loads(file.metadata()["config"])


def built(path: Path, build: Callable[[], nn.Module], tensors: dict[str, Tensor]) -> Any:
    """A network with a checkpoint's tensors, for use. Raises InputError if they are from another network."""
    try:
        model = build()
        model.load_state_dict(tensors)
    except (RuntimeError, TypeError, KeyError) as error:
        raise InputError(
            f"{path}: of another network; expected a checkpoint of the matching training"
        ) from error
    return model.to(device()).eval().requires_grad_(False)


def start_from(path: Path, state: State, what: object) -> None:
    """Both networks from the running average of another run's checkpoint; the optimiser restarts."""
    tensors, _ = read_average(path)
    try:
        state.model.load_state_dict(tensors)
        state.average.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{path}: another network; expected one of {what}") from error


def average_gradients(model: nn.Module) -> None:
    """The mean over the processes; a parameter unused in one of them counts as 0 there."""
    if rank_and_world()[1] == 1:
        return
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = flat.split([g.numel() for g in gradients])
    for parameter, part in zip(model.parameters(), parts, strict=True):
        parameter.grad = like(part.view_as(parameter), parameter)


def train_step(state: State, config: Any, objective: Objective) -> tuple[float, dict[str, Tensor]]:
    """One optimiser step on the batch of state.step.

    Raises FloatingPointError, with the network as it was, on a loss or a gradient that is not finite."""
    for group in state.optimiser.param_groups:
        group["lr"] = learning_rate(config, state.step)
    loss, terms = objective(state.step)
    if not torch.isfinite(loss):
        raise FloatingPointError(f"loss is {loss.item()} at step {state.step} (batch of seed {config.seed})")
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    average_gradients(state.model)
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.clip_norm)
    if not torch.isfinite(norm):  # the next loss would say so too, but with weights that are lost
        raise FloatingPointError(
            f"the gradient is {norm.item()} at step {state.step} (batch of seed {config.seed})"
        )
    state.optimiser.step()
    decay = min(config.ema_decay, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        averages: list[Tensor] = list(state.average.parameters())
        parameters: list[Tensor] = list(state.model.parameters())
        torch._foreach_lerp_(averages, parameters, 1 - decay)
    state.step += 1
    return loss.item(), terms


def resume(path: Path, state: State, config: Any) -> bool:
    """Continue from path if it exists; True if it did. Writes the configuration beside it."""
    found = path.exists()
    if found:
        load_checkpoint(path, state, config)
    if rank_and_world()[0] == 0:  # and not before: a refused run changes nothing
        path.with_name("config.json").write_text(as_json(config) + "\n")
    return found


def run(
    state: State,
    config: Any,
    path: Path,
    objective: Objective,
    pictures: Callable[[SummaryWriter], None],
    stop_after: int | None = None,
    checkpoint_every: int = 500,
) -> Path:
    """Step until config.steps (or stop_after), with progress, TensorBoard and checkpoints at path.

    Ctrl-C and SIGTERM end it after the step in hand, with a checkpoint: raises Interrupted. Not under
    torchrun, whose processes would end at different steps and wait for one another, and not outside the main
    thread, which alone receives signals.
    """
    rank, world = rank_and_world()
    writer: SummaryWriter | None = None
    if rank == 0:
        from torch.utils.tensorboard import SummaryWriter  # takes long; --help and --dry-run need none

        writer = SummaryWriter(str(path.parent))
    last = min(config.steps, stop_after or config.steps)
    bar = tqdm(total=config.steps, initial=state.step, unit="step", mininterval=5, disable=rank > 0)
    alone = world == 1 and threading.current_thread() is threading.main_thread()
    signals: AbstractContextManager[tuple[Stop, list[int]]] = nullcontext((Stop(), []))
    with stop_on_signal() if alone else signals as (stop, received):
        try:
            while state.step < last and not stop.reason:
                loss, terms = train_step(state, config, objective)
                bar.update()
                if writer is None:
                    continue
                if state.step % 50 == 0:
                    bar.set_postfix(loss=f"{loss:.4f}")
                    writer.add_scalar("loss/total", loss, state.step)
                    for name, term in terms.items():
                        writer.add_scalar(f"loss/{name}", term.item(), state.step)
                if state.step % checkpoint_every == 0 or state.step == last:
                    pictures(writer)
                    save_checkpoint(path, state, config)
        finally:
            bar.close()
            if writer is not None:
                writer.close()
        if received and state.step < last:
            save_checkpoint(path, state, config)
            raise Interrupted(f"{path}: stopped at step {state.step}; the same command goes on", received[0])
    return path


class Interrupted(Exception):
    """(what was saved, the number of the signal)"""


def source_commit() -> str:
    """The commit of the code in use, with "-dirty" if it was changed, or "unknown" outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


def main(given: argparse.Namespace, config: Any, train: Callable[[], Path]) -> int:
    """Print what will run, run it, and return the exit code: 0, 1 for a loss that is not finite, 2 for bad
    input, 128 and the signal's number where one ended it."""
    torch.set_num_threads(given.threads)
    told = {"data": str(given.data), "commit": source_commit(), "kernels": ops.KERNELS}
    told["device"] = str(device())
    print(json.dumps(asdict(config) | told, indent=1))
    if given.dry_run:
        return 0
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # torchrun
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    started = time.time()
    try:
        path = train()
    except Interrupted as error:
        print(error.args[0], file=sys.stderr)
        return 128 + int(error.args[1])
    except (InputError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    print(f"{path}: {config.steps} steps, {time.time() - started:.0f} s in this process")
    return 0
