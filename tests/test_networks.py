"""Each shipped network by Fuser and fuse: any size, its own pixels, and outputs that name it."""

from __future__ import annotations

import inspect
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from phantoms import affine_of, grid, head, uptake

import mmif_trt
from mmif_trt import Fuser, Image, runtimes, sample, volume, weights
from mmif_trt import fuser as fuser_module
from mmif_trt.clinical import outputs
from mmif_trt.clinical.cases import How
from mmif_trt.clinical.records import Output, Run
from mmif_trt.cluster import work
from mmif_trt.running import Stop
from mmif_trt.stages import tiling
from mmif_trt.storage import Folder

QUALITY = "lagn-quality"
SHAPE, AFFINE = (3, 36, 40), affine_of("SPL", (6, 4, 4), (3, 36, 40))
VOLUMES = (
    Image(head(grid(AFFINE, SHAPE)).astype(np.uint16), (0, 1000), "mri", affine=AFFINE),
    Image(uptake(grid(AFFINE, SHAPE)).astype(np.float32), (0, 1000), "pet", affine=AFFINE),
)


@pytest.fixture(scope="module")
def fusers() -> dict[str, Fuser]:
    return {name: Fuser("openvino", "fp32", 1, network=name) for name in weights.NAMES}


def description(image: Image) -> str:
    return dict(image.label)["Description"]


def test_the_default_is_the_first_everywhere() -> None:
    for function in (mmif_trt.fuse, Fuser, mmif_trt.load_model, runtimes.load, volume.fuse):
        given = inspect.signature(function).parameters
        assert given["network" if "network" in given else "name"].default == "lagn" == weights.DEFAULT


@pytest.mark.parametrize("network", weights.NAMES)
def test_any_size_is_what_torch_fuses(fusers: dict[str, Fuser], network: str) -> None:
    pytest.importorskip("torch")
    reference = runtimes.load("torch", "fp32", 1, network=network)
    for height, width in ((16, 33), (70, 50)):
        a, b = np.random.default_rng(height).random((2, height, width), np.float32)
        expected = tiling.run(reference.infer, a, b)
        np.testing.assert_allclose(fusers[network](a, b), expected, rtol=0, atol=1e-4)


def test_pictures_are_of_the_network_and_name_it(
    fusers: dict[str, Fuser], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = (image.with_data(np.ascontiguousarray(image.data[64:160, 80:176])) for image in sample("mri-pet"))
    monkeypatch.setattr(fuser_module, "Fuser", lambda runtime, precision, network: fusers[network])
    fuser_module._default_fuser.cache_clear()
    fused = {name: fuser(a, b) for name, fuser in fusers.items()}
    assert np.abs(fused["lagn"].data.astype(int) - fused[QUALITY].data).max() > 2
    for name, image in fused.items():
        title = {"lagn": "LAGN", QUALITY: "LAGN-quality"}[name]
        assert description(image) == f"A and B fused by {title}, weights sha256 {weights.onnx_sha256(name)}"
        again = mmif_trt.fuse(a, b, network=name)
        assert again.label == image.label, "not the Fuser of another call"
        np.testing.assert_array_equal(again.data, image.data)
    np.testing.assert_array_equal(mmif_trt.fuse(a, b).data, fused["lagn"].data)
    fuser_module._default_fuser.cache_clear()


def test_a_pickled_fuser_keeps_its_network(fusers: dict[str, Fuser]) -> None:
    assert pickle.loads(pickle.dumps(fusers[QUALITY])).network == QUALITY


def test_a_worker_of_a_cluster_loads_the_network_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(work, "Fuser", lambda *_, network, **how: loaded.append(network))
    how = How(Output(Folder(tmp_path), ".nii"), Run(runtime="openvino", precision="fp32", network=QUALITY))
    for one in (work.Cases(how, "token"), work.Pairs("openvino", "fp32", "lagn")):
        _, close = one.open(1, Stop())
        close()
    assert loaded == [QUALITY, "lagn"]


@pytest.mark.parametrize("network", weights.NAMES)
def test_volumes_name_the_network_in_every_format(
    fusers: dict[str, Fuser], network: str, tmp_path: Path
) -> None:
    nibabel = pytest.importorskip("nibabel")
    title, digest = weights.title(network), weights.onnx_sha256(network)
    fused = fusers[network].fuse_volumes(*VOLUMES)
    assert fused.network == network
    for image in (fused.image, fused.luma):
        assert description(image) == f"A and B fused by {title}, weights sha256 {digest}"
    for path in outputs.save(str(tmp_path / "x.nii"), fused, *VOLUMES):
        short = bytes(nibabel.load(path).header["descrip"].tobytes()).rstrip(b"\0").decode()
        assert short == f"mmif_trt {mmif_trt.__version__}, {title} {digest[:8]}: research use only"
    told = json.loads(outputs.report_of(fused, []))
    assert list(told["weights"]) == [network]
    assert told["weights"][network]["sha256"][f"{network}.onnx"] == digest
