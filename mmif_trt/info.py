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
    *(
        "sse4_2",
        "avx",
        "avx2",
        "fma",
        "avx_vnni",
        "avx512f",
        "avx512bw",
        "avx512_vnni",
        "avx512_bf16",
        "avx512_fp16",
    ),
    *("amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
    *("asimd", "asimdhp", "bf16", "i8mm", "sve", "sve2"),
)


def usable_cores() -> int:
    """Cores this process may use: under taskset or in a container often fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu() -> dict[str, Any]:
    """Model, usable cores and those of CPU_FLAGS that it has; no flags where /proc is missing."""
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
    """Everything `mmif-trt info` shows; `default` is what "auto" takes, or the one-line reason of none.

    `folders`: from how many pairs on `mmif-trt fuse` runs several pictures side by side, and how many.
    """
    from mmif_trt import __version__, batch, ops, runtimes
    from mmif_trt.fuser import Fuser

    try:
        default: dict[str, Any] | str = describe_runtime(Fuser())
    except Exception as error:  # information about a broken installation is what the command is for
        default = f"none ({type(error).__name__}: {error})"
    return {
        "mmif_trt": __version__,
        "use": RESEARCH_USE,
        **conditions(),
        "executable": sys.executable,
        "runtimes": runtimes.available(),
        "kernels": ops.KERNELS,
        "default": default,
        "folders": {
            "from_pairs": batch.FOLDER_PAIRS,
            "workers": batch.default_workers(),
            "streams": batch.network_streams(batch.FOLDER_PAIRS, batch.default_workers()),
        },
        "weights": weights_in_use(),
    }


def weights_in_use() -> dict[str, dict[str, Any]]:
    """Model name -> release date, and the SHA-256 of each of its files as the manifest has it."""
    from mmif_trt.weights import manifest

    return {
        name: {
            "released": model["released"],
            "sha256": {file: facts["sha256"] for file, facts in model["files"].items()},
        }
        for name, model in manifest()["models"].items()
    }


def describe_runtime(fuser: Any) -> dict[str, Any]:
    """What runs the network of a `Fuser`; `note` says why in this precision, `streams` how many at once."""
    runtime = fuser.runtime
    said = {name: str(getattr(runtime, name)) for name in ("name", "precision", "device", "note")}
    return said | {"streams": runtime.streams}


def describe(found: dict[str, Any]) -> str:
    """`facts()` in lines for a terminal."""
    cpu, default = found["cpu"], found["default"]
    lines = [
        f"mmif-trt {found['mmif_trt']}. {found['use']}",
        f"python {found['python']} ({found['executable']}), {found['os']}",
        f"cpu: {cpu['model']}, {cpu['cores']} cores usable",
        f"cpu features: {' '.join(cpu['features']) or 'not known'}",
    ]
    for name, reason in found["runtimes"].items():
        lines.append(f"runtime {name}: " + (f"not usable, {reason}" if reason else "usable"))
    if not isinstance(default, str):
        default = "{name} {precision} on {device} ({note})".format(**default)
    lines.append(f"default: {default}")
    lines.append(f"training kernels: {found['kernels']}")
    folders = "folders from {from_pairs} pairs on: {workers} workers, {streams} streams (openvino)"
    lines.append(folders.format(**found["folders"]))
    for model, weights in found["weights"].items():
        for name, digest in weights["sha256"].items():
            lines.append(f"weights {model} of {weights['released']}: {name} sha256 {digest}")
    return "\n".join(lines)
