"""The panel in napari: two layers, how to fuse them, and a button; the work runs beside the window."""

from __future__ import annotations

from typing import Any, Literal

from mmif_trt import weights
from mmif_trt.about import RESEARCH_USE
from mmif_trt.plugin.layers import BY_MODALITY, fuse_layers
from mmif_trt.running import explain
from mmif_trt.stages.palettes import PALETTES


def fuse_widget() -> Any:
    """A magicgui panel; napari gives it the viewer and keeps its lists of layers."""
    from magicgui import magicgui
    from napari.layers import Image
    from napari.qt.threading import thread_worker
    from napari.utils.notifications import show_error
    from napari.viewer import Viewer

    def fuse(
        viewer: Viewer,
        mri: Image,
        other: Image,
        modality: Literal["pet", "ct", "spect"] = "pet",
        palette: str = BY_MODALITY,
        registration: Literal["header", "rigid"] = "header",
        plane: Literal["axial", "coronal", "sagittal"] = "axial",
        network: str = weights.DEFAULT,
    ) -> Any:
        if mri is None or other is None:
            lacks = "MRI" if mri is None else "CT, PET or SPECT"
            show_error(f"mmif-trt: no layer is chosen as {lacks}; expected two image layers: open both files")
            return None
        panel.call_button.enabled = False

        def show(made: Any) -> None:
            data, how, _ = made
            viewer.add_image(data, **how)

        def end() -> None:
            panel.call_button.enabled = True

        work = thread_worker(fuse_layers, progress={"desc": "fusing"})(
            mri, other, modality, palette, registration, plane, network=network
        )
        work.returned.connect(show)
        work.errored.connect(lambda error: show_error(f"mmif-trt: {explain(error)}"))
        work.finished.connect(end)
        work.start()
        return work

    for name, kind in (("viewer", Viewer), ("mri", Image), ("other", Image)):
        fuse.__annotations__[name] = kind  # magicgui looks types up by name, and these are imported in here
    panel = magicgui(
        fuse,
        call_button="Fuse",
        viewer={"visible": False},
        mri={"label": "MRI"},
        other={"label": "CT, PET or SPECT"},
        palette={"choices": [BY_MODALITY, *PALETTES], "tooltip": "of a scalar B"},
        registration={"tooltip": "header: as the layers lie; rigid: by mutual information, reported"},
        plane={
            "tooltip": "of the slices that the network sees; the layer's first axis is the slice of axial"
        },
        network={"choices": list(weights.NAMES), "tooltip": "lagn-quality: finer and slower"},
    )
    panel.native.setToolTip(f"Black and white are the layers' contrast limits. {RESEARCH_USE}")
    return panel
