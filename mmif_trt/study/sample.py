"""`mmif-trt study demo`: a small study of the bundled samples, LAGN against average and maximum."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mmif_trt import io, weights
from mmif_trt.files import write_atomic
from mmif_trt.image import Image
from mmif_trt.samples import PAIRS, sample
from mmif_trt.stages.normalise import as_rgb8

BASELINES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "average": lambda a, b: ((a.astype(np.uint16) + b) // 2).astype(np.uint8),
    "maximum": np.maximum,
}


def prepare(folder: Path, fuser: Any, readers: int = 3) -> Path:
    """Writes sources, fused pictures and study.json under `folder`; returns the configuration's path.

    Average and maximum are taken channel by channel of the 8-bit pictures. Raises OutputError.
    """
    network = weights.title(fuser.network)
    sets = []
    for name in PAIRS:
        a, b = sample(name)
        modality = b.modality
        sources = Path(name) / "sources"
        pictures = {sources / "mri": as_rgb8(a), sources / str(modality): as_rgb8(b)}
        pictures[Path(name) / network] = as_rgb8(fuser.fuse_images(a, b))
        for method, combine in BASELINES.items():
            pictures[Path(name) / method] = combine(as_rgb8(a), as_rgb8(b))
        for where, data in pictures.items():
            (folder / where).mkdir(parents=True, exist_ok=True)
            io.write(folder / where / "sample.png", Image(data))
        methods = {method: f"{name}/{method}" for method in (network, *BASELINES)}
        sets.append({"modality": modality, "sources": str(sources), "methods": methods})
    title = "Fusion of bundled samples (demonstration; CT, PET and SPECT are simulated)"
    config = {"title": title, "sets": sets, "readers": readers, "repeats": 0.34}
    path = folder / "study.json"
    write_atomic(path, (json.dumps(config, indent=1) + "\n").encode())
    return path
