"""Second derivatives of the kernels: none, and said so; without this torch warns once and takes them as 0."""

from __future__ import annotations

from typing import Any

import torch


def refuse(name: str) -> None:
    """mmif_trt::NAME_bwd raises RuntimeError where a derivative of its result is asked for."""

    def backward(ctx: Any, *_: Any) -> None:
        raise RuntimeError(
            f"mmif_trt::{name}_bwd: no second derivative; expected: a first derivative, or plain operations "
            "(with mmif_trt.ops.plain_operations(): around forward)"
        )

    torch.library.register_autograd(f"mmif_trt::{name}_bwd", backward)
