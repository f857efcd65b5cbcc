"""The training path's operations: kernels of mmif_trt._C where it was built, plain torch elsewhere.

Every operation has its reference in `reference.py`, which also runs where there is no kernel. Installing with
torch present builds mmif_trt._C (see setup.py); `mmif-trt info` says whether it is there, and MMIF_KERNELS=0
turns it off.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module, util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

OPS = ("window_attention", "fusion_loss")
CPU_OPS = ("local_block", "mlp_block", "gated_mix")  # other devices keep PyTorch's own for these
NOT_BUILT = "not built; pip install --no-build-isolation -e '.[train]' builds them beside torch"


def _load() -> tuple[frozenset[str], str]:
    """The device types that have kernels, and one line that lists them or says why there are none."""
    if os.environ.get("MMIF_KERNELS") == "0":
        return frozenset(), "turned off by MMIF_KERNELS=0"
    if util.find_spec("mmif_trt._C") is None:
        return frozenset(), NOT_BUILT
    try:
        import torch

        import_module("mmif_trt._C")
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key  # raises for an operation it lacks
        keys = {"cpu": "CPU", "cuda": "CUDA"}
        needed = {"cpu": OPS + CPU_OPS, "cuda": OPS}
        devices = {
            d for d, key in keys.items() if all(has_kernel(f"mmif_trt::{op}", key) for op in needed[d])
        }
    except (ImportError, OSError, RuntimeError) as error:
        reason = f"built for another torch, Python or version; build it again ({str(error).splitlines()[0]})"
        warnings.warn(f"mmif_trt._C: {reason}; plain torch operations run instead", stacklevel=2)
        return frozenset(), reason
    return frozenset(devices), " and ".join(keys[device] for device in sorted(devices))


KERNEL_DEVICES, KERNELS = _load()
# Has the attribute `chosen` within plain_operations, per thread. No context variable and no subclass: of a
# plain threading.local torch.compile guards the attributes, of the others it keeps what it traced first.
_PLAIN = threading.local()


def kernels_available(device: str) -> bool:
    """Whether the kernels run on a device type, "cpu" or "cuda". Elsewhere, and within `plain_operations`,
    plain operations run."""
    return device in KERNEL_DEVICES and not hasattr(_PLAIN, "chosen")


def _is_transformed() -> bool:
    """Whether forward-mode AD or a transform of torch.func runs in this thread. The kernels have no rule for
    them, and torch would silently take a kernel's tangent as 0; plain operations have one."""
    import torch
    from torch.autograd import forward_ad

    if torch.compiler.is_compiling():
        return False
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def has_kernel(x: Tensor) -> bool:
    """Whether an operation on x runs as a kernel: not float64 on CUDA, nor on a GPU for which the binary has
    no code, nor within forward-mode AD or torch.func."""
    if not kernels_available(x.device.type) or _is_transformed():
        return False
    return x.device.type == "cpu" or (x.dtype.itemsize < 8 and card_has_code(x.device.index or 0))


_CARDS: dict[int, bool] = {}  # by CUDA device: whether the binary's kernels load there


def card_has_code(index: int) -> bool:
    """Whether mmif_trt._C has code for CUDA device `index`: asks the driver once, and warns if not."""
    if index not in _CARDS:
        import torch

        with torch.cuda.device(index):
            _CARDS[index] = torch.ops.mmif_trt.cuda_code_loads()
            if not _CARDS[index]:
                name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
                warnings.warn(
                    f"mmif_trt._C holds no code for {name}, compute capability {major}.{minor}; plain torch "
                    f"operations run instead (build again with TORCH_CUDA_ARCH_LIST={major}.{minor})",
                    stacklevel=3,
                )
    return _CARDS[index]


# As torch.compiler.assume_constant_result, without importing the compiler: tracing uses the answer.
card_has_code._dynamo_marked_constant = True  # type: ignore[attr-defined]


def has_block_kernel(x: Tensor, channels: int, hidden: int) -> bool:
    """Whether a block of CPU_OPS on x with these widths runs as a kernel."""
    fits = x.device.type == "cpu" and channels % 16 == hidden % 16 == 0
    return fits and kernels_available("cpu") and not _is_transformed()


@contextmanager
def plain_operations() -> Iterator[None]:
    """No kernel runs within it, in this thread: to compare, or to rule out the kernels as a cause."""
    outermost = not hasattr(_PLAIN, "chosen")
    _PLAIN.chosen = True
    try:
        yield
    finally:
        if outermost:
            del _PLAIN.chosen
