"""What this installation is and runs on: for `mmif-trt info`, and as the conditions of a report."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

RESEARCH_USE = "For research use only: not a medical device, not for diagnosis or treatment."
# The instruction sets that decide speed and precision, as /proc/cpuinfo names them (x86; the last row ARM).
CPU_FLAGS = (
    *("sse4_2", "avx", "avx2", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
    *("asimd", "asimdhp", "bf16", "i8mm", "sve", "sve2"),
)


def usable_cores() -> int:
    """Cores this process may use, which under taskset or in a container are often fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu() -> dict[str, Any]:
    """Model, usable cores and the instruction sets of CPU_FLAGS; model and flags are empty where /proc is missing."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    lines = [line.split(":", 1) for line in text.splitlines() if ":" in line]
    first = {key.strip(): value.strip() for key, value in reversed(lines)}
    flags = set(first.get("flags", first.get("Features", "")).split())
    return {
        "model": first.get("model name") or platform.processor() or platform.machine(),
        "cores": usable_cores(),
        "features": [flag for flag in CPU_FLAGS if flag in flags],
    }


def conditions() -> dict[str, Any]:
    """What a timing depends on, apart from the runtime."""
    return {"os": platform.platform(), "python": platform.python_version(), "cpu": cpu()}


def facts() -> dict[str, Any]:
    """Everything `mmif-trt info` shows. `default` is the runtime that "auto" takes, or the one-line reason of none."""
    from mmif_trt import __version__, runtimes, weights
    from mmif_trt.fuser import Fuser

    try:
        default: dict[str, str] | str = describe_runtime(Fuser())
    except Exception as error:  # information about a broken installation is what the command is for
        default = f"none ({type(error).__name__}: {error})"
    return {
        "mmif_trt": __version__,
        "use": RESEARCH_USE,
        **conditions(),
        "executable": sys.executable,
        "runtimes": runtimes.available(),
        "default": default,
        "weights": weights.manifest(),
    }


def describe_runtime(fuser: Any) -> dict[str, str]:
    """What runs the network of a `Fuser`."""
    runtime = fuser.runtime
    return {"name": runtime.name, "precision": runtime.precision, "device": runtime.device}
