"""Tiny training sets in the layout of the trainings."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from mmif_trt.train import data


def write_sets(root: Path, name: str) -> Path:
    """Three sets of two 64 x 64 pairs per split: the MRI smooth, the other a bright blob of its own.

    name: a file's, without suffix; {split} and {i} are filled in.
    """
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    for modality in data.SETS:
        for split in ("train", "val"):
            for i in range(2):
                texture = cv2.GaussianBlur(rng.random((64, 64)), (0, 0), 2)
                texture = (texture - texture.min()) / np.ptp(texture)
                blob = np.exp(-((x - rng.integers(20, 44)) ** 2 + (y - rng.integers(20, 44)) ** 2) / 200)
                for kind, picture in (("mri", texture), (modality, blob)):
                    file = f"{name.format(split=split, i=i)}.png"
                    path = root / f"mri-{modality}" / split / kind / file
                    path.parent.mkdir(parents=True, exist_ok=True)
                    assert cv2.imwrite(str(path), np.rint(255 * picture).astype(np.uint8))
    return root
