"""Windows, macOS and an installation without torch, as far as they can be tested here: by what they lack."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO
from phantoms import affine_of, write_mr, write_pet

import mmif_trt
from mmif_trt.cli import main

WINDOWS = """
import os, select, signal, sys
for name in ("resource", "fcntl", "pwd", "grp", "termios"):
    sys.modules[name] = None
for module, names in (
    (os, "fork forkpty geteuid getuid getegid sched_getaffinity statvfs killpg O_NONBLOCK O_DIRECTORY"),
    (signal, "SIGKILL SIGHUP SIGPIPE pthread_sigmask alarm"),
    (select, "poll"),
):
    for name in names.split():
        delattr(module, name)
from mmif_trt import cli
"""
PICTURES = """
for words in (["fuse", "a/x.png", "b/x.png", "-o", "x.tif", "--precision", "fp32", "--quiet"],
              ["fuse", "a", "b", "-o", "out", "--precision", "fp32", "--quiet"],
              ["fuse", "a", "b", "-o", "out", "--precision", "fp32", "--report", "r.json", "--quiet"],
              ["info"]):
    assert cli.main(words) == 0, words
import mmif_trt
print(mmif_trt.fuse("a/x.png", "b/x.png").size)
print(mmif_trt.fuse("a.nii", "b.nii", modality_b="ct", value_range=(0, 255)).data.shape)
assert cli.main(["fuse", "a.nii", "b.nii", "-o", "x.nii"]) == 2
assert cli.main(["node", "--aet", "A", "--port", "4", "--send-to", "B@h:1"]) == 2
"""
MACOS = """
import resource
def refuse(which, limits, known=resource.setrlimit):
    if which != resource.RLIMIT_AS:
        return known(which, limits)
    raise ValueError("current limit exceeds maximum limit")
resource.setrlimit = refuse
import sys
sys.argv = ["decoder_child", "1024", "0"]
from mmif_trt.clinical import child_side
child_side.serve(1024, lambda line: "null")
"""
NO_TORCH = """
import sys
for name in ("torch", "safetensors"):
    sys.modules[name] = None
import mmif_trt
try:
    mmif_trt.load_model()
except mmif_trt.InputError as error:
    print(error)
try:
    import mmif_trt.train.losses
except ImportError as error:
    print(error)
"""


def python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {"PYTHONPATH": str(REPO), "PATH": "/usr/bin:/bin", "HOME": str(cwd), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def test_windows_has_pictures_and_python_and_says_what_it_has_not(tmp_path: Path) -> None:
    import nibabel

    pixels = np.random.default_rng(0).integers(0, 255, (32, 40), np.uint8)
    for side in "ab":
        (tmp_path / side).mkdir()
        mmif_trt.write(tmp_path / side / "x.png", mmif_trt.Image(pixels))
        volume = nibabel.Nifti1Image(np.stack([pixels] * 3, axis=-1), np.diag([2.0, 2, 3, 1]))
        volume.to_filename(tmp_path / f"{side}.nii")
    done = python(WINDOWS + PICTURES, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "(32, 40)" in done.stdout and "(3, 40, 32)" in done.stdout
    assert (tmp_path / "x.tif").exists() and (tmp_path / "out" / "x.png").exists()
    lines = [line for line in done.stderr.splitlines() if "expected Linux or macOS (or WSL)" in line]
    assert [line.split(":")[1].strip() for line in lines] == [
        "reading volumes in a process with limits",
        "node",
    ]


def test_macos_has_no_limit_of_memory(tmp_path: Path) -> None:
    env = {"PYTHONPATH": str(REPO)}
    command, pipe = [sys.executable, "-c", MACOS], subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdin=pipe, stdout=pipe, text=True) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write("{}\n")
        child.stdin.flush()
        assert child.stdout.readline() == "null\n"
        child.stdin.close()


def test_without_torch_the_remedy_is_named(tmp_path: Path) -> None:
    done = python(NO_TORCH, tmp_path)
    model, training = done.stdout.splitlines()
    assert "load_model: torch and safetensors not installed; try pip install 'mmif-trt[train]'" in model
    assert training.endswith("torch, safetensors not installed; try pip install 'mmif-trt[train]'")


def test_without_simpleitk_the_remedy_is_named(tmp_path: Path) -> None:
    """It is first needed where two volumes are brought onto one grid."""
    write_mr(tmp_path / "mr", affine_of(), (4, 16, 16))
    write_pet(tmp_path / "pt", affine_of(), (4, 16, 16))
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['SimpleITK'] = None\n")
    env = {"PYTHONPATH": f"{tmp_path}:{REPO}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-m", "mmif_trt", "fuse", "mr", "pt", "-o", "out.nii", "--precision", "fp32"]
    done = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.stderr.endswith("needs SimpleITK; install it with pip install 'mmif-trt[clinical]'\n")


def test_without_pydicom_no_header_is_called_damaged(tmp_path: Path) -> None:
    """With the extra `ray` or `s3` alone every file was said to be, and each case was an internal error."""
    write_mr(tmp_path / "root" / "mr", affine_of(), (4, 16, 16))
    write_pet(tmp_path / "root" / "pt", affine_of(), (4, 16, 16))
    words = ["plan", str(tmp_path / "root"), "-o", str(tmp_path / "plan"), "--precision", "fp32", "--quiet"]
    assert main(words) == 0
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['pydicom'] = None\n")
    env = {"PYTHONPATH": f"{tmp_path}:{REPO}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    remedy = "needs pydicom; install it with pip install 'mmif-trt[clinical]'"
    for command, code in (
        (["plan", "root", "-o", "other"], 2),
        (["batch", "plan", "-o", "out", "--quiet"], 1),
    ):
        run = [sys.executable, "-m", "mmif_trt", *command]
        done = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == code and done.stderr.splitlines()[-1].endswith(remedy), done.stderr


def test_a_training_without_torch_gives_one_line(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['torch'] = None\n")
    env = {"PYTHONPATH": f"{tmp_path}:{REPO}", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "mmif_trt.train.fusion", "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "torch not installed" in done.stderr


@pytest.mark.parametrize("module", ["flags", "generate"])
def test_trainings_take_the_cores_of_a_quota(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """os.cpu_count ignores quotas: a training with 64 threads on 2 cores stands still."""
    import importlib

    trained = importlib.import_module(f"mmif_trt.train.{module}")
    monkeypatch.setattr(trained, "usable_cores", lambda: 3)
    if module == "flags":
        from mmif_trt.train.fusion import FusionConfig

        given = trained.parser("fusion", "", FusionConfig()).parse_args(["--data", "x", "--out", "y"])
        assert given.threads == 3
    else:
        seen: list[int] = []
        monkeypatch.setattr(trained.torch, "set_num_threads", seen.append)
        monkeypatch.setattr(trained, "run", lambda given: None)
        assert trained.main(["--data", "x", "--out", "y"]) == 0 and seen == [3]
