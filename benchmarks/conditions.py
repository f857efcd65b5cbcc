"""What every timing depends on: machine, load, versions, commit, weights, and the GPU."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from mmif_trt import __version__, machine, weights
from mmif_trt.runtimes.trt import cuda

FOLDER = Path(__file__).resolve().parent
DISTRIBUTIONS = ("numpy", "opencv-python-headless", "openvino", "torch")


def conditions(networks: Sequence[str] = (weights.DEFAULT,)) -> dict[str, Any]:
    """What every timing depends on: machine, load (of 1, 5, 15 minutes), versions, commit, weights of the
    networks that are timed."""
    return {
        **machine.conditions(),
        "load_average": load_average(),
        "versions": {"mmif_trt": __version__, **{name: _version(name) for name in DISTRIBUTIONS}},
        **source(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "weights_sha256": {
            file: entry["sha256"]
            for network in networks
            for file, entry in weights.manifest()["models"][network]["files"].items()
        },
    }


def device_facts(device: Any) -> dict[str, Any]:
    """Name, driver and versions of a torch device; of the CPU the instruction set of its kernels."""
    import torch

    if device.type != "cuda":
        return {"name": device.type, "torch": torch.__version__, "isa": os.environ.get("MMIF_ISA", "best")}
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "driver": _driver(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def card_facts() -> dict[str, Any] | None:
    """Like device_facts, for the GPU that the driver names, without torch; None if there is none."""
    try:
        here = cuda.card()
    except cuda.DeviceError:
        return None
    facts = {"name": here.name, "compute_capability": here.capability}
    return facts | {"driver": _driver(), "cuda": here.driver}


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip() or None
    except OSError:
        return None


def load_average() -> list[float] | None:
    return [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def source() -> dict[str, Any]:
    """The commit, and whether files differ from it, rows of other benchmarks apart; None if unknown. A copy
    without .git gets its commit from MMIF_COMMIT, with "-dirty" appended if files had changed."""
    if told := os.environ.get("MMIF_COMMIT"):
        commit, dirty, _ = told.partition("-dirty")
        return {"commit": commit[:12], "uncommitted_changes": bool(dirty)}
    changes = _git("status", "--porcelain", "--", ":/", ":(top,exclude)benchmarks/results")
    return {
        "commit": _git("rev-parse", "--verify", "--short=12", "HEAD"),
        "uncommitted_changes": None if changes is None else bool(changes),
    }


def _git(*arguments: str) -> str | None:
    """stdout of git in this checkout; None without git, checkout or commit."""
    try:
        done = subprocess.run(["git", *arguments], cwd=FOLDER, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
