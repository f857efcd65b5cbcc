"""A checkpoint between others: python -m mmif_trt.train.mix --out RUN 0.3=RUN/checkpoint.safetensors 0.7=...

The weighted mean of the running averages of trainings that began at one another (weight averaging: Wortsman
et al., Model soups, ICML 2022): a point between what the one and what the other keeps, without a training.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from mmif_trt.image import InputError
from mmif_trt.train import loop


def mixed(told: Sequence[str], out: Path) -> Path:
    """Write out/checkpoint.safetensors, the mean of "SHARE=CHECKPOINT"s, with the metadata of the last.

    Raises InputError where shares do not add up to 1 or the networks differ.
    """
    total: dict[str, torch.Tensor] = {}
    sum_of_shares, models = 0.0, []
    for one in told:
        share, _, path = one.partition("=")
        try:
            part = float(share)
        except ValueError as error:
            raise InputError(
                f"{one}: expected SHARE=CHECKPOINT, as 0.5=runs/reader/checkpoint.safetensors"
            ) from error
        tensors, config = loop.read_average(Path(path))
        models.append(config.get("model"))
        if models[-1] != models[0] or (total and total.keys() != tensors.keys()):
            raise InputError(f"{path}: another network; expected one of {models[0]}")
        sum_of_shares += part
        total = {key: part * value + total.get(key, 0) for key, value in tensors.items()}
    if abs(sum_of_shares - 1) > 1e-6:
        raise InputError(f"the shares add up to {sum_of_shares:g}; expected 1")
    with loop.open_checkpoint(Path(told[-1].partition("=")[2])) as file:
        metadata = file.metadata()
    return save_network(out, total, metadata)


def save_network(out: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Path:
    """A checkpoint in the folder `out` to start from: one network as its own running average, no optimiser.
    metadata: step and config, as `loop.save_checkpoint` has them."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "checkpoint.safetensors"
    temporary = path.with_suffix(".tmp")
    # Separate copies: safetensors refuses tensors that share memory.
    save_file(
        {f"{p}.{k}": v.clone() for p in ("model", "average") for k, v in tensors.items()}, temporary, metadata
    )
    os.replace(temporary, path)
    return path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m mmif_trt.train.mix", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="run folder to write")
    parser.add_argument("shares", nargs="+", metavar="SHARE=CHECKPOINT")
    given = parser.parse_args(arguments)
    try:
        print(mixed(given.shares, given.out))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
