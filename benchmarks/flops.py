"""The arithmetic of the network, and the rate of a matrix product for comparison."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

from mmif_trt import runtimes
from mmif_trt.image import InputError
from mmif_trt.runtimes.openvino import core_of


def network_macs(config: dict[str, int], height: int, width: int) -> int:
    """Multiply-accumulates of LAGN's convolutions, linear layers and attention for one pair, padded.

    config: LAGNConfig's fields, stride left out for 4. Element-wise operations (normalisation, GELU, softmax,
    blend) are not counted, as is usual. tests/benchmarks/test_bench.py compares with torch's own counter.
    """
    stride = config.get("stride", 4)
    multiple, pool = stride * config["window"], (stride // 2) ** 2
    height, width = (-(-side // multiple) * multiple for side in (height, width))
    half, coarse = height * width // 4, height * width // stride**2
    local, wide, tokens = config["local_dim"], config["global_dim"], config["window"] ** 2
    local_block = 9 * local + 2 * (local * 2 * local)  # depthwise 3x3, expand, reduce
    global_block = 4 * wide**2 + 2 * (wide * 2 * wide) + 2 * tokens * wide  # qkv and proj, MLP, QK^T and AV
    at_half = 9 * 12 * local + (config["local_depth"] + config["decoder_depth"]) * local_block
    at_half += 2 * local * local + 9 * local * 4  # gate, head
    # Embed, blocks, unembed.
    at_coarse = pool * local * wide + config["global_depth"] * global_block + wide * pool * local
    return half * at_half + coarse * at_coarse


def make_matmul(runtime: runtimes.Runtime, n: int, threads: int) -> Callable[[], object] | None:
    """An n x n by n x n product in the runtime's own library and precision. In OpenVINO the second factor is
    a constant, like weights, so that it is packed beforehand. None if
    that library is not installed."""
    if runtime.name not in ("torch", "torch-compile", "cuda-graph", "openvino"):
        return None
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((n, n), np.float32) for _ in range(2))
    if runtime.name != "openvino":
        import torch

        x, y = (torch.from_numpy(m).to(runtime.device) for m in (left, right))

        def product() -> object:
            with torch.inference_mode():
                out = x @ y
                if out.is_cuda:
                    torch.cuda.synchronize()
            return out

        return product
    import openvino
    from openvino import opset13 as ops

    x = ops.parameter([n, n], np.float32)
    model = openvino.Model([ops.matmul(x, ops.constant(right), False, False)], [x])
    hint = {"bf16": "bf16", "fp32": "f32"}[runtime.precision]
    options = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    try:
        request = core_of(os.getpid()).compile_model(model, "CPU", options).create_infer_request()
    except RuntimeError as error:  # bfloat16 on a processor that is kept to AVX2: the plugin says it has it
        raise InputError(f"OpenVINO multiplies no {hint} matrices here") from error
    return lambda: request.infer([left], share_inputs=True, share_outputs=True)
