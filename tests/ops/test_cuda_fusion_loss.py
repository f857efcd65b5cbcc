"""The fusion loss's CUDA kernels without a GPU: their own source, compiled by g++ against tests/emulator.

The truth is the reference in double; an error may be twice that of plain torch operations in float32. That
the comparison can fail is tested too: faults planted in a copy of the source are caught.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from emulation import (
    CUDA,
    EMULATOR,
    FAULT,
    SANITIZE,
    build,
    build_planted,
    emulate,
    link,
    skip_without_emulator,
)
from test_fusion_loss import Inputs, choices, error, inputs, needs_kernel, with_gradient
from torch import Tensor

from mmif_trt.ops import fusion_loss as op
from mmif_trt.ops import reference

SOURCES = [CUDA / f"fusion_loss_{part}.cu" for part in ("fwd", "bwd")]
MAIN = EMULATOR / "run_fusion_loss.cpp"
UNIT = torch.finfo(torch.float32).eps
SEEDS = range(4)


@dataclass(frozen=True)
class Case:
    height: int = 13
    width: int = 37
    batch: int = 2
    kind: str = "smooth"
    weighted: bool = True
    padding: int = 0  # elements from the end of a row to the next
    apart: int = 0  # more of them in each image than in the one before
    between: int = 0  # elements between the pictures of an image
    start: int = 0  # elements before an image's first pixel
    spoilt: str = ""  # the image with a pixel that is not finite
    at: tuple[int, int] = (0, 0)  # y, x of that pixel
    value: float = math.nan
    seed: int = 0  # of the order of threads
    constants: tuple[float, float] = (reference.SSIM_C1, reference.SSIM_C2)

    def ssim(self) -> dict[str, float]:
        return dict(zip(("c1", "c2"), self.constants, strict=True))

    def __str__(self) -> str:
        weights = "weighted" if self.weighted else "plain"
        size = f"{self.batch}x{self.height}x{self.width}"
        memory = f"{self.padding}-{self.apart}-{self.between}-{self.start}"
        spoilt = f"-{self.spoilt}-{self.at[0]}-{self.at[1]}-{self.value}" if self.spoilt else ""
        return f"{size}-{self.kind}-{weights}-{memory}-{self.seed}-{self.constants[1]:g}{spoilt}"


CASES = [
    *(Case(*size, weighted=w) for size in ((11, 11), (13, 37), (40, 70), (16, 32)) for w in (True, False)),
    *(Case(40, 70, kind=kind, weighted=w) for kind in ("8-bit", "ties", "constant") for w in (True, False)),
    Case(33, 43, kind="noise", padding=5),
    Case(17, 33, kind="zeros"),
    Case(40, 37, constants=(1e-5, 1e-4)),
    Case(batch=0),
    *(Case(70, width, weighted=w) for width in (35, 36, 64) for w in (True, False)),
    *(Case(33, 40, 2, "smooth", True, 0, *memory) for memory in ((3,), (4, 8, 4), (4, 4, 2), (0, 1))),
]
# In a corner, beside an edge, and in the middle of two tiles' halos; by single values and by vectors.
SPOILT = [
    Case(50, width, spoilt=image, at=at, value=value)
    for width, value in ((43, math.nan), (44, math.nan), (44, math.inf))
    for image, at in (("f", (0, 0)), ("a", (49, width - 1)), ("b", (31, 33)), ("f", (30, 1)), ("wa", (20, 5)))
]
ORDERS = [Case(29, 41, weighted=w, seed=seed) for w in (True, False) for seed in SEEDS]
SANITIZED = [
    Case(11, 11, seed=1),
    Case(35, 36, 1, padding=4),
    Case(12, 36, apart=4, between=4, start=4),
    Case(12, 36, apart=1, between=3, start=1),
    Case(19, 37, 1, padding=3, weighted=False),
    Case(17, 33, 1),
    Case(batch=0),
]


@dataclass(frozen=True)
class Outputs:
    terms: Tensor
    moments: Tensor
    choices: Tensor
    d_f: Tensor


@cache
def given(case: Case) -> Inputs:
    x = inputs((case.batch, case.height, case.width), case.kind, case.weighted)
    if case.spoilt:
        getattr(x, case.spoilt)[-1, 0, case.at[0], case.at[1]] = case.value
    return x


def stored(image: Tensor, row: int, between: int, start: int) -> bytes:
    """Pixel after pixel, at these strides, up to the last one; not a number where there is none."""
    if not image.numel():
        return b""
    B, _, H, W = image.shape
    strides = H * row + between, row, 1
    memory = torch.full((start + (B - 1) * strides[0] + (H - 1) * row + W,), float("nan"))
    memory.as_strided((B, H, W), strides, start).copy_(image[:, 0])
    return memory.numpy().tobytes()


def pack(cases: Sequence[Case]) -> bytes:
    offset = np.arange(11) - 5.0
    weight = np.exp(-(offset**2) / (2 * reference.SSIM_SIGMA_PX**2))
    data = [(weight / weight.sum()).tobytes()]
    for case in cases:
        stride, how = case.width + case.padding, (case.apart, case.between, case.start)
        shape = case.batch, case.height, case.width
        data.append(struct.pack("9q2d", *shape, stride, *how, case.weighted, case.seed, *case.constants))
        x = given(case)
        for i, image in enumerate(x.all()):
            if image is not None:
                data.append(stored(image, stride + i * case.apart, case.between, case.start))
        data.append(x.d_terms.numpy().tobytes())
    return b"".join(data)


def unpack(case: Case, data: bytes, at: int) -> tuple[Outputs, int]:
    B, H, W = case.batch, case.height, case.width
    found = []
    for shape, kind in (
        ((B, 3), "f4"),
        ((B, H - 10, W - 10, 4), "f4"),  # channels last
        ((B, 1, H, W), "u1"),
        ((B, 1, H, W), "f4"),
    ):
        count = int(np.prod(shape))
        array = np.frombuffer(data, kind, count, at) if count else np.empty(0, kind)
        found.append(torch.from_numpy(array.reshape(shape).copy()))
        at += array.nbytes
    return Outputs(*found), at


def read_all(cases: Sequence[Case], data: bytes) -> dict[Case, Outputs]:
    results, at = {}, 0
    for case in cases:
        results[case], at = unpack(case, data, at)
    assert at == len(data), "more results than the cases have"
    return results


def run_cases(program: Path, folder: Path, cases: Sequence[Case]) -> dict[Case, Outputs]:
    (folder / "cases").write_bytes(pack(cases))
    done = emulate(program, str(folder / "cases"), str(folder / "results"))
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stderr}"
    return read_all(cases, (folder / "results").read_bytes())


def check(case: Case, ours: Outputs) -> None:
    x = given(case)
    true, true_d = with_gradient(partial(reference.fusion_loss, **case.ssim()), x.to(torch.float64))
    plain, plain_d = with_gradient(partial(reference.fusion_loss, **case.ssim()), x)
    assert torch.equal(ours.choices, choices(x)), "choices"
    assert torch.isfinite(ours.moments).all() and torch.isfinite(ours.d_f).all()
    assert error(ours.terms, true) <= max(2 * error(plain, true), 2 * UNIT), "terms"
    if not true_d.any():
        assert not ours.d_f.numel() or ours.d_f.abs().max() <= max(2 * float(plain_d.abs().max()), UNIT)
        return
    assert error(ours.d_f, true_d) <= max(2 * error(plain_d, true_d), 4 * UNIT), "d_f"
    bias, plain_bias = ((y.double() - true_d).sum() / true_d.abs().sum() for y in (ours.d_f, plain_d))
    assert abs(bias) <= max(2 * abs(plain_bias), error(plain_d, true_d)), "signed bias"


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    skip_without_emulator()
    return build(tmp_path_factory.mktemp("kernels"), [MAIN, *SOURCES])


@pytest.fixture(scope="session")
def results(objects: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[Case, Outputs]:
    folder = tmp_path_factory.mktemp("run")
    return run_cases(link(objects, folder / "run"), folder, CASES + ORDERS + SPOILT)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_error_is_at_most_twice_plain_torchs(case: Case, results: dict[Case, Outputs]) -> None:
    check(case, results[case])


@pytest.mark.parametrize("case", SPOILT, ids=str)
def test_what_is_not_finite_spreads_as_in_the_truth(case: Case, results: dict[Case, Outputs]) -> None:
    x, ours = given(case), results[case]
    true, true_d = with_gradient(reference.fusion_loss, x)
    assert not true[1].isfinite().all() and true[0].isfinite().all()
    for y, expected in ((ours.terms, true), (ours.d_f, true_d)):
        assert torch.equal(y.isnan(), expected.isnan()) and torch.equal(y.isinf(), expected.isinf())
    assert torch.equal(ours.choices, choices(x))


@needs_kernel
@pytest.mark.parametrize("case", [c for c in CASES if c.batch], ids=str)
def test_equals_the_cpus_kernels_but_for_rounding(case: Case, results: dict[Case, Outputs]) -> None:
    x, ours = given(case), results[case]
    terms, d_f = with_gradient(partial(op.fusion_loss, **case.ssim()), x)
    assert torch.equal(ours.choices, torch.ops.mmif_trt.fusion_loss(*x.all())[2])
    torch.testing.assert_close(ours.terms, terms, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.d_f, d_f, rtol=1e-3, atol=1e-3 * float(d_f.abs().max()) + 1e-7)


@pytest.mark.parametrize("weighted", [True, False])
def test_same_bits_in_any_order_of_threads(weighted: bool, results: dict[Case, Outputs]) -> None:
    first, *others = (results[case] for case in ORDERS if case.weighted == weighted)
    check(ORDERS[0] if weighted else ORDERS[len(SEEDS)], first)
    for other in others:
        for name in ("terms", "moments", "choices", "d_f"):
            assert torch.equal(getattr(other, name), getattr(first, name)), name


def test_sanitized(tmp_path: Path) -> None:
    """No access out of bounds, no undefined behaviour; and the same numbers."""
    skip_without_emulator()
    program = link(build(tmp_path, [MAIN, *SOURCES], SANITIZE), tmp_path / "run", SANITIZE)
    for case, result in run_cases(program, tmp_path, SANITIZED).items():
        check(case, result)


# ---- Planted faults: what, where, what is there, what stands there instead; see build_planted -----


def _no_barrier(name: str, part: str, says: str) -> tuple[str, str, str, str]:
    barrier = f"__syncthreads();  // the {says}"
    return name, part, barrier, f"if (!PLANT) {barrier}"


PLANTS = [
    _no_barrier("pictures before they are whole", "fwd", "pictures are complete"),
    _no_barrier("means before they are whole", "fwd", "first means are complete"),
    _no_barrier("means that others overwrote", "fwd", "first means are used"),
    _no_barrier("other means before they are whole", "fwd", "other means are complete"),
    _no_barrier("sums before they are whole", "fwd", "warps' sums are complete"),
    (
        "b where the sources are equal",
        "fwd",
        "weighted ? wa * a >= wb * b : a >= b",
        "PLANT ? (weighted ? wa * a > wb * b : a > b) : weighted ? wa * a >= wb * b : a >= b",
    ),
    ("beyond the border, what the vectors left there", "fwd", "- (x > 0))", "- (PLANT || x > 0))"),
    _no_barrier("signs before they are whole", "bwd", "signs are complete"),
    _no_barrier("moments before they are whole", "bwd", "moments are complete, the signs are used"),
    _no_barrier("backward's means before they are whole", "bwd", "means are complete"),
    ("the upper border is not negated", "bwd", "? 1.f : -1.f;", "? 1.f : PLANT ? 1.f : -1.f;"),
    (
        "the left border is not negated",
        "bwd",
        "by_left = has_left ? 1.f",
        "by_left = PLANT || has_left ? 1.f",
    ),
    ("a window too far", "bwd", "x = tile.x + column - kAround;", "x = tile.x + column - kAround + PLANT;"),
]
PARTS = ("fwd", "bwd")
PLANTED_CASES = [Case(17, width, 1, "ties", seed=seed) for width in (35, 36) for seed in (1, 3, 2)]


def fails(program: Path, folder: Path) -> bool:
    (folder / "cases").write_bytes(pack(PLANTED_CASES))
    done = emulate(program, str(folder / "cases"), str(folder / "results"))
    if done.returncode:
        assert done.returncode == FAULT, done.stderr
        return True
    try:
        for case, result in read_all(PLANTED_CASES, (folder / "results").read_bytes()).items():
            check(case, result)
    except AssertionError:
        return True
    return False


@pytest.fixture(scope="session")
def planted(objects: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A program for each part, with the faults of that part."""
    programs = {}
    for part in PARTS:
        folder = tmp_path_factory.mktemp("planted")
        faults = [plant[2:] for plant in PLANTS if plant[1] == part]
        built = build_planted(folder, CUDA / f"fusion_loss_{part}.cu", faults)
        programs[part] = link([built, *(x for x in objects if x.name != built.name)], folder / "run")
    return programs


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant[0])
def test_a_planted_fault_is_caught(
    plant: tuple[str, str, str, str],
    planted: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    number = [other for other in PLANTS if other[1] == plant[1]].index(plant) + 1
    monkeypatch.setenv("MMIF_PLANTED", str(number))
    assert fails(planted[plant[1]], tmp_path)


@pytest.mark.parametrize("part", PARTS)
def test_nothing_planted_nothing_caught(
    part: str, planted: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMIF_PLANTED", "0")
    assert not fails(planted[part], tmp_path)
