"""Seconds until a new process has its first picture."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import report

COLD = """
import json, sys, time
start = time.perf_counter()
import mmif_trt
imported = time.perf_counter()
mmif_trt.fuse(sys.argv[1], sys.argv[2])
done = time.perf_counter()
mmif_trt.fuse(sys.argv[1], sys.argv[2])
print(json.dumps([imported - start, done - imported, time.perf_counter() - done]))
"""


def cold_start(a: Path, b: Path, count: int) -> dict[str, Any]:
    """Seconds in `count` new processes: import, first and second fuse of two files by the default runtime."""
    samples = []
    for _ in range(count):
        start = time.perf_counter()
        command = [sys.executable, "-c", COLD, str(a), str(b)]
        done = subprocess.run(command, env=report.environment(), capture_output=True, text=True, check=False)
        if done.returncode:
            return {"status": "refused", "reason": (done.stderr.strip().splitlines() or ["no message"])[-1]}
        samples.append([*json.loads(done.stdout.splitlines()[-1]), time.perf_counter() - start])
    if not samples:
        return {"status": "refused", "reason": "--cold 0"}
    names = ("import", "first_fuse", "second_fuse", "whole_process")
    columns = zip(*samples, strict=True)
    return {
        "status": "measured",
        "s": {name: report.percentiles(x, 4) for name, x in zip(names, columns, strict=True)},
    }
