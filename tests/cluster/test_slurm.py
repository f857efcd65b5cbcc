"""The array template on a real Slurm: Debian's packages, every daemon under the user of the test."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import sites
from conftest import REPO
from sites import done, fused, until

from mmif_trt.cli import main

pytestmark = pytest.mark.nightly
CASES, TASKS = 24, 3
CONFIG = """
ClusterName=mmif
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/none
CredType=cred/none
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of its commands."""
    for program in ("slurmctld", "slurmd", "sbatch"):
        if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin"):
            pytest.skip("Slurm is not installed (apt-get install slurmctld slurmd slurm-client)")
    for name in ("state", "spool"):
        (tmp_path / name).mkdir()
    said = {"host": socket.gethostname().split(".")[0], "root": tmp_path, "user": getpass.getuser()}
    config = tmp_path / "slurm.conf"
    ports = {"controller": free_port(), "node": free_port()}
    config.write_text(CONFIG.format(**said, **ports, cpus=os.cpu_count()))
    env = {**os.environ, "SLURM_CONF": str(config), "PATH": f"{os.environ['PATH']}:/usr/sbin"}
    with ExitStack() as daemons:
        for daemon in ("slurmctld", "slurmd"):
            log = daemons.enter_context((tmp_path / f"{daemon}.log").open("wb"))
            process = subprocess.Popen([daemon, "-D", "-f", str(config)], env=env, stdout=log, stderr=log)
            daemons.callback(process.wait)
            daemons.callback(process.terminate)
        until(lambda: said_by(env, "sinfo", "-h", "-o", "%T") in ("idle", "mixed"))
        yield env


def said_by(env: dict[str, str], *words: str) -> str:
    run = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    return run.stdout.strip()


def test_an_array_with_a_requeued_task_makes_what_one_machine_makes(
    tmp_path: Path, slurm: dict[str, str]
) -> None:
    site, out = sites.make(tmp_path / "site", CASES), tmp_path / "out"
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "mmif-trt").write_text(f'#!/bin/sh\nexec {sys.executable} -m mmif_trt "$@"\n')
    (programs / "mmif-trt").chmod(0o755)
    env = {**slurm, "PATH": f"{programs}:{slurm['PATH']}", "PYTHONPATH": str(REPO)}
    command = ["sbatch", "--parsable", f"--export=ALL,PLAN={site.plan},OUT={out}", f"--array=1-{TASKS}"]
    command += ["--cpus-per-task=1", "--mem=0", str(REPO / "docs/deploy/slurm-array.sbatch")]
    job = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
    number = job.stdout.strip()
    until(lambda: done(out) >= 1)
    running = said_by(env, "squeue", "-h", "-r", "-t", "R", "-o", "%i").splitlines()
    for task in running:
        subprocess.run(["scontrol", "requeue", task], env=env, check=True)
    assert running, "in the middle of it"

    until(lambda: ended(env))
    logs = "".join(path.read_text() for path in tmp_path.glob(f"slurm-{number}_*.out"))
    assert fused(out) == site.made and done(out) == CASES, logs
    assert main(["status", str(out)]) == 1, "the bad case"


def ended(env: dict[str, str]) -> bool:
    """Slurm holds what it requeues for two minutes; here it is told to begin at once."""
    for line in said_by(env, "squeue", "-h", "-r", "-t", "PD", "-o", "%i %r").splitlines():
        task, reason = line.split(maxsplit=1)
        if "BeginTime" in reason:
            subprocess.run(["scontrol", "update", f"JobId={task}", "StartTime=now"], env=env, check=False)
    return not said_by(env, "squeue", "-h", "-o", "%i")
