"""Arrays of any library, on the GPU or the host: DLPack and `__cuda_array_interface__`, without a copy."""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mmif_trt.image import InputError

if TYPE_CHECKING:
    from mmif_trt.runtimes.trt.cuda import Device

# dlpack.h. We treat managed memory as on the GPU, page-locked memory as on the host.
ON_HOST, ON_CARD = {1: "CPU", 3: "CUDA host"}, {2: "CUDA", 13: "CUDA managed"}
# DLPack's (code, bits, lanes) and the CUDA array interface's name of what the engines take.
DTYPES = {(2, 32, 1): "float32", (1, 8, 1): "uint8", (1, 16, 1): "uint16"}
TYPESTRS = {"<f4": "float32", "=f4": "float32", "|u1": "uint8", "<u2": "uint16", "=u2": "uint16"}
NO_SYNC = -1  # DLPack: query only
# What producers raise when they cannot share: gradients, lazy conjugates, a dead context.
PRODUCER_ERRORS = (BufferError, RuntimeError, TypeError, ValueError, AttributeError)
ACCEPTED = "expected {0} NumPy arrays, and {0} on this host or card by DLPack or CUDA array interface"


@dataclass(frozen=True)
class View:
    """shape, dtype: as received; owner keeps the memory alive; ordered: its producer knows our stream."""

    pointer: int
    shape: tuple[int, ...]
    owner: Any
    ordered: bool
    dtype: str = "float32"


class DeviceArray:
    """`dtype` on the GPU, C-contiguous; torch.as_tensor and cupy.asarray use it without a copy. Freed with
    its last reference, in any thread; it may outlive its engine."""

    def __init__(self, device: Device, size: int, shape: tuple[int, ...], dtype: str = "float32") -> None:
        self.memory, self.shape, self.dtype = device.lend(size), shape, dtype
        weakref.finalize(self, device.give_back, self.memory)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        kind = np.dtype(self.dtype).str
        return {"shape": self.shape, "typestr": kind, "data": (int(self.memory), False), "version": 3}


def is_on_device(x: Any, name: str, index: int = 0) -> bool:
    """Is x on CUDA device `index`? (A torch tensor on the CPU has `__dlpack__` too.)

    Raises InputError for another device.
    """
    if not hasattr(x, "__dlpack_device__"):
        return _interface(x) is not None
    kind, place = (int(number) for number in x.__dlpack_device__())
    if kind not in ON_HOST | ON_CARD or (kind in ON_CARD and place != index):
        received = f"{ON_CARD[kind]} device {place}" if kind in ON_CARD else f"DLPack device type {kind}"
        raise InputError(f"{name}: on {received}; expected the host or CUDA device {index}, of this engine")
    return kind in ON_CARD


def host_array(x: Any, name: str, dtype: str = "float32") -> np.ndarray:
    """x as a NumPy array of `dtype` over its own memory: NumPy's, or by DLPack that of torch and others.
    Raises InputError."""
    accepted = ACCEPTED.format(dtype)
    if not isinstance(x, np.ndarray):
        if not hasattr(x, "__dlpack__"):
            raise InputError(f"{name}: {type(x).__name__}; {accepted}")
        try:
            x = np.from_dlpack(x)
        except PRODUCER_ERRORS as error:
            raise InputError(f"{name}: {type(x).__name__}: {_line(error)}; {accepted}") from None
    if x.dtype != dtype:
        raise InputError(f"{name}: dtype {x.dtype}; {accepted}")
    return x


def view(x: Any, name: str, stream_handle: int, dtype: str | None = "float32") -> View:
    """Pointer, shape and type of x, C-contiguous `dtype` (None: any that engines take) on the GPU. Raises
    InputError.

    stream_handle: the stream that will read it, before which a DLPack producer orders its own work. NO_SYNC:
    none will.
    """
    wanted = dtype or " or ".join(DTYPES.values())
    accepted = ACCEPTED.format(wanted)
    if hasattr(x, "__dlpack_device__"):
        try:
            capsule = x.__dlpack__(stream=stream_handle)
        except PRODUCER_ERRORS as error:
            raise InputError(f"{name}: {type(x).__name__}: {_line(error)}; {accepted}") from None
        seen = _from_capsule(capsule, name, x, wanted)
    else:
        seen = _from_interface(x, name, wanted)
    if dtype is not None and seen.dtype != dtype:
        raise InputError(f"{name}: dtype {seen.dtype}; expected {wanted} on the card")
    return seen


def _from_interface(x: Any, name: str, wanted: str) -> View:
    interface = _interface(x)
    if interface is None:
        raise InputError(f"{name}: {type(x).__name__}; {ACCEPTED.format(wanted)}")
    dtype = TYPESTRS.get(interface["typestr"])
    if dtype is None:
        raise InputError(f"{name}: dtype {interface['typestr']}; expected {wanted} on the card")
    if interface.get("mask") is not None:
        raise InputError(f"{name}: a masked array; expected one without a mask")
    shape, strides = tuple(interface["shape"]), interface.get("strides")
    if strides is not None:
        _refuse_strided(name, shape, tuple(strides), np.dtype(dtype).itemsize, "bytes")
    return View(int(interface["data"][0]), shape, x, ordered=False, dtype=dtype)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _refuse_strided(
    name: str, shape: tuple[int, ...], strides: tuple[int, ...], unit: int, said: str
) -> None:
    """Sides of length 1 may have any stride. Raises InputError."""
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


def _from_capsule(capsule: Any, name: str, x: Any, wanted: str) -> View:
    """The capsule is not consumed: it and x are kept, and its own destructor releases the tensor."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    try:
        tensor = _Tensor.from_address(get(capsule, b"dltensor"))
    except ValueError:  # consumed already, or of a version that was not requested
        raise InputError(
            f"{name}: {type(x).__name__}: no unused DLPack capsule; {ACCEPTED.format(wanted)}"
        ) from None
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    dtype = DTYPES.get((tensor.code, tensor.bits, tensor.lanes))
    if dtype is None:
        raise InputError(
            f"{name}: DLPack type {tensor.code} of {tensor.bits} bits; expected {wanted} on the card"
        )
    if tensor.strides:
        strides = tuple(tensor.strides[i] for i in range(tensor.ndim))
        _refuse_strided(name, shape, strides, 1, "elements")
    return View((tensor.data or 0) + tensor.byte_offset, shape, (capsule, x), ordered=True, dtype=dtype)
