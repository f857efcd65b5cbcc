"""What this machine is: usable cores, the processor, and the conditions of a timing."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

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
