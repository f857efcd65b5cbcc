"""runtimes/trt/kernel_cache: what TensorRT-RTX compiled on the (fake) card is there for the next process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_card import FakeCard, network
from fake_engine import engine, install

from mmif_trt.runtimes.trt import build as engine_build
from mmif_trt.runtimes.trt import engine_file
from mmif_trt.runtimes.trt.engine import Engine


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeCard:
    return install(monkeypatch, tmp_path / "cache")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return engine(tmp_path / "elsewhere" / "x.engine")


def fuse(path: Path, side: int = 64) -> str:
    """One process's work: load, fuse, close; returns the cache's note."""
    a = np.full((side, side), 0.5, np.float32)
    with Engine(path) as e:
        b = np.stack([a, a / 4])
        np.testing.assert_array_equal(e(a, b), network(a, b))
        return str(e.kernels.note)


def compiled(fake: FakeCard) -> int:
    count, fake.calls = fake.calls.count("compile"), []
    return count


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("*"))


def test_the_second_process_compiles_nothing(fake: FakeCard, path: Path, tmp_path: Path) -> None:
    assert fuse(path) == "" and compiled(fake) == 2, "at loading, and for the shape"
    (kept,) = files(tmp_path)
    assert kept.suffix == ".kernels" and "Fake-RTX-sm8.9-1.0" in kept.name
    before = kept.stat().st_mtime_ns
    assert fuse(path) == "" and compiled(fake) == 0
    assert kept.stat().st_mtime_ns == before, "nothing new, nothing written"
    assert fuse(path, 96) == "" and compiled(fake) == 1, "another shape"
    assert fuse(path, 96) == "" and fuse(path, 64) == "" and compiled(fake) == 0
    assert files(tmp_path) == [kept]


def test_a_process_that_is_killed_leaves_what_loading_compiled(
    fake: FakeCard, path: Path, tmp_path: Path
) -> None:
    e = Engine(path)
    assert len(files(tmp_path)) == 1
    e.close()


def test_each_card_version_and_engine_has_its_own(fake: FakeCard, path: Path, tmp_path: Path) -> None:
    fuse(path)
    fake.capability = (8, 6)
    fuse(path)
    other = engine(tmp_path / "y.engine", engine_sha256=engine_file.hashlib.sha256(b"y").hexdigest())
    other.write_bytes(b"y")
    fuse(other)
    assert compiled(fake) == 6 and len(files(tmp_path)) == 3


DAMAGE = {
    "a flipped bit": (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "damaged; rebuilt"),
    "cut": (lambda data: data[: len(data) // 2], "damaged; rebuilt"),
    "empty": (lambda data: b"", "damaged; rebuilt"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_one_never_reaches_tensorrt(fake: FakeCard, path: Path, tmp_path: Path, kind: str) -> None:
    fuse(path)
    (kept,) = files(tmp_path)
    damage, said = DAMAGE[kind]
    kept.write_bytes(damage(kept.read_bytes()))
    fake.calls = []
    assert said in fuse(path) and "cache.deserialize" not in fake.calls
    assert compiled(fake) == 2 and fuse(path) == "" and compiled(fake) == 0, "and is replaced"


REFUSED: list[tuple[str, Any, str, int]] = [
    ("cache.deserialize", False, "of another card, driver or version; rebuilt", 2),
    ("create_runtime_cache", None, "TensorRT does not create one", 3),
    ("set_runtime_cache", False, "TensorRT does not accept it", 3),
]


@pytest.mark.parametrize(("call", "fault", "said", "count"), REFUSED, ids=[x[0] for x in REFUSED])
def test_a_cache_that_tensorrt_refuses_is_not_an_error(
    fake: FakeCard, path: Path, call: str, fault: Any, said: str, count: int
) -> None:
    """Without a cache each context compiles for itself."""
    fuse(path)
    compiled(fake)
    fake.faults[call] = fault
    assert said in fuse(path) and compiled(fake) == count


def test_a_full_disk_leaves_no_half_file(
    fake: FakeCard, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine_file.os, "fsync", full)
    assert "cannot be written (No space left on device)" in fuse(path)
    assert files(tmp_path) == []
    fake.faults["cache.serialize"] = None
    assert fuse(path) == "" and files(tmp_path) == []


def test_the_full_tensorrt_has_none(fake: FakeCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = fake.tensorrt("tensorrt", "11.4")

    monkeypatch.setattr(engine_build, "module", lambda: trt)
    assert fuse(engine(tmp_path / "z.engine", flavour="tensorrt", version="11.4")) == ""
    assert files(tmp_path) == []
