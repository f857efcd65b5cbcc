"""The kernels that TensorRT-RTX compiles on the GPU, kept for the next process.

An engine of TensorRT-RTX holds no machine code: the first contexts of a process compile it, which takes far
longer than a pair. The result is written beside this user's engines, one file per engine, GPU and version of
TensorRT. The cache only saves time: one that is damaged, from another GPU or not writable is ignored with a
note, never an error. TensorRT itself also compares GPU, driver and versions.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from mmif_trt.files import write_atomic
from mmif_trt.runtimes.trt import engine_file
from mmif_trt.runtimes.trt.cuda import Card
from mmif_trt.runtimes.trt.manifest import Manifest

SUFFIX = ".kernels"
DIGEST_BYTES = hashlib.sha256().digest_size  # of what follows, at the start of the file


def path_of(manifest: Manifest, card: Card) -> Path:
    """In this user's cache, wherever the engine is: the engine's folder may belong to somebody else."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{card.name}-sm{card.capability}-{manifest.version}")
    return engine_file.cache_folder() / f"{manifest.engine_sha256[:16]}-{name}{SUFFIX}"


class KernelCache:
    """For the contexts of one deserialised engine; `note` says what could not be read or written."""

    def __init__(self, trt: Any, engine: Any, path: Path) -> None:
        self.path, self.note = path, ""
        self._engine, self._config, self._cache = engine, None, None
        self._stored = b""  # digest of what the file holds
        config = engine.create_runtime_config() if hasattr(engine, "create_runtime_config") else None
        if config is None or not hasattr(config, "create_runtime_cache"):
            return  # the full TensorRT: its engines are machine code
        # By default TensorRT-RTX starts a shape with fallback kernels and switches to specialised ones later:
        # a graph captured in between would keep the fallback, and the same pair could give two results.
        config.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        self._config = config
        cache = config.create_runtime_cache()
        if cache is None:
            self.note = "no kernel cache: TensorRT does not create one"
            return
        if data := self._read():
            if cache.deserialize(data):
                self._stored = hashlib.sha256(data).digest()
            else:
                self.note = f"kernel cache {path.name}: of another card, driver or version; rebuilt"
        if not config.set_runtime_cache(cache):
            self.note = "no kernel cache: TensorRT does not accept it"
            return
        self._cache = cache

    def _read(self) -> bytes:
        """What was written last; b"" if there is none or it is damaged."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            self.note = f"kernel cache {self.path}: cannot be read ({error.strerror})"
            return b""
        digest, data = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        if hashlib.sha256(data).digest() != digest:
            self.note = f"kernel cache {self.path.name}: damaged; rebuilt"
            return b""
        return data

    def context(self) -> Any:
        """An execution context, or None if TensorRT creates none."""
        if self._config is None:
            return self._engine.create_execution_context()
        return self._engine.create_execution_context(self._config)

    def save(self) -> None:
        """Writes what has been compiled since, whole or not at all."""
        made = self._cache.serialize() if self._cache is not None else None
        data = b"" if made is None else bytes(made)
        digest = hashlib.sha256(data).digest()
        if not data or digest == self._stored:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path, digest + data)
        except OSError as error:
            reason = getattr(error.__cause__, "strerror", None) or error.strerror
            self.note = f"kernel cache {self.path}: cannot be written ({reason})"
            return
        self._stored = digest
