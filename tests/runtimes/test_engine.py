"""runtimes/trt: engine, cuda, device_array: the runner on a fake card whose every call can fail."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_card import Error, FakeCard, MemoryFull, OnCard, network
from fake_engine import Light, engine, install, usable_modules

from mmif_trt import Fuser, InputError, runtimes, weights
from mmif_trt.runtimes import openvino
from mmif_trt.runtimes.trt import build as engine_build
from mmif_trt.runtimes.trt import cuda, engine_file
from mmif_trt.runtimes.trt import runtime as tensorrt
from mmif_trt.runtimes.trt.cuda import DeviceError
from mmif_trt.runtimes.trt.engine import Engine

Change = Callable[..., Path]


def pair(*shape: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """a of this shape, and two planes of b."""
    rng = np.random.default_rng(seed)
    batch = shape[:1] if len(shape) > 2 else ()
    return rng.random(shape, np.float32), rng.random((*batch, 2, *shape[-2:]), np.float32)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeCard]:
    made = install(monkeypatch, tmp_path / "cache")
    gc.freeze()  # to skip what other tests left: with torch loaded that takes longer than a test
    yield made
    gc.collect()
    gc.unfreeze()
    assert made.depth == 0, "every pushed context is popped"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return engine(tmp_path / "x.engine")


# What comes out


@pytest.mark.parametrize("shape", [(64, 96), (3, 64, 64), (2, 1, 32, 32)])
def test_host_arrays(fake: FakeCard, path: Path, shape: tuple[int, ...]) -> None:
    with Engine(path) as e:
        for seed in range(4):  # plain, captured, replayed twice
            a, b = pair(*shape, seed=seed)
            fused = e(a, b)
            np.testing.assert_array_equal(fused, network(a, b))
            assert fused.shape == shape and fused.flags.owndata
        assert fake.calls.count("cuGraphLaunch") == 3 and fake.calls.count("execute") == 2
    assert not fake.memory and not fake.graphs and fake.contexts == 0, "the card is given back"


def test_strided_and_temporary_arrays_are_read_before_they_go(fake: FakeCard, path: Path) -> None:
    with Engine(path) as e:
        a, b = pair(64, 128)
        np.testing.assert_array_equal(e(a[:, ::2], b[..., ::2]), network(a, b)[:, ::2])
        results = list(e.run((x.copy(), y.copy()) for x, y in (pair(64, 64, seed=i) for i in range(5))))
    for i, fused in enumerate(results):
        np.testing.assert_array_equal(fused, network(*pair(64, 64, seed=i)))


def test_two_pairs_are_in_flight_in_order(fake: FakeCard, path: Path) -> None:
    shapes = [(32, 32), (64, 64), (64, 64), (64, 64), (64, 64), (128, 128), (32, 64), (64, 64)]
    with Engine(path) as e:
        results = list(e.run(pair(*shape, seed=i) for i, shape in enumerate(shapes)))
        for i, (fused, shape) in enumerate(zip(results, shapes, strict=True)):
            np.testing.assert_array_equal(fused, network(*pair(*shape, seed=i)))
    assert fake.most_in_flight == 2 and not fake.memory and not fake.graphs


def test_a_run_that_is_left_early_leaves_nothing_in_flight(fake: FakeCard, path: Path) -> None:
    with Engine(path) as e:
        run = e.run(pair(64, 64, seed=i) for i in range(9))
        next(run)
        with pytest.raises(InputError, match="called inside its own `run`"):
            e(*pair(64, 64))
        run.close()
        assert not any(stream.work for stream in fake.streams.values())
        np.testing.assert_array_equal(e(*pair(64, 64)), network(*pair(64, 64)))


def test_the_parts_of_a_call_are_timed_by_the_card(fake: FakeCard, path: Path) -> None:
    with Engine(path) as e:
        e(*pair(64, 64))
        e(*pair(64, 64))
        assert e.parts_ms == [] and not fake.times, "not asked for"
        e.time_parts()
        for call in range(4):  # plain, captured, replayed
            fake.clock += 100  # what is between two calls counts for neither
            np.testing.assert_array_equal(e(*pair(64, 64, seed=call)), network(*pair(64, 64, seed=call)))
            assert e.parts_ms == [2.0, 5.0, 2.0], call
        assert "cuGraphLaunch" in fake.calls and e.graphs
        assert e.device_bytes == len(e.data) + 2 * 1000 + 4 * 64 * 64 * 4, "one slot has buffers"
        fake.faults["cuEventElapsedTime"] = 400
        with pytest.raises(DeviceError, match="cuEventElapsedTime failed .CUDA error 400."):
            e(*pair(64, 64))
    assert not fake.times, "the events are given back"


def test_device_arrays_are_read_in_place_and_kept(fake: FakeCard, path: Path) -> None:
    a, b = pair(2, 1, 64, 64)
    with Engine(path) as e:
        for _ in range(2):
            fused = next(iter(e.run([(OnCard(fake, a), OnCard(fake, b))])))
            seen = fused.__cuda_array_interface__
            assert seen["shape"] == a.shape and seen["typestr"] == "<f4"
            result = fake.array(seen["data"][0], a.shape)
            np.testing.assert_array_equal(result, network(a, b))
        assert "upload" not in fake.calls and "download" not in fake.calls, "no way through the host"
        assert "synchronise" in fake.calls, "the interface names no stream: the producer must have ended"
        x, y = pair(64, 64)
        np.testing.assert_array_equal(e(x, y), network(x, y))


def test_device_arrays_that_do_not_fit_are_refused(fake: FakeCard, path: Path) -> None:
    a, b = pair(64, 64)
    with Engine(path) as e:
        with pytest.raises(InputError, match="only one is on the card"):
            e(OnCard(fake, a), b)
        other = OnCard(fake, a)
        other.__cuda_array_interface__["typestr"] = "<f2"
        with pytest.raises(InputError, match="a: dtype <f2; expected float32 on the card"):
            e(other, OnCard(fake, b))
        other = OnCard(fake, a)
        other.__cuda_array_interface__["strides"] = (4, 256)
        with pytest.raises(
            InputError, match=r"a: strides \(4, 256\) in bytes; expected a C-contiguous array"
        ):
            e(other, OnCard(fake, b))


# What is refused


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((5, 64, 64), "batch 5 of 64 x 64 px; this engine takes batch 1 to 4"),
        ((65, 64), "batch 1 of 65 x 64 px; .* sides multiples of 32"),
        ((256, 64), "batch 1 of 256 x 64 px; .* 32 to 128 x 32 to 128 px"),
        ((2, 2, 64, 64), r"a has shape \(2, 2, 64, 64\)"),
        ((64,), r"expected \[H, W\], \[B, H, W\] or \[B, 1, H, W\] with \[B, 2, H, W\]"),
        ((0, 64, 64), "batch 0 of 64 x 64 px"),
    ],
)
def test_shapes_off_the_profile(fake: FakeCard, path: Path, shape: tuple[int, ...], text: str) -> None:
    with Engine(path) as e, pytest.raises(InputError, match=text):
        e(*pair(*shape))


def test_other_arrays(fake: FakeCard, path: Path) -> None:
    a, b = pair(64, 64)
    with Engine(path) as e:
        with pytest.raises(InputError, match="b: dtype float64; expected float32"):
            e(a, b.astype(np.float64))
        with pytest.raises(InputError, match=r"a has shape \(64, 64\) and b \(2, 32, 64\)"):
            e(a, b[:, :32])
        with pytest.raises(InputError, match=r"and b \(64, 64\); expected .* with \[B, 2, H, W\]"):
            e(a, b[0])
    with pytest.raises(InputError, match="the engine was closed; expected a new Engine"):
        e(a, b)


FALSE = [
    ("set_input_shape:a", False, "tensor 'a' does not take shape"),
    ("set_input_shape:b", False, "tensor 'b' does not take shape"),
    ("infer_shapes", ["fused"], "no shape for tensor 'fused'"),
    ("get_tensor_shape", (1, 1, 9, 9), r"tensor 'fused' has shape \(1, 1, 9, 9\)"),
    ("set_tensor_address:a", False, "tensor 'a' does not take its buffer"),
    ("set_tensor_address:fused", False, "tensor 'fused' does not take its buffer"),
    ("execute", False, "the engine did not start for tensor 'fused'"),
    ("mem_alloc", MemoryFull("full"), "Fake RTX: out of memory for batch 1 of 64 x 64 px"),
    ("pinned", MemoryFull("full"), "out of memory for batch 1 of 64 x 64 px"),
    ("upload", Error("launch failed"), "Fake RTX: launch failed"),
    ("download", Error("launch failed"), "Fake RTX: launch failed"),
    ("record", Error("launch failed"), "Fake RTX: launch failed"),
    ("query", Error("an illegal address"), "Fake RTX: an illegal address"),
]


@pytest.mark.parametrize(("call", "fault", "text"), FALSE, ids=[name for name, _, _ in FALSE])
def test_each_call_may_fail(fake: FakeCard, path: Path, call: str, fault: Any, text: str) -> None:
    with Engine(path) as e:
        fake.faults[call] = fault
        with pytest.raises(DeviceError, match=text):
            e(*pair(64, 64))
        fake.faults.clear()
        np.testing.assert_array_equal(e(*pair(64, 64)), network(*pair(64, 64)), "and goes on afterwards")
    assert not fake.memory and fake.contexts == 0


@pytest.mark.parametrize("call", ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate"])
def test_without_graphs_it_goes_on(fake: FakeCard, path: Path, call: str) -> None:
    fake.faults[call] = 900
    with Engine(path) as e:
        for seed in range(4):
            np.testing.assert_array_equal(e(*pair(64, 64, seed=seed)), network(*pair(64, 64, seed=seed)))
        assert not e.graphs and "cuGraphLaunch" not in fake.calls


LOADING = [
    ("deserialize", None, "TensorRT does not load this engine: no reason given"),
    ("create_execution_context", None, "no execution context"),
    ("create_execution_context", MemoryFull("full"), "out of memory for batch 4 of 128 x 128 px"),
    ("Stream", Error("broken"), "Fake RTX: broken"),
    ("retain", Error("exclusive mode"), r"Fake RTX: no context \(exclusive mode\)"),
]


@pytest.mark.parametrize(("call", "fault", "text"), LOADING)
def test_each_call_of_loading_may_fail(fake: FakeCard, path: Path, call: str, fault: Any, text: str) -> None:
    fake.faults[call] = fault
    with pytest.raises(DeviceError, match=text):
        Engine(path)
    assert not fake.memory and fake.contexts == 0, "the card is given back"


def test_a_card_that_hangs(fake: FakeCard, path: Path) -> None:
    def hang() -> None:
        fake.hung, fake.faults["query"] = True, False

    with Engine(path, timeout_s=0.01) as e:
        lent = e(*(OnCard(fake, x) for x in pair(64, 64)))
        e(*pair(64, 64))
        fake.hooks["execute"] = hang
        with pytest.raises(
            DeviceError, match=r"x.engine, batch 1 of 64 x 64 px: Fake RTX did not finish with"
        ):
            e(*pair(64, 64))
        fake.faults.clear()
        with pytest.raises(DeviceError, match="did not finish within 0.01 s; expected a new Engine"):
            e(*pair(64, 64))
        before = fake.calls.count("synchronise")
    del lent, e
    gc.collect()
    assert fake.calls.count("synchronise") == before and fake.memory, "freeing would wait for the card"
    assert not fake.blocked, "no destructor runs, for it would not return"


def test_ctrl_c_frees_the_card(fake: FakeCard, path: Path) -> None:
    fake.faults["query"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt), Engine(path) as e:
        try:
            e(*pair(64, 64))
        finally:
            fake.faults.clear()
    assert not fake.memory and fake.contexts == 0
    fake.faults["deserialize"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        Engine(path)
    assert not fake.memory and fake.contexts == 0


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"version": "0.9"}, "built by tensorrt_rtx 0.9; this installation loads tensorrt_rtx 1.0"),
    ({"flavour": "tensorrt"}, "built by tensorrt 1.0; this installation loads tensorrt_rtx 1.0"),
    ({"compute_capabilities": ("8.6", "12.0")}, "compute capability 8.9; expected 8.6, 12.0"),
    ({"engine_sha256": "0" * 64}, "SHA-256 is [0-9a-f]{64}; expected 0{64}"),
    ({"onnx_sha256": "1" * 64}, "built from onnx 1{64}; expected [0-9a-f]{64}, installed here"),
    ({"weights_sha256": "2" * 64}, "built from safetensors 2{64}"),
    ({"onnx_sha256": weights.onnx_sha256("lagn-quality")}, "built from onnx [0-9a-f]{64}; expected"),
]


@pytest.mark.parametrize(("changes", "text"), REFUSED, ids=[next(iter(x)) for x, _ in REFUSED])
def test_what_does_not_match_is_refused_by_name(
    fake: FakeCard, tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    path = engine(tmp_path / "y.engine", **changes)
    with pytest.raises(InputError, match=rf"y\.engine: .*{text}"):
        Engine(path)
    assert fake.contexts == 0


def test_an_engine_of_an_unknown_network_is_refused(fake: FakeCard, path: Path) -> None:
    manifest = engine_file.manifest_path(path)
    manifest.write_text(manifest.read_text().replace('"lagn"', '"unet"'))
    with pytest.raises(InputError, match=r"x\.engine: of model 'unet'; expected lagn, lagn-quality"):
        Engine(path)
    assert fake.contexts == 0


def test_files_that_are_missing_or_changed(fake: FakeCard, path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"x\.engine: SHA-256 is"):
        Engine(path)
    manifest = engine_file.manifest_path(path)
    for text, said in (("{", "not a manifest"), ("[]", "not a manifest"), ('{"model": "lagn"}', "missing")):
        manifest.write_text(text)
        with pytest.raises(InputError, match=rf"x\.engine\.json: .*{said}.*expected JSON of model, "):
            Engine(path)
    manifest.unlink()
    with pytest.raises(InputError, match=r"x\.engine: no manifest x\.engine\.json beside it"):
        Engine(path)
    path.unlink()
    with pytest.raises(InputError, match=r"x\.engine: no such engine file; expected an engine of"):
        Engine(path)


# The driver and the choice of the runtime


def wheels(monkeypatch: pytest.MonkeyPatch, *installed: str) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise engine_build.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(engine_build.metadata, "version", version)
    find = tensorrt.importlib.util.find_spec
    monkeypatch.setattr(
        tensorrt.importlib.util,
        "find_spec",
        lambda name, *a: (
            None if name == "tensorrt" else object() if name == "tensorrt_rtx" else find(name, *a)
        ),
    )


@pytest.mark.parametrize(
    ("wheel", "version", "refused"),
    [
        ("tensorrt-rtx-cu13", 12090, "CUDA 13.0 or newer, which is driver 580 or newer"),
        ("tensorrt-rtx-cu13", 13000, ""),
        ("tensorrt-rtx-cu12", 12000, ""),
        ("tensorrt-cu13", 12000, ""),  # of the other module
        ("", 12000, ""),  # not from a wheel: not known
    ],
)
def test_a_wheel_needs_the_driver_of_its_cuda(
    fake: FakeCard, path: Path, monkeypatch: pytest.MonkeyPatch, wheel: str, version: int, refused: str
) -> None:
    wheels(monkeypatch, *filter(None, [wheel]))
    fake.version = version
    if not refused:
        Engine(path).close()
        return
    with pytest.raises(DeviceError, match=refused):
        Engine(path)
    assert refused in tensorrt.why_not() and fake.contexts == 0


@pytest.mark.parametrize(
    ("fault", "version", "text"),
    [
        ({"cuInit": 100}, 13000, "an NVIDIA driver, but no card"),
        ({"cuDeviceGetCount": 0}, 13000, "an NVIDIA driver, but no card"),
        ({"cuInit": 35}, 10020, "too old: it supports CUDA 10.2; expected 12.0 or newer"),
        ({}, 11080, "too old: it supports CUDA 11.8"),
        ({}, 12040, "too old for tensorrt-rtx-cu13: it supports CUDA 12.4; expected CUDA 13.0 or newer"),
        ({"cuInit": 999}, 13000, "does not start .cuInit returned 999"),
    ],
)
def test_drivers(
    fake: FakeCard,
    path: Path,
    fault: dict[str, Any],
    version: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wheels(monkeypatch, "tensorrt-rtx-cu13")
    monkeypatch.setattr(openvino, "load", lambda *_: Light())
    fake.faults, fake.version = fault, version
    with pytest.raises(DeviceError, match=text):
        Engine(path)
    assert text[:12] in runtimes.available()["tensorrt"]
    fallen_back = runtimes.load("auto", "auto", 1)
    assert fallen_back.name == "openvino" and text[:12] in fallen_back.note
    with pytest.raises(InputError, match=f"runtime 'tensorrt' is not usable: .*{text}"):
        runtimes.load("tensorrt", "auto", 1)


def test_no_driver_and_no_pycuda(monkeypatch: pytest.MonkeyPatch, fake: FakeCard, path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(DeviceError, match="PyCUDA cannot be imported .*; try `make console`"):
        Engine(path)

    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(cuda.ctypes, "CDLL", missing)
    with pytest.raises(DeviceError, match=r"no NVIDIA driver \(libcuda.so.1 cannot be loaded\)"):
        Engine(path)


@pytest.fixture
def usable(fake: FakeCard, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A card, the modules, an empty cache; the list of the engines that were built."""
    return usable_modules(monkeypatch)


@pytest.mark.parametrize("name", weights.NAMES)
def test_auto_takes_tensorrt_and_builds_once(fake: FakeCard, usable: list[Path], name: str) -> None:
    for _ in range(2):
        fuser = Fuser(network=name)
        runtime: Any = fuser.runtime
        assert (runtime.name, runtime.precision, runtime.device) == ("tensorrt", "fp16", "Fake RTX")
        a, b = pair(50, 70)
        np.testing.assert_allclose(fuser(a, b[0]), network(a, b * [[[1]], [[0]]]), atol=1e-6)
        runtime.engine.close()
    assert len(usable) == 1 and "sm8.9" in usable[0].name and usable[0].name.startswith(f"{name}-fp16-")
    assert engine_file.read_manifest(usable[0]).model == name


def test_each_network_has_an_engine_and_none_runs_as_another(fake: FakeCard, usable: list[Path]) -> None:
    for name in weights.NAMES:
        runtime: Any = Fuser("tensorrt", network=name).runtime
        runtime.engine.close()
    one, other = usable
    assert one != other
    other.write_bytes(one.read_bytes())
    engine_file.manifest_path(other).write_bytes(engine_file.manifest_path(one).read_bytes())
    with pytest.raises(InputError, match=rf"{other.name}: of model 'lagn'; expected lagn-quality"):
        Fuser("tensorrt", network="lagn-quality")
    assert fake.contexts == 0, "the card was given back"


def test_auto_falls_back_and_says_why(fake: FakeCard, usable: list[Path]) -> None:
    runtime: Any = Fuser().runtime
    runtime.engine.close()
    usable[0].write_bytes(b"changed")
    fallen_back = Fuser(threads=1).runtime
    assert fallen_back.name == "openvino" and "SHA-256 is" in fallen_back.note
    with pytest.raises(InputError, match="SHA-256 is"):
        Fuser("tensorrt")
    assert Fuser(precision="fp32", threads=1).runtime.name == "openvino"
    with pytest.raises(InputError, match="precision 'bf16': runtime 'tensorrt' runs FP16"):
        Fuser("tensorrt", "bf16")
