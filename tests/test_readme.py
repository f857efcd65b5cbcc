"""The README is executable: its Python and its commands run, on stand-ins where they name a user's
folders."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import REPO

README = (REPO / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_every_fence_is_known() -> None:
    assert len(re.findall(r"^```", README, re.MULTILINE)) == 2 * len(blocks("sh") + blocks("python"))


@pytest.mark.parametrize("code", blocks("python"))
def test_python(code: str, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    fused = cv2.imread(str(tmp_path / "fused.png"), cv2.IMREAD_UNCHANGED)
    assert fused.shape == (256, 256, 3)


def test_shell_fuse(tmp_path: Path) -> None:
    (command,) = [block for block in blocks("sh") if "mmif-trt fuse" in block]
    rng = np.random.default_rng(0)
    for folder in ("MRI_FOLDER", "PET_FOLDER"):
        (tmp_path / folder).mkdir()
        for name in ("one", "two"):
            picture = rng.integers(0, 255, (48, 40), dtype=np.uint8)
            cv2.imwrite(str(tmp_path / folder / f"{name}.png"), picture)
    command = command.replace("mmif-trt", f"{sys.executable} -m mmif_trt")
    subprocess.run(["bash", "-euc", command], cwd=tmp_path, check=True)
    assert sorted(p.name for p in (tmp_path / "FUSED").iterdir()) == ["one.png", "two.png"]
    assert (tmp_path / "report.json").stat().st_size


def test_shell_engine(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
    (command,) = [block for block in blocks("sh") if "mmif-trt engine" in block]
    command = command.replace("mmif-trt", f"{sys.executable} -m mmif_trt")
    environment = {**os.environ, "MMIF_ENGINES": str(tmp_path / "engines")}
    done = subprocess.run(
        ["bash", "-euc", command], cwd=tmp_path, check=True, env=environment, capture_output=True, text=True
    )
    assert done.stdout.count("fused attention 4 of 4") == 2


def test_shell_train(tmp_path: Path) -> None:
    (command,) = [block for block in blocks("sh") if "mmif_trt.train.fusion" in block]
    command = command.replace("python -m", f"{sys.executable} -m").strip() + " --dry-run"
    subprocess.run(["bash", "-euc", command], cwd=tmp_path, check=True)


def test_shell_install_is_what_the_makefile_does() -> None:
    (command,) = [block.strip() for block in blocks("sh") if "pip install" in block]
    assert "--no-build-isolation -e '.[dev]'" in (REPO / "Makefile").read_text()
    assert command == "pip install --no-build-isolation -e '.[train]'"


def test_make_targets_exist() -> None:
    makefile = (REPO / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", " ".join(blocks("sh")) + " make test"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (REPO / target).exists(), target
