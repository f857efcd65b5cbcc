"""Arrays on the card, from whatever library: DLPack and `__cuda_array_interface__`, without a copy."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from mmif_trt.image import InputError

DLPACK_CUDA = 2
DLPACK_FLOAT = 2


@dataclass(frozen=True)
class View:
    """shape: as came; owner keeps the memory alive; ordered: its producer's work is before ours already."""

    pointer: int
    shape: tuple[int, ...]
    owner: Any
    ordered: bool


class DeviceArray:
    """float32 on the card, freed with its last reference; torch.as_tensor and cupy.asarray take it."""

    def __init__(self, memory: Any, shape: tuple[int, ...]) -> None:
        self.memory, self.shape = memory, shape

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": self.shape, "typestr": "<f4", "data": (int(self.memory), False), "version": 3}


def is_on_device(x: Any) -> bool:
    """Does x lie on a CUDA device? (A torch tensor on the CPU has `__dlpack__` too.)"""
    if hasattr(x, "__dlpack_device__"):
        return int(x.__dlpack_device__()[0]) == DLPACK_CUDA
    return _interface(x) is not None


def view(x: Any, name: str, stream_handle: int) -> View:
    """Pointer and shape of x, C-contiguous float32 on the card. Raises InputError.

    stream_handle: where it will be read; a DLPack producer is told and orders its own work before.
    """
    if hasattr(x, "__dlpack_device__"):
        return _from_capsule(x.__dlpack__(stream=stream_handle), name, x)
    interface = _interface(x)
    if interface is None:
        raise InputError(f"{name}: {type(x).__name__}; accepted are arrays on the card (DLPack, CUDA array)")
    if interface["typestr"] not in ("<f4", "=f4"):
        raise InputError(f"{name}: dtype {interface['typestr']}; accepted on the card is float32")
    shape, strides = tuple(interface["shape"]), interface.get("strides")
    if strides is not None and tuple(strides) != tuple(4 * s for s in _contiguous(shape)):
        raise InputError(f"{name}: strides {tuple(strides)}; accepted is a C-contiguous array")
    return View(int(interface["data"][0]), shape, x, ordered=False)


def _interface(x: Any) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] | None = getattr(x, "__cuda_array_interface__", None)
    except (
        TypeError,
        RuntimeError,
    ):  # torch raises for tensors on the CPU, and for those that need gradients
        return None
    return found


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements."""
    strides, step = [], 1
    for side in reversed(shape):
        strides.append(step)
        step *= side
    return tuple(reversed(strides))


class _Tensor(ctypes.Structure):
    """DLTensor of dlpack.h, which DLManagedTensor begins with."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


def _from_capsule(capsule: Any, name: str, x: Any) -> View:
    """The capsule is not consumed: it and x are kept, and its own destructor releases the tensor."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    tensor = _Tensor.from_address(get(capsule, b"dltensor"))
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    if (tensor.code, tensor.bits, tensor.lanes) != (DLPACK_FLOAT, 32, 1):
        came = f"DLPack type {tensor.code} of {tensor.bits} bits"
        raise InputError(f"{name}: {came}; accepted on the card is float32")
    if tensor.strides and all(shape):
        strides = tuple(tensor.strides[i] for i in range(tensor.ndim))
        if any(s != c and n > 1 for s, c, n in zip(strides, _contiguous(shape), shape, strict=True)):
            raise InputError(f"{name}: strides {strides} in elements; accepted is a C-contiguous array")
    return View((tensor.data or 0) + tensor.byte_offset, shape, (capsule, x), ordered=True)
