"""The options that all trainings share, and their types: a value that no training can use is refused at
once."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmif_trt.machine import usable_cores
from mmif_trt.train.data import DECODERS


def whole(least: int) -> Callable[[str], int]:
    """The type of a count: `least` or more, and no more than a seed's 32 bits."""

    def count(text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text) < 2**32):
            raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number, {least} or more")
        return int(text)

    return count


def number(text: str, most: float = float("inf")) -> float:
    """The type of a loss weight or a rate: finite, 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most or value == float("inf"):
        expected = "0 or more" if most == float("inf") else f"0 to {most:g}"
        raise argparse.ArgumentTypeError(f"{text!r}; expected a number, {expected}")
    return value


def share(text: str) -> float:
    return number(text, 1.0)


def parser(module: str, about: str, defaults: Any) -> argparse.ArgumentParser:
    """With the defaults of a training's configuration."""
    out = argparse.ArgumentParser(f"python -m mmif_trt.train.{module}", description=about)
    out.add_argument("--data", type=Path, required=True, help="folder with mri-ct, mri-pet, mri-spect")
    out.add_argument(
        "--out", type=Path, required=True, help="run folder; an unfinished run in it is continued"
    )
    out.add_argument("--stop-after", type=whole(1), help="end at this step of the schedule")
    out.add_argument("--dry-run", action="store_true", help="print the resolved configuration and stop")
    out.add_argument("--threads", type=whole(1), default=usable_cores(), help="default: all usable cores")
    rows = (("steps", whole(1)), ("batch-size", whole(1)), ("learning-rate", number), ("seed", whole(0)))
    for name, kind in rows:
        value = getattr(defaults, name.replace("-", "_"))
        out.add_argument(f"--{name}", type=kind, default=value, help=f"default: {value:g}")
    out.add_argument("--precision", choices=("bf16", "fp32"), default=defaults.precision)
    out.add_argument("--decode", choices=DECODERS, default="opencv", help="the same bits by both")
    return out


def shared(given: argparse.Namespace) -> dict[str, Any]:
    """The fields of Schedule that `parser` reads."""
    names = ("steps", "batch_size", "learning_rate", "seed", "precision")
    return {name: getattr(given, name) for name in names}
