"""nvcc compiles every CUDA kernel for every supported architecture; none spills registers to memory."""

from __future__ import annotations

import sys

import pytest
from conftest import REPO

sys.path.insert(0, str(REPO / "benchmarks"))
import ptxas


def test_no_kernel_spills_and_the_committed_table_is_true() -> None:
    """Where a source, the table or the compiler has changed, all is compiled; else one architecture."""
    compiler = ptxas.nvcc()
    if compiler is None:
        pytest.skip("no nvcc: the kernels are not compiled for a GPU")
    version, committed = ptxas.version(compiler), ptxas.RESULT.read_text()
    rows = committed.splitlines()[2:]
    is_current = committed == ptxas.table(version, rows)
    if is_current:
        one = [row for row in rows if row.rsplit(maxsplit=5)[1] == "90"]
        assert ptxas.compiled(compiler, ["90"]) == one
    else:
        rows = ptxas.compiled(compiler, ptxas.ARCHITECTURES)
    kernels = {row.rsplit(maxsplit=5)[0] for row in rows}
    assert len(rows) == len(kernels) * len(ptxas.ARCHITECTURES) and len(kernels) >= 13
    for row in rows:
        assert row.split()[-2:] == ["0", "0"], f"spills: {row}"
    if f"nvcc {version}," in committed:
        assert is_current, "run python benchmarks/ptxas.py and commit its table"
