"""Does an engine do what its manifest says? Checks the files anywhere, the numbers on a GPU."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from mmif_trt import weights
from mmif_trt.files import read_regular
from mmif_trt.image import InputError
from mmif_trt.models.pixels import Form
from mmif_trt.runtimes.trt import build as engine_build
from mmif_trt.runtimes.trt import engine_file
from mmif_trt.runtimes.trt import runtime as tensorrt
from mmif_trt.runtimes.trt.engine import Engine
from mmif_trt.runtimes.trt.manifest import Manifest

LOWEST_PSNR_DB = 55.0


def files(engine: Path) -> Manifest:
    """The manifest, after a check against the engine's hash, the installed weights and the installed TensorRT
    (if any); needs no GPU. Raises InputError."""
    manifest = engine_file.read_manifest(engine)
    engine_file.refuse_untrusted(engine, manifest)
    received = hashlib.sha256(read_regular(engine)).hexdigest()
    if received != manifest.engine_sha256:
        raise InputError(
            f"{engine}: SHA-256 is {received}; expected {manifest.engine_sha256}, from its manifest"
        )
    engine_file.refuse_other_network(engine, manifest)
    if trt := engine_build.installed():
        engine_file.refuse_other_version(engine, manifest, trt.__name__, trt.__version__)
    return manifest


def why_not_run(manifest: Manifest) -> str:
    """Why the engine cannot run on the golden pairs here; "" if it can."""
    if missing := tensorrt.why_not():
        return missing
    size = weights.golden(manifest.model)[0].shape[1:]
    try:
        manifest.refuse_shape("golden pairs", (manifest.smallest[0], *size))
    except InputError as error:
        return str(error)
    return ""


def on_card(path: Path) -> tuple[str, float]:
    """The GPU's name, and the lowest PSNR in dB of the golden pairs against FP32 torch."""
    with Engine(path) as engine:
        manifest, form = engine.manifest, Form.named(engine.manifest.form)
        feed, expected = engine_build.golden_feed(form, *weights.golden(manifest.model))
        a, b, ranges = feed.pop("a"), feed.pop("b"), tuple(feed.values())
        batch = manifest.smallest[0]  # a static engine takes exactly that: repeat each pair to fill the batch
        pairs = ((*(np.repeat(x[i, None], batch, 0) for x in (a, b)), *ranges) for i in range(len(a)))
        fused = [engine_build.golden_unit(form, received)[-1] for received in engine.run(pairs)]
        return engine.device.card.name, engine_build.least_psnr(np.stack(fused), expected)
