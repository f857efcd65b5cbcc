"""What a training keeps on disk: safetensors, written atomically, that hold the step, the configuration and
what they were made from.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mmif_trt import files
from mmif_trt.image import InputError
from mmif_trt.train.differing import differing


@dataclass
class State:
    """What a checkpoint holds: the network, its running average, the optimiser's moments, and the step.

    sources: what the result depends on beside the configuration and the code, as "data", each by its SHA-256
    or in words. lock: the open file by which this process holds the folder; not part of a checkpoint.
    """

    model: nn.Module
    average: nn.Module
    optimiser: torch.optim.AdamW
    step: int = 0
    sources: dict[str, str] = field(default_factory=dict)
    lock: IO[bytes] | None = None

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


def as_json(config: Any) -> str:
    return json.dumps(asdict(config), sort_keys=True)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """A safetensors file, whole or not at all; the folder must exist. Raises OutputError."""
    files.write_atomic(path, save(tensors, metadata))


def save_checkpoint(path: Path, state: State, config: Any) -> None:
    metadata = {"step": str(state.step), "config": as_json(config), "sources": json.dumps(state.sources)}
    write_tensors(path, state.tensors(), metadata)


def held(folder: Path) -> IO[bytes] | None:
    """Raises InputError while another process trains in this folder: the two would write one checkpoint in
    turns. An open file holds it until it is closed, at the latest by the end of the process; None where there
    are no such locks (Windows, some network shares)."""
    try:
        import fcntl
    except ImportError:
        return None
    file = (folder / ".lock").open("ab")
    try:
        # By process: one that trains twice is not in its own way.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return None
        raise InputError(f"{folder}: another training is at work there; let it end, or --out NEW") from None
    return file


def open_checkpoint(path: Path) -> Any:
    """The opened safetensors file; InputError if it is missing, damaged or from another program."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a checkpoint.safetensors of this program")
    try:
        file = safe_open(path, "pt")
        metadata = file.metadata() or {}
        if not {"config", "step"} <= metadata.keys():
            raise ValueError("no step and configuration inside")
        if int(metadata["step"]) < 0 or not isinstance(json.loads(metadata["config"]), dict):
            raise ValueError("step and configuration of another kind inside")
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: {reason}; expected a checkpoint.safetensors of this program") from error
    return file


def load_checkpoint(path: Path, state: State, config: Any) -> None:
    """The state as path holds it. Raises InputError unless it was made with this configuration and, where it
    says from what, from the same sources as state has."""
    with open_checkpoint(path) as checkpoint:
        metadata = checkpoint.metadata()
        if metadata["config"] != as_json(config):
            said = differing(json.loads(metadata["config"]), asdict(config))
            raise InputError(
                f"{path}: made with another configuration: {said}; expected the same one, or --out NEW"
            )
        sources = recorded_sources(metadata)
        shared = sources.keys() & state.sources.keys()
        before, now = ({name: table[name][:12] for name in shared} for table in (sources, state.sources))
        if said := differing(before, now):
            raise InputError(f"{path}: made from something else: {said}; expected the same, or --out NEW")
        try:
            state.load({key: checkpoint.get_tensor(key) for key in checkpoint.keys()})  # noqa: SIM118
        except (RuntimeError, SafetensorError) as error:
            raise InputError(f"{path}: of another network; expected one of this training") from error
        state.step = int(metadata["step"])
        state.sources = sources | state.sources


def source_of(name: str, path: Path | None) -> dict[str, str]:
    """A checkpoint as a source of another; nothing where there is none. It is needed at the start only, so a
    run that goes on may do without."""
    if path is None or not path.is_file():
        return {}
    return {name: digest(read_average(path)[0])}


def recorded_sources(metadata: dict[str, str]) -> dict[str, str]:
    """What a checkpoint was made from; nothing in one of a release before they were recorded."""
    sources: dict[str, str] = json.loads(metadata.get("sources", "{}"))
    return sources


def read_average(path: Path, part: str = "average") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A checkpoint's running average, or with "model" the network itself, and its configuration. Raises
    InputError as open_checkpoint does."""
    with open_checkpoint(path) as file:
        names = [key for key in file.keys() if key.startswith(f"{part}.")]  # noqa: SIM118
        tensors = {key.removeprefix(f"{part}."): file.get_tensor(key) for key in names}
        return tensors, json.loads(file.metadata()["config"])


def refuse_unfinished(path: Path) -> None:
    """Raises InputError for a checkpoint of a training that has steps to go, and as open_checkpoint does."""
    with open_checkpoint(path) as file:
        metadata = file.metadata()
    step, steps = int(metadata["step"]), json.loads(metadata["config"]).get("steps", 0)
    if step < steps:
        raise InputError(f"{path}: stopped at step {step} of {steps}; expected a finished training")


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names and values, these in half precision as in a release: a checkpoint and what was
    released of it are one network."""
    made = hashlib.sha256()
    for name in sorted(tensors):
        made.update(name.encode() + tensors[name].detach().cpu().half().contiguous().numpy().tobytes())
    return made.hexdigest()


def built(path: Path, build: Callable[[], nn.Module], tensors: dict[str, Tensor]) -> Any:
    """A network with a checkpoint's tensors, for use, on the CPU. Raises InputError if they are from another
    network."""
    try:
        model = build()
        model.load_state_dict(tensors)
    except (RuntimeError, TypeError, KeyError) as error:
        raise InputError(
            f"{path}: of another network; expected a checkpoint of the matching training"
        ) from error
    return model.eval().requires_grad_(False)


def start_from(path: Path, state: State, what: object) -> None:
    """Both networks from the running average of another run's checkpoint; the optimiser restarts."""
    tensors, _ = read_average(path)
    try:
        state.model.load_state_dict(tensors)
        state.average.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{path}: another network; expected one of {what}") from error
