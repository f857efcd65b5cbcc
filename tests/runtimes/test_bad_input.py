"""Everything that can be wrong with a card, its driver, its engines and their cache: one clear line, and the
right exit code or fallback, through the command line and `Fuser`. (Details: the parts' own tests.)"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPO
from disks import disk
from fake_card import Error, FakeCard, MemoryFull
from fake_engine import Light, engine, install, usable_modules

from mmif_trt import Fuser, InputError, cli, io
from mmif_trt.image import Image
from mmif_trt.runtimes import openvino
from mmif_trt.runtimes.trt import build as engine_build
from mmif_trt.runtimes.trt import cuda, engine_file

Change = Callable[[FakeCard, Path, pytest.MonkeyPatch], Any]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeCard:
    made = install(monkeypatch, tmp_path / "cache")
    usable_modules(monkeypatch)
    return made


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    """Two files of an odd size, which the network's grid of 32 px does not fit."""
    rng = np.random.default_rng(0)
    files = [tmp_path / f"{name}.png" for name in "ab"]
    for path in files:
        io.write(path, Image(rng.integers(0, 256, (50, 71), np.uint8)))
    return [str(path) for path in files]


def no_driver(fake: FakeCard, cache: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cuda, "LIBRARY", "libcuda.so.none")


def full_disk(fake: FakeCard, cache: Path, patch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    patch.setattr(engine_file.os, "fsync", full)


def cached(**changes: Any) -> Change:
    """A builder whose engines have a manifest with `changes`."""

    def change(fake: FakeCard, cache: Path, patch: pytest.MonkeyPatch) -> Path:
        patch.setattr(
            engine_build,
            "build",
            lambda path, command, capabilities, model, form: engine(
                path, model, **({"compute_capabilities": capabilities, "largest": (8, 1024, 1024)} | changes)
            ),
        )
        return cache

    return change


def one_byte(fake: FakeCard, cache: Path, patch: pytest.MonkeyPatch) -> None:
    Fuser().runtime.engine.close()  # type: ignore[attr-defined]
    (path,) = engine_file.engines_in(cache)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def faults(**what: Any) -> Change:
    return lambda fake, cache, patch: fake.faults.update({k.replace("__", ":"): v for k, v in what.items()})


def driver(version: int) -> Change:
    return lambda fake, cache, patch: setattr(fake, "version", version)


WRONG: dict[str, tuple[Change, str]] = {
    "no driver": (no_driver, "no NVIDIA driver (libcuda.so.none cannot be loaded)"),
    "driver too old": (driver(11080), "the NVIDIA driver is too old: it supports CUDA 11.8; expected 12.0"),
    "no card": (faults(cuInit=100), "an NVIDIA driver, but no card"),
    "another card": (cached(compute_capabilities=("8.0",)), "compute capability 8.9; expected 8.0"),
    "another version": (cached(version="0.9"), "built by tensorrt_rtx 0.9; this installation loads"),
    "one byte changed": (one_byte, "SHA-256 is "),
    "corrupt": (faults(deserialize=None), "TensorRT does not load this engine: no reason given"),
    "full card": (faults(mem_alloc=MemoryFull("full")), "out of memory for batch 1 of 64 x 96 px"),
    "full card at loading": (faults(create_execution_context=MemoryFull("")), "out of memory for batch 8"),
    "exclusive card": (faults(retain=Error("exclusive")), "Fake RTX: no context (exclusive)"),
}
AT_THE_FIRST_PAIR = ("full card",)


@pytest.mark.parametrize("case", WRONG)
def test_one_line_and_exit_code_or_fallback(
    fake: FakeCard,
    pair: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    case: str,
) -> None:
    change, text = WRONG[case]
    change(fake, tmp_path / "cache", monkeypatch)
    monkeypatch.setattr(openvino, "load", lambda *_: Light())
    out = tmp_path / "out.png"
    code = cli.main(["fuse", *pair, "-o", str(out), "--runtime", "tensorrt", "--quiet"])
    said = capsys.readouterr().err
    assert code == (1 if case in AT_THE_FIRST_PAIR else 2) and text in said, said
    assert len([line for line in said.splitlines() if text in line]) == 1 and "Traceback" not in said
    assert not out.exists() and not list(tmp_path.glob(".*mmif*")), "and no half file"
    if case in AT_THE_FIRST_PAIR:
        return
    fuser = Fuser(threads=1)
    assert fuser.runtime.name == "openvino" and text in fuser.runtime.note
    assert cli.main(["fuse", *pair, "-o", str(out), "--threads", "1", "--quiet"]) == 0
    assert io.read(out).size == (50, 71)
    assert cli.main(["info"]) == 0
    assert text in capsys.readouterr().out, "info says why not, once more"
    assert fake.depth == 0 and fake.contexts == 0, "the card is given back"


def test_an_odd_size_is_padded_and_a_batch_over_the_profile_refused(
    fake: FakeCard, pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.png"
    assert cli.main(["fuse", *pair, "-o", str(out), "--runtime", "tensorrt", "--quiet"]) == 0
    assert io.read(out).size == (50, 71)
    runtime: Any = Fuser("tensorrt").runtime
    x = np.zeros((9, 64, 64), np.float32)
    with pytest.raises(InputError, match="batch 9 of 64 x 64 px; this engine takes batch 1 to 8"):
        runtime.infer(x, x)


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_a_missing_engine(fake: FakeCard, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["engine", command, "none.engine"]) == 2
    said = capsys.readouterr().err
    assert "none.engine: no such engine file; expected an engine of" in said and said.count("\n") == 1


def test_verify_on_another_card(fake: FakeCard, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = engine(tmp_path / "x.engine", compute_capabilities=("12.0",), largest=(4, 256, 256))
    assert cli.main(["engine", "verify", str(path)]) == 2
    said = capsys.readouterr().err
    assert "this card has compute capability 8.9; expected 12.0" in said and said.count("\n") == 1


def test_a_full_cache_disk(
    fake: FakeCard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(openvino, "load", lambda *_: Light())
    full_disk(fake, tmp_path, monkeypatch)
    runtime = Fuser(threads=1).runtime
    assert runtime.name == "openvino" and "cannot be written (No space left on device)" in runtime.note
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("MMIF_ENGINES", str(blocked / "below"))
    assert "cannot be written (Not a directory)" in Fuser(threads=1).runtime.note


def test_a_real_full_disk(fake: FakeCard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with disk(tmp_path / "small", "64k") as small:
        monkeypatch.setenv("MMIF_ENGINES", str(small))
        (small / "rest").write_bytes(b"\0" * (52 * 1024))
        manifest = engine_file.read_manifest(engine(tmp_path / "x.engine"))
        with pytest.raises(InputError, match=r"y\.engine: cannot be written \(No space left on device\)"):
            engine_file.save(small / "y.engine", b"\1" * 200_000, manifest)
        assert [path.name for path in small.iterdir()] == ["rest"], "no half file"


CHILD = """
import atexit, os, sys, time
import pytest
from pathlib import Path
from fake_card import FakeCard
from fake_engine import install, usable_modules
patch = pytest.MonkeyPatch()
fake = install(patch, Path(sys.argv[1]) / "cache")
usable_modules(patch)
atexit.register(lambda: print("left", fake.contexts, len(fake.memory), len(fake.graphs), flush=True))
wait, end = fake.call, [0.0]
def call(name, value=None):
    if name == "query" and fake.calls.count("query") > 6 and time.monotonic() < end[0]:
        os.write(1, b"working\\n")  # at once: two threads come here, and print writes the line's end apart
        time.sleep(0.05)
        return False  # a card that is still at it, for a while
    if name == "query" and fake.calls.count("query") == 6:
        end[0] = time.monotonic() + 8
    return wait(name, value)
fake.call = call
from mmif_trt import cli
sys.exit(cli.main(["fuse", *sys.argv[2:], "--runtime", "tensorrt", "--quiet"]))
"""


def test_ctrl_c_frees_the_card_and_leaves_no_half_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder in "ab":
        (tmp_path / folder).mkdir()
        for i in range(12):
            io.write(tmp_path / folder / f"{i:02}.png", Image(rng.integers(0, 256, (64, 64), np.uint8)))
    path = os.pathsep.join([str(REPO), str(REPO / "tests")])
    command = [sys.executable, "-c", CHILD, str(tmp_path), "a", "b", "-o", "out"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A suite that a shell runs in the background ignores it, and so would the child.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None and process.stdout.readline() == "working\n"
    for _ in range(2):  # the second does not wait for the pairs in hand
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors and "interrupted" in errors
    assert said.splitlines()[-1] == "left 0 0 0", "context, memory and graphs of the card"
    for done in (tmp_path / "out").iterdir():
        assert done.suffix == ".png" and io.read(done).size == (64, 64)
