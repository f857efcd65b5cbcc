"""train/data: DALI reads the training pictures to the bits that OpenCV reads."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image as Picture
from safetensors.torch import load_file
from training_data import write_sets

from mmif_trt import InputError
from mmif_trt.train import autoencoder, data, diffusion, fusion, generate

pytest.importorskip("nvidia.dali", reason="nvidia-dali-cuda130 is not installed")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


GAMMA = chunk(b"gAMA", struct.pack(">I", 45455))
ADDED = {"sRGB and gamma": chunk(b"sRGB", b"\0") + GAMMA, "gamma": GAMMA, "none": b""}
MODES = {
    "colour": lambda x: x,
    "grey": lambda x: x[..., 0],
    "alpha": lambda x: np.dstack([x, np.full(x.shape[:2], 255, np.uint8)]),
    "16 bit": lambda x: x[..., 0].astype(np.uint16) * 256 + x[..., 1],
}


def equal(a: list[Path], b: list[Path]) -> int:
    pairs = [list(data.decoded(a, b, decode)) for decode in ("opencv", "dali")]
    for (x, y), (u, v) in zip(*pairs, strict=True):
        np.testing.assert_array_equal(x, u)
        np.testing.assert_array_equal(y, v)
        assert u.dtype == v.dtype == np.uint8
    return len(pairs[0])


@pytest.mark.parametrize("added", ADDED)
def test_every_kind_of_png(tmp_path: Path, added: str) -> None:
    x = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    files = [tmp_path / f"{mode}.png" for mode in MODES] + [tmp_path / "palette.png"]
    for path, make in zip(files, MODES.values(), strict=False):
        Picture.fromarray(make(x)).save(path)
    Picture.fromarray(x).quantize(64).save(files[-1])
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[:33] + ADDED[added] + content[33:])  # behind the header
    assert equal(files, files[::-1]) == 5
    if added == "gamma":  # the case that makes the exception: the plain formula is wrong there
        rounded = cv2.cvtColor(x, cv2.COLOR_RGB2GRAY).astype(int)
        assert np.abs(data.read_luma(files[0]) - rounded).max() > 5


def test_the_real_pictures() -> None:
    root = os.environ.get("MMIF_DATA")
    if not root:
        pytest.skip("MMIF_DATA is not set")
    count = 0
    for modality in data.SETS:
        for split in ("train", "val"):
            folders = [Path(root) / "harvard" / f"mri-{modality}" / split / x for x in ("mri", modality)]
            a, b = (sorted(folder.glob("*.png")) for folder in folders)
            count += equal(a, b)
    assert count == 694


@pytest.mark.parametrize(("training", "options"), [(fusion, ["--crop-px", "32"]), (autoencoder, [])])
def test_a_training_is_the_same_by_both(training: Any, options: list[str], tmp_path: Path) -> None:
    root = write_sets(tmp_path / "data", "{split}{i}_0")
    weights = []
    for decode in data.DECODERS:
        command = ["--data", str(root), "--out", str(tmp_path / decode), "--steps", "2", *options]
        assert training.main([*command, "--batch-size", "3", "--threads", "1", "--decode", decode]) == 0
        weights.append(load_file(tmp_path / decode / "checkpoint.safetensors"))
    assert weights[0].keys() == weights[1].keys() and len(weights[0]) > 100
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_what_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_sets(tmp_path / "data", "{split}{i}_0")
    bad = root / "mri-ct" / "train" / "mri" / "train1_0.png"
    bad.write_bytes(bad.read_bytes()[:-20])
    command = ["--data", str(root), "--out", str(tmp_path / "out"), "--steps", "1", "--decode", "dali"]
    second = [*command, "--autoencoder", str(tmp_path / "none")]
    for training, told in (
        (fusion, command),
        (autoencoder, command),
        (diffusion, second),
        (generate, command),
    ):
        assert training.main(told) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {bad}") and said.count("\n") == 1
    with pytest.raises(InputError, match="decode 'pillow'; expected opencv, dali"):
        data.read_sets(root, "train", "pillow")
