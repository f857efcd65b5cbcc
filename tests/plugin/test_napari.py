"""The plugin for napari: layers to images without it; with it, manifest and panel, offscreen."""

from __future__ import annotations

import os
import time
from importlib import import_module, resources
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from phantoms import affine_of, grid, head, uptake

import mmif_trt
from mmif_trt.image import InputError
from mmif_trt.plugin import layers

SHAPE = (20, 24, 22)
AFFINE = affine_of("SPL", (8, 8, 8), SHAPE)


class Average:
    """In place of the network, which other tests cover."""

    def fuse_images(self, a: Any, b: Any) -> Any:
        return b

    def fuse_volumes(self, a: Any, b: Any, options: Any) -> Any:
        from mmif_trt import volume

        return volume.fuse(lambda x, y: (x + y[0]) / 2, a, b, options)


def layer(name: str, data: np.ndarray, affine: np.ndarray | None = None, **more: Any) -> Any:
    """What the plugin needs of a napari layer."""
    matrix = np.eye(data.ndim + 1) if affine is None else affine
    to_world = lambda at: matrix[:-1, :-1] @ np.asarray(at) + matrix[:-1, -1]  # noqa: E731
    given = {"name": name, "data": data, "rgb": False, "contrast_limits": (0, 8), "data_to_world": to_world}
    return SimpleNamespace(**{**given, **more})


def pair() -> tuple[Any, Any]:
    """An MRI, and a PET on a grid of its own that lies 16 mm lower; in napari's world."""
    lower = affine_of("SPL", (4, 8, 8), SHAPE, middle=(0, 0, -16))
    world = np.linalg.inv(layers.WORLD)
    mri = layer("mri", head(grid(AFFINE, SHAPE)), world @ AFFINE, contrast_limits=(0, 1000))
    return mri, layer("pet", uptake(grid(lower, SHAPE)) / 100, world @ lower)


def test_layers_are_fused_where_they_lie() -> None:
    mri, pet = pair()
    data, how, kind = layers.fuse_layers(mri, pet, fuser=Average())
    a, b = layers.image_of(mri, "mri"), layers.image_of(pet, "pet")
    np.testing.assert_allclose(a.affine, AFFINE)
    assert a.orientation == "SPL" and (a.value_range, b.value_range) == ((0, 1000), (0, 8))
    expected = Average().fuse_volumes(a, b, mmif_trt.volume.Options(plane="axial"))
    np.testing.assert_array_equal(data, expected.image.data)
    assert kind == "image" and how["rgb"] and how["name"] == "mri + pet"
    np.testing.assert_allclose(how["affine"], np.linalg.inv(layers.WORLD) @ AFFINE)
    assert how["metadata"]["mmif_trt"]["registration"]["inside"] < 1
    grey = layers.fuse_layers(mri, pet, modality="ct", fuser=Average())
    assert not grey[1]["rgb"] and grey[1]["contrast_limits"] == (0, 65535)


def test_the_network_is_the_one_that_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []
    monkeypatch.setattr("mmif_trt.fuser.Fuser", lambda network: chosen.append(network) or Average())
    picture = layer("m", np.zeros((30, 40), np.uint8), contrast_limits=(0, 255))
    layers.fuse_layers(picture, picture)
    layers.fuse_layers(picture, picture, network="lagn-quality")
    assert chosen == ["lagn", "lagn-quality"]


def test_pictures_and_what_is_not_a_picture() -> None:
    picture = np.zeros((30, 40), np.uint8)
    rgb = layer("rgb", np.zeros((30, 40, 4), np.uint8), np.eye(3), rgb=True)
    data, how, _ = layers.fuse_layers(layer("m", picture, contrast_limits=(0, 255)), rgb, fuser=Average())
    assert data.shape == (30, 40, 3) and how["rgb"]
    stored_as_rgb = layer("m", np.zeros((30, 40, 3), np.uint8), np.diag([2.0, 3.0, 1.0]), rgb=True)
    data, how, _ = layers.fuse_layers(stored_as_rgb, rgb, fuser=Average())  # a grey MRI saved as RGB
    assert data.shape == (30, 40, 3) and how["affine"].tolist() == np.diag([2.0, 3.0, 1.0]).tolist()
    for bad in (layer("t", np.zeros((3, 20, 20, 20))), layer("p", picture, multiscale=True)):
        with pytest.raises(InputError, match="expected"):
            layers.image_of(bad)
    assert [one[1]["rgb"] for one in layers.sample_layers()] == [False, True]


def test_the_manifest_names_what_is_there() -> None:
    npe2 = pytest.importorskip("npe2", reason="needs napari: pip install 'mmif-trt[napari]'")
    path = resources.files("mmif_trt.plugin").joinpath("napari.yaml")
    manifest = npe2.PluginManifest.from_file(str(path))
    assert [one.command for one in manifest.contributions.widgets] == ["mmif-trt.fuse"]
    for command in manifest.contributions.commands:
        module, _, name = command.python_name.partition(":")
        assert callable(getattr(import_module(module), name))


def test_the_panel_adds_a_layer() -> None:
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    pytest.importorskip("napari", reason="needs napari: pip install 'mmif-trt[napari]'")
    pytest.importorskip("qtpy.QtWidgets", reason="needs a Qt: pip install 'napari[pyqt6]'")
    from napari.components import ViewerModel
    from napari.qt import get_qapp

    from mmif_trt.plugin.widget import fuse_widget

    app = get_qapp()
    viewer: Any = ViewerModel()
    mri, pet = pair()
    for one in (mri, pet):
        affine = np.eye(4)
        affine[:3, :3] = np.array([one.data_to_world(unit) for unit in np.eye(3)]).T
        affine[:3, :3] -= np.asarray(one.data_to_world(np.zeros(3)))[:, None]
        affine[:3, 3] = one.data_to_world(np.zeros(3))
        viewer.add_image(one.data, name=one.name, affine=affine, contrast_limits=one.contrast_limits)
    panel = fuse_widget()
    panel.mri.choices = panel.other.choices = list(viewer.layers)
    panel.mri.value, panel.other.value = viewer.layers["mri"], viewer.layers["pet"]
    panel.viewer.bind(viewer)
    ended: list[bool] = []
    work = panel()
    work.finished.connect(lambda: ended.append(True))
    for _ in range(6000):  # two minutes; a loaded machine needs some
        app.processEvents()
        if ended:
            break
        time.sleep(0.02)
    assert ended and [one.name for one in viewer.layers] == ["mri", "pet", "mri + pet"]
    made = viewer.layers["mri + pet"]
    assert made.rgb and made.data.shape == (*SHAPE, 3)
    np.testing.assert_allclose(made.data_to_world((1, 2, 3)), viewer.layers["mri"].data_to_world((1, 2, 3)))
    assert panel.call_button.enabled
