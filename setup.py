"""Builds mmif_trt._C, the training kernels, where there is torch to build against; see pyproject.toml too.

pip install --no-build-isolation -e '.[train]'   the torch of this environment; isolated builds see none
MMIF_CUDA=0|1    leave out the CUDA kernels, or insist on them; default: with torch for CUDA and a toolkit
TORCH_CUDA_ARCH_LIST    the cards to compile for; default: all that are supported
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.sdist import sdist

# Machine code for each generation; the PTX of 9.0 and 12.0 serves the cards between and after them.
ARCHITECTURES = "8.0;8.6;8.9;9.0+PTX;10.0;12.0+PTX"
SOURCES = [
    "csrc/bindings.cpp",
    "csrc/cpu/fusion_loss.cpp",
    "csrc/cpu/gated_mix.cpp",
    "csrc/cpu/kernels_avx2.cpp",
    "csrc/cpu/kernels_avx512.cpp",
    "csrc/cpu/kernels_avx512bf16.cpp",
    "csrc/cpu/kernels_baseline.cpp",
    "csrc/cpu/local_block.cpp",
    "csrc/cpu/mlp_block.cpp",
    "csrc/cpu/window_attention.cpp",
]
CUDA_SOURCES = [
    "csrc/cuda/fusion_loss.cpp",
    "csrc/cuda/fusion_loss_bwd.cu",
    "csrc/cuda/fusion_loss_fwd.cu",
    "csrc/cuda/window_attention.cpp",
    "csrc/cuda/window_attention_fwd.cu",
    "csrc/cuda/window_attention_bwd.cu",
    "csrc/cuda/window_attention_bwd_float.cu",
]


class SourceDistribution(sdist):
    """With all of csrc (setuptools takes the listed sources, with torch) and no tests (it takes some)."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        held = {file for file in (*files, *map(str, Path("csrc").rglob("*.*"))) if file[:6] != "tests/"}
        super().make_release_tree(base_dir, sorted(held))


def toolkit() -> str | None:
    """The CUDA toolkit's folder: $CUDA_HOME, or where nvcc itself says it lies (it may be a wrapper)."""
    if home := os.environ.get("CUDA_HOME"):
        return home
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        return None
    told = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True)
    here = re.search(r"_HERE_=(.+)", told.stderr)
    return os.path.dirname(os.path.realpath(here[1])) if here else None


def with_cuda(torch_cuda: str | None, home: str | None, wish: str) -> bool:
    missing = [] if torch_cuda else ["a torch built for CUDA"]
    if home is None or not os.path.exists(os.path.join(home, "bin", "nvcc")):
        missing.append(f"a CUDA toolkit (nvcc; looked in {home or 'CUDA_HOME, PATH, /usr/local/cuda'})")
    if wish == "1" and missing:
        sys.exit(f"mmif_trt: MMIF_CUDA=1, but what is missing is {' and '.join(missing)}")
    return wish != "0" and not missing


def extension() -> dict[str, object]:
    """setup()'s arguments for the extension; none where there is no torch."""
    wish = os.environ.get("MMIF_CUDA", "")
    if wish not in ("", "0", "1"):
        sys.exit(f"mmif_trt: MMIF_CUDA is {wish!r}; expected 0 or 1")
    try:
        import torch
    except ImportError:
        if wish == "1":
            sys.exit(
                "mmif_trt: MMIF_CUDA=1, but what is missing is torch; try pip install --no-build-isolation"
            )
        print(
            "mmif_trt: no torch in the build environment: a pure-Python install, training runs on plain ops"
        )
        return {}
    home = toolkit()
    if home is not None:
        os.environ["CUDA_HOME"] = home  # before torch guesses
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    cuda = with_cuda(torch.version.cuda, home, wish)
    devices = "CPU and CUDA" if cuda else "CPU"
    print(f"mmif_trt: kernels for {devices}, torch {torch.__version__}, toolkit {home}")
    flags = {"cxx": ["-O3", "-fopenmp", "-fvisibility=hidden"], "nvcc": ["-O3", "-lineinfo"]}
    links = ["-fopenmp"]
    if cuda:
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)
        module = CUDAExtension(
            "mmif_trt._C", SOURCES + CUDA_SOURCES, extra_compile_args=flags, extra_link_args=links
        )
    else:
        module = CppExtension("mmif_trt._C", SOURCES, extra_compile_args=flags, extra_link_args=links)
    return {"ext_modules": [module], "cmdclass": {"build_ext": BuildExtension}}


arguments = extension()
commands = {"sdist": SourceDistribution, **arguments.pop("cmdclass", {})}
setup(**arguments, cmdclass=commands)
