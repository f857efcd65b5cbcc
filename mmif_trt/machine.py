"""What this machine is: usable cores, the processor, and the conditions of a timing."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path
from typing import Any

# The instruction sets that matter for speed and precision, by their names in /proc/cpuinfo (last row: ARM).
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


def address(host: str, port: int) -> str:
    """HOST:PORT, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def usable_cores() -> int:
    """Cores this process may use, for all runtimes: under taskset or a container's CPU quota often fewer than
    the machine has. A quota is rounded up: `docker run --cpus=1.5` gives 2."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPU quota in cores: the lowest of this process's cgroup and its parents; v1 (CFS) and v2. None if there
    is no limit. root: the folder that holds proc and sys."""
    found = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = ["sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct"] if controllers else ["sys/fs/cgroup"]
        parts = [part for part in path.split("/") if part and part != ".."]
        for mount in mounts:
            for depth in range(len(parts) + 1):  # a container may show the host's path; then take the root
                found.append(_quota_of(root.joinpath(mount, *parts[:depth])))
    return min((quota for quota in found if quota is not None), default=None)


def _quota_of(folder: Path) -> float | None:
    numbers = _text(folder / "cpu.max").split() or [
        *_text(folder / "cpu.cfs_quota_us").split(),
        *_text(folder / "cpu.cfs_period_us").split(),
    ]
    try:
        quota, period = (float(x) for x in numbers)
    except ValueError:  # "max", or no such file
        return None
    return quota / period if quota > 0 and period > 0 else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def cpu() -> dict[str, Any]:
    """Model, usable cores and the CPU_FLAGS that it has; no flags if /proc is missing."""
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
