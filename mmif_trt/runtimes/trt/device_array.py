"""Arrays of any library, on the card or the host: DLPack and `__cuda_array_interface__`, without a copy."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmif_trt.image import InputError

# dlpack.h. Managed memory is on the card for us, page-locked memory on the host.
ON_HOST, ON_CARD = {1: "CPU", 3: "CUDA host"}, {2: "CUDA", 13: "CUDA managed"}
DLPACK_FLOAT = 2
# What producers raise where they cannot share: gradients, bits that mean the conjugate, a dead context.
PRODUCER_ERRORS = (BufferError, RuntimeError, TypeError, ValueError, AttributeError)
ACCEPTED = "expected float32 NumPy arrays, and float32 on this host or card by DLPack or CUDA array interface"


@dataclass(frozen=True)
class View:
    """shape: as received; owner keeps the memory alive; ordered: its producer's work precedes ours."""

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


def is_on_device(x: Any, name: str, index: int = 0) -> bool:
    """Does x lie on the CUDA device `index`? (A torch tensor on the CPU has `__dlpack__` too.)

    Raises InputError for another device.
    """
    if not hasattr(x, "__dlpack_device__"):
        return _interface(x) is not None
    kind, place = (int(number) for number in x.__dlpack_device__())
    if kind not in ON_HOST | ON_CARD or (kind in ON_CARD and place != index):
        received = f"{ON_CARD[kind]} device {place}" if kind in ON_CARD else f"DLPack device type {kind}"
        raise InputError(f"{name}: on {received}; expected the host or CUDA device {index}, of this engine")
    return kind in ON_CARD


def host_array(x: Any, name: str) -> np.ndarray:
    """x as a float32 NumPy array on its own memory: NumPy's, or by DLPack torch's and others'. Raises
    InputError."""
    if not isinstance(x, np.ndarray):
        if not hasattr(x, "__dlpack__"):
            raise InputError(f"{name}: {type(x).__name__}; {ACCEPTED}")
        try:
            x = np.from_dlpack(x)
        except PRODUCER_ERRORS as error:
            raise InputError(f"{name}: {type(x).__name__}: {_line(error)}; {ACCEPTED}") from None
    if x.dtype != np.float32:
        raise InputError(f"{name}: dtype {x.dtype}; {ACCEPTED}")
    return x


def view(x: Any, name: str, stream_handle: int) -> View:
    """Pointer and shape of x, C-contiguous float32 on the card. Raises InputError.

    stream_handle: where it will be read; a DLPack producer is told and orders its own work before.
    """
    if hasattr(x, "__dlpack_device__"):
        try:
            capsule = x.__dlpack__(stream=stream_handle)
        except PRODUCER_ERRORS as error:
            raise InputError(f"{name}: {type(x).__name__}: {_line(error)}; {ACCEPTED}") from None
        return _from_capsule(capsule, name, x)
    interface = _interface(x)
    if interface is None:
        raise InputError(f"{name}: {type(x).__name__}; {ACCEPTED}")
    if interface["typestr"] not in ("<f4", "=f4"):
        raise InputError(f"{name}: dtype {interface['typestr']}; expected float32 on the card")
    if interface.get("mask") is not None:
        raise InputError(f"{name}: a masked array; expected one without a mask")
    shape, strides = tuple(interface["shape"]), interface.get("strides")
    if strides is not None:
        _refuse_strided(name, shape, tuple(strides), 4, "bytes")
    return View(int(interface["data"][0]), shape, x, ordered=False)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _refuse_strided(
    name: str, shape: tuple[int, ...], strides: tuple[int, ...], unit: int, said: str
) -> None:
    """Strides of sides of one may be anything. Raises InputError."""
    expected = tuple(unit * step for step in _contiguous(shape))
    if all(shape) and any(s != e and n > 1 for s, e, n in zip(strides, expected, shape, strict=True)):
        raise InputError(f"{name}: strides {strides} in {said}; expected a C-contiguous array")


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
    try:
        tensor = _Tensor.from_address(get(capsule, b"dltensor"))
    except ValueError:  # consumed already, or of a version that was not asked for
        raise InputError(f"{name}: {type(x).__name__}: no unused DLPack capsule; {ACCEPTED}") from None
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    if (tensor.code, tensor.bits, tensor.lanes) != (DLPACK_FLOAT, 32, 1):
        received = f"DLPack type {tensor.code} of {tensor.bits} bits"
        raise InputError(f"{name}: {received}; expected float32 on the card")
    if tensor.strides:
        strides = tuple(tensor.strides[i] for i in range(tensor.ndim))
        _refuse_strided(name, shape, strides, 1, "elements")
    return View((tensor.data or 0) + tensor.byte_offset, shape, (capsule, x), ordered=True)
