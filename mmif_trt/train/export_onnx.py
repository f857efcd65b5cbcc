"""Release a trained LAGN:
python -m mmif_trt.train.export_onnx --checkpoint RUN/checkpoint.safetensors --command "..." --commit "..."

Writes into mmif_trt/weights: lagn.safetensors (dimensions and preprocessing inside), lagn.onnx (FP32, any
batch and size), lagn.npz (golden pairs that every runtime must reproduce) and manifest.json with their
SHA-256 and provenance; with --name lagn-quality the same of that network. The other network's files and
record stay as they are. The graphs from pixels to pixels need no files: `mmif-trt engine export` derives them
from the ONNX file, see models/pixels.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmif_trt import weights
from mmif_trt.models.lagn import LAGN, LAGNConfig
from mmif_trt.samples import PAIRS, sample
from mmif_trt.stages import colour, normalise
from mmif_trt.train import checkpoints, releasing

if TYPE_CHECKING:
    import onnx

OPSET = 17  # the first with LayerNormalization as one operator
PREPROCESSING = (
    "float32, black 0 and white 1 by the stated value range; a [B, 1, H, W]: grey; b [B, 2, H, W]: BT.601 "
    "luma, and max(R, G, B) - luma, which is 0 for grey"
)


def load(checkpoint: Path, part: str) -> tuple[LAGN, dict[str, str]]:
    """The running average of the weights or the network itself ("model"), and the checkpoint's metadata."""
    tensors, config = checkpoints.read_average(checkpoint, part)
    with checkpoints.open_checkpoint(checkpoint) as file:
        metadata = file.metadata()
    model = checkpoints.built(checkpoint, lambda: LAGN(LAGNConfig(**config["model"])), tensors)
    return model.cpu(), metadata


def export(model: LAGN, path: Path) -> None:
    """FP32 ONNX, attention as plain matmul-softmax-matmul, dynamic batch, height and width."""
    import onnx

    a, b = torch.zeros(1, 1, 256, 256), torch.zeros(1, 2, 256, 256)
    axes = {0: "batch", 2: "height", 3: "width"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns about shape arithmetic, which stays dynamic here
        torch.onnx.export(
            model.exportable(),
            (a, b),
            str(path),
            input_names=["a", "b"],
            output_names=["fused"],
            opset_version=OPSET,
            dynamic_axes={"a": axes, "b": axes, "fused": axes},
            dynamo=False,
        )
    model.exportable(False)
    graph = onnx.load(path)
    add_biases(graph.graph)
    onnx.save(graph, path)


def add_biases(graph: onnx.GraphProto) -> None:
    """Each convolution's bias as an addition of [1, C, 1, 1].

    Where the size is open, OpenVINO does not fuse every bias of an ONNX convolution, and bfloat16 then rounds
    twice: at most 1.4/255 from FP32 on the golden pairs, 0.91 in this form.
    """
    from onnx import helper, numpy_helper

    values = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type != "Conv" or len(node.input) < 3:
            continue
        name, out = node.input.pop(), node.output[0]
        node.output[0] = f"{out}_without_bias"
        nodes.append(helper.make_node("Add", [node.output[0], name], [out], name=f"{node.name}/bias"))
        bias = numpy_helper.to_array(values[name])
        values[name].CopyFrom(numpy_helper.from_array(bias.reshape(1, -1, 1, 1), name))
    del graph.node[:]
    graph.node.extend(nodes)


def golden_pairs(model: LAGN) -> dict[str, np.ndarray]:
    """a [n, H, W], b [n, H, W, 3]: the bundled samples in 8 bits. f: their fusion by FP32 torch."""
    pairs = [[normalise.to_unit(x) for x in sample(name)] for name in PAIRS]
    whole = [(a, b if b.ndim == 3 else np.repeat(b[..., None], 3, -1)) for a, b in pairs]
    a, b = (np.rint(255 * np.stack(x)).astype(np.uint8) for x in zip(*whole, strict=True))
    planes = colour.planes(b.astype(np.float32) / 255)
    f = model(torch.from_numpy(a).float()[:, None] / 255, torch.from_numpy(planes))[:, 0].numpy()
    return {"a": a, "b": b, "f": f}


def write(model: LAGN, folder: Path, name: str) -> list[Path]:
    """The released files of `model` in `folder`, in the order of weights.SUFFIXES."""
    tensors, onnx, npz = files = [folder / f"{name}.{suffix}" for suffix in weights.SUFFIXES]
    inside = {"config": json.dumps(model.config.as_dict()), "preprocessing": PREPROCESSING}
    checkpoints.write_tensors(tensors, {k: v.contiguous() for k, v in model.state_dict().items()}, inside)
    export(model, onnx)
    golden = golden_pairs(model)
    np.savez_compressed(npz, a=golden["a"], b=golden["b"], f=golden["f"])
    return files


def main(arguments: list[str] | None = None) -> int:
    about = "Release a trained LAGN: write its files and their record into mmif_trt/weights."
    parser = argparse.ArgumentParser("python -m mmif_trt.train.export_onnx", description=about)
    parser.add_argument("--checkpoint", type=Path, required=True)
    what = f"of the network in the release; default: {weights.DEFAULT}"
    parser.add_argument("--name", choices=weights.NAMES, default=weights.DEFAULT, help=what)
    short = "model: the network itself, where the last stage was too short for the running average"
    parser.add_argument("--part", choices=("average", "model"), default="average", help=short)
    parser.add_argument("--command", required=True, help="the command that trained it, for the manifest")
    parser.add_argument("--commit", required=True, help="the commit it was trained at")
    parser.add_argument(
        "--data", default="Harvard Whole Brain Atlas pairs, training cases (see MODEL_CARD.md)"
    )
    given = parser.parse_args(arguments)
    return releasing.exit_code(lambda: run(given))


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Write all files, and the manifest last; their entries in it. Raises InputError, with the release before
    as it was, for a checkpoint of another network."""
    model, metadata = load(given.checkpoint, given.part)
    config = model.config.as_dict()
    with releasing.replacing() as made:
        files = write(model, made, given.name)
        entries = {f.name: {"sha256": weights.sha256(f), "bytes": f.stat().st_size} for f in files}
    record = {
        "files": entries,
        "config": config,
        "preprocessing": PREPROCESSING,
        "parameters": sum(p.numel() for p in model.parameters()),
        "training": {
            "commit": given.commit,
            "command": given.command,
            "data": given.data,
            "part": given.part,
            "steps": int(metadata["step"]),
            "config": json.loads(metadata["config"]),
        },
        "released": date.today().isoformat(),
        "torch": torch.__version__,
        "opset": OPSET,
    }
    manifest = weights.manifest()
    releasing.write_manifest(manifest | {"models": manifest["models"] | {given.name: record}})
    return entries


if __name__ == "__main__":
    sys.exit(main())
