"""The console's environment, made by `make console`: no torch, OpenVINO fuses, and the engine path runs on a
fake card with a real engine built there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from conftest import REPO

PYTHON = Path(os.environ.get("MMIF_CONSOLE", REPO / ".venv-console")) / "bin" / "python"
FAKE = """
import sys
from importlib.machinery import ModuleSpec
import numpy as np
from fake_card import FakeCard, network
from mmif_trt.runtimes.trt import cuda
from mmif_trt.runtimes.trt import build as engine_build
import mmif_trt
real, fake = engine_build.module(), FakeCard()
cuda.ctypes.CDLL = lambda name: fake
for name, module in (("pycuda", type(sys)("pycuda")), ("pycuda.driver", fake.driver())):
    module.__spec__ = ModuleSpec(name, None)
    sys.modules[name] = module
real.Runtime = fake.tensorrt().Runtime  # the builder stays the real one
fuser = mmif_trt.Fuser()
a, b = mmif_trt.sample("mri-ct")
assert fuser.runtime.name == "tensorrt", fuser.runtime.note
x, y = (image.data.astype(np.float32) / 255 for image in (a, b))
assert np.abs(fuser(a, b).data - 255 * network(x, y)).max() <= 0.51
assert fuser.runtime.engine.manifest.fused_attention == 4
fuser.runtime.engine.close()
print("torch" in sys.modules, fuser.runtime.engine.path.name)
"""


@pytest.fixture(autouse=True)
def made() -> None:
    if not PYTHON.is_file():
        pytest.skip("no console environment: make console")


def run(*command: str, folder: Path) -> str:
    environment = {"PYTHONPATH": str(REPO / "tests"), "PATH": os.environ["PATH"], "MMIF_ENGINES": str(folder)}
    done = subprocess.run(
        [str(PYTHON), *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_openvino_fuses_without_torch(tmp_path: Path) -> None:
    run("-m", "mmif_trt", "demo", "out", folder=tmp_path)
    assert len(list((tmp_path / "out").glob("*.png"))) > 3
    found = run(
        "-c",
        "import importlib.util as u; print(*[bool(u.find_spec(x)) for x in ('torch', 'pycuda')])",
        folder=tmp_path,
    )
    assert found.split()[0] == "False"


def test_the_engine_path_on_a_fake_card(tmp_path: Path) -> None:
    said = run("-c", FAKE, folder=tmp_path).split()
    assert said[0] == "False" and said[1].startswith("lagn-fp16-tensorrt_rtx-")
