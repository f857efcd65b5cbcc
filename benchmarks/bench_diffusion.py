"""The latent diffusion's time: a training step of the denoiser, and sampling. [--device cuda] [--json FILE]

The released autoencoder and denoiser, batches of 8 at 256 x 256 px: a step of bfloat16 with its optimiser,
one call of the denoiser, 20 DDIM steps, and decoding their result; with and without the kernels, in turn.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import report
import torch
from timing import Phases, card_state, take_turns
from torch import Tensor

from mmif_trt import ops
from mmif_trt.models.autoencoder import STRIDE
from mmif_trt.train import autoencoder, diffusion, generate
from mmif_trt.weights import verified_diffusion

DRAW_STEPS = 20


def works(size: int, batch: int, steps: int, device: torch.device) -> dict[str, Callable[[Tensor], None]]:
    """What is timed, by name; each takes noise of the joined latents."""
    joint = autoencoder.load(verified_diffusion("autoencoder")).to(device)
    model = diffusion.load(verified_diffusion("denoiser")).to(device)
    learner = diffusion.load(verified_diffusion("denoiser")).to(device).train().requires_grad_(True)
    optimiser = torch.optim.AdamW(learner.parameters(), lr=1e-5, fused=True)
    modality = torch.zeros(batch, dtype=torch.long, device=device)
    times = torch.linspace(50, 950, batch, device=device)

    def step(noise: Tensor) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            v = learner(noise, times, times, modality)
        optimiser.zero_grad(set_to_none=True)
        (v - noise).square().mean().backward()
        optimiser.step()

    @torch.no_grad()
    def call(noise: Tensor) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            model(noise, times, times, modality)

    @torch.no_grad()
    def decode(noise: Tensor) -> None:
        for kind, half in zip(("mri", "ct"), noise.chunk(2, 1), strict=True):
            joint.decode(kind, half)

    def draw(noise: Tensor) -> None:
        generate.sample(model, noise, "ct", None, steps)

    return {"training step": step, "denoiser": call, f"{steps} DDIM steps": draw, "decode": decode}


def phases(work: Callable[[Tensor], None], kernels: bool) -> Phases:
    def run(given: tuple[Tensor], mark: Callable[[], None]) -> None:
        if kernels and not ops.has_kernel(given[0]):
            raise RuntimeError(f"no kernel on {given[0].device.type} ({ops.KERNELS})")
        with nullcontext() if kernels else ops.plain_operations():
            work(given[0])
        mark()

    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, default=256, help="px a side")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--draw-steps", type=int, default=DRAW_STEPS)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    result: dict[str, Any] = {"what": "bench_diffusion.py", "conditions": report.conditions()}
    result["conditions"]["device"] = report.device_facts(device)
    chosen = ("size", "batch", "draw_steps", "rounds", "warmup", "threads")
    result["settings"] = {name: getattr(args, name) for name in chosen}
    result["rows"] = []
    channels = 2 * diffusion.DiffusionTraining().model.channels
    side = args.size // STRIDE
    inputs = [(torch.randn(args.batch, channels, side, side, device=device),) for _ in range(3)]
    for what, work in works(args.size, args.batch, args.draw_steps, device).items():
        rivals = {name: phases(work, name == "kernel") for name in ("kernel", "plain torch")}
        for name, found in take_turns(rivals, inputs, args.rounds, args.warmup).items():
            row: dict[str, Any] = {"what": what, "rival": name}
            if found.refused is not None:
                row |= {"status": "refused", "reason": found.refused}
            else:
                row |= {"status": "measured", "ms": report.percentiles(found.phases()[0], 4)}
                row |= {"as_called_ms": report.percentiles(found.as_called[0], 4)}
                row |= {"clock": "device" if found.device else "as called"}
            result["rows"].append(row)
            print(f"{what}, {name}: {row.get('reason') or row['ms']['p50']} ms", flush=True)
        if device.type == "cuda":
            result.setdefault("card", []).append(card_state())
        report.write_so_far(args.json, result)
    if args.json:
        report.write_json(args.json, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
