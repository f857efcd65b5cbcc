"""A faster network to begin with: python -m mmif_trt.train.coarser --out RUN FULL/checkpoint.safetensors

The global branch at half its resolution, with windows of the same pixels and a quarter of the tokens, takes
a quarter of the branch's time. Its weights follow from those of the network as it was: an average over four
tokens for one, the biases of the nearer offsets, every output twice along each side. That is 2 grey levels
off before any training (mean over the foreground), where a network from the start takes thousands of steps.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from mmif_trt.image import InputError
from mmif_trt.models.lagn import LAGN, LAGNConfig
from mmif_trt.train import loop
from mmif_trt.train.mix import save_network


def coarser(tensors: dict[str, torch.Tensor], config: LAGNConfig) -> LAGN:
    """The network of twice the stride and half the window. tensors: those of `config`.

    Raises InputError where a window cannot be halved.
    """
    if config.window % 2:
        raise InputError(f"window {config.window}; expected an even one, to halve it")
    fields = config.as_dict() | {"stride": 2 * config.stride, "window": config.window // 2}
    out = LAGN(LAGNConfig(**fields))
    side, pool = 2 * config.window - 1, config.stride // 2
    made = dict(tensors)
    made["embed.weight"] = tensors["embed.weight"].repeat_interleave(2, 2).repeat_interleave(2, 3) / 4
    for key in ("unembed.weight", "unembed.bias"):  # [C * pool * pool, ...], as pixel_shuffle orders it
        rows = tensors[key].unflatten(0, (config.local_dim, pool, pool))
        made[key] = rows.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(0, 2)
    for key in (name for name in tensors if name.endswith("bias_table")):
        table = tensors[key].unflatten(0, (side, side))
        near = slice(config.window // 2, config.window // 2 + config.window - 1)
        made[key] = table[near, near].flatten(0, 1)
    out.load_state_dict(made)
    return out


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m mmif_trt.train.coarser", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="run folder to write")
    parser.add_argument("checkpoint", type=Path, help="of the network as it is")
    given = parser.parse_args(arguments)
    try:
        tensors, config = loop.read_average(given.checkpoint)
        model = coarser(tensors, LAGNConfig(**config["model"]))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    config["model"] = asdict(model.config)
    metadata = {"step": "0", "config": json.dumps(config, sort_keys=True)}
    print(save_network(given.out, model.state_dict(), metadata))
    return 0


if __name__ == "__main__":
    sys.exit(main())
