"""nvcc compiles every CUDA kernel for every supported architecture; none spills registers to memory."""

from __future__ import annotations

import sys

import pytest
from conftest import REPO

sys.path.insert(0, str(REPO / "benchmarks"))
import ptxas


def test_no_kernel_spills_and_the_committed_table_is_true() -> None:
    compiler = ptxas.nvcc()
    if compiler is None:
        pytest.skip("no nvcc: the kernels are not compiled for a GPU")
    table = ptxas.table(compiler)
    rows = table.splitlines()[2:]
    kernels = {row.rsplit(maxsplit=5)[0] for row in rows}
    assert len(rows) == len(kernels) * len(ptxas.ARCHITECTURES) and len(kernels) >= 13
    for row in rows:
        assert row.split()[-2:] == ["0", "0"], f"spills: {row}"
    committed = ptxas.RESULT.read_text()
    if committed.splitlines()[0] == table.splitlines()[0]:
        assert table == committed, "run python benchmarks/ptxas.py and commit its table"
