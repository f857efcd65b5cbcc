"""The CUDA emulator itself: right kernels come out right, and every kind of planted error is caught."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from emulation import EMULATOR, FAULT, SANITIZE, build, emulate, link, skip_without_emulator

SEEDS = ("0", "1", "2", "3")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    skip_without_emulator()
    folder = tmp_path_factory.mktemp("emulator")
    return link(build(folder, [EMULATOR / "planted.cpp"], ["-O1"]), folder / "planted")


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    skip_without_emulator()
    folder = tmp_path_factory.mktemp("sanitized")
    return link(build(folder, [EMULATOR / "planted.cpp"], SANITIZE), folder / "planted", SANITIZE)


@pytest.mark.parametrize("name", ["none", "copy", "shuffles", "products"])
def test_right_kernels_come_out_right(name: str, program: Path, sanitized: Path) -> None:
    """The products compare the twins of mma and ldmatrix with a plain matrix product."""
    for seed in SEEDS:
        assert emulate(program, name, seed).stdout == "good\n"
        done = emulate(sanitized, name, seed)
        assert done.stdout == "good\n", done.stderr


@pytest.mark.parametrize("name", ["barrier", "index"])
def test_wrong_numbers(name: str, program: Path) -> None:
    """Missing barrier: what another thread has not yet written is NaN."""
    for seed in SEEDS:
        assert emulate(program, name, seed).stdout == "wrong\n"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("returned", "names a lane that has returned"),
        ("divergent", "__syncthreads is not reached by all threads"),
        ("deadlock", "deadlock: some threads wait for a __syncthreads"),
        ("masks", "wait at different collectives or with different masks"),
        ("unwaited", "asynchronous copies not waited for"),
    ],
)
def test_the_emulator_says(name: str, says: str, program: Path) -> None:
    for seed in SEEDS:
        done = emulate(program, name, seed)
        assert done.returncode == FAULT and says in done.stderr, done.stderr


def test_shared_memory_has_its_exact_size(sanitized: Path) -> None:
    done = emulate(sanitized, "bounds", "1")
    assert done.returncode == 87 and "heap-buffer-overflow" in done.stderr


def test_conversions_are_torchs(program: Path) -> None:
    """Every float16 to float32; floats over all magnitudes, and halfway cases, to both 16-bit types."""
    bits = torch.randint(-(2**31), 2**31, (100_000,), generator=torch.Generator().manual_seed(0))
    x = bits.to(torch.int32).view(torch.float32)
    near = torch.linspace(-9.5, 9.5, 50_001) / 8
    x = torch.cat([x[x.isfinite()], near, near * 2**-15, near * 2**-24, torch.tensor([65519.0, 65520.0])])
    done = subprocess.run(
        [program, "conversions", "0"], input=x.numpy().tobytes(), capture_output=True, check=True
    )
    halves = torch.frombuffer(bytearray(done.stdout[: 4 * 65536]), dtype=torch.float32)
    expected = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    assert torch.equal(halves.nan_to_num(7), expected.nan_to_num(7))
    both = torch.frombuffer(bytearray(done.stdout[4 * 65536 :]), dtype=torch.int16).reshape(-1, 2)
    assert torch.equal(both[:, 0], x.half().view(torch.int16))
    assert torch.equal(both[:, 1], x.bfloat16().view(torch.int16))
