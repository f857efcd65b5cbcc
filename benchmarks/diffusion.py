"""What the latent diffusion has learnt, on unseen cases: python benchmarks/diffusion.py --data HARVARD
--autoencoder A --diffusion D [--out benchmarks/results/diffusion.json]

Two questions. Do the halves of a generated pair belong together: mutual information (nats, 256 x 256 bins)
of each pair against the same images shuffled. How well is one modality predicted from the other: root mean
squared error in levels of 255 over the foreground (either source above 2), for the expectation that the
training of LAGN takes, for the mean of several draws, for one draw, for a ridge regression from the other
latent's 5 x 5 neighbourhood and place, and for the mean training image.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from quality import commit
from torch import Tensor

from mmif_trt.files import write_atomic
from mmif_trt.machine import conditions
from mmif_trt.measure.metrics import mi
from mmif_trt.models.autoencoder import Autoencoder
from mmif_trt.models.denoiser import Denoiser
from mmif_trt.train import autoencoder, data, diffusion, generate
from mmif_trt.weights import sha256

REPO = Path(__file__).resolve().parent.parent
NEIGHBOURHOOD = 5  # latent positions per side
RIDGE = 1.0


def agreement(images: np.ndarray) -> dict[str, float]:
    """images [2, n, H, W]: mean mutual information of the pairs, of shuffled ones, how often it is higher.

    Shuffled: every a with the next pair's b, among real ones a neighbouring slice: the hard choice.
    """
    a, b = images.astype(np.float64)
    own = np.array([mi(x, x, y) / 2 for x, y in zip(a, b, strict=True)])
    other = np.array([mi(x, x, y) / 2 for x, y in zip(a, np.roll(b, 1, 0), strict=True)])
    return {"pairs": own.mean(), "shuffled": other.mean(), "higher": (own > other).mean()}


def features(z: Tensor) -> Tensor:
    """[n, C, h, w] -> [n h w, C 25 + 6]: the neighbourhood, and the place as a polynomial of second order."""
    n, _, height, width = z.shape
    around = F.unfold(z, NEIGHBOURHOOD, padding=NEIGHBOURHOOD // 2).transpose(1, 2)  # [n, h w, C 25]
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    place = torch.stack([torch.ones_like(x), x, y, x * y, x * x, y * y], -1).reshape(1, -1, 6)
    return torch.cat([around, place.expand(n, -1, -1)], 2).flatten(0, 1).double()


class Regression:
    """Ridge regression of one half of the latent from the other, in closed form on the training pairs."""

    def __init__(self, latents: Tensor, wanted: int) -> None:
        self.wanted = wanted
        halves = latents.chunk(2, 1)
        size = features(halves[0][:1]).shape[1]
        gram, product = torch.zeros(size, size).double(), torch.zeros(size, halves[0].shape[1]).double()
        for given, target in zip(halves[1 - wanted].split(16), halves[wanted].split(16), strict=True):
            x = features(given)
            gram += x.T @ x
            product += x.T @ target.permute(0, 2, 3, 1).flatten(0, 2).double()
        self.weight = torch.linalg.solve(gram + RIDGE * torch.eye(size), product)

    def __call__(self, latents: Tensor) -> Tensor:
        given = latents.chunk(2, 1)[1 - self.wanted]
        n, _, height, width = given.shape
        out = (features(given) @ self.weight).float()
        return out.reshape(n, height, width, -1).permute(0, 3, 1, 2).contiguous()


def rmse(told: np.ndarray, truth: np.ndarray, foreground: np.ndarray) -> float:
    difference = (told.astype(np.float64) - truth)[foreground]
    return float(np.sqrt((difference**2).mean()))


@torch.no_grad()
def regressed(joint: Autoencoder, training: data.Pairs, held_out: data.Pairs, multiple: int) -> np.ndarray:
    """[2, n, H, W] float: either half of the held-out pairs by regression."""
    size = diffusion.padded_size([training, held_out], multiple)
    latents = diffusion.encoded(joint, training, size).flatten(0, 1)
    given = diffusion.encoded(joint, held_out, size, (False,))[0]
    height, width = held_out.a.shape[1:]
    out = []
    for wanted, kind in enumerate(("mri", training.modality)):
        z = Regression(latents, wanted)(given)
        pictures = torch.cat([joint.decode(kind, part) for part in z.split(8)])
        out.append(255 * pictures[:, 0, :height, :width].numpy())
    return np.stack(out)


def evidence(
    joint: Autoencoder, model: Denoiser, training: data.Pairs, held_out: data.Pairs, args: argparse.Namespace
) -> dict[str, Any]:
    size = (held_out.a.shape[1], held_out.a.shape[2])
    drawn = generate.joint_samples(joint, model, held_out.modality, args.pairs, size, args.steps)
    found: dict[str, Any] = {"mutual_information": {"generated": agreement(drawn)}}
    found["mutual_information"]["real"] = agreement(np.stack([held_out.a, held_out.b]))
    told = {
        "diffusion, expectation": generate.cross_generate(joint, model, held_out, 1, args.samples),
        f"diffusion, mean of {args.samples} draws": generate.cross_generate(
            joint, model, held_out, args.steps, args.samples
        ),
        "diffusion, one draw": generate.cross_generate(joint, model, held_out, args.steps, 1),
        "regression": regressed(joint, training, held_out, model.config.multiple),
        "mean image": np.stack(
            [np.broadcast_to(x.mean(0), held_out.a.shape) for x in (training.a, training.b)]
        ),
    }
    foreground = np.maximum(held_out.a, held_out.b) > 2
    for wanted, (kind, truth) in enumerate((("mri", held_out.a), (held_out.modality, held_out.b))):
        errors = {name: rmse(images[wanted], truth, foreground) for name, images in told.items()}
        found[f"{kind}_from_the_other"] = errors
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--autoencoder", type=Path, required=True)
    parser.add_argument("--diffusion", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=32, help="joint samples per modality")
    parser.add_argument("--samples", type=int, default=4, help="draws to average")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=REPO / "benchmarks/results/diffusion.json")
    args = parser.parse_args()
    training, held_out = data.read_splits(args.data)
    joint, model = diffusion.load_both(args.autoencoder, args.diffusion)
    told = {"autoencoder": args.autoencoder, "diffusion": args.diffusion}
    report: dict[str, Any] = {
        "conditions": conditions() | {"commit": commit()},
        "settings": {"pairs": args.pairs, "samples": args.samples, "steps": args.steps},
        "sha256": {name: sha256(path) for name, path in told.items()},
        "psnr_db": autoencoder.psnr(joint, held_out),
        "sets": {},
    }
    for train_pairs, val_pairs in zip(training, held_out, strict=True):
        report["sets"][f"mri-{val_pairs.modality}"] = evidence(joint, model, train_pairs, val_pairs, args)
    write_atomic(args.out, (json.dumps(report, indent=1) + "\n").encode())
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
