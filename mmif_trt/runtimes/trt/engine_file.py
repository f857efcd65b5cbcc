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
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mmif_trt import weights
from mmif_trt.files import read_regular, write_atomic
from mmif_trt.image import InputError
from mmif_trt.models.pixels import LUMA
from mmif_trt.runtimes.trt import trust

SUFFIX = ".engine"
REBUILD = "expected an engine of `mmif-trt engine build`"
Shape = tuple[int, int, int]  # batch, height, width


@dataclass(frozen=True)
class Manifest:
    """What an engine is. Hashes are SHA-256.

    form: inputs and outputs, see models.pixels.Form.
    flavour: the module, "tensorrt" or "tensorrt_rtx"; version: the module's. compute_capabilities: such as
    "8.6".
    smallest, typical, largest: (batch, height, width) of the profile; all equal: the shape is fixed.
    fused_attention: kernels that hold a whole attention block, of attention_blocks; None: the builder printed
    no layer table. float_convolutions: ONNX names of those computed in FP32. psnr_db: the lowest of the
    golden pairs against FP32 torch, and psnr_of what ran; None if nothing could, and why.
    """

    model: str
    precision: str
    engine_sha256: str
    onnx_sha256: str
    weights_sha256: str
    flavour: str
    version: str
    compute_capabilities: tuple[str, ...]
    smallest: Shape
    typical: Shape
    largest: Shape
    attention_blocks: int
    fused_attention: int | None
    float_convolutions: tuple[str, ...]
    psnr_db: float | None
    psnr_of: str
    build_s: float
    command: str
    built: str
    bytes: int = field(default=0)
    form: str = str(LUMA)
    signature: str = ""  # see trust.py

    @property
    def psnr(self) -> str:
        return (
            self.psnr_of
            if self.psnr_db is None
            else f"{self.psnr_db:g} dB on the golden pairs, {self.psnr_of}"
        )

    def refuse_shape(self, name: str, shape: Shape) -> None:
        """Raises InputError if (batch, height, width) is outside the profile or, where the engine does not
        pad by itself, off the window grid."""
        low, high = self.smallest, self.largest
        odd = self.form == str(LUMA) and any(side % 32 for side in shape[1:])
        if odd or not all(x <= y <= z for x, y, z in zip(low, shape, high, strict=True)):
            batch, height, width = (
                f"{x}" if x == z else f"{x} to {z}" for x, z in zip(low, high, strict=True)
            )
            raise InputError(
                f"{name}: batch {shape[0]} of {shape[1]} x {shape[2]} px; this engine takes batch "
                f"{batch}, {height} x {width} px{', sides multiples of 32' if self.form == str(LUMA) else ''}"
            )


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
