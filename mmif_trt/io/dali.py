"""Pairs of files decoded ahead of use by NVIDIA DALI; on a GPU, it also decodes JPEG and JPEG 2000.

DALI stops a whole pipeline at the first file that it cannot decode, accepts damaged files that its decoder
accepts, and reduces 16 bits to 8 unless a type is stated. So io.raster checks each file's bytes first, as for
OpenCV; the decoder is given the checked type; a refused file is reported by name and never reaches DALI. If
DALI still fails, OpenCV reads its current batches file by file, and a new pipeline continues after them.
Files that only OpenCV handles (palettes, alpha, float) also take that path.
"""

from __future__ import annotations

import hashlib
import importlib.util
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from mmif_trt import io
from mmif_trt.image import Image, InputError
from mmif_trt.io import raster
from mmif_trt.io.raster.headers import Checked

BATCH, PREFETCH = 8, 2
Types = tuple[str, str]  # of a and b: "uint8" or "uint16"


@dataclass(frozen=True)
class Decoded:
    """A pair of the list by its index; `error` is one line that names the file, "" if both were read."""

    index: int
    a: Image | None = None
    b: Image | None = None
    error: str = ""


@dataclass(frozen=True)
class _File:
    name: str
    checked: Checked | None  # None: for OpenCV
    sha256: str = ""


_Pair = tuple[int, tuple[_File, _File] | InputError]


def why_not() -> str:
    """Why DALI cannot be used here, in one line; "" if it can."""
    found = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali")
    return "" if found else "DALI is not installed; try pip install 'mmif-trt[console]'"


def shard_of(count: int, shard: int, shards: int) -> range:
    """The indices for one of `shards` processes: every pair in exactly one, sizes equal within one pair."""
    if not 0 <= shard < shards:
        raise InputError(f"shard {shard} of {shards}; expected 0 to {max(0, shards - 1)}")
    return range(count * shard // shards, count * (shard + 1) // shards)


def read_pairs(
    files_a: Sequence[str],
    files_b: Sequence[str],
    *,
    device_id: int | None = None,
    threads: int = 2,
    batch: int = BATCH,
    shard: int = 0,
    shards: int = 1,
) -> Iterator[Decoded]:
    """Each pair of two lists of equal length, in order: the pixels of io.read bit for bit, or the error.

    device_id: None: all on the CPU. A GPU decodes JPEG itself; colour ones may differ by a level there.
    """
    if len(files_a) != len(files_b):
        raise InputError(f"{len(files_a)} and {len(files_b)} files; expected two lists of equal length")
    if missing := why_not():
        raise InputError(missing)
    indices = shard_of(len(files_a), shard, shards)
    prepared = ((i, _prepare(files_a[i], files_b[i])) for i in indices)
    pipelines: dict[Types, _Pipeline] = {}
    for types, group in groupby(prepared, key=_types):
        if types is None:
            yield from map(_by_opencv, group)
        else:
            if types not in pipelines:
                pipelines[types] = _Pipeline(types, device_id, threads, batch)
            yield from pipelines[types].run(group)


def _prepare(a: str, b: str) -> tuple[_File, _File] | InputError:
    try:
        return _check(a), _check(b)
    except InputError as error:
        return error


def _check(path: str) -> _File:
    name, _, data = io.read_bytes(path)
    _, proven = raster.check(data, name)
    plain = proven.palette is None and proven.key is None and proven.step == 1 and proven.shape[2] in (1, 3)
    by_dali = proven if plain and proven.dtype in (np.uint8, np.uint16) else None
    return _File(name, by_dali, hashlib.sha256(data).hexdigest())


def _types(pair: _Pair) -> Types | None:
    files = pair[1]
    if isinstance(files, InputError) or files[0].checked is None or files[1].checked is None:
        return None
    return np.dtype(files[0].checked.dtype).name, np.dtype(files[1].checked.dtype).name


def _by_opencv(pair: _Pair) -> Decoded:
    index, files = pair
    if isinstance(files, InputError):
        return Decoded(index, error=str(files))
    try:
        return Decoded(index, io.read(files[0].name), io.read(files[1].name))
    except InputError as error:
        return Decoded(index, error=str(error))


class _Pipeline:
    """One DALI pipeline for one combination of types; rebuilt after an error."""

    def __init__(self, types: Types, device_id: int | None, threads: int, batch: int) -> None:
        self._settings = (types, device_id, threads, batch)
        self._dali: Any = None
        self._source: Iterator[_Pair] = iter(())
        self._flying: deque[list[_Pair]] = deque()  # given to DALI, not returned yet

    def run(self, pairs: Iterable[_Pair]) -> Iterator[Decoded]:
        self._source = iter(pairs)
        while True:
            if self._dali is None:
                self._dali = decoder(*self._settings, source=self._next)
            try:
                outputs = self._dali.run()
            except StopIteration:
                self._dali.reset()
                return
            except RuntimeError:  # DALI's own; it names neither file nor batch
                self._dali = None
                while self._flying:
                    yield from map(_by_opencv, self._flying.popleft())
                continue
            planes = [tensors.as_cpu() if hasattr(tensors, "as_cpu") else tensors for tensors in outputs]
            for i, (index, files) in enumerate(self._flying.popleft()):
                assert not isinstance(files, InputError)
                yield _decoded(index, files, [np.array(x.at(i)) for x in planes])

    def _next(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        batch = [pair for _, pair in zip(range(self._settings[3]), self._source, strict=False)]
        if not batch:
            raise StopIteration
        self._flying.append(batch)
        streams: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        for _, files in batch:
            assert not isinstance(files, InputError)
            for side, file in zip(streams, files, strict=True):
                assert file.checked is not None
                side.append(np.frombuffer(file.checked.stream, np.uint8))
        return streams


def _decoded(index: int, files: tuple[_File, _File], pixels: list[np.ndarray]) -> Decoded:
    images = []
    for file, x in zip(files, pixels, strict=True):
        assert file.checked is not None
        if x.shape != file.checked.shape or x.dtype != file.checked.dtype:
            return _by_opencv((index, files))  # not what the header announced
        grey_or_rgb = x[..., 0] if x.shape[2] == 1 else x
        images.append(Image(grey_or_rgb, source=file.name, sha256=file.sha256))
    return Decoded(index, images[0], images[1])


def decoder(types: Types, device_id: int | None, threads: int, batch: int, *, source: Any) -> Any:
    """A built pipeline from `source`, which returns the encoded bytes of a batch of a and of b, to pixels.

    The type is explicit: DALI's default reduces 16 bits to 8, and reads 8 as 16 by rescaling.
    """
    from nvidia.dali import fn, pipeline_def
    from nvidia.dali.types import DALIDataType, DALIImageType

    kinds = [{"uint8": DALIDataType.UINT8, "uint16": DALIDataType.UINT16}[x] for x in types]
    place = "cpu" if device_id is None else "mixed"

    # DALI's stubs do not say that device_id may be None, which means no GPU.
    settings: dict[str, Any] = {"batch_size": batch, "num_threads": threads, "device_id": device_id}

    @pipeline_def(prefetch_queue_depth=PREFETCH, **settings)
    def pair() -> Any:
        streams = fn.external_source(source=source, num_outputs=2, dtype=DALIDataType.UINT8, ndim=1)
        return tuple(
            fn.decoders.image(
                x,
                device=place,
                output_type=DALIImageType.ANY_DATA,
                dtype=kind,
                adjust_orientation=False,
                # Without it a GPU repeats halved chroma where the CPU interpolates: 40 levels at an edge.
                jpeg_fancy_upsampling=True,
            )
            for x, kind in zip(streams, kinds, strict=True)
        )

    built = pair()
    built.build()
    return built


class Ahead:
    """read_pairs in its own thread, for workers that ask in order, and perhaps not for every pair: it stays
    `depth` pairs ahead of the last request.

    `read(index)` blocks until the pair is read, and raises its InputError.
    """

    def __init__(self, pairs: Iterable[Decoded], depth: int) -> None:
        self._changed = threading.Condition()
        self._ready: dict[int, Decoded] = {}
        self._limit, self._depth = depth, depth
        self._ended: Exception | None = None
        self._thread = threading.Thread(target=self._work, args=(iter(pairs),), daemon=True, name="dali")
        self._thread.start()

    def _work(self, pairs: Iterator[Decoded]) -> None:
        ended: Exception = InputError("the list of pairs has ended")
        try:
            for pair in pairs:
                with self._changed:
                    while pair.index >= self._limit and not self._ended:
                        self._changed.wait()
                    if self._ended:
                        return
                    self._ready[pair.index] = pair
                    self._changed.notify_all()
        except Exception as error:  # reported to every waiting worker
            ended = error
        with self._changed:
            self._ended = self._ended or ended
            self._changed.notify_all()

    def read(self, index: int) -> tuple[Image, Image]:
        with self._changed:
            self._limit = max(self._limit, index + 1 + self._depth)
            self._changed.notify_all()
            self._changed.wait_for(lambda: index in self._ready or self._ended)
            received = self._ready.pop(index, None)
            if received is None:
                assert self._ended is not None
                raise self._ended
        if received.a is None or received.b is None:
            raise InputError(received.error)
        return received.a, received.b

    def close(self) -> None:
        """Ends the thread and drops what it holds."""
        with self._changed:
            self._ended = self._ended or InputError("the reader of pairs was closed")
            self._changed.notify_all()
        self._thread.join()
