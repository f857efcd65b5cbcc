"""Window attention's CUDA kernels without a GPU: their source, compiled by g++, under the emulator."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from attention_cases import Case, Outputs, inputs, pack, plain, unpack, variants
from conftest import REPO
from emulation import EMULATOR, SANITIZE, build, build_planted, emulate, link, skip_without_emulator

CUDA = REPO / "csrc" / "cuda"
KERNELS = ["window_attention_fwd.cu", "window_attention_bwd.cu", "window_attention_bwd_float.cu"]
RUNNER = EMULATOR / "run_window_attention.cpp"

FLOOR = 1e-6  # a relative error that always passes: a few ulps of float32, where sums cancel

CASES = [
    *variants(Case()),
    *variants(Case(batch=2, height=16, width=24, shift=0, heads=3, chunks=5)),
    *variants(Case(height=9, width=6, window=4, shift=1, heads=1, chunks=100)),
    *variants(Case(height=7, width=10, window=5, shift=4, layout="sliced")),
    *variants(Case(height=8, width=9, shift=7, layout="sliced")),
    *variants(Case(batch=3, height=1, width=1, chunks=2)),
    *variants(Case(height=3, width=4, window=1, shift=0, heads=1)),
    *variants(Case(values="constant", height=11, width=8)),
    *variants(Case(values="large", height=8, width=12)),
    *variants(Case(batch=0)),
]
SMALL = [
    *variants(Case(height=5, width=11, heads=1, chunks=1, layout="sliced")),
    *variants(Case(batch=2, height=6, width=3, window=4, shift=3, layout="sliced")),
]


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    skip_without_emulator()
    return build(tmp_path_factory.mktemp("emulated"), [*(CUDA / name for name in KERNELS), RUNNER])


@pytest.fixture(scope="session")
def program(objects: list[Path]) -> Path:
    return link(objects, objects[0].parent / "run")


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    skip_without_emulator()
    folder = tmp_path_factory.mktemp("sanitized")
    made = build(folder, [*(CUDA / name for name in KERNELS), RUNNER], SANITIZE)
    return link(made, folder / "run", SANITIZE)


def run(program: Path, cases: list[Case], folder: Path) -> list[Outputs]:
    (folder / "cases").write_bytes(b"".join(pack(case, inputs(case)) for case in cases))
    done = emulate(program, str(folder / "cases"), str(folder / "results"))
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stderr[:4000]}"
    results = io.BytesIO((folder / "results").read_bytes())
    return [unpack(case, results.read) for case in cases]


def assert_as_good_as_torch(case: Case, ours: Outputs) -> None:
    """At most twice the relative error that plain operations make in the same precision, or a few ulps."""
    given = inputs(case)
    truth, theirs = plain(case, given, torch.float64), plain(case, given, case.dtype)
    for name in Outputs.NAMES:
        x, y, t = (getattr(o, name).detach().double() for o in (ours, theirs, truth))
        if case.batch == 0:  # the host part fills d_bias of an empty batch
            assert name == "d_bias" or x.numel() == 0
            continue
        assert x.isfinite().all(), f"{case}: {name} is not finite"
        if t.norm() < 1e-10:  # equal values or one token: no score has a gradient
            assert x.abs().max() < 2e-5 * given.d_out.abs().max(), f"{case}: {name}"
            continue
        # Plain operations in float16 may overflow where the kernels do not.
        allowed = 2 * (y - t).norm() / t.norm() if y.isfinite().all() else 0
        error = (x - t).norm() / t.norm()
        assert error <= allowed + FLOOR, f"{case}: {name}: {error:.2e} > {allowed:.2e}"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_as_good_as_torch(case: Case, program: Path, tmp_path: Path) -> None:
    assert_as_good_as_torch(case, run(program, [case], tmp_path)[0])


@pytest.mark.parametrize("case", variants(Case(height=12, width=20, chunks=2)), ids=str)
def test_same_bits_in_every_order_of_threads(case: Case, program: Path, tmp_path: Path) -> None:
    first, *rest = run(program, [replace(case, seed=seed) for seed in (0, 1, 2, 3, 5)], tmp_path)
    for other in rest:
        for name in Outputs.NAMES:
            assert torch.equal(getattr(first, name), getattr(other, name)), name


@pytest.mark.parametrize("case", variants(Case(layout="unaligned")), ids=str)
def test_rows_that_are_not_aligned_are_refused(case: Case, program: Path, tmp_path: Path) -> None:
    """The host part copies them first; a launch would end in a misaligned address."""
    (tmp_path / "cases").write_bytes(pack(case, inputs(case)))
    done = emulate(program, str(tmp_path / "cases"), str(tmp_path / "results"))
    assert done.returncode == 0 and not (tmp_path / "results").read_bytes(), done.stderr


def test_chunks_change_nothing_but_the_rounding_of_d_bias(program: Path, tmp_path: Path) -> None:
    for case in variants(Case()):
        one, many = run(program, [replace(case, chunks=1), replace(case, chunks=6)], tmp_path)
        assert torch.equal(one.out, many.out) and torch.equal(one.d_qkv, many.d_qkv)
        torch.testing.assert_close(one.d_bias, many.d_bias, rtol=1e-4, atol=1e-5)


def test_the_mean_of_equal_values_is_the_value(program: Path, tmp_path: Path) -> None:
    for case in variants(Case(values="constant", height=11, width=13, shift=3)):
        assert (run(program, [case], tmp_path)[0].out == 0.5).all()


@pytest.mark.parametrize("case", variants(Case(height=8, width=8, shift=0)), ids=str)
def test_scores_above_1e8(case: Case, program: Path, tmp_path: Path) -> None:
    """All look at one key: its v, whatever rounding does to a score so large."""
    given = inputs(case)
    given.qkv[:, :, :, 0] = torch.linspace(3e4, 6e4, 64).reshape(8, 8, 1, 1)
    given.qkv[:, :, :, 1] = 0.0
    given.qkv[:, 0, 0, 1], given.qkv[:, 0, 0, 2] = 1000.0, 2.0
    (tmp_path / "cases").write_bytes(pack(case, given))
    assert emulate(program, str(tmp_path / "cases"), str(tmp_path / "results")).returncode == 0
    ours = unpack(case, io.BytesIO((tmp_path / "results").read_bytes()).read)
    assert (ours.out == 2).all() and ours.d_qkv.isfinite().all() and ours.lse.isfinite().all()


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_sanitizers_find_nothing(case: Case, sanitized: Path, tmp_path: Path) -> None:
    assert_as_good_as_torch(case, run(sanitized, [case], tmp_path)[0])


# Errors planted in a copy of the sources, each of which a run must show: file, what is there, what stands
# there instead; see build_planted.
PLANTS = {
    "fwd: bias of the wrong neighbour": (0, "c ? both.y : both.x", "(c != 0) != PLANT ? both.y : both.x"),
    "fwd: no barrier after loading": (
        0,
        "wait_copies();\n    __syncthreads();",
        "wait_copies();\n    if (!PLANT) __syncthreads();",
    ),
    "fwd: copies not waited for": (0, "wait_copies();", "if (!PLANT) wait_copies();"),
    "fwd: no barrier between windows": (
        0,
        "__syncthreads();  // the next",
        "if (!PLANT) __syncthreads();  // the next",
    ),
    "fwd: a border window as a whole one": (0, "if (window.whole())", "if (PLANT || window.whole())"),
    "fwd: lse in powers of 2": (
        0,
        "= fmaf(fast_log2(sum[r]), kLn2, most)",
        "= PLANT ? fast_log2(sum[r]) + most : fmaf(fast_log2(sum[r]), kLn2, most)",
    ),
    "fwd: float keys of the wrong row": (
        0,
        "tiles.v[kSide * j + i + x]",
        "tiles.v[kSide * j + (PLANT ? 0 : i) + x]",
    ),
    "bwd: no barrier between the halves": (
        1,
        "__syncthreads();  // p and d_s",
        "if (!PLANT) __syncthreads();  // p and d_s",
    ),
    "bwd: no barrier between windows": (
        1,
        "__syncthreads();  // the next",
        "if (!PLANT) __syncthreads();  // the next",
    ),
    "bwd: queries and keys exchanged": (
        1,
        "load_a_transposed(a, m, i, 16 * warp, lane);",
        "if (PLANT) load_a(a, m, i, 16 * warp, lane);\n    else load_a_transposed(a, m, i, 16 * warp, lane);",
    ),
    "bwd: a border window as a whole one": (1, "if (window.whole())", "if (PLANT || window.whole())"),
    "bwd: delta of another query": (1, "4 * g + g / 2)", "4 * g + (PLANT ? 0 : g / 2))"),
    "bwd: d_bias over lanes of another offset": (1, "9 * step", "(PLANT ? 8 : 9) * step"),
    "bwd float: out overwritten too early": (
        2,
        "__syncthreads();  // p may",
        "if (!PLANT) __syncthreads();  // p may",
    ),
    "bwd float: wrong offset of d_bias": (
        2,
        "dx = cell % kOffsets - (kSide - 1)",
        "dx = cell % kOffsets - (PLANT ? kSide : kSide - 1)",
    ),
}
PLANTED_CASES = [
    replace(case, seed=seed, height=16, width=20, chunks=2)
    for case in (Case(), Case(dtype=torch.float16))
    for seed in (1, 2)
]


@pytest.fixture(scope="session")
def planted(objects: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A program for each file of kernels, with the errors of that file."""
    programs = []
    for index, name in enumerate(KERNELS):
        folder = tmp_path_factory.mktemp("planted")
        made = build_planted(
            folder, CUDA / name, [plant[1:] for plant in PLANTS.values() if plant[0] == index]
        )
        rest = [o for i, o in enumerate(objects) if i != index]
        programs.append(link([made, *rest], folder / "run"))
    return programs


@pytest.mark.parametrize("name", PLANTS)
def test_planted_errors_are_caught(
    name: str, planted: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = PLANTS[name][0]
    number = [other for other, plant in PLANTS.items() if plant[0] == index].index(name) + 1
    monkeypatch.setenv("MMIF_PLANTED", str(number))
    with pytest.raises(AssertionError):
        for case in PLANTED_CASES:
            assert_as_good_as_torch(case, run(planted[index], [case], tmp_path)[0])


@pytest.mark.parametrize("index", range(len(KERNELS)), ids=KERNELS)
def test_nothing_planted_nothing_caught(
    index: int, planted: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMIF_PLANTED", "0")
    for case, result in zip(PLANTED_CASES, run(planted[index], PLANTED_CASES, tmp_path), strict=True):
        assert_as_good_as_torch(case, result)


STORES = (
    "      if (window.exists(slot))\n        *reinterpret_cast",
    "      if (second ? slots.exists[1] : slots.exists[0])\n        *reinterpret_cast",
)


@pytest.fixture(scope="session")
def overrunning(sanitized: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sanitized build with a write beyond the image in each kernel: the float's and the half's."""
    folder = tmp_path_factory.mktemp("overrunning")
    shutil.copytree(REPO / "csrc", folder / "csrc")
    header = folder / "csrc" / "cuda" / "window_attention.cuh"
    text = header.read_text()
    for old in STORES:
        assert text.count(old) == 1, "the source has changed: plant this error anew"
        text = text.replace(old, "      *reinterpret_cast")
    header.write_text(text)
    copies = [folder / "csrc" / "cuda" / name for name in KERNELS]
    made = build(folder, [copies[0]], SANITIZE)
    rest = [sanitized.parent / f"{path.stem}.o" for path in (*copies[1:], RUNNER)]
    return link([*made, *rest], folder / "run", SANITIZE)


@pytest.mark.parametrize("case", [SMALL[0], SMALL[2]], ids=["float", "half"])
def test_a_planted_write_beyond_the_image_is_caught(case: Case, overrunning: Path, tmp_path: Path) -> None:
    """The sanitized build sees a row stored that does not exist."""
    (tmp_path / "cases").write_bytes(pack(case, inputs(case)))
    done = emulate(overrunning, str(tmp_path / "cases"), str(tmp_path / "results"))
    assert done.returncode == 87 and "heap-buffer-overflow" in done.stderr
