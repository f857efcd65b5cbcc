"""The networks, in torch. `load_model` returns the shipped one; inference without torch uses the ONNX
file."""

from __future__ import annotations

import importlib.util
import json
from typing import TYPE_CHECKING

from mmif_trt import weights
from mmif_trt.image import InputError

if TYPE_CHECKING:
    from mmif_trt.models.lagn import LAGN

NEEDS = ("torch", "safetensors")


def load_model(name: str = "lagn", device: str = "cpu") -> LAGN:
    """The trained network in eval mode on `device`; its dimensions come from the weight file.

    Raises InputError for an unknown name or device, a weight file that differs from the manifest, and without
    torch.
    """
    if missing := [name for name in NEEDS if importlib.util.find_spec(name) is None]:
        raise InputError(
            f"load_model: {' and '.join(missing)} not installed; try pip install 'mmif-trt[train]' "
            "(mmif_trt.fuse needs neither)"
        )
    import torch
    from safetensors import safe_open

    from mmif_trt.models.lagn import LAGN, LAGNConfig

    path = weights.verified_path(name, "safetensors")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter: torch built without CUDA
        reason = str(error).splitlines()[0]
        raise InputError(f"device {device!r}: {reason}; expected cpu, or cuda on a machine with it") from None
    with safe_open(path, "pt") as file:
        config = LAGNConfig(**json.loads(file.metadata()["config"]))
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    model = LAGN(config)
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False).to(device)
