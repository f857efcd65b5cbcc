"""What ptxas reports for every CUDA kernel on every architecture: registers, shared memory, spills.

python benchmarks/ptxas.py    writes benchmarks/results/ptxas.txt; needs nvcc, no GPU and no torch
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
CSRC = REPO / "csrc"
SOURCES = sorted((CSRC / "cuda").glob("*.cu"))
FLAGS = ["-std=c++17", "-O3", "-Xptxas", "-v", "-cubin"]
ARCHITECTURES = ["80", "86", "89", "90", "100", "120"]
RESULT = REPO / "benchmarks" / "results" / "ptxas.txt"
HEADER = f"{'kernel':58} {'sm':>3} {'registers':>9} {'shared':>7} {'spill stores':>12} {'spill loads':>11}"


def nvcc() -> str | None:
    """The compiler: from $CUDA_HOME, PATH, or the toolkit's default place."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which(os.path.join(home, "bin", "nvcc")) or shutil.which("nvcc")


def version(compiler: str) -> str:
    told = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"V([\d.]+)", told)
    assert found, told
    return found[1]


def compile_one(compiler: str, source: Path, architecture: str) -> list[str]:
    """The table's rows of one file. Shared memory is the static part."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = str(Path(folder, "cubin"))
        command = [compiler, *FLAGS, f"-arch=sm_{architecture}", "-o", cubin, str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    rows = []
    for name, report in re.findall(r"Compiling entry function '(\w+)'(.*?)Used (?=\d)", done.stderr, re.S):
        stores, loads = re.findall(r"(\d+) bytes spill (?:stores|loads)", report)[-2:]
        used = done.stderr[done.stderr.index(f"Compiling entry function '{name}'") :]
        registers = re.search(r"Used (\d+) registers", used)
        shared = re.search(r"(\d+) bytes smem", used[used.index("Used ") :].splitlines()[0])
        assert registers, used
        size = shared[1] if shared else "0"
        rows.append(
            f"{plain(name):58} {architecture:>3} {registers[1]:>9} {size:>7} {stores:>12} {loads:>11}"
        )
    return rows


def plain(mangled: str) -> str:
    """window_attention_fwd_half_kernel<__half, 32> from its mangled name."""
    name = re.search(r"\d([a-z][a-z_]*_kernel)(?:I(.*?)EEv|E)", mangled)
    assert name, mangled
    if not name[2]:
        return name[1]
    types = re.findall(r"6__half|13__nv_bfloat16", name[2])
    numbers = re.findall(r"Li(\d+)", name[2])
    flags = ["true" if flag == "1" else "false" for flag in re.findall(r"Lb([01])", name[2])]
    return f"{name[1]}<{', '.join([t.lstrip('0123456789') for t in types] + numbers + flags)}>"


def compiled(compiler: str, architectures: Sequence[str]) -> list[str]:
    """The table's rows of all files on these architectures, two compilations at a time."""
    jobs = [(compiler, source, architecture) for source in SOURCES for architecture in architectures]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return sorted(row for done in pool.map(lambda job: compile_one(*job), jobs) for row in done)


def table(compiler_version: str, rows: Sequence[str]) -> str:
    """The rows, and above them a digest of them and of all that they follow from: while a committed table is
    the one made of its own rows, a new compilation would bring no other."""
    digest = hashlib.sha256("\n".join([*FLAGS, *ARCHITECTURES, *rows]).encode())
    for path in sorted([*CSRC.glob("*.h"), *(CSRC / "cuda").iterdir()]):
        digest.update(path.read_bytes())
    head = f"nvcc {compiler_version}, sources and rows {digest.hexdigest()[:16]}"
    return "\n".join([head, HEADER, *rows]) + "\n"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()  # --help measures nothing
    found = nvcc()
    if found is None:
        raise SystemExit("no nvcc: set CUDA_HOME")
    RESULT.write_text(table(version(found), compiled(found, ARCHITECTURES)))
    print(RESULT.read_text(), end="")
