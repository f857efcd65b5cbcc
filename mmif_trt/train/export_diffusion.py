"""Release a trained latent diffusion: python -m mmif_trt.train.export_diffusion --autoencoder A --diffusion D
--command "..." --commit "..."

Writes into mmif_trt/weights: autoencoder.safetensors and denoiser.safetensors, the running averages in half
precision with their configuration inside, and their SHA-256 and provenance into manifest.json.
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mmif_trt import weights
from mmif_trt.train import loop


def release(checkpoint: Path, out: Path) -> dict[str, Any]:
    """Write the running average alone in float16, read as any checkpoint; its entry for the manifest."""
    tensors, config = loop.read_average(checkpoint)
    with loop.open_checkpoint(checkpoint) as file:
        metadata = file.metadata()
    half = {f"average.{name}": x.half().contiguous() for name, x in tensors.items()}
    save_file(half, out, metadata)
    out.chmod(0o644)  # safetensors writes it for the owner alone
    parameters = sum(x.numel() for x in tensors.values())
    entry = {"sha256": weights.sha256(out), "bytes": out.stat().st_size, "parameters": parameters}
    return entry | {"steps": int(metadata["step"]), "config": config}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--autoencoder", type=Path, required=True)
    parser.add_argument("--diffusion", type=Path, required=True)
    parser.add_argument("--command", required=True, help="the commands that trained them, for the manifest")
    parser.add_argument("--commit", required=True, help="the commit they were trained at")
    given = parser.parse_args()
    told = {"autoencoder": given.autoencoder, "denoiser": given.diffusion}
    files = {f"{name}.safetensors": path for name, path in told.items()}
    record = {
        "files": {name: release(path, weights.FOLDER / name) for name, path in files.items()},
        "training": {"commit": given.commit, "command": given.command},
        "released": date.today().isoformat(),
        "torch": torch.__version__,
    }
    manifest = weights.manifest() | {"diffusion": record}
    (weights.FOLDER / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    print(json.dumps(record["files"], indent=1))


if __name__ == "__main__":
    main()
