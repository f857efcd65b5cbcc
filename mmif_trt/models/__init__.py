"""The networks, in torch. `load_model` gives the shipped one; inference without torch takes the ONNX file
instead."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from mmif_trt import weights

if TYPE_CHECKING:
    from mmif_trt.models.lagn import LAGN


def load_model(name: str = "lagn", device: str = "cpu") -> LAGN:
    """The trained network in eval mode on `device`; its dimensions are those of the weight file.

    Raises InputError for an unknown name or a weight file that is not the manifest's.
    """
    from safetensors import safe_open

    from mmif_trt.models.lagn import LAGN, LAGNConfig

    path = weights.verified_path(name, "safetensors")
    with safe_open(path, "pt") as file:
        config = LAGNConfig(**json.loads(file.metadata()["config"]))
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    model = LAGN(config)
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False).to(device)
