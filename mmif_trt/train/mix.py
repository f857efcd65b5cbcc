"""A checkpoint between others: python -m mmif_trt.train.mix --out RUN 0.3=RUN/checkpoint.safetensors 0.7=...

The weighted mean of the running averages of trainings that began at one another (weight averaging: Wortsman
et al., Model soups, ICML 2022): a point between what the one and what the other keeps, without a training.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mmif_trt import files
from mmif_trt.image import InputError
from mmif_trt.running import explain
from mmif_trt.train import checkpoints, flags


def mixed(told: Sequence[str], out: Path) -> Path:
    """Write out/checkpoint.safetensors, the mean of "SHARE=CHECKPOINT"s, with the metadata of the last.

    Raises InputError where shares do not add up to 1 or the networks differ, and where `out` holds a training
    or one of the checkpoints, which would be lost.
    """
    refuse_to_replace(out / "checkpoint.safetensors", told)
    total: dict[str, torch.Tensor] = {}
    sum_of_shares, models = 0.0, []
    for one in told:
        said, _, path = one.partition("=")
        try:
            share = flags.share(said)
        except argparse.ArgumentTypeError as error:
            expected = "expected SHARE=CHECKPOINT, a share from 0 to 1"
            raise InputError(f"{one}: {expected}, as 0.5=runs/reader/checkpoint.safetensors") from error
        tensors, config = checkpoints.read_average(Path(path))
        models.append(config.get("model"))
        if models[-1] != models[0] or (total and shapes(total) != shapes(tensors)):
            raise InputError(f"{path}: another network; expected one of {models[0]}")
        sum_of_shares += share
        total = {key: share * value + total.get(key, 0) for key, value in tensors.items()}
    if abs(sum_of_shares - 1) > 1e-6:
        raise InputError(f"the shares add up to {sum_of_shares:g}; expected 1")
    with checkpoints.open_checkpoint(Path(told[-1].partition("=")[2])) as file:
        metadata = file.metadata()
    return save_network(out, total, metadata)


def shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: x.shape for name, x in tensors.items()}


def refuse_to_replace(path: Path, told: Sequence[str]) -> None:
    """Raises InputError where path is a training's checkpoint, or one of those to mix."""
    if not path.exists():
        return
    sources = [Path(one.partition("=")[2]) for one in told]
    if any(source.exists() and source.samefile(path) for source in sources):
        raise InputError(f"{path}: one of those to mix; expected another folder as --out")
    with checkpoints.open_checkpoint(path) as file:
        if any(key.startswith("optimiser.") for key in file.keys()):  # noqa: SIM118
            raise InputError(f"{path}: holds a training; expected another folder as --out")


def save_network(out: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Path:
    """A checkpoint in the folder `out` to start from: one network as its own running average, no optimiser.
    metadata: step and config, as `checkpoints.save_checkpoint` has them."""
    files.prove_writable(out)
    path = out / "checkpoint.safetensors"
    # Separate copies: safetensors refuses tensors that share memory.
    both = {f"{part}.{k}": v.clone() for part in ("model", "average") for k, v in tensors.items()}
    checkpoints.write_tensors(path, both, metadata)
    return path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m mmif_trt.train.mix", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="run folder to write")
    parser.add_argument("shares", nargs="+", metavar="SHARE=CHECKPOINT")
    given = parser.parse_args(arguments)
    try:
        print(mixed(given.shares, given.out))
    except (InputError, OSError) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
