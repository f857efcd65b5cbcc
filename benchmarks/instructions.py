"""Estimates from machine code of SM 9.0: what a warp executes, what bytes move, what fits a multiprocessor.

    python benchmarks/instructions.py    writes benchmarks/results/instructions.txt

Needs nvcc and cuobjdump (on PyPI: nvidia-cuda-cuobjdump; CUOBJDUMP may name it), no GPU and no torch. It
measures no times. An instruction counts once per trip of its loops, whose trips are listed below in the order
of the loops' last addresses. Of two paths each counts by its share: the second is that of border windows.
What a branch skips counts as executed, unless it is a slow path that calls a subroutine.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ptxas import REPO, nvcc, plain, version

RESULT = REPO / "benchmarks" / "results" / "instructions.txt"
BATCH, CROP, STRIDE, HEADS, D, WINDOW = 6, 128, 4, 2, 32, 8  # of LAGN in training
SCALES = (1, 2, 4)
BACKWARD_BLOCKS = 512  # of attention in halves: csrc/cuda/window_attention.cpp
OFFSETS = (2 * WINDOW - 1) ** 2
TILE = 32  # px a side: csrc/cuda/fusion_loss_launch.h
REGISTERS, SHARED, WARPS, BLOCKS = 65536, 233472, 64, 32  # of a multiprocessor of SM 9.0
RESERVED = 1024  # bytes of shared memory that the system reserves per block
MULTIPROCESSORS = 132


@dataclass(frozen=True)
class Instruction:
    text: str
    target: int | None = None  # index of the instruction that a branch goes to

    @property
    def conditional(self) -> bool:
        return self.text.startswith("@") or bool(re.match(r"BRA !?U?P\d", self.text))


def parse(listing: str) -> list[Instruction]:
    """The instructions of one function as cuobjdump -sass lists them, without the padding at its end."""
    found = re.findall(r"^\s+/\*([0-9a-f]{4,5})\*/\s+(.*?)\s*;", listing, re.M)
    index = {int(address, 16): i for i, (address, _) in enumerate(found)}
    code = []
    for address, text in found:
        branch = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)
        target = index[int(branch[1], 16)] if branch else None
        if branch and int(branch[1], 16) == int(address, 16) and not text.startswith("@"):
            break  # a branch to itself: the code ends before it
        code.append(Instruction(text, target))
    return code


def weights(code: Sequence[Instruction], trips: Sequence[float], other_way: float = 0.0) -> list[float]:
    """How often a warp executes each instruction. other_way: the share of the second of two ways."""
    loops = [(x.target, i) for i, x in enumerate(code) if x.target is not None and x.target <= i]
    if len(loops) != len(trips):
        raise ValueError(f"{len(loops)} loops at {loops}; expected {len(trips)}: state the trips anew")
    weight = [1.0] * len(code)

    def scale(first: int, end: int, factor: float) -> None:
        for i in range(first, end):
            weight[i] *= factor

    for (first, last), n in zip(loops, trips, strict=True):
        scale(first, last + 1, n)
    for i, x in enumerate(code):
        if x.text == "EXIT":  # behind it are subroutines
            scale(i + 1, len(code), 0)
            break
        if x.target is None or x.target <= i or not x.conditional:
            continue
        before = code[x.target - 1]
        two_ways = before.target is not None and before.target > x.target and not before.conditional
        skipped = code[i + 1 : x.target]
        if any("CALL" in y.text for y in skipped) and not any(y.target and y.conditional for y in skipped):
            scale(i + 1, x.target, 0)
        elif two_ways and before.target is not None:
            scale(i + 1, x.target, 1 - other_way)
            scale(x.target, before.target, other_way)
    return [0.0 if x.text.startswith("NOP") else w for x, w in zip(code, weight, strict=True)]


def blocks_per_multiprocessor(registers: int, shared: int, threads: int) -> int:
    warps = threads // 32
    by_registers = REGISTERS // (-(-registers // 8) * 8 * 32 * warps)
    return min(by_registers, SHARED // (shared + RESERVED), WARPS // warps, BLOCKS)


@dataclass(frozen=True)
class Row:
    kernel: str
    scale: int
    blocks: int
    threads: int
    trips: tuple[float, ...]
    megabytes: float  # that must move, as designed
    other_way: float = 0.0
    dynamic: int = 0  # bytes of shared memory
    unit: str = ""  # what `executed` is counted for
    per: float = 1.0  # units per warp


def rows() -> list[Row]:
    made = []
    for scale in SCALES:
        across = CROP * scale // STRIDE // WINDOW
        windows, tokens = BATCH * across**2, BATCH * (CROP * scale // STRIDE) ** 2
        chunks = min(BACKWARD_BLOCKS // HEADS, windows)
        each = windows / chunks
        border = 1 - ((across - 1) / across) ** 2  # of the shifted map: what wraps
        row = tokens * HEADS * D * 2 / 1e6  # MB of q, of 2-byte elements
        lse, tables = tokens * HEADS * 4 / 1e6, chunks * HEADS * OFFSETS * 4 / 1e6
        unit = "warp, window, head"
        half = f"half_kernel<__nv_bfloat16, {D}>"
        forward = Row(
            f"window_attention_fwd_{half}",
            scale,
            windows * HEADS,
            128,
            (1,),
            4 * row + lse,
            border,
            unit=unit,
        )
        backward = Row(
            f"window_attention_bwd_{half}",
            scale,
            chunks * HEADS,
            128,
            (each, 2),
            8 * row + lse + tables,
            border,
            unit=unit,
            per=each,
        )
        made += [forward, backward]
        sums, turns = -(-HEADS * OFFSETS // 32), chunks // 32  # eight at a time, after what is left over
        trips = turns % 8, turns // 8
        made.append(Row("window_attention_d_bias_kernel", scale, sums, 1024, trips, tables))
        side = CROP * scale
        tiles = BATCH * (side // TILE) ** 2
        pixels, inner = BATCH * side**2 / 1e6, BATCH * (side - 10) ** 2 / 1e6
        halo = TILE + 10
        tasks = -(-halo * TILE // 8 // 32) / 8  # of means along x, per warp
        means = halo * (TILE + 1) * 16
        # The loops over elements are for images whose rows are not whole vectors.
        for name, loops, others, moved in (
            ("fwd", (0, 0, 0, tasks, tasks), 3 * halo * (TILE + 20) * 4 + 96, 13 * pixels + 16 * inner),
            ("bwd", (0, tasks), halo * (halo + 1) * 16, 17 * pixels + 16 * inner),
        ):
            made.append(
                Row(
                    f"fusion_loss_{name}_kernel<false>",
                    scale,
                    tiles,
                    256,
                    loops,
                    moved,
                    dynamic=others + means,
                    unit="warp of 128 pixels",
                )
            )
    return sorted(made, key=lambda x: (x.kernel, x.scale))


def cuobjdump() -> str | None:
    return os.environ.get("CUOBJDUMP") or shutil.which("cuobjdump")


def compile_all(compiler: str, disassembler: str) -> dict[str, tuple[str, int, int]]:
    """Of each kernel: its listing, registers, bytes of static shared memory."""
    found = {}
    for source in sorted((REPO / "csrc" / "cuda").glob("*.cu")):
        with tempfile.TemporaryDirectory() as folder:
            cubin = str(Path(folder, "cubin"))
            command = [compiler, "-std=c++17", "-O3", "-cubin", "-arch=sm_90", "-o", cubin, str(source)]
            subprocess.run(command, check=True)

            def told(*options: str, cubin: str = cubin) -> str:
                command = [disassembler, *options, cubin]
                return subprocess.run(command, capture_output=True, text=True, check=True).stdout

            listings, usage = told("-sass"), told("-res-usage")
        for text in re.split(r"\n\s*Function : ", listings)[1:]:
            name = text.split("\n", 1)[0]
            used = re.search(rf"Function {re.escape(name)}:\s*REG:(\d+).*?SHARED:(\d+)", usage, re.S)
            assert used, usage
            found[plain(name)] = (text, int(used[1]), int(used[2]) - RESERVED)
    return found


def table(compiler: str, disassembler: str) -> str:
    kernels = compile_all(compiler, disassembler)
    head = f"{'kernel':50} {'scale':>5} {'blocks':>6} {'executed':>8} {'for a':22} {'per warp':>8}"
    head += f" {'million':>7} {'MB':>7} {'registers':>9} {'shared':>6} {'blocks/SM':>9} {'waves':>6}"
    lines = [f"nvcc {version(compiler)}, SM 9.0; estimates, not measured", head]
    for row in rows():
        listing, registers, shared = kernels[row.kernel]
        shared = row.dynamic or shared
        warp = sum(weights(parse(listing), row.trips, row.other_way))
        million = warp * row.blocks * row.threads / 32 / 1e6
        fits = blocks_per_multiprocessor(registers, shared, row.threads)
        waves = row.blocks / fits / MULTIPROCESSORS
        lines.append(
            f"{row.kernel:50} {row.scale:>5} {row.blocks:>6} {warp / row.per:>8.0f} {row.unit or 'warp':22}"
            f" {warp:>8.0f} {million:>7.2f} {row.megabytes:>7.2f} {registers:>9} {shared:>6} {fits:>9}"
            f" {waves:>6.2f}"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()  # --help measures nothing
    tools = nvcc(), cuobjdump()
    if None in tools:
        raise SystemExit("no nvcc, or no cuobjdump: set CUDA_HOME, CUOBJDUMP")
    RESULT.write_text(table(str(tools[0]), str(tools[1])))
    print(RESULT.read_text(), end="")
