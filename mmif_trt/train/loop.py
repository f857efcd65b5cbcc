"""What the three trainings share: the first state, one optimiser step, and the run to the end.

Each training's objective depends only on the step, so a run stopped at any moment continues from its last
checkpoint (`checkpoints.py`) to the same result. Under torchrun every process takes its own batches and the
gradients are averaged.
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
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from mmif_trt import files, ops
from mmif_trt.image import InputError
from mmif_trt.running import Stop, explain, stop_on_signal
from mmif_trt.train.checkpoints import (
    State,
    as_json,
    held,
    like,
    load_checkpoint,
    open_checkpoint,
    save_checkpoint,
)

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
    """Continue from path if it exists; True if it did. Makes its folder, and writes the configuration there.

    Raises InputError where the checkpoint is of another training, where another process trains, or where
    nothing can be written."""
    rank, world = rank_and_world()
    state.sources |= {"processes": str(world)}  # each takes batches of its own
    found = path.exists()
    if found:
        load_checkpoint(path, state, config)
    refusal: InputError | OSError | None = None
    if rank == 0:  # and not before: a refused run changes nothing
        try:
            files.prove_writable(path.parent)
            state.lock = held(path.parent)
            files.remove_leftovers(path.parent)
            files.write_atomic(path.with_name("config.json"), (as_json(config) + "\n").encode())
        except (InputError, OSError) as error:
            refusal = error
    if world > 1:  # the others would wait for the first, and end with its broken connection
        refused = torch.tensor([float(refusal is not None)], device=device())
        dist.all_reduce(refused)
        if refused.item() and rank:
            raise InputError(f"{path.parent}: the first process of this training was refused, and says why")
    if refusal is not None:
        raise refusal
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
    alone = world == 1 and threading.current_thread() is threading.main_thread()
    signals: AbstractContextManager[tuple[Stop, list[int]]] = nullcontext((Stop(), []))
    with stop_on_signal() if alone else signals as (stop, received):
        bar = tqdm(total=config.steps, initial=state.step, unit="step", mininterval=5, disable=rank > 0)
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
        except OSError as error:  # TensorBoard names no file
            if isinstance(error, InputError) or not files.disk_is_full(error):
                raise
            words = f"cannot be written ({error.strerror}); expected a folder with room"
            raise files.OutputError(f"{path.parent}: {words}") from error
        finally:
            bar.close()
            if writer is not None:
                with suppress(OSError):  # the same again
                    writer.close()
        if received and state.step < last:
            save_checkpoint(path, state, config)
            raise Interrupted(f"{path}: stopped at step {state.step}; the same command goes on", received[0])
    return path


class Interrupted(Exception):
    """(what was saved, the number of the signal)"""


def source_commit() -> str:
    """The commit of the code in use, with "-dirty" if it was changed, or "unknown" outside a checkout or
    without git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # no git
        return "unknown"
    return result.stdout.strip() or "unknown"


def main(given: argparse.Namespace, config: Any, train: Callable[[], Path]) -> int:
    """Print what will run, run it, and return the exit code: 0, 1 for a loss that is not finite, 2 for bad
    input or a file that cannot be written, 128 and the signal's number where one ended it."""
    torch.set_num_threads(given.threads)
    told = {"data": str(given.data), "commit": source_commit(), "kernels": ops.KERNELS}
    told["device"] = str(device())
    first = os.environ.get("RANK", "0") == "0"
    if first:
        print(json.dumps(asdict(config) | told, indent=1))
    if given.dry_run:
        return 0
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # torchrun
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    started = time.time()
    try:
        path = train()
        if first:
            with open_checkpoint(path) as made:
                reached = f"step {made.metadata()['step']} of {config.steps}"
            print(f"{path}: {reached}, {time.time() - started:.0f} s in this process")
    except Interrupted as error:
        print(error.args[0], file=sys.stderr)
        return 128 + int(error.args[1])
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (InputError, OSError) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        return 2
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0
