"""What benchmarks/instructions.py counts in machine code, on a listing made by hand; its committed table."""

from __future__ import annotations

import sys

import pytest
from conftest import REPO

sys.path.insert(0, str(REPO / "benchmarks"))
import instructions
import ptxas
from instructions import BACKWARD_BLOCKS, TILE, blocks_per_multiprocessor, parse, weights

LISTING = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/              @!P0 BRA 0x40 ;
        /*0020*/                   FADD R2, R2, R3 ;
        /*0030*/                   BRA 0x50 ;
        /*0040*/                   FMUL R2, R2, R3 ;
        /*0050*/               @P1 BRA 0x70 ;
        /*0060*/                   CALL.REL.NOINC 0xb0 ;
        /*0070*/                   NOP ;
        /*0080*/                   IADD3 R4, R4, -0x1, RZ ;
        /*0090*/               @P2 BRA 0x80 ;
        /*00a0*/                   EXIT ;
        /*00b0*/                   MUFU.RCP R5, R6 ;
        /*00c0*/                   BRA 0xc0;
"""


def test_loops_ways_slow_paths_and_subroutines() -> None:
    code = parse(LISTING)
    assert len(code) == 12 and [x.target for x in code if x.target is not None] == [4, 5, 7, 8]
    #                              MOV BRA ADD BRA MUL BRA CALL NOP IADD BRA EXIT RCP
    assert weights(code, [3]) == [1, 1, 1, 1, 0, 1, 0, 0, 3, 3, 1, 0]
    assert weights(code, [2], other_way=0.25) == [1, 1, 0.75, 0.75, 0.25, 1, 0, 0, 2, 2, 1, 0]


def test_a_loop_whose_trips_are_not_stated_is_refused() -> None:
    with pytest.raises(ValueError, match="1 loops .*; expected 2: state the trips anew"):
        weights(parse(LISTING), [1, 1])


@pytest.mark.parametrize(
    ("registers", "shared", "threads", "fit"),
    [(64, 17280, 128, 8), (65, 17280, 128, 7), (128, 40832, 128, 4), (72, 59408, 256, 3), (32, 0, 64, 32)],
)
def test_blocks_of_a_multiprocessor(registers: int, shared: int, threads: int, fit: int) -> None:
    assert blocks_per_multiprocessor(registers, shared, threads) == fit


def test_sizes_are_those_of_the_sources() -> None:
    cuda = REPO / "csrc" / "cuda"
    assert f"kBackwardBlocks = {BACKWARD_BLOCKS}, " in (cuda / "window_attention.cpp").read_text()
    assert f"kTileWidth = {TILE}, kTileHeight = {TILE};" in (cuda / "fusion_loss_launch.h").read_text()


@pytest.mark.nightly
def test_the_committed_table_is_true() -> None:
    compiler, disassembler = ptxas.nvcc(), instructions.cuobjdump()
    if compiler is None or disassembler is None:
        pytest.skip("no nvcc or no cuobjdump: machine code cannot be read")
    committed = instructions.RESULT.read_text()
    if f"nvcc {ptxas.version(compiler)}," in committed:
        assert instructions.table(compiler, disassembler) == committed
