"""Cards of compute capability 9.0 (H100, H200): the full TensorRT builds there, TensorRT-RTX refuses."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_card import FakeCard, network
from fake_engine import Full, install, usable_modules

from mmif_trt import Fuser, InputError, cli
from mmif_trt.runtimes.trt import build as engine_build
from mmif_trt.runtimes.trt import engine_file

pytest.importorskip("onnx")
BUILD = engine_build.build


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeCard:
    made = install(monkeypatch, tmp_path / "cache")
    made.capability = (9, 0)
    usable_modules(monkeypatch)
    monkeypatch.setattr(engine_build, "build", BUILD)
    return made


def test_the_full_tensorrt_builds_for_the_card_that_is_here(
    fake: FakeCard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    full = Full(fake)
    monkeypatch.setattr(engine_build, "module", lambda: full.module)
    runtime: Any = Fuser().runtime
    assert runtime.name == "tensorrt", runtime.note
    a = np.full((64, 64), 0.5, np.float32)
    b = np.stack([a, a / 4])
    np.testing.assert_array_equal(runtime.infer(a, b), network(a, b))
    made = runtime.engine.manifest
    assert (made.flavour, made.version, made.compute_capabilities) == ("tensorrt", "11.4", ("9.0",))
    assert made.fused_attention is None, "no layer table, no claim"
    assert "tensorrt-11.4-sm9.0" in runtime.engine.path.name
    assert full.asked["flags"] == 2, "strongly typed: 10.x takes the types of the graph only when asked"
    assert full.asked["profile"]["a"] == ((1, 1, 32, 32), (1, 1, 256, 256), (8, 1, 1024, 1024))
    assert full.asked["profile"]["b"] == ((1, 2, 32, 32), (1, 2, 256, 256), (8, 2, 1024, 1024))
    runtime.engine.close()
    assert not list((tmp_path / "cache").glob("*.kernels"))
    fake.capability = (8, 9)
    with pytest.raises(InputError, match="this card has compute capability 8.9; expected 9.0"):
        engine_file.load_checked(runtime.engine.path, "tensorrt", "11.4", "8.9")


def test_it_builds_for_no_other(
    fake: FakeCard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine_build, "module", lambda: Full(fake).module)
    assert cli.main(["engine", "build", "--size", "64", "--cards", "8.6"]) == 2
    assert "compute capability 8.6; tensorrt builds here for 9.0" in capsys.readouterr().err
    fake.faults["cuInit"] = 100
    assert cli.main(["engine", "build", "--size", "64"]) == 2
    said = capsys.readouterr().err
    assert "an NVIDIA driver, but no card" in said and said.count("\n") == 1


def test_tensorrt_rtx_refuses_and_auto_goes_on_without(
    fake: FakeCard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
    monkeypatch.setattr(engine_build, "module", lambda: importlib.import_module("tensorrt_rtx"))
    runtime = Fuser(threads=1).runtime
    assert runtime.name == "openvino"
    assert "compute capability 9.0; tensorrt_rtx builds for 12.0" in runtime.note
    with pytest.raises(InputError, match="compute capability 9.0; tensorrt_rtx builds for"):
        Fuser("tensorrt")
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".lock"}, "no engine, no half one"
