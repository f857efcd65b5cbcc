"""The shipped weight files, and the manifest that describes them. A file loads only if its SHA-256 matches
the manifest."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mmif_trt.image import InputError

FOLDER = Path(__file__).parent
SUFFIXES = ("safetensors", "onnx", "npz")
NAMES = ("lagn", "lagn-quality")  # of the networks in the manifest, for parsers, which must not need it
DEFAULT = NAMES[0]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@lru_cache(maxsize=1)
def manifest() -> dict[str, Any]:
    """weights/manifest.json: files with SHA-256, dimensions, preprocessing and provenance, for each fusion
    model ("models") and for the latent diffusion that their training used ("diffusion")."""
    path = FOLDER / "manifest.json"
    if not path.is_file():
        raise InputError(
            f"{path}: missing; expected an installation that has the weights (reinstall mmif-trt)"
        )
    table: dict[str, Any] = json.loads(path.read_text())
    return table


def refuse_unknown(name: str, what: str = "network") -> None:
    """Raises InputError unless the installation has the network `name`. what: as the caller calls it."""
    models = manifest()["models"]
    if name not in models:
        raise InputError(f"{what} {name!r}; expected {', '.join(models)}")


def title(name: str) -> str:
    """The network `name` as outputs and tables call it: LAGN, LAGN-quality."""
    return name.replace("lagn", "LAGN")


def onnx_sha256(name: str) -> str:
    """Of the network `name`, by the manifest: what an output states of the weights it was made with."""
    refuse_unknown(name)
    digest: str = manifest()["models"][name]["files"][f"{name}.onnx"]["sha256"]
    return digest


@lru_cache(maxsize=8)
def verified_path(name: str, suffix: str) -> Path:
    """The file of model `name` with `suffix`, after its hash was checked against the manifest.

    Raises InputError for an unknown model, a missing file or a different hash.
    """
    refuse_unknown(name, "model")
    return _verified(manifest()["models"][name]["files"], f"{name}.{suffix}")


@lru_cache(maxsize=2)
def verified_diffusion(name: str) -> Path:
    """The checkpoint of the "autoencoder" or the "denoiser", verified as verified_path does."""
    return _verified(manifest()["diffusion"]["files"], f"{name}.safetensors")


def _verified(files: dict[str, Any], name: str) -> Path:
    path = FOLDER / name
    if not path.is_file():
        raise InputError(
            f"{path}: missing; expected an installation that has the weights (reinstall mmif-trt)"
        )
    expected, received = files[name]["sha256"], sha256(path)
    if received != expected:
        raise InputError(f"{path}: SHA-256 is {received}; expected {expected} (reinstall mmif-trt)")
    return path


def golden(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """a [n, H, W] and b [n, H, W, 3] in [0, 1], some of them grey, and the fused luma [n, H, W] that FP32
    torch gave when the weights were released."""
    with np.load(verified_path(name, "npz")) as file:
        a, b = (file[key].astype(np.float32) / 255 for key in ("a", "b"))
        return a, b, file["f"]


def installed() -> dict[str, dict[str, Any]]:
    """Name of each network -> release date, and the SHA-256 of each of its files as the manifest has it."""
    return {
        name: {
            "released": model["released"],
            "sha256": {file: facts["sha256"] for file, facts in model["files"].items()},
        }
        for name, model in manifest()["models"].items()
    }


def in_use(name: str) -> dict[str, dict[str, Any]]:
    """`installed` of the network `name` alone, as a record of a fusion states it. Raises InputError."""
    refuse_unknown(name)
    return {name: installed()[name]}
