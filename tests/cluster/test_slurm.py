"""The array template on a real Slurm from Debian's packages. An ordinary user submits the jobs, even where
root runs the test and the daemons."""

from __future__ import annotations

import contextlib
import getpass
import os
import pwd
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sites
from conftest import REPO
from ports import free_port
from sites import done, fused, until

from mmif_trt.clinical import progress
from mmif_trt.storage import Folder

pytestmark = pytest.mark.nightly
CASES, TASKS, USER = 24, 3, "mmif-nightly"
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


@dataclass(frozen=True)
class Somebody:
    """Who submits jobs. home: their own folder. name: "" for the user who runs the test."""

    home: Path
    env: dict[str, str]
    name: str = ""

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        who: dict[str, Any] = {}
        if self.name:
            who = {"user": self.name, "group": self.name, "extra_groups": []}
        return subprocess.run(
            words, env=self.env, cwd=self.home, capture_output=True, text=True, check=False, **who
        )

    def told(self, *words: str) -> str:
        run = self.run(*words)
        assert run.returncode == 0, (words, run.stderr)
        return run.stdout.strip()


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own are closed to all but the user who runs the test."""
    with tempfile.TemporaryDirectory(prefix="mmif-slurm-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def somebody(root: Path) -> Iterator[Somebody]:
    """An ordinary user, with the package and a Python that they may read."""
    for name in ("home", "bin", "state", "spool"):
        (root / name).mkdir()
    path = f"{root}/bin:{os.environ['PATH']}:/usr/sbin"
    env = {"PATH": path, "HOME": str(root / "home"), "SLURM_CONF": str(root / "slurm.conf")}
    for program in ("slurmctld", "slurmd", "sbatch"):
        if not shutil.which(program, path=path):
            pytest.skip("Slurm is not installed (apt-get install slurmctld slurmd slurm-client)")
    shutil.copytree(REPO / "mmif_trt", root / "package" / "mmif_trt")
    env["PYTHONPATH"] = f"{root}/package:{sysconfig.get_path('purelib')}"
    with ExitStack() as ends:
        who = Somebody(root / "home", env)
        if not os.getuid():
            who = Somebody(root / "home", env, ends.enter_context(user(root / "home")))
        python = python_of(who)
        (root / "bin" / "mmif-trt").write_text(f'#!/bin/sh\nexec {python} -m mmif_trt "$@"\n')
        (root / "bin" / "mmif-trt").chmod(0o755)
        yield who


@contextlib.contextmanager
def user(home: Path) -> Iterator[str]:
    """Made for the test and removed after it."""
    with contextlib.suppress(KeyError):
        pwd.getpwnam(USER)
        pytest.fail(f"there is a user {USER}, of another run or an earlier one; expected none (userdel)")
    subprocess.run(["useradd", "--no-create-home", "--home-dir", str(home), USER], check=True)
    try:
        shutil.chown(home, USER, USER)
        yield USER
    finally:
        subprocess.run(["userdel", USER], check=False)


def python_of(who: Somebody) -> str:
    """This interpreter, or another of the same version where this one lies in somebody else's closed
    folder."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, shutil.which(version, path="/usr/local/bin:/usr/bin")):
        with contextlib.suppress(OSError):
            if python and who.run(python, "-c", "import mmif_trt, numpy, openvino").returncode == 0:
                return python
    pytest.skip(f"an ordinary user may not run this Python; needs {version} in /usr/bin")


@pytest.fixture
def slurm(root: Path, somebody: Somebody) -> Iterator[Somebody]:
    """Who may submit jobs."""
    said = {"host": socket.gethostname().split(".")[0], "root": root, "user": getpass.getuser()}
    ports = {"controller": free_port(), "node": free_port()}
    config = root / "slurm.conf"
    config.write_text(CONFIG.format(**said, **ports, cpus=os.cpu_count()))
    with ExitStack() as daemons:
        for daemon in ("slurmctld", "slurmd"):
            log = daemons.enter_context((root / f"{daemon}.log").open("wb"))
            env = {**os.environ, **somebody.env}
            process = subprocess.Popen([daemon, "-D", "-f", str(config)], env=env, stdout=log, stderr=log)
            daemons.callback(process.wait)
            daemons.callback(process.terminate)
        until(lambda: somebody.run("sinfo", "-h", "-o", "%T").stdout.strip() in ("idle", "mixed"))
        yield somebody


def test_an_array_of_an_ordinary_user_with_a_killed_task_gives_what_one_machine_gives(
    root: Path, slurm: Somebody
) -> None:
    """One task is killed, the others are requeued; the array, submitted again, does the rest."""
    site, plan, out = sites.make(root / "site", CASES), root / "home" / "plan", root / "home" / "out"
    slurm.told("mmif-trt", "plan", f"{site.root}/list.csv", "-o", str(plan), "--precision", "fp32", "--quiet")
    template = root / "slurm-array.sbatch"
    shutil.copy(REPO / "docs/deploy/slurm-array.sbatch", template)
    submit = ["sbatch", "--parsable", f"--export=ALL,PLAN={plan},OUT={out}", f"--array=1-{TASKS}"]
    submit += ["--cpus-per-task=1", "--mem=0", str(template)]

    first = slurm.told(*submit)
    until(lambda: done(out) >= 1)
    killed, *others = slurm.told("squeue", "-h", "-r", "-t", "R", "-o", "%i").splitlines()
    slurm.told("scancel", "--signal=KILL", "--full", killed)
    for task in others:
        slurm.told("scontrol", "requeue", task)
    until(lambda: ended(slurm))
    logs = "".join(path.read_text() for path in slurm.home.glob(f"slurm-{first}_*.out"))
    before = progress.of(Folder(out))
    assert 0 < before.done < CASES and before.left, logs

    second = slurm.told(*submit)
    until(lambda: ended(slurm))
    logs += "".join(path.read_text() for path in slurm.home.glob(f"slurm-{second}_*.out"))
    assert fused(out) == site.made and done(out) == CASES, logs
    status = slurm.run("mmif-trt", "status", str(out))
    assert status.returncode == 1 and f"failed: {site.bad}" in status.stdout, "the bad case"
    owners = {path.stat().st_uid for path in out.rglob("*")}
    assert owners == {slurm.home.stat().st_uid} and 0 not in owners, "an ordinary user's, all of it"


def ended(who: Somebody) -> bool:
    """Slurm holds what it requeues for two minutes; here it is told to begin at once."""
    for line in who.told("squeue", "-h", "-r", "-t", "PD", "-o", "%i %r").splitlines():
        task, reason = line.split(maxsplit=1)
        if "BeginTime" in reason:
            who.run("scontrol", "update", f"JobId={task}", "StartTime=now")
    return not who.told("squeue", "-h", "-o", "%i")
