"""Stages as NVTX ranges for Nsight, and as a file for Chrome's and Perfetto's trace viewers."""

from __future__ import annotations

import importlib
import json
import os
import resource
from pathlib import Path
from typing import Any


class Trace:
    """Collects (runtime, stage, start, end) in seconds. `push` and `pop` mark NVTX ranges, by torch if it
    sees a GPU, otherwise by the package nvtx if installed (the console has no torch)."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._push, self._pop = _nvtx()

    def push(self, name: str) -> None:
        if self._push:
            self._push(name)

    def pop(self) -> None:
        if self._pop:
            self._pop()

    def add(self, row: str, stage: str, start_s: float, end_s: float) -> None:
        event = {"name": stage, "ph": "X", "pid": os.getpid(), "tid": row}
        self.events.append(event | {"ts": start_s * 1e6, "dur": (end_s - start_s) * 1e6})

    def write(self, path: Path) -> None:
        """Trace Event Format, JSON object form; times in microseconds. A row is a named thread."""
        rows = list(dict.fromkeys(event["tid"] for event in self.events))
        names = [
            {"name": "thread_name", "ph": "M", "pid": os.getpid(), "tid": i, "args": {"name": row}}
            for i, row in enumerate(rows)
        ]
        events = [event | {"tid": rows.index(event["tid"])} for event in self.events]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"traceEvents": names + events, "displayTimeUnit": "ms"}))


def _nvtx() -> tuple[Any, Any]:
    """The functions that begin and end a range; (None, None) if there are none."""
    try:
        torch: Any = importlib.import_module("torch")
        if torch.cuda.is_available():
            return torch.cuda.nvtx.range_push, torch.cuda.nvtx.range_pop
    except ImportError:
        pass
    try:
        nvtx: Any = importlib.import_module("nvtx")
    except ImportError:
        return None, None
    return nvtx.push_range, nvtx.pop_range


def peak_memory() -> dict[str, float | None]:
    """Peak memory of this process in MiB: host (resident), and device as torch counts it, None without."""
    host = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
    try:
        import torch

        cuda = torch.cuda.is_available()
        device = round(torch.cuda.max_memory_allocated() / 2**20, 1) if cuda else None
    except ImportError:
        device = None
    return {"host_mib": host, "device_mib": device}
