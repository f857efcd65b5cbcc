"""ONNX to TensorRT engine by whichever module imports, and the builder's report on its layers.

TensorRT-RTX builds without a GPU, for several architectures in one file; the full TensorRT builds on a GPU,
for that GPU. Networks are strongly typed in both: the graph of half.py decides the precision.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from mmif_trt import weights
from mmif_trt.image import InputError
from mmif_trt.models.pixels import LUMA, Form, pixels
from mmif_trt.runtimes.trt import engine_file
from mmif_trt.runtimes.trt.cuda import Card, DeviceError, card
from mmif_trt.runtimes.trt.half import half, shape_at, static
from mmif_trt.runtimes.trt.manifest import Manifest, Shape
from mmif_trt.stages import colour

if TYPE_CHECKING:
    from onnx import ModelProto

MODULES = ("tensorrt", "tensorrt_rtx")  # the first that imports is used
RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")
ANY_SHAPE: tuple[Shape, Shape, Shape] = ((1, 32, 32), (1, 256, 256), (8, 1024, 1024))
ANY_PIXELS: tuple[Shape, Shape, Shape] = ((1, 16, 16), *ANY_SHAPE[1:])  # the graph pads by itself
OLDEST_DRIVERS = {13: 580, 12: 525}  # CUDA of a wheel -> first driver branch that supports it
REMEDY = "pip install 'mmif-trt[console]' (RTX cards), or NVIDIA's tensorrt 10.x or 11.x (any card)"


def module() -> ModuleType:
    """The TensorRT module of this installation. Raises InputError with the reasons where none imports."""
    reasons = []
    for name in MODULES:
        try:
            found = importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:  # the PyPI stub of tensorrt, a missing library
            reasons.append(f"{name}: {' '.join(str(error).split())}")
            continue
        if hasattr(found, "Builder"):
            return found
        reasons.append(f"{name}: no Builder in it")
    raise InputError(f"TensorRT is not installed ({'; '.join(reasons)}); try {REMEDY}")


def installed() -> ModuleType | None:
    """`module`, None where none imports."""
    try:
        return module()
    except InputError:
        return None


def refuse_old_driver(name: str, card: Card) -> None:
    """Raises DeviceError if the wheel of module `name` needs a newer CUDA than the driver supports: its first
    call would fail with a bare number. Other kinds of installation are not checked."""
    for cuda, branch in OLDEST_DRIVERS.items():
        wheel = f"{name.replace('_', '-')}-cu{cuda}"
        try:
            metadata.version(wheel)
        except metadata.PackageNotFoundError:
            continue
        if int(card.driver.split(".")[0]) < cuda:
            raise DeviceError(
                f"the NVIDIA driver is too old for {wheel}: it supports CUDA {card.driver}; "
                f"expected CUDA {cuda}.0 or newer, which is driver {branch} or newer"
            )
        return


@dataclass(frozen=True)
class Layer:
    """One kernel of the builder's layer table. onnx: names of the ONNX nodes in it; inputs: their types."""

    name: str
    kind: str
    onnx: tuple[str, ...]
    inputs: tuple[str, ...]

    @property
    def is_whole_attention(self) -> bool:
        """Q K^T, softmax and the product with V are all in this kernel."""
        ends = [name.rsplit("/", 1)[-1] for name in self.onnx]
        return "Softmax" in ends and sum(end.startswith("MatMul") for end in ends) >= 2

    @property
    def float_convolutions(self) -> tuple[str, ...]:
        convolutions = tuple(name for name in self.onnx if name.rsplit("/", 1)[-1].startswith("Conv"))
        return convolutions if "correlation" in self.kind and "Float" in self.inputs else ()


def layers(log: Iterable[str]) -> list[Layer]:
    """The layer table in a builder's detailed log."""
    found = []
    for line in "\n".join(log).splitlines():
        head = re.match(r"Name: (.+?), LayerType: (\w+), Inputs: (.*?), Constants: ", line)
        if head:
            types = tuple(re.findall(r"Datatype: (\w+)", head[3]))
            nodes = tuple(re.findall(r"\[ONNX Layer: ([^\]]+)\]", line))
            found.append(Layer(head[1], head[2], nodes, types))
    return found


def build(
    engine: Path,
    command: str,
    shapes: tuple[Shape, Shape, Shape] | None = None,
    capabilities: tuple[str, ...] | None = None,
    model: str = "lagn",
    form: Form = LUMA,
) -> Manifest:
    """Builds the shipped network in mixed FP16 and writes `engine` and its manifest.

    shapes: smallest, typical and largest (batch, height, width); three equal ones make a static engine; None:
    any size. capabilities: GPUs to build for, None: all that the module supports. form: the network alone, or
    from pixels to pixels. Raises InputError.
    """
    onnx = _onnx()
    trt = module()
    fp32 = onnx.load(weights.verified_path(model, "onnx"))
    shapes = shapes or (ANY_SHAPE if form == LUMA else ANY_PIXELS)
    mixed = pixels(half(fp32), form)
    graph = static(mixed, *shapes[0]) if shapes[0] == shapes[2] else mixed
    start = time.perf_counter()
    data, log, built_for = compile_graph(trt, graph, shapes, capabilities)
    seconds = time.perf_counter() - start
    psnr, psnr_of = golden_psnr(mixed, model, form)
    table = layers(log)
    files = weights.manifest()["models"][model]["files"]
    manifest = Manifest(
        model=model,
        precision="fp16",
        engine_sha256=hashlib.sha256(data).hexdigest(),
        onnx_sha256=files[f"{model}.onnx"]["sha256"],
        weights_sha256=files[f"{model}.safetensors"]["sha256"],
        flavour=trt.__name__,
        version=trt.__version__,
        compute_capabilities=built_for,
        smallest=shapes[0],
        typical=shapes[1],
        largest=shapes[2],
        attention_blocks=sum(node.op_type == "Softmax" for node in graph.graph.node),
        fused_attention=sum(layer.is_whole_attention for layer in table) if table else None,
        float_convolutions=tuple(name for layer in table for name in layer.float_convolutions),
        psnr_db=psnr,
        psnr_of=psnr_of,
        build_s=round(seconds, 3),
        command=command,
        built=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        bytes=len(data),
        form=str(form),
    )
    engine_file.save(engine, data, manifest)
    return manifest


def _onnx() -> Any:
    try:
        import onnx
    except ImportError:
        raise InputError("onnx is not installed; try pip install 'mmif-trt[console]'") from None
    return onnx


def compile_graph(
    trt: ModuleType,
    graph: ModelProto,
    shapes: tuple[Shape, Shape, Shape],
    capabilities: tuple[str, ...] | None,
) -> tuple[bytes, list[str], tuple[str, ...]]:
    """The plan, the builder's log, and the compute capabilities it is for. Raises InputError."""
    logger = make_logger(trt)
    builder = made(lambda: trt.Builder(logger), "Builder", logger)
    # 10.x uses the types of the graph only on request; 11.x and TensorRT-RTX always do.
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = made(lambda: builder.create_network(typed), "create_network", logger)
    parser = made(lambda: trt.OnnxParser(network, logger), "OnnxParser", logger)
    if not parser.parse(graph.SerializeToString()):
        errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise InputError(f"TensorRT cannot parse the ONNX graph: {errors or 'no reason given'}")
    config = made(builder.create_builder_config, "create_builder_config", logger)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    built_for = _set_capabilities(trt, config, capabilities)
    if shapes[0] != shapes[2]:
        profile = made(builder.create_optimization_profile, "create_optimization_profile", logger)
        for value in graph.graph.input:  # returns None in some versions, a bool in others
            if profile.set_shape(value.name, *(shape_at(value, *shape) for shape in shapes)) is False:
                raise InputError(
                    f"TensorRT refuses the profile {shapes} of input {value.name}: {last_error(logger)}"
                )
        if config.add_optimization_profile(profile) < 0:
            raise InputError(f"TensorRT refuses the profile {shapes}: {last_error(logger)}")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise InputError(f"TensorRT built no engine: {last_error(logger)}")
    return bytes(plan), [text for _, text in logger.lines], built_for


def _set_capabilities(trt: ModuleType, config: Any, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    if not hasattr(config, "num_compute_capabilities"):  # the full TensorRT: for the GPU of this machine
        here = (card().capability,)
        if wanted and wanted != here:
            raise InputError(f"compute capability {', '.join(wanted)}; tensorrt builds here for {here[0]}")
        return here
    names = {c: "SM" + c.replace(".", "") for c in wanted or RTX_CAPABILITIES}
    known = trt.ComputeCapability
    if unknown := [c for c, name in names.items() if not hasattr(known, name)]:
        known_ones = ", ".join(f"{n[2:-1]}.{n[-1]}" for n in dir(known) if re.fullmatch(r"SM\d+", n))
        raise InputError(f"compute capability {', '.join(unknown)}; {trt.__name__} builds for {known_ones}")
    config.num_compute_capabilities = len(names)
    for i, name in enumerate(names.values()):
        if config.set_compute_capability(getattr(known, name), i) is False:
            raise InputError(f"compute capability {name}: refused by {trt.__name__} {trt.__version__}")
    return tuple(names)


def made(make: Callable[[], Any], what: str, logger: Any) -> Any:
    """Returns what TensorRT makes. Raises InputError if it makes nothing: then methods return None, and
    constructors raise pybind11's TypeError, as the full TensorRT's do without a GPU."""
    try:
        thing = make()
    except TypeError:
        thing = None
    if thing is None:
        raise InputError(f"TensorRT: {what} failed: {last_error(logger)}")
    return thing


def make_logger(trt: ModuleType) -> Any:
    """Keeps (severity, text); 0 and 1 are errors."""

    class Logger(trt.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[tuple[int, str]] = []

        def log(self, severity: Any, text: str) -> None:
            self.lines.append((int(severity), text))

    return Logger()


def last_error(logger: Any) -> str:
    errors = [text for severity, text in logger.lines if severity <= 1]
    return " ".join(errors[-1].split()) if errors else "no reason given"


def golden_psnr(mixed: ModelProto, model: str = "lagn", form: Form = LUMA) -> tuple[float | None, str]:
    """The lowest PSNR in dB of the golden pairs under ONNX Runtime, and what ran; None if it is missing."""
    try:
        import onnxruntime
    except ImportError:
        return None, "PSNR not measured: onnxruntime is not installed"
    session = onnxruntime.InferenceSession(mixed.SerializeToString(), providers=["CPUExecutionProvider"])
    feed, expected = golden_feed(form, *weights.golden(model))
    (fused,) = session.run(None, feed)
    psnr = least_psnr(golden_unit(form, fused), expected)
    return psnr, f"the graph in ONNX Runtime {onnxruntime.__version__} on the CPU"


_WHITE = {"uint8": 255, "uint16": 65535, "float32": 1}


def golden_feed(
    form: Form, a: np.ndarray, rgb: np.ndarray, expected: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The golden pictures as the inputs of `form`, and what it is expected to make of them, [n, H, W] in
    [0, 1]. a [n, H, W], rgb [n, H, W, 3] in [0, 1], 256 levels. A grey form has the grey ones alone."""
    if form.layout == "grey":
        grey = (np.ptp(rgb, -1) == 0).all((1, 2))
        a, rgb, expected = a[grey], rgb[grey], expected[grey]
    if form.layout == "luma":
        b = colour.planes(rgb)
    elif form.layout == "rgb-last":
        b = rgb
    else:
        b = rgb.transpose(0, 3, 1, 2)[:, : 1 if form.layout == "grey" else 3]
    white = _WHITE[form.dtype]
    whole = ((np.rint(x * white) if white > 1 else x).astype(form.dtype) for x in (a[:, None], b))
    feed = dict(zip("ab", map(np.ascontiguousarray, whole), strict=True))
    return feed | {name: np.array([0, white], np.float32) for name in form.ranges}, expected


def golden_unit(form: Form, fused: np.ndarray) -> np.ndarray:
    """The luma of the output of `form` for golden_feed, [n, H, W] in [0, 1]."""
    unit = fused.astype(np.float32) / np.float32(_WHITE[form.dtype])
    if form.layout in ("luma", "grey"):
        return unit[:, 0]
    return colour.luma(unit if form.layout == "rgb-last" else np.moveaxis(unit, 1, -1))


def least_psnr(received: np.ndarray, expected: np.ndarray) -> float:
    """dB, peak 1, of the worst picture; received, expected [n, H, W]."""
    error = ((received.astype(np.float64) - expected) ** 2).mean(axis=(1, 2)).max()
    return round(float(-10 * np.log10(max(error, 1e-20))), 2)
