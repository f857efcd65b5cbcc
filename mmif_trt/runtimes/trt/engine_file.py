"""Engine files and their manifests: written whole or not at all, loaded only if everything matches.

An engine is native code for one TensorRT version and some GPUs. Beside NAME.engine lies its manifest,
NAME.engine.json, which is written last: an engine without one comes from an interrupted build and is
refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from mmif_trt import weights
from mmif_trt.files import read_regular, write_atomic
from mmif_trt.image import InputError
from mmif_trt.runtimes.trt import trust
from mmif_trt.runtimes.trt.manifest import Manifest

SUFFIX = ".engine"
REBUILD = "expected an engine of `mmif-trt engine build`"


def manifest_path(engine: Path) -> Path:
    return engine.with_name(engine.name + ".json")


def read_manifest(engine: Path) -> Manifest:
    """The manifest beside `engine`, not checked yet. Raises InputError."""
    path = manifest_path(engine)
    if not engine.is_file():
        raise InputError(f"{engine}: no such engine file; {REBUILD}")
    if not path.is_file():
        raise InputError(f"{engine}: no manifest {path.name} beside it; {REBUILD}")
    try:
        table = json.loads(read_regular(path))
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
        return Manifest(**given)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        names = ", ".join(f.name for f in fields(Manifest))
        raise InputError(f"{path}: not a manifest ({reason}); expected JSON of {names}") from None


def load_checked(engine: Path, flavour: str, version: str, capability: str) -> tuple[bytes, Manifest]:
    """The engine's bytes, after its whole manifest was checked against this installation.

    capability: of the GPU, such as "8.9". Raises InputError that names what does not match.
    """
    manifest = read_manifest(engine)
    refuse_untrusted(engine, manifest)
    refuse_other_version(engine, manifest, flavour, version)
    if capability not in manifest.compute_capabilities:
        expected = ", ".join(manifest.compute_capabilities)
        raise InputError(f"{engine}: this card has compute capability {capability}; expected {expected}")
    refuse_other_network(engine, manifest)
    data = read_regular(engine)
    received = hashlib.sha256(data).hexdigest()
    if received != manifest.engine_sha256:
        raise InputError(
            f"{engine}: SHA-256 is {received}; expected {manifest.engine_sha256}, from its manifest"
        )
    return data, manifest


def refuse_untrusted(engine: Path, manifest: Manifest) -> None:
    """Raises InputError where others could have changed the files, or an expected signature is missing."""
    trust.refuse_strangers(engine, manifest_path(engine))
    trust.refuse_unsigned(engine, manifest)


def refuse_other_version(engine: Path, manifest: Manifest, flavour: str, version: str) -> None:
    """Raises InputError unless the engine was built by the module `flavour` of `version`."""
    if (manifest.flavour, manifest.version) != (flavour, version):
        received = f"built by {manifest.flavour} {manifest.version}"
        raise InputError(f"{engine}: {received}; this installation loads {flavour} {version}")


def refuse_other_network(engine: Path, manifest: Manifest) -> None:
    """Raises InputError for an engine built from weights other than those of this installation."""
    models = weights.manifest()["models"]
    if manifest.model not in models:
        raise InputError(f"{engine}: of model {manifest.model!r}; expected {', '.join(models)}")
    files = models[manifest.model]["files"]
    built_of = {"onnx": manifest.onnx_sha256, "safetensors": manifest.weights_sha256}
    for suffix, received in built_of.items():
        expected = files[f"{manifest.model}.{suffix}"]["sha256"]
        if received != expected:
            raise InputError(f"{engine}: built from {suffix} {received}; expected {expected}, installed here")


def save(engine: Path, data: bytes, manifest: Manifest) -> None:
    """Both files, the manifest last; a failure leaves no partial file. Raises InputError, as on a full
    disk."""
    try:
        manifest = trust.signed(manifest)
        engine.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # never an old manifest beside a new engine
            manifest_path(engine).unlink()
        write_atomic(engine, data)
        write_atomic(manifest_path(engine), (json.dumps(asdict(manifest), indent=1) + "\n").encode())
        for path in (engine, manifest_path(engine)):  # whatever the umask: see trust.py
            os.chmod(path, path.stat().st_mode & ~0o022)
    except InputError:  # write_atomic's, with its reason
        raise
    except OSError as error:
        expected = "expected a folder that takes files and has room"
        raise InputError(f"{engine}: cannot be written ({error.strerror}); {expected}") from error


def cache_folder() -> Path:
    """Where engines are kept for this user: $MMIF_ENGINES, or mmif_trt/engines in the user's cache folder."""
    if given := os.environ.get("MMIF_ENGINES"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmif_trt" / "engines"


@contextmanager
def locked(engine: Path) -> Iterator[None]:
    """One process at a time builds `engine`; a process that dies releases the lock. Raises InputError."""
    import fcntl

    path = engine.with_name(engine.name + ".lock")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = open(path, "a")  # noqa: SIM115
    except OSError as error:
        expected = "expected a folder that takes files and has room"
        raise InputError(f"{path}: cannot be written ({error.strerror}); {expected}") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def engines_in(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []
