"""mmif-trt engine build | export | verify | inspect | list."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmif_trt import overwriting, weights
from mmif_trt.commands import look
from mmif_trt.files import write_atomic
from mmif_trt.image import InputError

if TYPE_CHECKING:
    from mmif_trt.models.pixels import Form
    from mmif_trt.runtimes.trt.manifest import Manifest, Shape


def add(commands: Any) -> None:
    """Registers the commands under `engine`."""
    engine = commands.add_parser("engine", help="TensorRT engines: build, export ONNX, verify, inspect, list")
    actions = engine.add_subparsers(title="actions", metavar="ACTION", required=True)
    build = actions.add_parser(
        "build",
        help="build an FP16 engine of the shipped network",
        description="TensorRT-RTX needs no GPU. Without --size: any size up to 1024 px, batch 1 to 8.",
    )
    build.add_argument(
        "--size", type=int, metavar="PX", help="one side length; float32-luma: a multiple of 32"
    )
    build.add_argument("--batch", type=int, help="pairs in one call; needs --size")
    which = f"the network: {' or '.join(weights.NAMES)}; default: {weights.DEFAULT}"
    build.add_argument("--model", default=weights.DEFAULT, help=which)
    form = "TYPE-LAYOUT, such as uint8-rgb: from pixels to pixels; default: float32-luma, the network alone"
    build.add_argument("--form", default="float32-luma", metavar="FORM", help=form)
    build.add_argument(
        "--cards",
        metavar="8.6,8.9",
        help="compute capabilities; default: 8.0,8.6,8.9,12.0; of the full TensorRT: that of this GPU",
    )
    build.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: in the user's cache")
    build.set_defaults(run=_build)
    export = actions.add_parser(
        "export",
        help="write the network as ONNX, from pixels to pixels",
        description="Value range, BT.601 luma, padding, network, colour and rounding in one graph, for ONNX "
        "Runtime, OpenVINO, Triton and trtexec. TYPE: uint8, uint16, float32. LAYOUT: grey, rgb, rgb-last.",
    )
    export.add_argument("form", metavar="TYPE-LAYOUT", help="such as uint8-rgb")
    export.add_argument("--model", default=weights.DEFAULT, help=which)
    export.add_argument(
        "--half", action="store_true", help="mixed FP16, the graph that engines are built from"
    )
    export.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE.onnx", help="where to write the graph"
    )
    export.set_defaults(run=_export)
    what = {
        "verify": "compare an engine with its manifest and, on a card, with the golden pairs",
        "inspect": "print an engine's manifest",
    }
    for name, text in what.items():
        action = actions.add_parser(name, help=text)
        action.add_argument(
            "engine", type=Path, metavar="ENGINE", help="an engine file, its manifest beside it"
        )
        action.set_defaults(run={"verify": _verify, "inspect": _inspect}[name])
    listed = actions.add_parser("list", help="the engines in a folder")
    listed.add_argument("folder", type=Path, nargs="?", help="default: the user's cache")
    listed.set_defaults(run=_list)


def _shapes(args: argparse.Namespace, form: Form) -> tuple[Shape, Shape, Shape] | None:
    """None: any size."""
    from mmif_trt.models.pixels import LUMA
    from mmif_trt.stages.tiling import MULTIPLE_PX

    if args.size is None:
        if args.batch is not None:
            raise InputError(f"--batch {args.batch}: without --size; expected both, or neither")
        return None
    if form == LUMA and (not (MULTIPLE_PX <= args.size <= 1024) or args.size % MULTIPLE_PX):
        expected = f"multiples of {MULTIPLE_PX} from {MULTIPLE_PX} to 1024"
        raise InputError(f"--size {args.size}; expected {expected}")
    if not 16 <= args.size <= 1024:
        raise InputError(f"--size {args.size}; expected 16 to 1024")
    batch = 1 if args.batch is None else args.batch
    if not 1 <= batch <= 256:
        raise InputError(f"--batch {batch}; expected 1 to 256")
    shape = (batch, args.size, args.size)
    return shape, shape, shape


def _build(args: argparse.Namespace) -> int:
    from mmif_trt.models.pixels import LUMA, Form

    form = Form.named(args.form)
    shapes = _shapes(args, form)
    from mmif_trt.runtimes.trt import build as engine_build
    from mmif_trt.runtimes.trt import engine_file

    name = f"{args.model}-fp16" + ("" if form == LUMA else f"-{form}")
    name += "" if shapes is None else f"-b{shapes[0][0]}-{args.size}"
    path = args.output or engine_file.cache_folder() / f"{name}{engine_file.SUFFIX}"
    if path.suffix != engine_file.SUFFIX:
        raise InputError(f"--output {path}; expected a name ending in {engine_file.SUFFIX}")
    cards = tuple(args.cards.split(",")) if args.cards else None
    in_cache = path.parent == engine_file.cache_folder()  # without a manifest: an interrupted build
    overwriting.check([], [path], lambda _: in_cache or engine_file.manifest_path(path).is_file())
    with engine_file.locked(path), look.steps(1) as step:
        step("building and checking")
        made = engine_build.build(
            path, shlex.join(["mmif-trt", *sys.argv[1:]]), shapes, cards, args.model, form
        )
    print(f"{path}: {_line(made)}")
    return 0


def _export(args: argparse.Namespace) -> int:
    from mmif_trt.models import pixels
    from mmif_trt.runtimes.trt.half import half

    form = pixels.Form.named(args.form)
    if args.output.suffix != ".onnx":
        raise InputError(f"--output {args.output}; expected a name ending in .onnx")
    overwriting.check([], [args.output], lambda path: pixels.GRAPH.encode() in Path(path).read_bytes())
    graph = pixels.released(form, args.model, half if args.half else None)
    write_atomic(args.output, graph.SerializeToString())
    print(f"{args.output}: {args.model} {form}{' in mixed FP16' if args.half else ''}; research use only")
    return 0


def _line(m: Manifest) -> str:
    batch, height, width = (
        f"{low}" if low == high else f"{low} to {high}"
        for low, high in zip(m.smallest, m.largest, strict=True)
    )
    fused = "not known" if m.fused_attention is None else f"{m.fused_attention} of {m.attention_blocks}"
    cards = ", ".join(m.compute_capabilities)
    return (
        f"{m.model} {m.precision} {m.form}, batch {batch}, {height} x {width} px, {m.flavour} {m.version} "
        f"for {cards}; "
        f"{m.bytes} bytes, fused attention {fused}, {m.psnr}"
    )


def _verify(args: argparse.Namespace) -> int:
    from mmif_trt.runtimes.trt import verify

    manifest = verify.files(args.engine)
    print(f"{args.engine}: the file, its manifest and the installed weights match")
    if reason := verify.why_not_run(manifest):
        print(f"{args.engine}: not run: {reason}")
        return 0
    received, psnr = verify.on_card(args.engine)
    print(
        f"{args.engine}: {psnr:g} dB on the golden pairs by {received} (at least {verify.LOWEST_PSNR_DB:g})"
    )
    return 0 if psnr >= verify.LOWEST_PSNR_DB else 1


def _inspect(args: argparse.Namespace) -> int:
    from mmif_trt.runtimes.trt import engine_file

    print(json.dumps(asdict(engine_file.read_manifest(args.engine)), indent=1))
    return 0


def _list(args: argparse.Namespace) -> int:
    from mmif_trt.runtimes.trt import engine_file

    folder = args.folder or engine_file.cache_folder()
    if args.folder and not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected a folder of engines")
    failed = 0
    for path in (found := engine_file.engines_in(folder)):
        try:
            print(f"{path}: {_line(engine_file.read_manifest(path))}")
        except InputError as error:
            failed = 1
            print(error)
    if not found:
        print(f"{folder}: no engines")
    return failed
