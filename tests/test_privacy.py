"""Nothing goes out unasked: no name looked up, no process but ours, nothing written outside the output.

Two witnesses: an audit hook inside every Python process, and strace below all of them, for native code.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import phantoms
import pytest
from conftest import REPO
from phantoms import affine_of, write_mr, write_pet

from mmif_trt import samples

# Loaded by every Python process of the run, before anything else.
WITNESS = """
import json, os, sys
_log = os.open(os.environ["WITNESS_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
_NAMES = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.connect",
          "socket.sendto", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "subprocess.Popen")
def _see(event, args):
    if event in _NAMES:
        os.write(_log, (json.dumps([event, repr(args)[:400]]) + "\\n").encode())
sys.addaudithook(_see)
"""
# All in one process; NAMES and COMMANDS are those of a run below.
SCRIPT = """
import importlib, os, sys
sys.argv = ["mmif-trt"]
import mmif_trt
from mmif_trt import cli, privacy, samples
from mmif_trt.report.plots import boxes
boxes({"a": [0.1, 0.2, 0.3]}, "title", "words")
for name in NAMES.split():
    try:
        importlib.import_module(name)
    except ImportError:
        pass
folder = os.path.dirname(samples.__file__)
pair = " ".join(os.path.join(folder, f"mri-pet_{x}.png") for x in ("mri", "pet"))
for command in COMMANDS.splitlines():
    assert cli.main(command.replace("PAIR", pair).split()) == 0, command
"""
# Every time what starts telemetry of its own accord; nightly every dependency of every extra, and most
# commands that end by themselves.
RUNS = {
    "some": ("openvino onnxruntime", "fuse PAIR -o fused.png\nbatch studies -o out --format dcm"),
    "all": (
        "cv2 openvino onnxruntime onnx torch torch.utils.tensorboard nvidia.dali tensorrt_rtx ray pydicom "
        "pynetdicom dicomweb_client nibabel SimpleITK dicomanonymizer fastapi uvicorn matplotlib.pyplot "
        "pingouin statsmodels.api",
        "info\nfuse PAIR -o fused.png\nbatch studies -o out\nfuse studies/mr studies/pt -o one.dcm\n"
        "demo demo\nstudy demo study --no-serve\nstudy status study/study\n"
        "study analyse study/study -o study.html\n"
        "plan studies -o plan\nbatch plan -o planned\nstatus planned\n"
        "view studies/mr studies/pt one.dcm -o look.html\nfuse sources/mri sources/pet -o fused\n"
        "eval sources fused\nreport sources --method fused=fused -o report.html\n"
        "engine export uint8-rgb -o graph.onnx",
    ),
}
# What may be written besides the working folder: memory that is no file.
CACHES = re.compile(r"^/dev/(shm/|null$)|^/proc/|/__pycache__")


@pytest.fixture(scope="module", params=["some", pytest.param("all", marks=pytest.mark.nightly)])
def seen(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str, list[list[str]]]:
    """(the folder, strace's log or "", the audit hook's events) of one of RUNS."""
    names, commands = RUNS[request.param]
    root = tmp_path_factory.mktemp("privacy")
    (root / "witness").mkdir()
    (root / "home").mkdir()
    (root / "tmp").mkdir()
    (root / "witness" / "sitecustomize.py").write_text(WITNESS)
    affine = affine_of(shape=(3, 32, 32), spacing=(5.0, 4.5, 4.5))
    write_mr(root / "studies" / "mr", affine, (3, 32, 32))
    write_pet(root / "studies" / "pt", affine, (3, 32, 32))
    for kind in ("mri", "pet"):
        (root / "sources" / kind).mkdir(parents=True)
        shutil.copy(samples.path("mri-pet", kind), root / "sources" / kind / "pair.png")
    code = f"NAMES, COMMANDS = {names!r}, {commands!r}\n{SCRIPT}"
    command = [sys.executable, "-c", code]
    if shutil.which("strace"):
        calls = "connect,sendto,sendmsg,sendmmsg,execve,fork,vfork,clone,clone3,openat,creat,mkdir,mkdirat"
        command = [
            "strace",
            "-f",
            "--seccomp-bpf",
            "-qq",
            "-s",
            "300",
            "-e",
            f"trace={calls}",
            "-o",
            "strace",
            *command,
        ]
    env = {
        **os.environ,
        "PYTHONPATH": f"{root / 'witness'}:{REPO}",
        "WITNESS_LOG": str(root / "audit"),
        "HOME": str(root / "home"),
        "TMPDIR": str(root / "tmp"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR"):
        env.pop(name, None)
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert not [value for value in phantoms.PLANTED.values() if value in said]
    trace = (root / "strace").read_text(errors="replace") if shutil.which("strace") else ""
    return root, trace, [json.loads(line) for line in (root / "audit").read_text().splitlines()]


def is_ours(event: str) -> bool:
    # torch asks for the linker's cache and for compilers; matplotlib for fonts.
    return "mmif_trt.clinical.decoder_child" in event or any(
        f"'{tool}" in event for tool in ("fc-list", "/sbin/ldconfig", "uname", "lscpu")
    )


def test_no_name_is_looked_up_and_only_our_processes_are_started(
    seen: tuple[Path, str, list[list[str]]],
) -> None:
    _, _, events = seen
    network = [e for e in events if e[0].startswith("socket.") and "127.0.0.1" not in e[1]]
    assert not network
    started = [e for e in events if not e[0].startswith("socket.")]
    assert [e for e in started if "decoder_child" in e[1]], "the witness is awake"
    assert not [e for e in started if not is_ours(e[1])]


def test_nor_by_native_code(seen: tuple[Path, str, list[list[str]]]) -> None:
    _, trace, _ = seen
    if not trace:
        pytest.skip("strace is not installed (apt-get install strace)")
    assert "execve(" in trace
    inet = [line for line in trace.splitlines() if "AF_INET" in line]
    assert not [line for line in inet if '"127.0.0.1"' not in line and '"::1"' not in line]
    run = [line for line in trace.splitlines() if "execve(" in line and "= 0" in line][1:]
    assert not [line for line in run if not is_ours(line.replace('"', "'").replace("'/usr", "'"))]


def test_nothing_is_written_elsewhere(seen: tuple[Path, str, list[list[str]]]) -> None:
    root, trace, _ = seen
    homes = {str(p) for p in (root / "home").rglob("*") if p.is_file()}
    assert not {p for p in homes if not CACHES.search(p.replace(p.rsplit("/", 1)[1], "x"))}, homes
    assert not list((root / "tmp").rglob("*")), "scratch files have no name"
    if not trace:
        pytest.skip("strace is not installed (apt-get install strace)")
    made = re.findall(r'(?:openat\(AT_FDCWD, |mkdir\(|creat\()"(/[^"]*)", (?:0[0-7]+|[^)]*O_CREAT)', trace)
    assert not {path for path in made if not path.startswith(str(root)) and not CACHES.search(path)}


def test_usage_data_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sets a switch, or imports a library before us, keeps that choice."""
    from mmif_trt import privacy

    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    monkeypatch.setitem(sys.modules, "openvino_telemetry", sys)
    privacy.usage_data_off()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0" and sys.modules["openvino_telemetry"] is sys
