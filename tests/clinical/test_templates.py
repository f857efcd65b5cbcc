"""The templates of docs/deploy for clusters: they run what they say, with stand-ins for the schedulers."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from conftest import REPO

from mmif_trt import processes

DEPLOY = REPO / "docs" / "deploy"


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


def test_a_task_of_the_slurm_array_does_its_share(tmp_path: Path) -> None:
    program(tmp_path, "mmif-trt", 'echo "$OMP_NUM_THREADS $*"')
    template = str(DEPLOY / "slurm-array.sbatch")
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "3"}
    env |= {"SLURM_ARRAY_TASK_COUNT": "16", "SLURM_CPUS_PER_TASK": "4"}
    env |= {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "16"}
    done = subprocess.run(["bash", template], env=env, capture_output=True, text=True)
    assert done.returncode and "expected PLAN=FOLDER" in done.stderr
    env |= {"PLAN": "/share/a plan", "OUT": "/share/out"}
    done = subprocess.run(["bash", template], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "4 batch /share/a plan -o /share/out --quiet --part 3/16\n"
    # Two tasks again, --array=3,9: the shares were halves of the plan.
    env |= {"SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_MAX": "9"}
    again = subprocess.run(["bash", template], env=env, capture_output=True, text=True)
    assert (
        again.returncode == 2 and "2 tasks, numbered 3 to 9; expected --array=1-N, or PARTS=N" in again.stderr
    )
    env["PARTS"] = "16"
    again = subprocess.run(["bash", template], env=env, capture_output=True, text=True, check=True)
    assert again.stdout == done.stdout
    from mmif_trt.cli import _parser

    assert _parser().parse_args(done.stdout.split()[1:2] + ["p", "-o", "o", "--part", "3/16"]).part == "3/16"


def commands_of(text: str) -> list[str]:
    """The words of one of our command lines in a template, with its variables filled in."""
    line = text[text.index("mmif-trt batch") :]
    for name, value in {"$PLAN": "p", "$OUT": "o", "$HEAD_IP:$PORT": "h:1", "$RAY_ADDRESS": "h:1"}.items():
        line = line.replace(name, value)
    return [word.strip('"') for word in line.replace("\\\n", " ").split()[1:]]


def test_ray_in_a_slurm_allocation_starts_a_node_on_each_and_ends_only_its_own(tmp_path: Path) -> None:
    program(tmp_path, "scontrol", 'printf "n1\\nn2\\nn3\\n"')
    program(tmp_path, "hostname", "echo 10.0.0.1 fe80::1")
    log, kept = tmp_path / "log", tmp_path / "kept"
    # srun: drops its options and runs the command. ray: runs until it is ended, as with --block.
    program(
        tmp_path,
        "srun",
        f"n=; while [[ $1 == -* ]]; do if [[ $1 == -w ]]; then n=$2; shift; fi; shift; done\n"
        f'[[ $1 == hostname ]] || echo "$n $*" >> {log}; exec "$@"',
    )
    stays = f'echo "$(stat -c %a "$RAY_AUTH_TOKEN_PATH") $$" >> {kept}; exec sleep 600'
    program(tmp_path, "ray", stays)
    waits = f"until [[ $(wc -l < {kept}) -ge 3 ]]; do sleep 0.05; done"
    program(tmp_path, "mmif-trt", f'{waits}; [[ $(wc -c < "$RAY_AUTH_TOKEN_PATH") == 64 ]] && exit 7')
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path), "PLAN": "/p", "OUT": "/o"}
    env |= {"SLURM_JOB_NODELIST": "n[1-3]", "SLURM_JOB_ID": "70001", "SLURM_CPUS_PER_TASK": "8"}
    template = str(DEPLOY / "ray-slurm.sbatch")
    done = subprocess.run(["bash", template], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 7, (done.stdout, done.stderr)
    said = sorted(log.read_text().splitlines())
    assert [line.split()[:3] for line in said] == [
        ["n1", "mmif-trt", "batch"],
        *([node, "ray", "start"] for node in ("n1", "n2", "n3")),
    ]
    assert "--head --node-ip-address=10.0.0.1 --port=30001 --include-dashboard=false" in said[1]
    assert all("--address=10.0.0.1:30001 --block" in line for line in said[2:])
    from mmif_trt.cli import _parser

    args = _parser().parse_args(said[0].split()[2:])
    assert (args.on, args.address, args.workers, args.cpus_per_worker) == ("ray", "10.0.0.1:30001", 6, 4)
    for mode, number in (line.split() for line in kept.read_text().splitlines()):
        assert mode == "600", "of the token"
        assert not processes.is_running(int(number)), "its Ray is ended"
    assert not list(tmp_path.glob(".mmif-ray-*")), "the token is gone"
    assert "ray stop" not in [line for line in Path(template).read_text().splitlines() if line[:1] != "#"]


def test_the_job_of_kuberay_asks_for_a_token_and_no_rights() -> None:
    yaml = pytest.importorskip("yaml")
    from mmif_trt.cli import _parser

    job = yaml.safe_load((DEPLOY / "ray-kuberay.yaml").read_text())
    args = _parser().parse_args(commands_of(job["spec"]["entrypoint"]))
    assert (args.on, args.address, args.output) == ("ray", "h:1", "s3://BUCKET/fused")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    (group,) = cluster["workerGroupSpecs"]
    assert args.workers * args.cpus_per_worker == group["replicas"] * int(group["rayStartParams"]["num-cpus"])
    for pod in (cluster["headGroupSpec"]["template"]["spec"], group["template"]["spec"]):
        assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
        (container,) = pod["containers"]
        assert not container["securityContext"]["allowPrivilegeEscalation"]


def test_the_image_of_a_cluster_names_extras_that_exist() -> None:
    text = (DEPLOY / "Containerfile.cluster").read_text()
    (extras,) = re.findall(r"/src\[([\w,]+)\]", text)
    pyproject = (REPO / "pyproject.toml").read_text()
    assert all(re.search(rf"^{extra} = \[", pyproject, re.MULTILINE) for extra in extras.split(","))
    assert "RAY_AUTH_MODE=token" in text and "USER 10001" in text
