"""Verify engines and their network on real pairs: python engines/verify.py FOLDER [--pairs MRI OTHER]

Compares every engine of FOLDER with its manifest and, if there is a GPU, runs it on the golden pairs. With
--pairs, two folders of equal names, compares the mixed-precision graph of --model in ONNX Runtime with FP32
torch. Exit code 1 if a file does not match, or a picture has less than 55 dB or is off by more than 2/255.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from mmif_trt import io, runtimes, weights
from mmif_trt.image import Image, InputError
from mmif_trt.runtimes.trt import build as engine_build
from mmif_trt.runtimes.trt import engine_file, verify
from mmif_trt.runtimes.trt.half import half
from mmif_trt.stages import colour, normalise, tiling

LARGEST_ERROR = 2 / 255


def check_engine(path: Path) -> bool:
    try:
        manifest = verify.files(path)
        if reason := verify.why_not_run(manifest):
            print(f"{path}: files match; not run: {reason}")
            return True
        card, psnr = verify.on_card(path)
    except InputError as error:
        print(error)
        return False
    print(f"{path}: files match; {psnr:g} dB on the golden pairs by {card}")
    return psnr >= verify.LOWEST_PSNR_DB


def planes(path: Path) -> np.ndarray:
    """[2, H, W] in [0, 1], padded."""
    image: Image = io.read(path)
    return tiling.padded(colour.planes(normalise.to_unit(image)))


def check_graph(mri: Path, other: Path, model: str) -> bool:
    import onnx
    import onnxruntime

    mixed = half(onnx.load(weights.verified_path(model, "onnx")))
    session = onnxruntime.InferenceSession(mixed.SerializeToString(), providers=["CPUExecutionProvider"])
    reference = runtimes.load("torch", "fp32", None, network=model)
    lowest, largest, count = np.inf, 0.0, 0
    for path in sorted(mri.glob("*.png")):
        a, b = planes(path)[0], planes(other / path.name)
        (received,) = session.run(None, {"a": a[None, None], "b": b[None]})
        expected = reference.infer(a, b)
        lowest = min(lowest, engine_build.least_psnr(received[0], expected[None]))
        largest, count = max(largest, float(np.abs(received[0, 0] - expected).max())), count + 1
    print(f"{count} pairs of {mri}: at least {lowest:g} dB, off by at most {largest * 255:.3f}/255")
    return bool(count and lowest >= verify.LOWEST_PSNR_DB and largest <= LARGEST_ERROR)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=Path, nargs=2, metavar=("MRI", "OTHER"))
    parser.add_argument("--model", choices=weights.NAMES, default=weights.DEFAULT, help="of --pairs")
    given = parser.parse_args()
    good = [check_engine(path) for path in engine_file.engines_in(given.folder)]
    if not good:
        print(f"{given.folder}: no engines")
    if given.pairs:
        mri, other = given.pairs
        good.append(check_graph(mri, other, given.model))
    return 0 if good and all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
