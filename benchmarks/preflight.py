"""Whether benchmarks/gpu_suite.sh can measure on a machine: python benchmarks/preflight.py

    [--device cuda] [--built]

Prints versions, tools and the GPU, and lets the GPU multiply two matrices. With --built also checks that
mmif_trt._C has kernels that run on this GPU. Exit status 1 if something is missing without which the results
would be meaningless.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys

TOOLS = ("nvcc", "ninja", "ncu", "compute-sanitizer", "nvidia-smi", "git")
PACKAGES = ("torch", "setuptools", "ninja", "pytest", "numpy", "cv2", "safetensors", "tensorboard", "triton")


def tell() -> None:
    from importlib import metadata

    print(f"Python {sys.version.split()[0]} {sys.executable}; {shutil.disk_usage('.').free >> 30} GiB free")
    for name in PACKAGES:
        there = importlib.util.find_spec(name) is not None
        try:
            version = metadata.version("opencv-python-headless" if name == "cv2" else name)
        except metadata.PackageNotFoundError:
            version = "version unknown"
        print(f"  {name}: {version if there else 'missing'}")
    for tool in TOOLS:
        print(f"  {tool}: {shutil.which(tool) or shutil.which(f'/usr/local/cuda/bin/{tool}') or 'missing'}")


def missing(device: str, built: bool) -> str | None:
    """The first missing thing, in one line."""
    try:
        import torch
    except ImportError as error:
        return f"torch does not import: {error}"
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, device {device}")
    if device == "cuda":
        if not torch.cuda.is_available():
            return "torch sees no CUDA device"
        print(torch.cuda.get_device_properties(0))
    a = torch.rand(512, 512, device=device)
    if not torch.isfinite((a @ a).sum()).item():
        return f"{device} multiplies two matrices to something that is not finite"
    if not built:
        return None
    from mmif_trt import ops

    print(f"kernels: {ops.KERNELS}")
    if not ops.kernels_available(device):
        return f"no kernels for {device}: {ops.KERNELS}"
    if not ops.has_kernel(a):
        return "mmif_trt._C holds no code for this card"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--built", action="store_true", help="the kernels must be there too")
    args = parser.parse_args()
    if not args.built:
        tell()
    what = missing(args.device, args.built)
    print("ready" if what is None else f"not ready: {what}")
    return what is not None


if __name__ == "__main__":
    sys.exit(main())
