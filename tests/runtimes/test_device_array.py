"""runtimes/trt/device_array: what real producers (torch, NumPy, DALI) hand over, and what they cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_card import ByDlpack, FakeCard, network
from fake_engine import engine, install

from mmif_trt import InputError
from mmif_trt.runtimes.trt import device_array
from mmif_trt.runtimes.trt.device_array import host_array, is_on_device, view
from mmif_trt.runtimes.trt.engine import Engine

HOST, CARD, PINNED, ROCM, MANAGED = 1, 2, 3, 10, 13  # device types of dlpack.h


class Claims:
    """A producer that states its device and records the stream; its capsule comes from a real one inside."""

    def __init__(self, inner: Any, kind: int = CARD, place: int = 0) -> None:
        self.inner, self.kind, self.place, self.heard = inner, kind, place, [0]

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, self.place

    def __dlpack__(self, *, stream: int | None = None, **_: Any) -> Any:
        self.heard[0] = stream
        return self.inner.__dlpack__()


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


def test_torch_capsules_are_read_in_place(torch: Any) -> None:
    whole = torch.arange(4 * 8 * 8, dtype=torch.float32).reshape(4, 1, 8, 8)
    for x in (whole, whole[1:3], whole[3, 0], whole[2:3].expand(1, 1, 8, 8), whole[:, 0]):
        producer = Claims(x)
        seen = view(producer, "a", 77)
        assert (seen.pointer, seen.shape) == (x.data_ptr(), tuple(x.shape))
        assert producer.heard == [77] and seen.ordered, "the producer orders its work before our stream's"
    odd = torch.as_strided(whole, (1, 8, 8), (3, 8, 1))
    assert view(Claims(odd), "a", 1).shape == (1, 8, 8), "the stride of one picture says nothing"


def test_a_capsule_keeps_its_tensor(torch: Any) -> None:
    import gc

    seen = view(Claims(torch.full((2, 4), 7.0)), "a", 1)
    gc.collect()
    kept = np.ctypeslib.as_array((device_array.ctypes.c_float * 8).from_address(seen.pointer))
    assert (kept == 7).all()


REFUSED = {
    "transposed": (lambda x: x.T, r"a: strides \(1, 8\) in elements; expected a C-contiguous array"),
    "a column of two": (lambda x: x[:, ::2], r"a: strides \(8, 2\) in elements"),
    "expanded": (lambda x: x[:1].expand(8, 8), r"a: strides \(0, 1\) in elements"),
    "half": (lambda x: x.half(), "a: DLPack type 2 of 16 bits; expected float32 on the card"),
    "double": (lambda x: x.double(), "a: DLPack type 2 of 64 bits"),
    "bytes": (lambda x: x.byte(), "a: dtype uint8; expected float32 on the card"),
    "bfloat16": (lambda x: x.bfloat16(), "a: DLPack type 4 of 16 bits"),
    "gradient": (lambda x: x.requires_grad_(), "a: Claims: .*gradient.*; expected float32"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_torch_tensors_that_do_not_fit(torch: Any, kind: str) -> None:
    change, said = REFUSED[kind]
    with pytest.raises(InputError, match=said) as caught:
        view(Claims(change(torch.zeros(8, 8))), "a", 1)
    assert "\n" not in str(caught.value)


def test_numpy_strides_and_used_capsules() -> None:
    x = np.zeros((6, 8), np.float32)
    for flipped in (x[::-1], x[:, ::-1]):
        with pytest.raises(InputError, match="a: strides .*-.* in elements; expected a C-contiguous"):
            view(Claims(flipped), "a", 1)
    used = Claims(x)
    capsule = x.__dlpack__()
    np.from_dlpack(Claims(type("Once", (), {"__dlpack__": lambda self: capsule})(), HOST))
    used.inner = type("Again", (), {"__dlpack__": lambda self: capsule})()
    with pytest.raises(InputError, match="a: Claims: no unused DLPack capsule"):
        view(used, "a", 1)


@pytest.mark.parametrize(
    ("kind", "place", "expected"),
    [
        (HOST, 0, False),
        (PINNED, 0, False),
        (CARD, 0, True),
        (MANAGED, 0, True),
        (CARD, 1, "a: on CUDA device 1; expected the host or CUDA device 0, of this engine"),
        (ROCM, 0, "a: on DLPack device type 10; expected the host or CUDA device 0"),
    ],
)
def test_where_an_array_lies(kind: int, place: int, expected: bool | str) -> None:
    x = Claims(np.zeros((2, 2), np.float32), kind, place)
    if isinstance(expected, bool):
        assert is_on_device(x, "a") is expected
        return
    with pytest.raises(InputError, match=expected):
        is_on_device(x, "a")


def test_host_tensors_share_their_memory(torch: Any) -> None:
    x = torch.rand(8, 12)
    for tensor in (x, x[2:], x[:, ::3], x.T):
        seen = host_array(tensor, "a")
        assert seen.ctypes.data == tensor.data_ptr() and seen.shape == tuple(tensor.shape)
        np.testing.assert_array_equal(seen, tensor.numpy())
    pinned = Claims(np.ones((4, 4), np.float32), PINNED)
    assert (host_array(pinned, "a") == 1).all()
    for wrong, said in (
        (x.half(), "a: dtype float16; expected float32"),
        (x.bfloat16(), "a: Tensor: .*; expected float32"),
        (x.clone().requires_grad_(), "a: Tensor: .*gradient.*; expected float32"),
        ([1.0, 2.0], "a: list; expected float32"),
        (None, "a: NoneType; expected float32"),
    ):
        with pytest.raises(InputError, match=said):
            host_array(wrong, "a")


def test_torch_on_the_cpu_has_no_cuda_interface(torch: Any) -> None:
    assert device_array._interface(torch.zeros(2)) is None
    assert device_array._interface(torch.zeros(2, requires_grad=True)) is None


class Interface:
    """Like a PyCUDA GPUArray: `__cuda_array_interface__` alone."""

    def __init__(self, **changes: Any) -> None:
        pointer = {"shape": (2, 4), "typestr": "<f4", "data": (4096, True), "version": 3, "strides": None}
        self.__cuda_array_interface__ = pointer | changes


def test_the_cuda_array_interface() -> None:
    for changes in ({}, {"strides": (16, 4)}, {"stream": 1}, {"shape": (1, 4), "strides": (999, 4)}):
        x = Interface(**changes)
        assert is_on_device(x, "a")
        seen = view(x, "a", 1)
        assert seen.pointer == 4096 and not seen.ordered, (
            "no stream of ours is named: the card must rest first"
        )
    for changes, said in (
        ({"typestr": ">f4"}, "a: dtype >f4; expected float32 on the card"),
        ({"typestr": "<f8"}, "a: dtype <f8"),
        ({"strides": (-16, 4)}, r"a: strides \(-16, 4\) in bytes; expected a C-contiguous array"),
        ({"typestr": "|u1"}, "a: dtype uint8; expected float32 on the card"),
        ({"strides": (-16, 4)}, r"a: strides \(-16, 4\) in bytes; expected a C-contiguous array"),
        ({"strides": (4, 8)}, r"a: strides \(4, 8\) in bytes"),
        ({"mask": Interface()}, "a: a masked array"),
    ):
        with pytest.raises(InputError, match=said):
            view(Interface(**changes), "a", 1)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeCard:
    return install(monkeypatch, tmp_path / "cache")


def test_an_engine_takes_torch_tensors_of_the_host(fake: FakeCard, tmp_path: Path, torch: Any) -> None:
    a, b = torch.rand(3, 64, 64), torch.rand(3, 2, 64, 64)
    with Engine(engine(tmp_path / "x.engine")) as e:
        for _ in range(3):
            fused = e(a, b)
            np.testing.assert_array_equal(fused, network(a.numpy(), b.numpy()))
        np.testing.assert_array_equal(e(a, b.numpy()), fused)
        np.testing.assert_array_equal(e(a[:, :, ::2], b[..., ::2]), fused[:, :, ::2])


def test_an_engine_reads_dlpack_on_the_card(fake: FakeCard, tmp_path: Path, torch: Any) -> None:
    a, b = torch.rand(2, 1, 64, 64), torch.rand(2, 2, 64, 64)
    x, y = (ByDlpack(fake, tensor.numpy()) for tensor in (a, b))
    with Engine(engine(tmp_path / "x.engine")) as e:
        fused = e(x, y)
        result = fake.array(fused.__cuda_array_interface__["data"][0], tuple(a.shape))
        np.testing.assert_array_equal(result, network(a.numpy(), b.numpy()))
        assert "upload" not in fake.calls and "synchronise" not in fake.calls, "ordered by the producer"
        assert x.streams == y.streams and x.streams[0] in fake.streams, "the stream that will read"
        with pytest.raises(InputError, match="a: on CUDA device 1"):
            e(Claims(a, CARD, 1), y)
