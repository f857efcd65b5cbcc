"""Builds kernel sources with g++ against tests/emulator/cuda_emu.h; runs them in their own processes."""

from __future__ import annotations

import concurrent.futures
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import REPO

EMULATOR = REPO / "tests" / "emulator"
CUDA = REPO / "csrc" / "cuda"
FAULT = 86  # exit status when the emulator has found an error
FLAGS = ["-std=c++17", "-O2", "-DMMIF_EMULATOR", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
# Kernels read 16 bytes of floats as one vector: nvcc has no type-based aliasing to break.
FLAGS += ["-fno-strict-aliasing"]
SANITIZE = ["-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

ASKED = """#include <cstdlib>
inline const int kPlanted = std::atoi(std::getenv("MMIF_PLANTED"));
"""


def skip_without_emulator() -> None:
    if shutil.which("g++") is None or platform.machine() != "x86_64":
        pytest.skip("the CUDA emulator needs g++ on x86-64")


def build(folder: Path, sources: Sequence[Path], extra: Sequence[str] = ()) -> list[Path]:
    """Compiles sources, two at a time, to objects in folder. Headers come from the repository."""

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        includes = [f"-I{EMULATOR}", f"-I{REPO}"]
        run(["g++", *FLAGS, *includes, *extra, "-x", "c++", "-c", str(source), "-o", str(target)])
        return target

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return list(pool.map(compile_one, sources))


def build_planted(folder: Path, source: Path, plants: Sequence[tuple[str, str]]) -> Path:
    """A copy of a source with all its planted errors, compiled to an object in folder.

    plants: (what is there, what stands there instead); PLANT in the latter is whether a run asks for this
    error, by its number from 1 in MMIF_PLANTED. One compilation for all: it takes longer than the runs.
    """
    shutil.copytree(REPO / "csrc", folder / "csrc")
    text = source.read_text()
    for number, (old, new) in enumerate(plants, 1):
        assert old in text, f"the source has changed: plant this error anew: {old}"
        text = text.replace(old, new.replace("PLANT", f"(kPlanted == {number})"))
    copy = folder / "csrc" / "cuda" / source.name
    copy.write_text(f"{ASKED}{text}")
    return build(folder, [copy], ["-O0"])[0]


def link(objects: Sequence[Path], program: Path, extra: Sequence[str] = ()) -> Path:
    run(["g++", *extra, *map(str, objects), "-o", str(program)])
    return program


def run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


def emulate(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Leak detection walks stacks that the fibers have left behind.
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0:exitcode=87", "UBSAN_OPTIONS": "exitcode=88"}
    return subprocess.run([program, *arguments], capture_output=True, text=True, env=environment, timeout=300)
