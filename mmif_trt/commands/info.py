"""`mmif-trt info`: what this installation is and runs on."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from mmif_trt import runtimes, weights
from mmif_trt.about import RESEARCH_USE, VERSION
from mmif_trt.commands.arguments import add_network
from mmif_trt.image import InputError
from mmif_trt.machine import conditions


def add(commands: Any) -> None:
    parser = commands.add_parser("info", help="version, runtimes, weights, CPU")
    parser.add_argument("--json", action="store_true", help="as JSON")
    add_network(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    found = facts(args.network)
    print(json.dumps(found, indent=2) if args.json else describe(found))
    return 0


def facts(network: str = weights.DEFAULT) -> dict[str, Any]:
    """Everything `mmif-trt info` shows; `default` is what "auto" chooses for `network`, or one line that says
    why nothing; `weights` has every network.

    `folders`: from how many pairs on `mmif-trt fuse` runs several pictures at a time, and how many.
    """
    from mmif_trt import ops
    from mmif_trt.folders import run as batch
    from mmif_trt.fuser import Fuser

    try:
        default: dict[str, Any] | str = runtimes.describe(Fuser(network=network).runtime)
    except Exception as error:  # the command must describe a broken installation too
        default = (
            f"none ({error})" if isinstance(error, InputError) else f"none ({type(error).__name__}: {error})"
        )
    return {
        "mmif_trt": VERSION,
        "use": RESEARCH_USE,
        **conditions(),
        "executable": sys.executable,
        "runtimes": runtimes.available(),
        "kernels": ops.KERNELS,
        "network": network,
        "default": default,
        "folders": {
            "from_pairs": batch.FOLDER_PAIRS,
            "workers": batch.default_workers(),
            "streams": batch.network_streams(batch.FOLDER_PAIRS, batch.default_workers()),
        },
        "weights": weights.installed(),
    }


def describe(found: dict[str, Any]) -> str:
    """`facts()` in lines for a terminal."""
    cpu, default = found["cpu"], found["default"]
    lines = [
        f"mmif-trt {found['mmif_trt']}. {found['use']}",
        f"python {found['python']} ({found['executable']}), {found['os']}",
        f"cpu: {cpu['model']}, {cpu['cores']} cores usable",
        f"cpu features: {' '.join(cpu['features']) or 'not known'}",
    ]
    for name, reason in found["runtimes"].items():
        lines.append(f"runtime {name}: " + (f"not usable, {reason}" if reason else "usable"))
    if not isinstance(default, str):
        default = "{name} {precision} on {device} ({note})".format(**default)
    lines.append(f"default: {default}")
    lines.append(f"network: {found['network']}, of {', '.join(found['weights'])}")
    lines.append(f"training kernels: {found['kernels']}")
    folders = "folders from {from_pairs} pairs on: {workers} workers, {streams} streams (openvino)"
    lines.append(folders.format(**found["folders"]))
    for model, one in found["weights"].items():
        for name, digest in one["sha256"].items():
            lines.append(f"weights {model} of {one['released']}: {name} sha256 {digest}")
    return "\n".join(lines)
