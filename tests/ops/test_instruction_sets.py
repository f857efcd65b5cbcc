"""Each instruction set's build of the CPU kernels, also those that this machine would not choose.

A process chooses once, so each has one of its own, forked where torch is imported already, in which all
operations are compared.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import REPO

from mmif_trt.ops import KERNELS, kernels_available

pytestmark = pytest.mark.skipif(not kernels_available("cpu"), reason=f"kernels: {KERNELS}")

SETS = ("baseline", "avx2", "avx512", "avx512bf16")
# Argument 1: a folder for what each process says. The parent, which imports all, never runs a kernel.
COMPARE_ALL = """
import os, pathlib, sys, traceback
import test_blocks, test_fusion_loss, test_window_attention
for isa in sys.argv[2:]:
    child = os.fork()
    if not child:
        os.environ["MMIF_ISA"] = isa
        code = 1
        with open(pathlib.Path(sys.argv[1], isa), "w") as said:
            try:
                for operations in (test_window_attention, test_fusion_loss, test_blocks):
                    operations.compare_all()
                code = 0
            except BaseException:
                traceback.print_exc(file=said)
        os._exit(code)
    print(isa, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """By instruction set: how its process ended, and what it said."""
    folder = tmp_path_factory.mktemp("said")
    folders = (REPO, REPO / "tests", REPO / "tests" / "ops")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [sys.executable, "-c", COMPARE_ALL, str(folder), *SETS, "mmx"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    codes = dict(line.split() for line in done.stdout.splitlines())
    return {isa: (int(code), (folder / isa).read_text()) for isa, code in codes.items()}


@pytest.mark.parametrize("isa", SETS)
def test_every_instruction_set(isa: str, ends: dict[str, tuple[int, str]]) -> None:
    code, said = ends[isa]
    if "as far as this CPU has it" in said:
        pytest.skip(f"this CPU has no {isa}")
    assert code == 0, said


def test_unknown_instruction_set(ends: dict[str, tuple[int, str]]) -> None:
    code, said = ends["mmx"]
    assert code == 1 and "MMIF_ISA is mmx; expected: baseline, avx2, avx512" in said
