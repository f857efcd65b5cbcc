"""The README is executable: its Python and its commands run, on stand-ins where they name a user's
folders."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import phantoms
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
    (command,) = [block for block in blocks("sh") if "MRI_FOLDER" in block]
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


def test_shell_report_and_study(tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="needs the study extra")
    (report, study) = next(b for b in blocks("sh") if "mmif-trt report" in b).strip().splitlines()
    rng = np.random.default_rng(0)
    for folder in ("SOURCES/mri", "SOURCES/ct", "FUSED"):
        (tmp_path / folder).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / folder / "one.png"), rng.integers(0, 255, (48, 40), dtype=np.uint8))
    program = f"exec {sys.executable} -m mmif_trt"
    subprocess.run(["bash", "-euc", report.replace("mmif-trt", program)], cwd=tmp_path, check=True)
    assert (tmp_path / "report.html").stat().st_size > 10_000
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = study.replace("mmif-trt", program, 1) + f" --no-browser --port {port}"
    server = subprocess.Popen(["bash", "-euc", command], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        links = []
        for line in server.stdout:
            if line.startswith("reader 1: "):
                links.append(line.split(": ", 1)[1].strip())
            if line.startswith("serving"):
                break
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with opener.open(links[0]) as page:
            assert "bundled samples" in page.read().decode()
    finally:
        server.terminate()
        server.wait()


def test_shell_volumes(tmp_path: Path) -> None:
    (command,) = [block for block in blocks("sh") if "STUDY_ROOT" in block]
    affine = phantoms.affine_of()
    for root in (tmp_path, tmp_path / "STUDY_ROOT"):
        phantoms.write_mr(root / "MRI_SERIES", affine)
        phantoms.write_pet(root / "PET_SERIES", affine)
    command = command.replace("mmif-trt", f"{sys.executable} -m mmif_trt")
    subprocess.run(["bash", "-euc", command], cwd=tmp_path, check=True)
    assert (tmp_path / "fused.dcm").stat().st_size and (tmp_path / "sheet.png").stat().st_size
    assert len(list((tmp_path / "FUSED_STUDIES").glob("*_luma.nii"))) == 1


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
    (command,) = [block.strip() for block in blocks("sh") if "pip install --no" in block]
    assert "--no-build-isolation -e '.[dev]'" in (REPO / "Makefile").read_text()
    assert command == "pip install --no-build-isolation -e '.[train]'"


def test_make_targets_exist() -> None:
    makefile = (REPO / "Makefile").read_text()
    for target in re.findall(r"make ([\w-]+)", " ".join(blocks("sh")) + " make test"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (REPO / target).exists(), target
