"""The options that all trainings share, and their types: a value that no training can use is refused at
once."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmif_trt.machine import usable_cores
from mmif_trt.train.data import DECODERS, SETS

# What the loss of LAGN has a weight for; flags of one modality add its name.
TERMS = {
    "intensity": "the value of the stronger source",
    "gradient": "the gradient of the stronger source",
    "structure": "the structure of both sources (SSIM)",
    "edge": "the edges of both sources, in strength and direction",
    "complement": "the correlation of differences (SCD)",
    "function": "the blurred uptake in the luma",
    "detail": "the direction of MRI detail under the brightest fifth",
    "generated_fused": "gradient and structure of the generated pair; needs --generated",
    "rounding": "the largest differences between bfloat16 and FP32; costs a further pass",
    "colour": "the tracer's chroma, under strong uptake most",
    "saturation": "the saturation of the tracer's colours in other palettes",
    "uptake_detail": "fine MRI detail in the lightness, under uptake",
    "soft": "MRI gradients in soft tissue",
    "bone": "the value over bone",
    "activity": "the mean gradient, up to 1.05 times that of the maximum",
    "outside": "the brighter source where the tracer shows nothing",
    "likeness": "SSIM to both sources, faint grain included",
    "flat": "even results of flat sources",
    "lesions": "the visibility of planted lesions",
}
# What changes how terms count.
FACTORS = {
    "predictability": "how much more a pixel weighs that the other modality does not explain (--generated)",
    "repainted": "share of the published terms for crops in other palettes and of no patient",
    "lesion_gain": "the gain up to which a lesion may show",
    "lesion_surprise": "how much more a lesion counts that the other modality does not explain",
}


def add_weights(out: argparse.ArgumentParser, weights: dict[str, float]) -> None:
    """An option per weight of LAGN's loss, with its default."""
    for name, value in weights.items():
        term, _, modality = name.rpartition("_")
        whose = modality.upper() if modality in SETS else "PET and SPECT" if f"{name}_ct" in weights else ""
        term = term if modality in SETS else name
        what = FACTORS[term] if term in FACTORS else f"weight of {TERMS[term]}"
        what += f" ({whose})" if whose else ""
        out.add_argument(
            f"--{name.replace('_', '-')}", type=number, default=value, help=f"{what}; default: {value:g}"
        )


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


def positive(text: str) -> float:
    if (value := number(text)) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a number above 0")
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
    # torchrun's processes on one machine share its cores.
    threads = max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    out.add_argument("--threads", type=whole(1), default=threads, help="default: all usable cores")
    rows = (("steps", whole(1)), ("batch-size", whole(1)), ("learning-rate", number), ("seed", whole(0)))
    for name, kind in rows:
        value = getattr(defaults, name.replace("-", "_"))
        out.add_argument(f"--{name}", type=kind, default=value, help=f"default: {value:g}")
    what = f"of the layers; default: {defaults.precision}"
    out.add_argument("--precision", choices=("bf16", "fp32"), default=defaults.precision, help=what)
    out.add_argument("--decode", choices=DECODERS, default="opencv", help="the same bits by both")
    return out


def shared(given: argparse.Namespace) -> dict[str, Any]:
    """The fields of Schedule that `parser` reads."""
    names = ("steps", "batch_size", "learning_rate", "seed", "precision")
    return {name: getattr(given, name) for name in names}
