"""Release a trained latent diffusion: python -m mmif_trt.train.export_diffusion --autoencoder A --diffusion D
--command "..." --commit "..."

Writes into mmif_trt/weights: autoencoder.safetensors and denoiser.safetensors, the running averages in half
precision with their configuration inside, and their SHA-256 and provenance into manifest.json.
"""

from __future__ import annotations

import argparse
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch

from mmif_trt import weights
from mmif_trt.image import InputError
from mmif_trt.train import checkpoints, diffusion, releasing


def release(checkpoint: Path, out: Path) -> dict[str, Any]:
    """Write the running average alone in float16, read as any checkpoint; its entry for the manifest.

    Raises InputError for an unfinished training, or one with values that float16 does not hold."""
    checkpoints.refuse_unfinished(checkpoint)
    tensors, config = checkpoints.read_average(checkpoint)
    with checkpoints.open_checkpoint(checkpoint) as file:
        metadata = file.metadata()
    half = {f"average.{name}": x.half().contiguous() for name, x in tensors.items()}
    if not all(x.isfinite().all() for x in half.values()):
        raise InputError(f"{checkpoint}: values that float16 does not hold; expected all below 65504")
    checkpoints.write_tensors(out, half, metadata)
    parameters = sum(x.numel() for x in tensors.values())
    entry = {"sha256": weights.sha256(out), "bytes": out.stat().st_size, "parameters": parameters}
    return entry | {"steps": int(metadata["step"]), "config": config}


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Write all files, and the manifest last. Raises InputError, with the release before as it was, for
    checkpoints that do not fit together."""
    diffusion.load_both(given.autoencoder, given.diffusion)
    told = {"autoencoder": given.autoencoder, "denoiser": given.diffusion}
    with releasing.replacing() as made:
        entries = {
            f"{name}.safetensors": release(path, made / f"{name}.safetensors") for name, path in told.items()
        }
    record = {
        "files": entries,
        "training": {"commit": given.commit, "command": given.command},
        "released": date.today().isoformat(),
        "torch": torch.__version__,
    }
    releasing.write_manifest(weights.manifest() | {"diffusion": record})
    return entries


def main(arguments: list[str] | None = None) -> int:
    about = "Release a trained latent diffusion: write its files and their record into mmif_trt/weights."
    parser = argparse.ArgumentParser("python -m mmif_trt.train.export_diffusion", description=about)
    parser.add_argument("--autoencoder", type=Path, required=True, help="checkpoint of the first training")
    parser.add_argument("--diffusion", type=Path, required=True, help="checkpoint of the second")
    parser.add_argument("--command", required=True, help="the commands that trained them, for the manifest")
    parser.add_argument("--commit", required=True, help="the commit they were trained at")
    given = parser.parse_args(arguments)
    return releasing.exit_code(lambda: run(given))


if __name__ == "__main__":
    sys.exit(main())
