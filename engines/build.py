"""Build the release set of engines: python engines/build.py --out FOLDER [--model lagn-quality]

256, 512 and 1024 px at batch 1, 8 and 32, and one engine for every size up to 1024 px and batch 8; each with
its manifest, and for every GPU that the installed TensorRT builds for. Prints one line per engine.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from mmif_trt import weights
from mmif_trt.image import InputError
from mmif_trt.runtimes.trt import build as engine_build
from mmif_trt.runtimes.trt.manifest import Shape

SIDES_PX = (256, 512, 1024)
BATCHES = (1, 8, 32)


def release_set(model: str = weights.DEFAULT) -> dict[str, tuple[Shape, Shape, Shape]]:
    """File name -> smallest, typical and largest (batch, height, width)."""
    static = {f"{model}-fp16-b{n}-{side}": (n, side, side) for side in SIDES_PX for n in BATCHES}
    shapes = {name: (shape, shape, shape) for name, shape in static.items()}
    return {f"{name}.engine": x for name, x in (shapes | {f"{model}-fp16": engine_build.ANY_SHAPE}).items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", choices=weights.NAMES, default=weights.DEFAULT)
    given = parser.parse_args()
    folder = given.out
    command = shlex.join(["python", *sys.argv])
    for name, shapes in release_set(given.model).items():
        try:
            made = engine_build.build(folder / name, command, shapes, model=given.model)
        except InputError as error:
            print(f"build.py: {error}", file=sys.stderr)
            return 1
        fused = f"{made.fused_attention} of {made.attention_blocks} attention blocks fused"
        print(f"{folder / name}: {made.bytes} bytes, {made.build_s} s, {fused}, {made.psnr}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
