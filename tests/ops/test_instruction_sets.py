"""Each instruction set's build of the CPU kernels, also those that this machine would not choose.

A process chooses once, so each has one of its own, in which all operations are compared.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import REPO

from mmif_trt.ops import KERNELS, kernels_available

pytestmark = pytest.mark.skipif(not kernels_available("cpu"), reason=f"kernels: {KERNELS}")

COMPARE_ALL = """
import test_blocks, test_fusion_loss, test_window_attention
for operations in (test_window_attention, test_fusion_loss, test_blocks):
    operations.compare_all()
"""


def run_with(isa: str, code: str) -> subprocess.CompletedProcess[str]:
    folders = (REPO, REPO / "tests", REPO / "tests" / "ops")
    environment = os.environ | {"MMIF_ISA": isa, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "avx512bf16"])
def test_every_instruction_set(isa: str) -> None:
    done = run_with(isa, COMPARE_ALL)
    if "as far as this CPU has it" in done.stderr:
        pytest.skip(f"this CPU has no {isa}")
    assert done.returncode == 0, done.stderr


def test_unknown_instruction_set() -> None:
    done = run_with("mmx", COMPARE_ALL)
    assert "MMIF_ISA is mmx; expected: baseline, avx2, avx512" in done.stderr
