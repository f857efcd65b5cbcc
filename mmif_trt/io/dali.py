"""Pairs of files decoded ahead of use by NVIDIA DALI, on the CPU, or on a GPU where the pixels then stay.

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from mmif_trt import io
from mmif_trt.image import CardImage, Image, InputError, Picture
from mmif_trt.io import raster
from mmif_trt.io.raster.headers import Checked

BATCH, PREFETCH = 8, 2
CARD = 0  # the CUDA device of the runtimes
Types = tuple[str, str]  # of a and b: "uint8" or "uint16"
OnCard = Callable[[tuple[int, ...], tuple[int, ...]], bool]


@dataclass(frozen=True)
class Decoded:
    """A pair of the list by its index; `error` is one line that names the file, "" if both were read."""

    index: int
    a: Picture | None = None
    b: Picture | None = None
    error: str = ""


@dataclass(frozen=True)
class _File:
    name: str
    checked: Checked | None  # None: for OpenCV
    sha256: str = ""


_Pair = tuple[int, tuple[_File, _File] | InputError]
_Kind = tuple[Types, int | None]  # and the device that decodes; None: the CPU


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
    on_card: OnCard | None = None,
    threads: int = 2,
    batch: int = BATCH,
    shard: int = 0,
    shards: int = 1,
) -> Iterator[Decoded]:
    """Each pair of two lists of equal length, in order: the pixels of io.read bit for bit, or the error.

    on_card: whether 8-bit pictures of two shapes, [H, W] or [H, W, 3], are decoded on the GPU and stay there,
    as `CardImage`s; None: nowhere. A GPU decodes JPEG itself; colour ones may differ by a level there.
    """
    if len(files_a) != len(files_b):
        raise InputError(f"{len(files_a)} and {len(files_b)} files; expected two lists of equal length")
    if missing := why_not():
        raise InputError(missing)
    indices = shard_of(len(files_a), shard, shards)
    prepared = ((i, _prepare(files_a[i], files_b[i])) for i in indices)
    pipelines: dict[_Kind, _Pipeline] = {}
    for kind, group in groupby(prepared, key=lambda pair: _kind(pair, on_card)):
        if kind is None:
            yield from map(_by_opencv, group)
        else:
            if kind not in pipelines:
                pipelines[kind] = _Pipeline(kind, threads, batch)
            yield from pipelines[kind].run(group)


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


def _kind(pair: _Pair, on_card: OnCard | None) -> _Kind | None:
    files = pair[1]
    if isinstance(files, InputError):
        return None
    a, b = files[0].checked, files[1].checked
    if a is None or b is None:
        return None
    types = np.dtype(a.dtype).name, np.dtype(b.dtype).name
    stays = on_card and types == ("uint8", "uint8") and on_card(_plain(a.shape), _plain(b.shape))
    return types, CARD if stays else None


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """[H, W, 1] as [H, W]."""
    return shape[:2] if shape[2] == 1 else shape


def _by_opencv(pair: _Pair) -> Decoded:
    index, files = pair
    if isinstance(files, InputError):
        return Decoded(index, error=str(files))
    try:
        return Decoded(index, io.read(files[0].name), io.read(files[1].name))
    except InputError as error:
        return Decoded(index, error=str(error))


class _Pipeline:
    """One DALI pipeline for one kind of pairs; rebuilt after an error."""

    def __init__(self, kind: _Kind, threads: int, batch: int) -> None:
        self._settings = (*kind, threads, batch)
        self._dali: Any = None
        self._source: Iterator[_Pair] = iter(())
        self._flying: deque[list[_Pair]] = deque()  # given to DALI, not returned yet

    def run(self, pairs: Iterable[_Pair]) -> Iterator[Decoded]:
        self._source = iter(pairs)
        while True:
            if self._dali is None:
                self._dali = decoder(*self._settings, source=self._next)
            try:
                outputs = self._dali.run()  # no stream named: returns when the GPU has written all of them
            except StopIteration:
                self._dali.reset()
                return
            except RuntimeError:  # DALI's own; it names neither file nor batch
                self._dali = None
                while self._flying:
                    yield from map(_by_opencv, self._flying.popleft())
                continue
            for i, (index, files) in enumerate(self._flying.popleft()):
                assert not isinstance(files, InputError)
                yield _decoded(index, files, [tensors[i] for tensors in outputs])

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


def _decoded(index: int, files: tuple[_File, _File], tensors: list[Any]) -> Decoded:
    """tensors: DALI's [H, W, C] of a and b, in host memory or on the GPU."""
    images: list[Picture] = []
    for file, x in zip(files, tensors, strict=True):
        assert file.checked is not None
        if tuple(x.shape()) != file.checked.shape:
            return _by_opencv((index, files))  # not what the header announced
        shape = _plain(file.checked.shape)
        if len(shape) == 2:
            x.squeeze(2)
        if hasattr(x, "__array_interface__"):
            images.append(Image(np.array(x), source=file.name, sha256=file.sha256))
        else:
            images.append(CardImage(x, shape, file.name, file.sha256))
    return Decoded(index, images[0], images[1])


def decoder(types: Types, device_id: int | None, threads: int, batch: int, *, source: Any) -> Any:
    """A built pipeline from `source`, which returns the encoded bytes of a batch of a and of b, to pixels.

    The type is explicit: DALI's default reduces 16 bits to 8, and reads 8 as 16 by rescaling. Raises
    InputError if DALI does not start on the device.
    """
    from nvidia.dali import fn, pipeline_def
    from nvidia.dali.types import DALIDataType, DALIImageType

    kinds = [{"uint8": DALIDataType.UINT8, "uint16": DALIDataType.UINT16}[x] for x in types]
    place = "cpu" if device_id is None else "mixed"

    # DALI's stubs lack exec_dynamic, and do not say that device_id may be None, which means no GPU.
    settings: dict[str, Any] = {"batch_size": batch, "num_threads": threads, "device_id": device_id}
    # Each output then owns its memory while anybody refers to it, and later batches go elsewhere, so a tensor
    # on the GPU may wait for the network without a copy; otherwise DALI writes over it after PREFETCH runs.
    settings["exec_dynamic"] = True

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

    try:
        built = pair()
        built.build()
    except RuntimeError as error:
        raise InputError(f"decode 'dali': {' '.join(str(error).split())}; try --decode opencv") from None
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

    def read(self, index: int) -> tuple[Picture, Picture]:
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
