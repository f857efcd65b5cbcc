"""Train LAGN on registered pairs: python -m mmif_trt.train.fusion --data HARVARD --out runs/v0

Third of the three trainings; with --generated (train/generate.py) the pictures of the diffusion model take
part in the loss, without it the first two are not needed. The network runs in channels-last order, in
bfloat16 as later on many a CPU, or with --precision fp32 as the released ones did; losses and weights are
FP32. A further term (--rounding) keeps both precisions together. The losses are those of `losses.py`, and
those of `fidelity_losses.py` and `lesions.py` where they have a weight; all sets together.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmif_trt.image import InputError
from mmif_trt.models import load_model
from mmif_trt.models.lagn import BRANCHES, LAGN, REACHES, LAGNConfig
from mmif_trt.ops.reference import ACTIVATIONS
from mmif_trt.train import checkpoints, coloured, data, flags, generate, loop
from mmif_trt.train.captured import CapturedForward
from mmif_trt.train.fidelity_losses import (
    FidelityWeights,
    activity_loss,
    bone_loss,
    likeness_loss,
    recombined,
    saturation_loss,
    soft_tissue_loss,
    tracer_terms,
    uneven_loss,
)
from mmif_trt.train.lesions import lesion_loss, surprise_of
from mmif_trt.train.losses import LossWeights, fusion_loss, rounding_loss

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True)
class FusionConfig(loop.Schedule):
    """Everything but the data and the code that determines the result."""

    crop_px: int = 128
    randomised: float = 0.0  # share of the crops changed to look like another scanner's
    synthetic: float = 0.0  # share of the crops that are of no patient
    hold_out: tuple[str, ...] = ()  # cases of the training split left out, "MODALITY:CASE"
    turns: tuple[str, ...] = ()  # modalities of successive crops, again and again; (): each set in turn
    taught: float = 0.0  # weight of the distance to what the released network makes of the pair
    model: LAGNConfig = field(default_factory=LAGNConfig)
    loss: LossWeights = field(default_factory=LossWeights)
    fidelity: FidelityWeights = field(default_factory=FidelityWeights)


def new_state(config: FusionConfig) -> checkpoints.State:
    return loop.new_state(config, lambda: LAGN(config.model))


def forward(model: LAGN, a: Tensor, b: Tensor, precision: str) -> Tensor:
    """The fused image in float32, the layers in "bf16" (autocast) or "fp32"."""
    with torch.autocast(a.device.type, torch.bfloat16, enabled=precision == "bf16"):
        fused: Tensor = model(a, b)
    return fused


Forward = Callable[[LAGN, Tensor, Tensor, str], Tensor]


def batches_of(
    config: FusionConfig, sets: list[coloured.ColouredPairs], workers: int = 0
) -> coloured.Batches:
    """The batches of a training, with lesions where a term of the loss asks for them. workers: processes that
    make them ahead."""
    mixture = coloured.Mixture(
        config.seed,
        config.batch_size,
        config.crop_px,
        config.randomised,
        planted=any(config.fidelity.lesions.values()),
        synthetic=config.synthetic,
    )
    return coloured.Batches(sets, mixture, workers)


def objective(
    model: LAGN,
    config: FusionConfig,
    batches: coloured.Batches,
    forward: Forward = forward,
    teacher: LAGN | None = None,
) -> loop.Objective:
    """The loss of a step. forward: runs the network, as `forward` above and `captured.CapturedForward` do.
    teacher: the network to learn from, where config.taught has a weight.
    """

    def step_loss(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        rank, world = loop.rank_and_world()
        number = step * world + rank
        batch = batches.of(number, apart=world).to(loop.device())
        fused = forward(model, batch.a, batch.planes, config.precision)
        of_diffusion = (batch.generated, batch.known)
        loss, terms = fusion_loss(
            fused, batch.a, batch.b, batch.modalities, config.loss, *of_diffusion, batch.repainted
        )
        more, further = fidelity_loss(fused, batch, config.fidelity)
        loss, terms = loss + more, terms | further
        if teacher is not None:
            with torch.no_grad():
                shown = forward(teacher, batch.a, batch.planes, config.precision)
            apart = (fused - shown).abs().mean()
            loss, terms["taught"] = loss + config.taught * apart, apart.detach()
        if config.fidelity.flat:
            a, b = (levels.to(fused) for levels in coloured.flat(config.seed, number))
            uneven = uneven_loss(forward(model, a, b, config.precision), a, b).mean()
            loss, terms["flat"] = loss + config.fidelity.flat * uneven, uneven.detach()
        if config.loss.rounding:
            # On a few crops only: this pass is the most expensive, and bad rounding does not depend on the
            # crop.
            few = (config.batch_size + 1) // 2
            other_precision = "fp32" if config.precision == "bf16" else "bf16"
            other = forward(model, batch.a[:few], batch.planes[:few], other_precision)
            rounding = rounding_loss(fused[:few], other).mean()
            loss, terms["rounding"] = loss + config.loss.rounding * rounding, rounding.detach()
        return loss, terms

    return step_loss


def in_turn(sets: list[coloured.ColouredPairs], turns: tuple[str, ...]) -> list[coloured.ColouredPairs]:
    """The sets in the order in which they give crops. Raises InputError for a turn of a set that is not
    there, and for a set that has none."""
    named = {one.pairs.modality: one for one in sets}
    if turns and set(turns) != named.keys():
        raise InputError(f"--turns: {' '.join(turns)}; expected each of {', '.join(named)}, and no other")
    return [named[modality] for modality in turns] or sets


def fidelity_loss(
    f: Tensor, batch: coloured.Batch, weights: FidelityWeights
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of the terms of `fidelity_losses.py` and `lesions.py`, a mean over the batch as
    `fusion_loss` is, and each unweighted term for the log."""
    total, terms = f.new_zeros(()), {}
    colours = recombined(f, batch.rgb)
    for modality in sorted(set(batch.modalities)):
        mine = [i for i, m in enumerate(batch.modalities) if m == modality]
        share = len(mine) / len(batch.modalities)
        y, a, b = f[mine], batch.a[mine], batch.b[mine]
        if modality == "ct":
            found = {"soft": soft_tissue_loss(y, a, b), "bone": bone_loss(y, b)}
            found["activity"] = activity_loss(y, a, b)
        else:
            tracer = (batch.rgb[mine], batch.uptake[mine], batch.strong[mine])
            found = tracer_terms(y, colours[mine], a, b, *tracer)
            if getattr(weights, f"saturation_{modality}"):
                # Of other palettes only: of the archive's own, what the term takes from the MRI's light costs
                # SD and SCD.
                found["saturation"] = batch.repainted[mine] * saturation_loss(colours[mine], *tracer)
        if getattr(weights, f"likeness_{modality}"):
            found["likeness"] = likeness_loss(y, a, b)
        for name, term in found.items():
            total = total + share * getattr(weights, f"{name}_{modality}") * term.mean()
            terms[f"{name}/{modality}"] = term.mean().detach()
    if batch.sites:
        kinds = [batch.modalities[site.index] for site in batch.sites]
        of_ct = [kind == "ct" and site.source == "b" for kind, site in zip(kinds, batch.sites, strict=True)]
        gain_most = f.new_tensor([weights.lesion_gain_ct if mine else 1.0 for mine in of_ct])
        lost, counts = lesion_loss(colours, batch.a, batch.rgb, batch.sites, gain_most)
        weight = f.new_tensor([weights.lesions[kind] for kind in kinds])
        if weights.lesion_surprise and batch.generated is not None:
            expected = (batch.generated, batch.known, weights.lesion_surprise)
            weight = weight * surprise_of(batch.sites, batch.a, batch.b, *expected)
        total = total + (weight * counts * lost).mean()
        for kind in sorted(set(kinds)):
            terms[f"lesions/{kind}"] = lost[[i for i, k in enumerate(kinds) if k == kind]].mean().detach()
    return total, terms


@torch.no_grad()
def log_pictures(writer: SummaryWriter, state: checkpoints.State, sets: list[data.Pairs]) -> None:
    """One row MRI, other, fused for the middle pair of each set."""
    average = state.average
    assert isinstance(average, LAGN)
    for pairs in sets:
        i = len(pairs.names) // 2
        a, b = (
            torch.from_numpy(x[i]).float()[None, None].to(loop.device()) / 255 for x in (pairs.a, pairs.b)
        )
        multiple = average.config.multiple
        height, width = (n // multiple * multiple for n in a.shape[2:])
        a, b = a[..., :height, :width], b[..., :height, :width]
        writer.add_image(f"val/{pairs.modality}", torch.cat([a, b, average(a, b)], 3)[0], state.step)


def train(
    config: FusionConfig,
    root: Path,
    out: Path,
    init: Path | None = None,
    generated: Path | None = None,
    stop_after: int | None = None,
    checkpoint_every: int = 500,
    decode: str = "opencv",
    capture: bool = False,
    workers: int = 0,
) -> Path:
    """Train to the end, or continue from out/checkpoint.safetensors; returns the checkpoint's path.

    init: a checkpoint of an earlier stage to start from. generated: the file that train/generate.py wrote
    for the training pairs. stop_after: end at this step, with the learning rate of the whole schedule.
    decode: what reads the pictures, with identical results. capture: run the network as CUDA graphs
    (captured.py). workers: processes that make batches ahead, with identical results. Raises InputError for
    data, generated images or checkpoints that do not fit, FloatingPointError on a loss that is not finite
    (the last checkpoint stays).
    """
    run_network = CapturedForward() if capture else forward
    sets, validation = data.read_splits(root, decode)
    data.check_crop(config.crop_px, config.model.multiple, sets, validation)
    if generated is not None:
        sets = generate.attach(generated, sets)
    elif config.loss.generated_fused or config.loss.predictability:
        raise InputError("--generated: none; expected a file of train/generate.py with these loss weights")
    sets = coloured.without(sets, config.hold_out)
    in_colour = in_turn([coloured.read_colours(root, "train", pairs) for pairs in sets], config.turns)
    state, path = new_state(config), out / "checkpoint.safetensors"
    state.sources = data.sources(sets) | checkpoints.source_of("init", init)
    if not loop.resume(path, state, config) and init is not None:
        checkpoints.start_from(init, state, config.model)
    assert isinstance(state.model, LAGN)
    teacher = load_model(device=str(loop.device())) if config.taught else None
    with closing(batches_of(config, in_colour, workers)) as batches:
        step = objective(state.model, config, batches, run_network, teacher)
        show = partial(log_pictures, state=state, sets=validation)
        return loop.run(state, config, path, step, show, stop_after, checkpoint_every)


def options(defaults: FusionConfig) -> argparse.ArgumentParser:
    """Those of every training and LAGN's own; each term of the loss has one for its weight."""
    parser = flags.parser("fusion", __doc__.splitlines()[0], defaults)
    parser.add_argument("--init", type=Path, help="checkpoint of an earlier stage to start from")
    parser.add_argument("--generated", type=Path, help="generated images of the training pairs")
    parser.add_argument("--branches", choices=BRANCHES, default="both", help="of the network, for ablations")
    parser.add_argument("--crop-px", type=int, default=defaults.crop_px, help="side of a crop")
    parser.add_argument(
        "--randomised", type=flags.share, default=0.0, help="share of crops as of other scanners"
    )
    parser.add_argument("--synthetic", type=flags.share, default=0.0, help="share of crops of no patient")
    parser.add_argument("--hold-out", nargs="+", default=[], metavar="MODALITY:CASE", help="as ct:case37")
    often = "modalities of successive crops, as ct pet ct spect; default: each in turn"
    parser.add_argument("--turns", nargs="+", default=[], choices=data.SETS, metavar="MODALITY", help=often)
    pixels, tokens = "pixels per token, global branch", "tokens per side, global branch"
    parser.add_argument("--stride", type=int, choices=(4, 8), default=4, help=pixels)
    parser.add_argument("--window", type=int, choices=(4, 8), default=8, help=tokens)
    parser.add_argument(
        "--below", type=flags.positive, default=1.0, help="r of the output formula stays above minus this"
    )
    parser.add_argument(
        "--activation", choices=sorted(ACTIVATIONS), default="gelu", help="of the local blocks"
    )
    parser.add_argument(
        "--reach", choices=REACHES, default="luma", help="what of the other source r may add or take away"
    )
    parser.add_argument(
        "--taught", type=flags.number, default=0.0, help="weight of the distance to the release"
    )
    parser.add_argument("--workers", type=flags.whole(0), default=0, help="processes that make batches ahead")
    parser.add_argument("--capture", action="store_true", help="run the network as CUDA graphs")
    flags.add_weights(parser, asdict(defaults.loss) | asdict(defaults.fidelity))
    return parser


def configured(given: argparse.Namespace) -> FusionConfig:
    """The configuration that these options state."""
    defaults = FusionConfig()
    loss = LossWeights(**{name: getattr(given, name) for name in asdict(defaults.loss)})
    fidelity = FidelityWeights(**{name: getattr(given, name) for name in asdict(defaults.fidelity)})
    return FusionConfig(
        **flags.shared(given),
        crop_px=given.crop_px,
        randomised=given.randomised,
        synthetic=given.synthetic,
        hold_out=tuple(given.hold_out),
        turns=tuple(given.turns),
        taught=given.taught,
        model=LAGNConfig(
            branches=given.branches,
            stride=given.stride,
            window=given.window,
            below=given.below,
            activation=given.activation,
            reach=given.reach,
        ),
        loss=loss,
        fidelity=fidelity,
    )


def main(arguments: list[str] | None = None) -> int:
    given = options(FusionConfig()).parse_args(arguments)
    config = configured(given)

    def run() -> Path:
        paths = (given.data, given.out, given.init, given.generated)
        how = {"decode": given.decode, "capture": given.capture, "workers": given.workers}
        return train(config, *paths, given.stop_after, **how)

    return loop.main(given, config, run)


if __name__ == "__main__":
    sys.exit(main())
