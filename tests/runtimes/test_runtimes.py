"""runtimes, weights: all reproduce the golden pairs and say their precision; no changed file is trusted."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO

from mmif_trt import Fuser, InputError, fuse, load_model, runtimes, weights
from mmif_trt.machine import usable_cores
from mmif_trt.runtimes import openvino as openvino_runtime
from mmif_trt.stages import tiling

LEVEL = 1 / 255
each_network = pytest.mark.parametrize("network", weights.NAMES)


@pytest.fixture
def own_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As fresh_graphs of conftest.py, for one test: where it matters when a graph is compiled."""
    kept = openvino_runtime.OpenVinoRuntime._compile
    monkeypatch.setattr(openvino_runtime.OpenVinoRuntime, "_compile", kept.__wrapped__)  # type: ignore


def has_bf16() -> bool:
    """Whether OpenVINO runs it: the processor has it, and ONEDNN_MAX_CPU_ISA does not deny it."""
    x = np.zeros((64, 64), np.float32)
    try:
        runtimes.load("openvino", "bf16", 1).infer(x, x)
    except InputError:
        return False
    return True


def error_on_golden(runtime: runtimes.Runtime, network: str = weights.DEFAULT) -> float:
    a, b, expected = runtimes.golden(network)
    return max(float(np.abs(runtime.infer(x, y) - f).max()) for x, y, f in zip(a, b, expected, strict=True))


def rand(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


@pytest.mark.parametrize("name", ["openvino", "torch"])
@pytest.mark.parametrize("shape", [(1, 1), (15, 15), (16, 16), (2, 32, 31), (32, 0)])
def test_sides_off_the_grid_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="multiples of 32, or mmif_trt.fuse, which pads"):
        runtimes.load(name, "fp32", 1).infer(np.zeros(shape, np.float32), np.zeros(shape, np.float32))


# The same numbers everywhere


@each_network
def test_golden_pairs_are_worth_comparing(network: str) -> None:
    a, b, f = runtimes.golden(network)
    assert a.shape == f.shape == (3, 256, 256) and b.shape == (3, 2, 256, 256)
    assert f.dtype == a.dtype == b.dtype == np.float32
    luma, above = b[:, 0], b[:, 1]
    assert a.max() > 0.9 and luma.max() > 0.9 and f.std() > 0.1
    assert np.abs(f - a).max() > 0.1 and np.abs(f - luma).max() > 0.1
    assert np.abs(f - np.maximum(a, luma)).max() > 0.01
    in_colour = above.max((1, 2)) > 0.1
    assert in_colour.tolist() == [False, True, True] and not above[~in_colour].any()


@each_network
def test_torch_reproduces_the_golden_pairs(network: str) -> None:
    pytest.importorskip("torch")
    runtime = runtimes.load("torch", "auto", 1, network=network)
    assert (runtime.name, runtime.precision) == ("torch", "fp32") and runtime.note
    if runtime.device == "cpu":
        assert error_on_golden(runtime, network) <= 1e-5
    else:
        assert error_on_golden(runtime, network) <= 1e-3  # TF32 or another order of sums


@each_network
def test_openvino_fp32_reproduces_the_golden_pairs(network: str) -> None:
    runtime = runtimes.load("openvino", "fp32", 1, network=network)
    assert (runtime.name, runtime.precision, runtime.device) == ("openvino", "fp32", "CPU")
    assert runtime.note == "asked for" and error_on_golden(runtime, network) <= 1e-4
    others = [name for name in weights.NAMES if name != network]
    assert all(error_on_golden(runtime, other) > LEVEL for other in others), "each network fuses its own way"


@each_network
def test_openvino_auto_stays_within_one_level_and_says_its_precision(network: str) -> None:
    runtime = runtimes.load("openvino", "auto", 1, network=network)
    assert runtime.name == "openvino" and runtime.precision in ("fp32", "bf16") and runtime.note
    assert error_on_golden(runtime, network) <= (LEVEL if runtime.precision == "bf16" else 1e-4)
    if not has_bf16():
        assert runtime.precision == "fp32" and "bfloat16" in runtime.note
    elif found := re.search(r"([0-9.]+)/255", runtime.note):
        assert float(found[1]) < 2, "compared with its own golden pairs: those of the other are further off"


def test_instructions_denied_to_onednn_leave_fp32() -> None:
    """OpenVINO sees the processor's bfloat16, oneDNN must not use it: a graph in it does not compile."""
    code = """
import numpy as np
from mmif_trt import InputError, runtimes
runtime = runtimes.load("openvino", "auto", 1)
print(runtime.precision, "|", runtime.note)
x = np.zeros((64, 64), np.float32)
assert not runtime.infer(x, x).any()
try:
    runtimes.load("openvino", "bf16", 1).infer(x, x)
except InputError as error:
    print(error)
"""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    auto, bf16 = done.stdout.strip().splitlines()
    assert auto.startswith("fp32 | ") and "bfloat16" in auto
    assert bf16.startswith("precision 'bf16': ") and bf16.endswith("expected auto, fp32")


@pytest.mark.usefixtures("own_graphs")
def test_openvino_bf16_is_used_or_refused() -> None:
    if not has_bf16():
        with pytest.raises(InputError, match="precision 'bf16': .*expected auto, fp32"):
            x = np.zeros((64, 64), np.float32)
            runtimes.load("openvino", "bf16", 1).infer(x, x)
        return
    runtime = runtimes.load("openvino", "bf16", 1)
    assert isinstance(runtime, openvino_runtime.OpenVinoRuntime)
    assert (runtime.precision, runtime.note) == ("bf16", "asked for")
    fixed = error_on_golden(runtime)
    assert 1e-4 < fixed <= 1.2 * LEVEL, "bfloat16 must really run; processors round differently"
    golden = zip(*runtimes.golden("lagn"), strict=True)
    shared = max(float(np.abs(runtime._run(None, a, b) - f).max()) for a, b, f in golden)
    assert shared <= 1.2 * LEVEL, "the graph of any size fuses what the fixed one does"
    auto = runtimes.load("openvino", "auto", 1)
    assert auto.precision == ("bf16" if max(fixed, shared) <= LEVEL else "fp32"), auto.note


COMPUTE_AND_WATCH = """
import os, threading
import numpy as np
from mmif_trt import runtimes
os.sched_setaffinity(0, range(os.cpu_count()))
runtime, ended, widths = runtimes.load("openvino", "fp32", 1), threading.Event(), set()
computing = threading.get_native_id()
def watch():
    while not ended.is_set():
        widths.add(len(os.sched_getaffinity(computing)))
watcher = threading.Thread(target=watch)
watcher.start()
picture = np.zeros((256, 256), np.float32)
for _ in range(10):
    runtime.infer(picture, picture)
ended.set()
watcher.join()
print(widths == {len(os.sched_getaffinity(0))}, *widths)
"""


@pytest.mark.skipif(usable_cores() < 2, reason="one usable core")
def test_a_thread_that_computes_may_move_between_cores() -> None:
    """Processes of one thread each, as workers on a cluster are, all computed on the first core. In a process
    of its own: what other tests run in OpenVINO as it is may have bound this one's thread."""
    done = subprocess.run([sys.executable, "-c", COMPUTE_AND_WATCH], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said, width = done.stdout.split()
    assert said == "True" and int(width) > 1


def test_no_bias_is_added_apart_from_its_convolution() -> None:
    """In bfloat16 its sum would be rounded twice: 1.4/255 off on a golden pair where the size is open."""
    core = openvino_runtime.core_of(os.getpid())
    file = str(weights.verified_path("lagn", "onnx"))
    graph = core.compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).get_runtime_model()
    nodes = [node.get_rt_info() for node in graph.get_ordered_ops()]
    layers = [(str(x["layerType"].astype(str)), str(x["originalLayersNames"].astype(str))) for x in nodes]
    assert sum("Conv/bias" in names for kind, names in layers if kind == "Convolution") >= 15
    assert not [names for kind, names in layers if kind == "Eltwise" and "Conv" in names]


@each_network
def test_layers_in_bfloat16_stay_within_a_level_on_any_cpu(network: str) -> None:
    """As training had them: torch's layers in bfloat16, computed in FP32 and rounded where a CPU has none."""
    torch = pytest.importorskip("torch")
    from mmif_trt.models import load_model

    model, golden = load_model(network), runtimes.golden(network)
    a, b, expected = map(torch.from_numpy, golden)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        error = (model(a[:, None], b)[:, 0].float() - expected).abs().max().item()
    assert 1e-4 < error <= LEVEL


@pytest.mark.usefixtures("own_graphs")
@pytest.mark.parametrize(
    ("off_by", "precision", "note"),
    [(0.0, "bf16", "bfloat16 is within "), (0.02, "fp32", "bfloat16 is off by ")],
)
def test_auto_falls_back_where_bfloat16_is_off(
    off_by: float, precision: str, note: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_bf16():
        pytest.skip("this CPU has no bfloat16, so nothing to fall back from")
    a, b, expected = runtimes.golden("lagn")
    rounded = runtimes.load("openvino", "bf16", 1)
    own = np.stack([rounded.infer(x, y) for x, y in zip(a, b, strict=True)])
    monkeypatch.setattr(openvino_runtime, "BF16_TOLERANCE", 0.01)  # the graph of any size rounds otherwise
    monkeypatch.setattr(openvino_runtime, "golden", lambda name: (a, b, own + np.float32(off_by)))
    monkeypatch.setattr(openvino_runtime, "_verdicts", {})
    runtime = runtimes.load("openvino", "auto", 1)
    assert runtime.precision == precision and note in runtime.note
    output = runtime.infer(a[0], b[0])
    if precision == "fp32":
        assert np.abs(output - expected[0]).max() <= 1e-4, "the graphs in bfloat16 must be gone"
    else:
        np.testing.assert_array_equal(output, own[0])


def test_bfloat16_is_measured_once_per_process_and_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """By whichever of two threads comes first; what is said of one network is not said of another."""
    if not has_bf16():
        pytest.skip("this CPU has no bfloat16, so nothing to measure")
    measured: list[str] = []

    def measure(self: openvino_runtime.OpenVinoRuntime, golden: tuple[np.ndarray, ...]) -> tuple[bool, str]:
        measured.append(self._path)
        time.sleep(0.2)  # the other thread asks in the meantime
        return len(measured) == 2, f"measured as number {len(measured)}"

    monkeypatch.setattr(openvino_runtime, "_verdicts", {})
    monkeypatch.setattr(openvino_runtime.OpenVinoRuntime, "_measure", measure)
    with ThreadPoolExecutor(2) as pool:
        loaded = list(pool.map(lambda threads: runtimes.load("openvino", "auto", threads), (1, 2)))
    assert len(measured) == 1
    assert [(x.precision, x.note) for x in loaded] == [("fp32", "measured as number 1")] * 2
    other = runtimes.load("openvino", "auto", 1, network="lagn-quality")
    assert (other.precision, other.note) == ("bf16", "measured as number 2") and measured[0] != measured[1]
    assert runtimes.load("openvino", "auto", 1).note == "measured as number 1" and len(measured) == 2


@each_network
def test_onnx_file_takes_any_batch_and_size(network: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    torch = pytest.importorskip("torch")
    session = onnxruntime.InferenceSession(
        str(weights.verified_path(network, "onnx")), providers=["CPUExecutionProvider"]
    )
    model = load_model(network)
    for shape in ((2, 1, 64, 96), (1, 1, 160, 32), (3, 1, 32, 32)):
        a, b = rand(*shape, seed=1), rand(shape[0], 2, *shape[2:], seed=2)
        (output,) = session.run(None, {"a": a, "b": b})
        with torch.inference_mode():
            expected = model(torch.from_numpy(a), torch.from_numpy(b)).numpy()
        assert output.shape == shape
        np.testing.assert_allclose(output, expected, rtol=0, atol=1e-4)
    a, b, f = runtimes.golden(network)
    (output,) = session.run(None, {"a": a[:, None], "b": b})
    np.testing.assert_allclose(output[:, 0], f, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("own_graphs")
def test_sizes_beyond_the_fixed_graphs_share_one() -> None:
    pytest.importorskip("torch")
    reference = runtimes.load("torch", "fp32", 1)
    runtime = openvino_runtime.load("fp32", 1)
    sizes = [(32, 32), (64, 32), (256, 256), (32, 64), (64, 64), (96, 32), (32, 96)]
    for size in sizes * 2:
        a, b = rand(*size, seed=3), rand(*size, seed=4)
        output = runtime.infer(a, b)
        assert output.flags.owndata, "not a view of a buffer that the next call overwrites"
        np.testing.assert_allclose(output, reference.infer(a, b), rtol=0, atol=1e-4)
    assert set(runtime._graphs) == {None, (256, 256)}, "memory does not grow with the number of sizes"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_streams_change_the_rate_and_no_number(precision: str) -> None:
    if precision == "bf16" and not has_bf16():
        pytest.skip("this CPU has no bfloat16")
    one, side_by_side = (runtimes.load("openvino", precision, 2, streams) for streams in (1, 2))
    assert (one.streams, side_by_side.streams) == (1, 2)
    assert runtimes.load("openvino", "fp32", 1, 4).streams == 1, "never more than threads"
    golden_a, golden_b, _ = runtimes.golden("lagn")
    pairs = list(zip(golden_a, golden_b, strict=True))
    pairs += [(rand(*size, seed=5), rand(*size, seed=6)) for size in ((32, 32), (96, 160), (320, 288))]
    expected = [one.infer(a, b) for a, b in pairs]
    with ThreadPoolExecutor(4) as pool:
        output = list(pool.map(lambda pair: side_by_side.infer(*pair), pairs * 4))
    for i, fused in enumerate(output):
        np.testing.assert_array_equal(fused, expected[i % len(pairs)])


def test_first_inferences_of_many_threads_do_not_hang() -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from mmif_trt import runtimes
runtime = runtimes.load("openvino", "fp32", 2, 2)
x = np.full((64, 64), 0.5, np.float32)
with ThreadPoolExecutor(8) as pool:
    print(len({fused.tobytes() for fused in pool.map(lambda _: runtime.infer(x, x), range(16))}))
"""
    assert python(code).strip() == "1"


# Weights and manifest


def test_the_names_are_those_of_the_manifest() -> None:
    assert tuple(weights.manifest()["models"]) == weights.NAMES and weights.DEFAULT == "lagn"
    assert [weights.title(name) for name in weights.NAMES] == ["LAGN", "LAGN-quality"]
    assert len({weights.onnx_sha256(name) for name in weights.NAMES}) == len(weights.NAMES)


@each_network
def test_manifest_says_what_the_weights_are(network: str) -> None:
    model = weights.manifest()["models"][network]
    assert set(model["files"]) == {f"{network}.{suffix}" for suffix in weights.SUFFIXES}
    total = 0
    for name, record in model["files"].items():
        path = weights.FOLDER / name
        assert record == {"sha256": weights.sha256(path), "bytes": path.stat().st_size}
        total += 0 if name.endswith("npz") else record["bytes"]
    assert total <= 5_000_000
    assert {"commit", "command", "data", "steps", "config"} <= set(model["training"])
    assert model["preprocessing"] and model["parameters"] <= 600_000


@each_network
def test_load_model(network: str) -> None:
    torch = pytest.importorskip("torch")
    model, record = load_model(network), weights.manifest()["models"][network]
    assert model.config.as_dict() == record["config"] and not model.training
    assert model.config.multiple == tiling.MULTIPLE_PX, "what pictures are padded to"
    assert sum(p.numel() for p in model.parameters()) == record["parameters"]
    assert not any(p.requires_grad for p in model.parameters())
    assert torch.isfinite(next(model.parameters())).all()


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_an_unknown_device_is_refused_by_name(device: str) -> None:
    pytest.importorskip("safetensors")
    with pytest.raises(InputError, match=rf"^device '{device}': .*; expected cpu, or cuda"):
        load_model(device=device)


def test_an_unknown_network_is_refused_by_name() -> None:
    a, b = rand(32, 32), rand(32, 32)
    said = "^network 'unet'; expected lagn, lagn-quality$"
    for name in ("auto", *runtimes.NAMES):
        with pytest.raises(InputError, match=said):
            runtimes.load(name, "auto", 1, network="unet")
    for use in (lambda: Fuser(network="unet"), lambda: fuse(a, b, network="unet")):
        with pytest.raises(InputError, match=said):
            use()
    with pytest.raises(InputError, match=said):
        weights.in_use("unet")
    with pytest.raises(InputError, match="^model 'unet'; expected lagn, lagn-quality$"):
        weights.verified_path("unet", "onnx")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the weights that a test may damage."""
    copy = Path(shutil.copytree(weights.FOLDER, tmp_path / "weights"))
    monkeypatch.setattr(weights, "FOLDER", copy)
    weights.manifest.cache_clear()
    weights.verified_path.cache_clear()
    yield copy
    weights.manifest.cache_clear()
    weights.verified_path.cache_clear()


@pytest.mark.parametrize("suffix", weights.SUFFIXES)
def test_a_changed_byte_is_refused(folder: Path, suffix: str) -> None:
    assert weights.verified_path("lagn", suffix).parent == folder
    weights.verified_path.cache_clear()
    path = folder / f"lagn.{suffix}"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        InputError, match=rf"lagn\.{suffix}: SHA-256 is [0-9a-f]{{64}}; expected [0-9a-f]{{64}}"
    ):
        weights.verified_path("lagn", suffix)
    uses: dict[str, Callable[[], object]] = {
        "onnx": lambda: Fuser("openvino", "fp32", 1),
        "safetensors": load_model,
        "npz": lambda: weights.golden("lagn"),
    }
    if suffix == "safetensors":
        pytest.importorskip("torch")
    with pytest.raises(InputError, match=rf"lagn\.{suffix}: SHA-256"):
        uses[suffix]()


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "lagn.onnx").unlink()
    with pytest.raises(
        InputError, match=r"lagn\.onnx: missing; expected an installation that has the weights"
    ):
        Fuser("openvino", threads=1)
    (folder / "manifest.json").unlink()
    weights.manifest.cache_clear()
    with pytest.raises(InputError, match=r"manifest\.json: missing; expected an installation"):
        weights.verified_path("lagn", "npz")


# What is here


def test_available_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert runtimes.available()["openvino"] == "" and set(runtimes.available()) == set(runtimes.NAMES)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert runtimes.available()["torch"].startswith("not installed: pip install")
    with pytest.raises(InputError, match="^runtime 'torch' is not installed: pip install"):
        runtimes.load("torch", "auto", None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InputError, match="^runtime 'openvino' is not installed: pip install openvino"):
        runtimes.load("auto", "auto", None)


def python(code: str) -> str:
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPO, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_is_light() -> None:
    loaded = json.loads(python("import json, sys, mmif_trt; print(json.dumps(sorted(sys.modules)))"))
    assert "mmif_trt" in loaded
    assert not {"torch", "openvino", "cv2", "PIL", "tqdm", "safetensors"} & set(loaded)


def test_works_without_torch() -> None:
    code = """
import sys
import threading
for name in ("torch", "safetensors", "scipy", "skimage", "onnx", "onnxruntime"):
    sys.modules[name] = None
import mmif_trt
fuser = mmif_trt.Fuser(threads=1)
fused = fuser(*mmif_trt.sample("mri-pet"))
assert fuser.runtime.name == "openvino" and fused.data.shape == (256, 256, 3) and fused.data.max() > 50
print(sorted(name for name in sys.modules if name.split(".")[0] == "torch" and sys.modules[name]))
"""
    assert python(code).strip() == "[]"


@pytest.mark.parametrize("name", ["openvino", "torch"])
def test_a_batch_is_its_pairs(name: str) -> None:
    if why_not := runtimes.available()[name]:
        pytest.skip(why_not)
    runtime = runtimes.load(name, "fp32", 1)
    a, b, _ = runtimes.golden("lagn")
    a, b = (np.concatenate([x, x[..., ::-1, :]])[..., :64, :96] for x in (a, b))
    fused = runtime.infer(a, b)
    assert fused.shape == a.shape
    one_by_one = np.stack([runtime.infer(x, y) for x, y in zip(a, b, strict=True)])
    np.testing.assert_allclose(fused, one_by_one, atol=2e-5)
