"""runtimes/trt/build, engine_file, commands/engine: real TensorRT-RTX engines, built here without a GPU."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO

from mmif_trt import InputError, cli, weights
from mmif_trt.models.pixels import Form
from mmif_trt.runtimes.trt import build as engine_build
from mmif_trt.runtimes.trt import engine_file, verify
from mmif_trt.runtimes.trt.half import half

onnx = pytest.importorskip("onnx")
MIB_8, SLOWEST_S = 8_000_000, 30
sys.path.insert(0, str(REPO / "engines"))
from build import release_set  # noqa: E402

PROFILES = list(release_set().values())


@pytest.fixture(autouse=True)
def rtx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
    monkeypatch.setattr(engine_build, "MODULES", ("tensorrt_rtx",))
    monkeypatch.setenv("MMIF_ENGINES", str(tmp_path / "cache"))


@pytest.fixture(scope="module", autouse=True)
def compiled_once() -> Iterator[None]:
    """Of the same graph, shapes and cards several tests look at what `build` makes of the result."""
    compile_, made = engine_build.compile_graph, dict[Any, Any]()

    def kept(trt: Any, graph: Any, *how: Any) -> Any:
        key = (trt.__name__, graph.SerializeToString(deterministic=True), *how)
        if key not in made:
            made[key] = compile_(trt, graph, *how)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_build, "compile_graph", kept)
        yield


@pytest.mark.parametrize("profile", PROFILES, ids=str)
def test_engines_meet_the_bars(profile: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_build, "golden_psnr", lambda *_: (60.0, "not this test's"))
    made = engine_build.build(tmp_path / "x.engine", "a test", profile)
    assert made.fused_attention == made.attention_blocks == 4, "each block is one kernel"
    assert set(made.float_convolutions) <= {"/head/Conv"}, "no FP32 convolution but the last"
    assert (tmp_path / "x.engine").stat().st_size == made.bytes <= MIB_8
    assert made.build_s <= SLOWEST_S, "a limit of the issue, not a timing"
    assert made.compute_capabilities == ("8.0", "8.6", "8.9", "12.0"), "in one file"
    assert (made.smallest, made.typical, made.largest) == profile
    assert engine_file.read_manifest(tmp_path / "x.engine") == made


@pytest.mark.parametrize(
    ("form", "profile"),
    [("uint8-rgb", engine_build.ANY_PIXELS), ("float32-rgb-last", ((1, 250, 250),) * 3)],
    ids=("uint8, any size", "float32, padded inside"),
)
def test_engines_from_pixels_to_pixels(
    form: str, profile: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pixels reach the first kernel as they are, and attention stays fused."""
    tables: list[list[engine_build.Layer]] = []
    layers = engine_build.layers
    monkeypatch.setattr(engine_build, "layers", lambda log: tables.append(layers(log)) or tables[-1])
    made = engine_build.build(tmp_path / "x.engine", "a test", profile, ("8.6",), form=Form.named(form))
    assert made.fused_attention == made.attention_blocks == 4 and made.form == form
    assert set(made.float_convolutions) <= {"/head/Conv"} and made.bytes <= MIB_8
    assert made.psnr_db is None or made.psnr_db >= verify.LOWEST_PSNR_DB
    kind = "UInt8" if form.startswith("uint8") else "Float"
    first = next(layer for layer in tables[0] if layer.inputs)
    assert first.kind == "kgen" and set(first.inputs) == {kind}, "all before the stem is one kernel"


def test_the_release_set_is_what_was_asked_for() -> None:
    static = {(n, side, side) for n in (1, 8, 32) for side in (256, 512, 1024)}
    assert {x[0] for x in PROFILES if x[0] == x[2]} == static and engine_build.ANY_SHAPE in PROFILES


def test_verify_script(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from mmif_trt.samples import path as sample_path

    for modality in ("mri", "pet"):
        (tmp_path / modality).mkdir()
        (tmp_path / modality / "x.png").write_bytes(sample_path("mri-pet", modality).read_bytes())
    engine_build.build(tmp_path / "x.engine", "a test", capabilities=("8.6",))
    command = [sys.executable, str(REPO / "engines" / "verify.py"), str(tmp_path)]
    command += ["--pairs", str(tmp_path / "mri"), str(tmp_path / "pet")]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "x.engine: files match" in done.stdout and "1 pairs" in done.stdout
    (tmp_path / "x.engine").write_bytes(b"other")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "SHA-256 is" in done.stdout


def test_the_layer_table_tells_fp32_and_unfused_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bars above can fail: the same network in FP32 has FP32 convolutions and no fused attention."""
    fp32 = onnx.load(weights.verified_path("lagn", "onnx"))
    shape = (1, 256, 256)
    from mmif_trt.runtimes.trt.half import static

    _, log, _ = engine_build.compile_graph(
        engine_build.module(), static(fp32, *shape), (shape, shape, shape), ("8.6",)
    )
    table = engine_build.layers(log)
    assert sum(layer.is_whole_attention for layer in table) == 0
    assert "/head/Conv" in {name for layer in table for name in layer.float_convolutions}


def test_the_manifest_says_the_psnr_of_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    made = engine_build.build(tmp_path / "x.engine", "the command", capabilities=("8.6",))
    assert made.psnr_db is not None and made.psnr_db >= 55 and "ONNX Runtime" in made.psnr_of
    assert made.command == "the command" and made.flavour == "tensorrt_rtx"
    assert verify.files(tmp_path / "x.engine") == made
    mixed = half(onnx.load(weights.verified_path("lagn", "onnx")))
    right = engine_build.golden_psnr(mixed)[0]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert engine_build.golden_psnr(mixed)[0] is None, "not measured is no number"
    monkeypatch.delitem(sys.modules, "onnxruntime")
    head = next(tensor for tensor in mixed.graph.initializer if tensor.name == "head.weight")
    head.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(head) * 0, head.name))
    wrong = engine_build.golden_psnr(mixed)[0]
    assert right is not None and wrong is not None and wrong < 55 <= right, "a wrong network must not pass"


def test_without_a_module_or_onnx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engine_build, "MODULES", ("no_such_module", "json"))
    with pytest.raises(InputError, match="no_such_module: .*; json: no Builder in it.; try pip install"):
        engine_build.module()
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match="onnx is not installed; try pip install"):
        engine_build.build(tmp_path / "x.engine", "")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine_file.os, "fsync", full)
    with pytest.raises(InputError, match=r"x\.engine: cannot be written .No space left on device.; expected"):
        engine_build.build(tmp_path / "x.engine", "", capabilities=("8.6",))
    assert list(tmp_path.iterdir()) == []


# The command line


def test_build_inspect_list_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cache" / "lagn-fp16-b2-64.engine"
    assert cli.main(["engine", "build", "--size", "64", "--batch", "2", "--cards", "8.6,8.9"]) == 0
    assert str(path) in capsys.readouterr().out
    assert cli.main(["engine", "inspect", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["smallest"] == [2, 64, 64]
    assert cli.main(["engine", "list"]) == 0
    out = capsys.readouterr().out
    assert "batch 2, 64 x 64 px" in out and "for 8.6, 8.9" in out and "fused attention 4 of 4" in out
    assert cli.main(["engine", "verify", str(path)]) == 0
    assert "match" in capsys.readouterr().out
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert cli.main(["engine", "verify", str(path)]) == 2
    assert re.search(r"b2-64\.engine: SHA-256 is \w{64}; expected \w{64}", capsys.readouterr().err)
    engine_file.manifest_path(path).unlink()
    assert cli.main(["engine", "list"]) == 1
    assert "no manifest" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["build", "--size", "100"], "--size 100; expected multiples of 32 from 32 to 1024"),
        (["build", "--model", "unet"], "model 'unet'; expected lagn, lagn-quality"),
        (["build", "--batch", "2"], "--batch 2: without --size"),
        (["build", "--size", "64", "--batch", "0"], "--batch 0; expected 1 to 256"),
        (["build", "--cards", "9.0"], "compute capability 9.0; tensorrt_rtx builds for 12.0"),
        (["build", "-o", "x.png"], "--output x.png; expected a name ending in .engine"),
        (["build", "--form", "uint8-rgb", "--size", "8"], "--size 8; expected 16 to 1024"),
        (["build", "--form", "uint9-rgb"], "pixel form 'uint9-rgb'; expected TYPE-LAYOUT of uint8, uint16,"),
        (["export", "rgb", "-o", "x.onnx"], "pixel form 'rgb-'; expected TYPE-LAYOUT"),
        (["export", "uint8-rgb", "-o", "x.engine"], "--output x.engine; expected a name ending in .onnx"),
        (["inspect", "none.engine"], "none.engine: no such engine file"),
        (["list", "none"], "none: no such folder"),
    ],
)
def test_mistakes_give_one_line(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["engine", *arguments]) == 2
    said = capsys.readouterr().err
    assert text in said and said.count("\n") == 1


@pytest.mark.parametrize("name", weights.NAMES)
def test_export(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    path = tmp_path / "lagn-pixels.onnx"
    which = ["--model", name] if name != weights.DEFAULT else []
    assert cli.main(["engine", "export", "uint8-grey", "--half", "-o", str(path), *which]) == 0
    assert capsys.readouterr().out == f"{path}: {name} uint8-grey in mixed FP16; research use only\n"
    model = onnx.load(path)
    types = {x.name: x.type.tensor_type.elem_type for x in (*model.graph.input, *model.graph.output)}
    assert types == dict.fromkeys(("a", "b", "fused"), onnx.TensorProto.UINT8)
    assert any(x.data_type == onnx.TensorProto.FLOAT16 for x in model.graph.initializer)


TWO = """
import sys
from pathlib import Path
from mmif_trt.runtimes.trt import build as engine_build
from mmif_trt.runtimes.trt import engine_file
from mmif_trt.runtimes.trt import runtime as tensorrt
from mmif_trt.runtimes.trt.cuda import Card
tensorrt.card = lambda: Card("a", "8.6", "13.0")
engine_build.MODULES = ("tensorrt_rtx",)
build = engine_build.build
def told(*args, **options):
    print("built", flush=True)
    return build(*args, **options)
engine_build.build = told
print(engine_file.read_manifest(tensorrt.cached_engine()).engine_sha256)
"""


def start(code: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_two_processes_make_one_engine(tmp_path: Path) -> None:
    both = [start(TWO) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    lines = [line for out, _ in said for line in out.split()]
    assert lines.count("built") == 1 and len(set(lines)) == 2, "one built, both hold the same file"
    assert len(engine_file.engines_in(tmp_path / "cache")) == 1


def test_ctrl_c_leaves_no_half_file(tmp_path: Path) -> None:
    process = start(
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        + TWO.replace(
            "    return build(*args, **options)",
            "    import time; engine_file.os.fsync = lambda d: time.sleep(60)\n"
            "    return build(*args, **options)",
        )
    )
    assert process.stdout is not None and process.stdout.readline() == "built\n"
    folder = tmp_path / "cache"
    end = time.monotonic() + 60
    while not list(folder.glob(".*mmif-tmp")) and time.monotonic() < end:
        time.sleep(0.05)
    assert list(folder.glob(".*mmif-tmp")), "it is writing"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert [path.suffix for path in folder.iterdir()] == [".lock"]
