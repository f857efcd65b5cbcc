"""The templates of docs/deploy for clusters: they run what they say, with stand-ins for the schedulers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from conftest import REPO

DEPLOY = REPO / "docs" / "deploy"


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


def test_a_task_of_the_slurm_array_makes_its_share(tmp_path: Path) -> None:
    program(tmp_path, "mmif-trt", 'echo "$OMP_NUM_THREADS $*"')
    template = str(DEPLOY / "slurm-array.sbatch")
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "3"}
    env |= {"SLURM_ARRAY_TASK_COUNT": "16", "SLURM_CPUS_PER_TASK": "4"}
    done = subprocess.run(["bash", template], env=env, capture_output=True, text=True)
    assert done.returncode and "expected PLAN=FOLDER" in done.stderr
    env |= {"PLAN": "/share/a plan", "OUT": "/share/out"}
    done = subprocess.run(["bash", template], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "4 batch /share/a plan -o /share/out --quiet --part 3/16\n"
    from mmif_trt.cli import _parser

    assert _parser().parse_args(done.stdout.split()[1:2] + ["p", "-o", "o", "--part", "3/16"]).part == "3/16"
