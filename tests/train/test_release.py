"""train/export_onnx: a release of one network, beside the other's, which stays as it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_data import write_sets

from mmif_trt import runtimes, weights
from mmif_trt.models import load_model
from mmif_trt.models.autoencoder import AutoencoderConfig
from mmif_trt.models.denoiser import DenoiserConfig
from mmif_trt.models.lagn import LAGN, LAGNConfig
from mmif_trt.train import autoencoder, diffusion, export_diffusion, export_onnx
from mmif_trt.train.mix import save_network

onnx = pytest.importorskip("onnx", reason="needs the train extra")
TINY = {"local_dim": 8, "local_depth": 1, "global_dim": 8, "global_depth": 2, "head_dim": 8, "window": 4}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    copy = Path(shutil.copytree(weights.FOLDER, tmp_path / "weights"))
    monkeypatch.setattr(weights, "FOLDER", copy)
    for cached in (weights.manifest, weights.verified_path):
        cached.cache_clear()
    yield copy
    for cached in (weights.manifest, weights.verified_path):
        cached.cache_clear()


def digests(folder: Path) -> dict[str, str]:
    return {path.name: weights.sha256(path) for path in folder.iterdir() if path.is_file()}


def test_a_release_leaves_the_other_network_alone(folder: Path, tmp_path: Path) -> None:
    name = "lagn-quality"
    torch.manual_seed(0)
    model = LAGN(LAGNConfig(**TINY, stride=8, decoder_depth=1))
    run = {"step": "7", "config": json.dumps({"model": model.config.as_dict()})}
    checkpoint = save_network(tmp_path / "run", model.state_dict(), run)
    before, was = digests(folder), weights.manifest()
    words = ["--checkpoint", str(checkpoint), "--command", "a test", "--commit", "none", "--name", name]
    assert export_onnx.main(words) == 0
    own = {f"{name}.{suffix}" for suffix in weights.SUFFIXES}
    changed = {file for file, digest in digests(folder).items() if before.get(file) != digest}
    assert changed == own | {"manifest.json"} and digests(folder).keys() == before.keys()
    weights.manifest.cache_clear()
    now = weights.manifest()
    record = now["models"].pop(name)
    del was["models"][name]
    assert now == was and list(json.loads((folder / "manifest.json").read_text())["models"]) == [
        *weights.NAMES
    ]
    assert record["parameters"] == sum(p.numel() for p in model.parameters())
    assert (record["training"]["steps"], record["training"]["command"]) == (7, "a test")
    weights.manifest.cache_clear()
    a, b, f = map(torch.from_numpy, runtimes.golden(name))
    with torch.inference_mode():
        np.testing.assert_allclose(load_model(name)(a[:, None], b)[:, 0].numpy(), f.numpy(), atol=1e-5)
    assert not (folder / f"{name}.safetensors").stat().st_mode & 0o133


def test_a_diffusion_is_released_as_a_pair(folder: Path, tmp_path: Path) -> None:
    """Any two checkpoints were, in any order: of an unfinished training, or of two latent spaces."""
    root = write_sets(tmp_path / "data", "{split}{i}_slice")
    small = autoencoder.AutoencoderTraining(
        steps=2, batch_size=1, crop_px=32, precision="fp32", model=AutoencoderConfig(8, 1, 4)
    )
    second = diffusion.DiffusionTraining(
        steps=2,
        batch_size=1,
        precision="fp32",
        model=DenoiserConfig(channels=4, dim=32, deep_dim=32, embedding=16, window=4),
    )
    first, other = (autoencoder.train(replace(small, seed=i), root, tmp_path / f"{i}") for i in range(2))
    half = diffusion.train(second, root, first, tmp_path / "half", stop_after=1)
    whole = diffusion.train(second, root, first, tmp_path / "whole")
    before, told = digests(folder), ["--command", "a test", "--commit", "none"]
    for pair in ((first, half), (other, whole), (whole, first)):
        assert export_diffusion.main(["--autoencoder", str(pair[0]), "--diffusion", str(pair[1]), *told]) == 2
        assert digests(folder) == before
    assert export_diffusion.main(["--autoencoder", str(first), "--diffusion", str(whole), *told]) == 0
    now = digests(folder)
    changed = {name for name in now if now[name] != before.get(name)}
    assert changed == {"autoencoder.safetensors", "denoiser.safetensors", "manifest.json"}
    files = json.loads((folder / "manifest.json").read_text())["diffusion"]["files"]
    assert {name: entry["sha256"] for name, entry in files.items()} == {name: now[name] for name in files}
    diffusion.load_both(*(folder / f"{name}.safetensors" for name in ("autoencoder", "denoiser")))


def test_a_release_that_fails_leaves_the_one_before(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of its files were new, and the installation refused both networks."""
    model = LAGN(LAGNConfig(**TINY, stride=8, decoder_depth=1))
    run = {"step": "7", "config": json.dumps({"model": model.config.as_dict()})}
    checkpoint = save_network(tmp_path / "run", model.state_dict(), run)
    before = digests(folder)
    told = ["--command", "a test", "--commit", "none"]
    assert export_onnx.main(["--checkpoint", str(tmp_path / "none"), *told]) == 2
    both = ["--autoencoder", str(folder / "autoencoder.safetensors"), "--diffusion", str(checkpoint)]
    assert export_diffusion.main([*both, *told]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "no such file" in lines[0] and "of another network" in lines[1]

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device", "golden")

    monkeypatch.setattr(export_onnx, "golden_pairs", fails)
    assert export_onnx.main(["--checkpoint", str(checkpoint), *told]) == 2
    assert capsys.readouterr().err == "error: golden: No space left on device\n"
    assert digests(folder) == before and not [path for path in folder.iterdir() if path.name[0] == "."]


@pytest.mark.parametrize("name", weights.NAMES)
def test_biases_are_additions(name: str) -> None:
    """Which OpenVINO fuses where the size is open, see export_onnx.add_biases."""
    graph = onnx.load(weights.verified_path(name, "onnx")).graph
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert convolutions and all(len(node.input) == 2 for node in convolutions)
    biased = sum(node.name.endswith("/bias") for node in graph.node)
    assert 0 < biased <= len(convolutions)
