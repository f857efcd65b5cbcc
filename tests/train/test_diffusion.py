"""The joint latent space, the latent diffusion, what it generates, and its place in the fusion loss."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import REPO
from ports import free_port
from safetensors.torch import load_file
from torch import Tensor, nn
from training_data import write_sets

from mmif_trt import weights
from mmif_trt.image import InputError
from mmif_trt.models.autoencoder import KINDS, Autoencoder, AutoencoderConfig
from mmif_trt.models.denoiser import MODALITIES, TIMES, Denoiser, DenoiserConfig, alpha_sigma
from mmif_trt.models.lagn import LAGN, LAGNConfig
from mmif_trt.ops import reference
from mmif_trt.train import autoencoder, coloured, data, diffusion, fusion, generate, loop, losses

SMALL = AutoencoderConfig(dim=8, depth=1, channels=4)
AUTOENCODER = autoencoder.AutoencoderTraining(
    steps=4, batch_size=3, crop_px=32, warmup_steps=2, precision="fp32", model=SMALL
)
DENOISER = DenoiserConfig(channels=4, dim=32, deep_dim=32, embedding=16, window=4)
DIFFUSION = diffusion.DiffusionTraining(
    steps=4, batch_size=4, warmup_steps=2, precision="fp32", model=DENOISER
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_sets(tmp_path / "data", "{split}{i}_slice")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, np.float32))


class Oracle(nn.Module):
    """Knows the one latent there is: the v that leads straight to it. Remembers what it was told."""

    def __init__(self, z: Tensor) -> None:
        super().__init__()
        self.z, self.config = z, DENOISER
        self.calls: list[tuple[Tensor, float, float]] = []

    def forward(self, noisy: Tensor, t_a: Tensor, t_b: Tensor, modality: Tensor) -> Tensor:
        self.calls.append((noisy, t_a[0].item(), t_b[0].item()))
        out = []
        for part, z, t in zip(noisy.chunk(2, 1), self.z.chunk(2, 1), (t_a[0], t_b[0]), strict=True):
            alpha, sigma = alpha_sigma(t)
            noise = (part - alpha * z) / sigma if sigma > 0 else torch.zeros_like(part)
            out.append(alpha * noise - sigma * z)
        return torch.cat(out, 1)


# The diffusion


def test_the_schedule_goes_from_all_signal_to_all_noise() -> None:
    alpha, sigma = alpha_sigma(torch.linspace(0, TIMES, 11))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(11))
    assert alpha[0] == 1 and sigma[0] == 0 and abs(alpha[-1]) < 1e-6 and (alpha.diff() < 0).all()


def test_v_and_the_noisy_latent_give_the_clean_one_back() -> None:
    z, noise = normal(2, 8, 4, 4), normal(2, 8, 4, 4, seed=1)
    t_a, t_b = torch.tensor([100.0, 900.0]), torch.tensor([700.0, 0.0])
    noisy, v = diffusion.diffused(z, noise, t_a, t_b)
    for half, t in zip(range(2), (t_a, t_b), strict=True):
        alpha, sigma = (x[:, None, None, None] for x in alpha_sigma(t))
        part = slice(4 * half, 4 * half + 4)
        torch.testing.assert_close(alpha * noisy[:, part] - sigma * v[:, part], z[:, part])
        torch.testing.assert_close(sigma * noisy[:, part] + alpha * v[:, part], noise[:, part])


def test_times_teach_the_joint_both_conditionals_and_both_marginals() -> None:
    t_a, t_b = diffusion.draw_times(np.random.default_rng(0), 4000)
    both = (t_a == t_b).float().mean()
    assert abs(both - diffusion.JOINT) < 0.03
    for given, other in ((t_a, t_b), (t_b, t_a)):
        assert abs((given == 0).float().mean() - diffusion.GIVEN) < 0.03
        assert (other[given == 0] > 0).all(), "a half is given where the other one is asked for"
        assert 0.03 < (given == TIMES).float().mean() < 0.08
    assert t_a.min() >= 0 and t_b.max() <= TIMES


def test_a_given_half_has_no_part_in_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its v is the noise it does not hold: a network cannot know it."""
    latents = [normal(2, 3, 8, 16, 16)]
    monkeypatch.setattr(
        diffusion, "draw_times", lambda rng, size: (torch.zeros(size), torch.full((size,), 500.0))
    )

    class Wrong(nn.Module):
        def forward(self, z: Tensor, t_a: Tensor, t_b: Tensor, modality: Tensor) -> Tensor:
            alpha, sigma = alpha_sigma(t_b[:1])
            v = diffusion.batch(latents, ["pet"], 0, 0, 2)
            right = alpha * v[1][:, 4:] - sigma * v[0][:, 4:]
            return torch.cat([torch.full_like(right, 1e3), right], 1)

    config = replace(DIFFUSION, batch_size=2)
    loss, terms = diffusion.objective(Wrong(), config, latents, ["pet"])(0)  # type: ignore[arg-type]
    assert loss.item() < 1e-9 and terms["mri"] == 0


def test_errors_under_little_noise_weigh_little() -> None:
    t_a = torch.tensor([TIMES / 2, TIMES * 2 / 100, 0.0])
    weight = diffusion.error_weight(normal(3, 8, 4, 4), t_a, torch.full((3,), float(TIMES)))
    assert (weight[:, 4:] == 1).all() and (weight[0, :4] == 1).all() and (weight[2, :4] == 0).all()
    sigma = alpha_sigma(t_a[1])[1]
    torch.testing.assert_close(weight[1, :4], ((sigma / diffusion.FULL_SIGMA) ** 4).expand(4, 1, 1))


@pytest.mark.parametrize("steps", [10, 25])
def test_ddim_finds_what_the_denoiser_knows(steps: int) -> None:
    z = normal(2, 8, 16, 16)
    model = Oracle(z)
    got = generate.sample(model, normal(2, 8, 16, 16, seed=1), "ct", None, steps)  # type: ignore[arg-type]
    torch.testing.assert_close(got, z, atol=2e-3, rtol=0)
    assert len(model.calls) == steps and all(a == b for _, a, b in model.calls)


@pytest.mark.parametrize("half", [0, 1])
def test_a_given_half_stays_and_is_told_at_time_0(half: int) -> None:
    z, noise = normal(2, 8, 16, 16), normal(2, 8, 16, 16, seed=1)
    given = z.chunk(2, 1)[half]
    model = Oracle(z)
    got = generate.sample(model, noise, "pet", (half, given), 10)  # type: ignore[arg-type]
    assert torch.equal(got.chunk(2, 1)[half], given)
    torch.testing.assert_close(got, z, atol=2e-3, rtol=0)
    for seen, *times in model.calls:
        assert times[half] == 0 and times[1 - half] > 0 and torch.equal(seen.chunk(2, 1)[half], given)


def test_guidance_compares_with_the_half_dropped() -> None:
    z, noise = normal(1, 8, 16, 16), normal(1, 8, 16, 16, seed=1)
    model = Oracle(z)
    generate.sample(model, noise, "ct", (0, z[:, :4]), 10, guidance=2.0)  # type: ignore[arg-type]
    dropped = [call for call in model.calls if call[1] == TIMES]
    assert len(model.calls) == 20 and len(dropped) == 10
    assert all(torch.equal(seen[:, :4], noise[:, :4]) for seen, _, _ in dropped), "the given half is not seen"


def test_each_image_is_told_from_the_other(root: Path) -> None:
    """A denoiser that knows the pair: the MRI and the other image are kept, in this order, cut to size."""

    class Pooled(Autoencoder):
        def encode(self, kind: str, x: Tensor) -> Tensor:
            return nn.functional.avg_pool2d(x, 4).expand(-1, 4, -1, -1)

        def decode(self, kind: str, z: Tensor) -> Tensor:
            return nn.functional.interpolate(z[:, :1], scale_factor=4).clamp(0, 1)

    whole = data.read_sets(root, "train")[1]
    pairs = replace(whole, a=whole.a[:, :60, :52], b=whole.b[:, :60, :52])
    joint = Pooled(SMALL)
    model = Oracle(diffusion.encoded(joint, pairs, diffusion.padded_size([pairs], DENOISER.multiple))[0])
    told = generate.cross_generate(joint, model, pairs, 10, 2)  # type: ignore[arg-type]
    assert told.shape == (2, 2, 60, 52)
    for got, image in zip(told, (pairs.a, pairs.b), strict=True):
        for x, y in zip(got, image, strict=True):
            coarse = y.reshape(15, 4, 13, 4).mean((1, 3))
            np.testing.assert_allclose(x[::4, ::4], coarse, atol=1.5)
    given = [(a, b) for _, a, b in model.calls]
    assert all(b == 0 for _, b in given[:20]) and all(a == 0 for a, _ in given[20:])


def test_one_step_gives_the_mean_of_the_distribution() -> None:
    """Of a scalar Gaussian pair the best denoiser is known: at full noise it answers with the regression."""
    correlation = 0.8

    class Gaussian(Oracle):
        def forward(self, noisy: Tensor, t_a: Tensor, t_b: Tensor, modality: Tensor) -> Tensor:
            assert t_a[0] == TIMES and t_b[0] == 0
            noise, given = noisy.chunk(2, 1)
            return torch.cat([-correlation * given, noise], 1)  # v = alpha noise - sigma E[z | given]

    given = normal(3, 4, 8, 8, seed=2)
    model: Any = Gaussian(given)
    for seed in (0, 1):
        got = generate.sample(model, normal(3, 8, 8, 8, seed=seed), "ct", (1, given), 1)
        torch.testing.assert_close(got, torch.cat([correlation * given, given], 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [0, 2, 9, 51])
def test_steps_are_1_or_10_to_50(steps: int) -> None:
    with pytest.raises(InputError, match=rf"steps {steps}; expected 1, or 10 to 50"):
        generate.sample(Oracle(normal(1, 8, 4, 4)), normal(1, 8, 4, 4), "ct", None, steps)  # type: ignore[arg-type]


def test_steps_are_refused_before_any_data_are_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate.data, "read_sets", lambda *_: pytest.fail("the data were read"))
    assert generate.main(["--data", "none", "--out", "none", "--steps", "0"]) == 2
    assert "steps 0; expected 1, or 10 to 50" in capsys.readouterr().err


def test_bfloat16_draws_what_fp32_draws() -> None:
    torch.manual_seed(0)
    model = Denoiser(DENOISER)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    exact, rounded = (
        generate.sample(model, normal(1, 8, 8, 8), "ct", None, 1, precision=p) for p in ("fp32", "bf16")
    )
    assert 0 < (rounded - exact).norm() / exact.norm() < 0.05


# The networks


def test_a_latent_is_a_quarter_and_begins_near_the_picture() -> None:
    model = Autoencoder(AutoencoderConfig(channels=8))
    x = torch.rand(2, 1, 64, 32, generator=torch.Generator().manual_seed(0))
    for kind in KINDS:
        z = model.encode(kind, x)
        assert z.shape == (2, 8, 16, 8) and model.decode(kind, z).shape == x.shape
    model.scale.fill_(2.0)
    torch.testing.assert_close(model.encode("ct", x) * 2, model.images["ct"].moments(x)[0])  # type: ignore[operator, union-attr]


def test_the_denoiser_hears_both_times_and_the_modality() -> None:
    torch.manual_seed(0)
    model = Denoiser(DENOISER)
    for parameter in model.parameters():  # the zeros it begins with hide everything
        nn.init.normal_(parameter, std=0.1)
    z, t = normal(1, 8, 16, 32), torch.tensor([300.0])
    base = model(z, t, t, torch.tensor([0]))
    assert base.shape == z.shape and base.dtype == torch.float32
    for changed in ((t + 100, t, 0), (t, t + 100, 0), (t, t, 2)):
        assert not torch.allclose(model(z, changed[0], changed[1], torch.tensor([changed[2]])), base)
    assert len(MODALITIES) == model.modality.num_embeddings


def test_psnr_is_that_of_the_foreground(root: Path) -> None:
    class Off(Autoencoder):
        """Wrong by 0.1 everywhere."""

        def encode(self, kind: str, x: Tensor) -> Tensor:
            return x

        def decode(self, kind: str, z: Tensor) -> Tensor:
            return z + torch.where(z > autoencoder.FOREGROUND, 0.1, 0.9)

    for value in autoencoder.psnr(Off(SMALL), data.read_sets(root, "val")).values():
        assert abs(value - 20) < 1e-3


@pytest.mark.parametrize("branches", ["both", "local", "global"])
def test_branches_alone_leave_the_other_out(branches: str) -> None:
    model = LAGN(LAGNConfig(local_dim=8, global_dim=32, global_depth=2, branches=branches))
    a, b = torch.rand(2, 1, 1, 32, 32).unbind()
    model(a, b).sum().backward()
    assert (model.blocks[0].mlp[0].weight.grad is None) == (branches == "local")  # type: ignore[index, union-attr]
    assert (model.local[0].expand.weight.grad is None) == (branches == "global")  # type: ignore[union-attr]


# The loss strategy


def images(count: int, seed: int = 0) -> list[Tensor]:
    rng = np.random.default_rng(seed)
    smooth = [cv2.GaussianBlur(rng.random((48, 48), np.float32), (0, 0), 2) for _ in range(2 * count)]
    scaled = [(x - x.min()) / np.ptp(x) for x in smooth]
    return [torch.from_numpy(np.stack(scaled[2 * i : 2 * i + 2]))[:, None] for i in range(count)]


def test_surprise_is_where_the_generated_image_is_wrong() -> None:
    (x,) = images(1)
    assert losses.surprise(x, x).max() == 0
    wrong = x.clone()
    wrong[..., 10:20, 10:20] += 0.3
    found = losses.surprise(x, wrong)
    assert found[..., 14, 14].min() > 0.7 and found[..., 40, 40].max() < 1e-3 and found.max() < 1
    half = losses.surprise(torch.zeros_like(x), torch.full_like(x, losses.SURPRISE_LEVEL))
    torch.testing.assert_close(half, torch.full_like(x, 0.5))


def test_weights_follow_surprise_and_keep_the_size_of_the_loss() -> None:
    a, b = images(2)
    told = b.clone()
    told[..., 10:20, 10:20] = 1 - told[..., 10:20, 10:20]
    wa, wb = losses.predictability_weights(a, b, (a, told), 4.0)
    torch.testing.assert_close((wa + wb).mean((1, 2, 3)), torch.full((2,), 2.0))
    assert (wb[..., 14, 14] > 1.5 * wb[..., 40, 40]).all()
    torch.testing.assert_close(wa, wa.mean((2, 3), keepdim=True).expand_as(wa)), "a holds no surprise"


def test_the_three_relations_enter_the_loss() -> None:
    a, b, f, told_a, told_b = images(5)
    modalities, alone = ["pet", "ct"], losses.LossWeights()
    plain, _ = losses.fusion_loss(f, a, b, modalities, alone)
    same, terms = losses.fusion_loss(f, a, b, modalities, alone, (told_a, told_b))
    assert torch.equal(plain, same) and "generated_fused" not in terms
    weights = replace(alone, generated_fused=0.3)
    total, terms = losses.fusion_loss(f, a, b, modalities, weights, (told_a, told_b))
    expected = reference.fusion_loss(f.double(), told_a.double(), told_b.double())[:, 1:].sum(1).mean()
    assert abs(terms["generated_fused"].item() - expected) < 1e-5
    assert abs((total - plain).item() - 0.3 * expected) < 1e-5
    weights = replace(alone, predictability=3.0)
    _, terms = losses.fusion_loss(f, a, b, modalities, weights, (told_a, told_b))
    wa, wb = losses.predictability_weights(a, b, (told_a, told_b), 3.0)
    args = [x.double() for x in (f, a, b, wa, wb)]
    expected_terms = reference.fusion_loss(*args, losses.C1, losses.C2).mean(0)
    for name, value in zip(losses.PIXEL_TERMS, expected_terms, strict=True):
        assert abs(terms[name].item() - value) < 1e-4, name


# From pictures to a fused network


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("trained")
    torch.set_num_threads(1)
    root = write_sets(folder / "data", "{split}{i}_slice")
    first = autoencoder.train(AUTOENCODER, root, folder / "ae")
    second = diffusion.train(DIFFUSION, root, first, folder / "ld")
    return {"data": root, "autoencoder": first, "diffusion": second}


@pytest.fixture
def chain(trained: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    return trained | {"out": tmp_path / "made"}


def options(chain: dict[str, Path]) -> list[str]:
    paths = [word for name, path in chain.items() for word in (f"--{name}", str(path))]
    return [*paths, "--threads", "1", "--precision", "fp32"]


def test_the_chain_from_pictures_to_training_with_generated_ones(
    chain: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate.main([*options(chain), "--samples", "1"]) == 0
    told = capsys.readouterr().out
    assert json.loads(told[told.index("{") :])["samples"] == "1"
    made = chain["out"] / "train.safetensors"
    sets = generate.attach(made, data.read_sets(chain["data"], "train"))
    for pairs in sets:
        assert pairs.generated is not None
        assert pairs.generated.shape == (2, 2, 64, 64) and pairs.generated.dtype == np.uint8
        assert len(np.unique(pairs.generated)) > 2
        for kind in ("cross", "joint"):
            sheet = cv2.imread(str(chain["out"] / f"{kind}-{pairs.modality}.png"))
            assert sheet is not None and sheet.shape[0] == (6 if kind == "cross" else 2) * 68
    a, b, _ = data.batch(sets, 0, 0, 3, 32)
    assert a.shape == b.shape == (3, 2, 32, 32)
    model = LAGNConfig(local_dim=8, global_dim=32, global_depth=2)
    config = fusion.FusionConfig(
        steps=2,
        batch_size=3,
        crop_px=32,
        precision="fp32",
        model=model,
        loss=losses.LossWeights(predictability=2, generated_fused=0.1),
    )
    with pytest.raises(InputError, match="--generated: none; expected a file"):
        fusion.train(config, chain["data"], tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert load_file(fusion.train(config, chain["data"], tmp_path / "fused", generated=made))


def test_a_released_diffusion_is_the_trained_one_in_half_precision(
    chain: dict[str, Path], tmp_path: Path
) -> None:
    from mmif_trt.train.export_diffusion import release

    files: dict[str, Path] = {}
    for name, load in (("autoencoder", autoencoder.load), ("diffusion", diffusion.load)):
        entry = release(chain[name], tmp_path / f"{name}.safetensors")
        released, trained = load(tmp_path / f"{name}.safetensors"), load(chain[name])
        files[name] = tmp_path / f"{name}.safetensors"
        assert released.config == trained.config and entry["steps"] == 4
        for key, value in trained.state_dict().items():
            torch.testing.assert_close(released.state_dict()[key], value.half().float(), rtol=0, atol=0)
        assert entry["bytes"] < chain[name].stat().st_size / 4  # no moments, no second network, half
    for first in (files["autoencoder"], chain["autoencoder"]):  # one network in two precisions
        diffusion.load_both(first, files["diffusion"])


def test_the_shipped_diffusion_generates_by_default(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "write_sheets", lambda *_: None)  # many steps of a large network
    told = ["--data", str(root), "--out", str(tmp_path / "made"), "--samples", "1"]
    told += ["--threads", "1", "--precision", "fp32"]
    assert generate.main([*told, "--autoencoder", str(root)]) == 2
    assert "expected both of one training, or neither" in capsys.readouterr().err
    assert generate.main(told) == 0
    files = weights.manifest()["diffusion"]["files"]
    report = capsys.readouterr().out
    for name, key in (("autoencoder", "autoencoder"), ("denoiser", "diffusion")):
        assert json.loads(report[report.index("{") :])[key] == files[f"{name}.safetensors"]["sha256"]


def test_generated_crops_stay_with_their_originals(root: Path) -> None:
    sets = data.read_sets(root, "train")
    same = [replace(p, generated=np.stack([p.a, p.b])) for p in sets]
    for step in range(6):
        a, b, _ = data.batch(same, 0, step, 3, 32)
        plain_a, plain_b, _ = data.batch(sets, 0, step, 3, 32)
        assert torch.equal(a[:, :1], a[:, 1:]) and torch.equal(b[:, :1], b[:, 1:])
        assert torch.equal(a[:, :1], plain_a) and torch.equal(b[:, :1], plain_b)


def test_generated_images_of_other_pairs_are_refused(chain: dict[str, Path], root: Path) -> None:
    assert generate.main([*options(chain), "--samples", "1", "--split", "val"]) == 0
    made = chain["out"] / "val.safetensors"
    with pytest.raises(InputError, match=r"val\.safetensors: not of these mri-ct pairs; expected what"):
        generate.attach(made, data.read_sets(root, "train"))
    made.write_bytes(made.read_bytes()[:100])
    with pytest.raises(InputError, match=r"val\.safetensors: .*; expected a file that train/generate\.py"):
        generate.attach(made, data.read_sets(root, "val"))


def test_stopped_trainings_go_on_to_the_same_bits(root: Path, tmp_path: Path) -> None:
    first = autoencoder.train(AUTOENCODER, root, tmp_path / "whole")
    autoencoder.train(AUTOENCODER, root, tmp_path / "halves", stop_after=2)
    resumed = load_file(autoencoder.train(AUTOENCODER, root, tmp_path / "halves"))
    whole = load_file(first)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert (whole["average.scale"] != 1).all(), "measured at the end"
    second = load_file(diffusion.train(DIFFUSION, root, first, tmp_path / "ld"))
    diffusion.train(DIFFUSION, root, first, tmp_path / "ld2", stop_after=3)
    resumed = load_file(diffusion.train(DIFFUSION, root, first, tmp_path / "ld2"))
    assert all(torch.equal(second[key], resumed[key]) for key in second)


@pytest.mark.parametrize("training", [autoencoder, diffusion])
def test_a_stage_given_the_wrong_checkpoint_says_so(
    training: Any, chain: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    name = training.__name__.rsplit(".")[-1]
    wrong = chain | {name: chain["diffusion" if name == "autoencoder" else "autoencoder"]}
    assert generate.main(options(wrong)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "of another network; expected a checkpoint of the matching" in lines[0]


def test_latents_of_other_autoencoders_are_refused(
    chain: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each trains a latent space of its own; in another one the denoiser's answers are noise."""
    other = autoencoder.train(replace(AUTOENCODER, seed=5), chain["data"], tmp_path / "other")
    diffusion.train(DIFFUSION, chain["data"], chain["autoencoder"], tmp_path / "ld", stop_after=1)
    with pytest.raises(
        InputError, match=r"made from something else: autoencoder \w{12}, now \w{12}; expected"
    ):
        diffusion.train(DIFFUSION, chain["data"], other, tmp_path / "ld")
    assert generate.main(options(chain | {"autoencoder": other})) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"not trained on the latents of {other}; expected both of one training" in error
    assert not chain["out"].exists()


def test_an_unfinished_autoencoder_has_no_scale_yet(chain: dict[str, Path], tmp_path: Path) -> None:
    half = autoencoder.train(AUTOENCODER, chain["data"], tmp_path / "half", stop_after=2)
    with pytest.raises(InputError, match="stopped at step 2 of 4; expected a finished training"):
        diffusion.train(DIFFUSION, chain["data"], half, tmp_path / "ld")


def test_sets_of_several_sizes_share_a_batch(root: Path, tmp_path: Path, chain: dict[str, Path]) -> None:
    """Their latents did not stack. A validation picture too small to be shown cost the last 500 steps."""
    for path in (root / "mri-pet").glob("train/*/*.png"):
        assert cv2.imwrite(str(path), np.zeros((100, 140), np.uint8))
    sets = data.read_sets(root, "train")
    assert diffusion.padded_size(sets[:1], DENOISER.multiple) == (128, 128)
    assert diffusion.padded_size(sets, DENOISER.multiple) == (128, 256)
    whole = load_file(diffusion.train(DIFFUSION, root, chain["autoencoder"], tmp_path / "ld"))
    assert all(x.isfinite().all() for x in whole.values())
    for path in (root / "mri-pet").glob("val/*/*.png"):
        assert cv2.imwrite(str(path), np.zeros((31, 64), np.uint8))
    config = fusion.FusionConfig(steps=1, crop_px=32)
    with pytest.raises(
        InputError, match="mri-pet/val: pictures of 64 x 31 px; expected at least 32 each way"
    ):
        fusion.train(config, root, tmp_path / "fused")


def test_a_patient_in_both_splits_is_refused(root: Path, tmp_path: Path) -> None:
    for kind in ("mri", "pet"):
        folder = root / "mri-pet" / "val" / kind
        (folder / "val0_slice.png").rename(folder / "train1_other.png")
    with pytest.raises(InputError, match=r"mri-pet: train1 is in train and in val; expected a split by case"):
        autoencoder.train(AUTOENCODER, root, tmp_path / "ae")


def test_two_processes_take_the_mean_of_their_gradients(root: Path, tmp_path: Path) -> None:
    """torchrun with two processes on the CPU: the same weights as one step on both batches' mean loss."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    command += ["-m", "mmif_trt.train.fusion", "--data", str(root), "--out", str(tmp_path / "two")]
    command += [
        "--steps",
        "1",
        "--batch-size",
        "1",
        "--crop-px",
        "32",
        "--precision",
        "fp32",
        "--threads",
        "1",
    ]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    two = load_file(tmp_path / "two" / "checkpoint.safetensors")
    config = fusion.FusionConfig(steps=1, batch_size=1, crop_px=32, precision="fp32")
    state = fusion.new_state(config)
    assert isinstance(state.model, LAGN)
    sets = [coloured.read_colours(root, "train", pairs) for pairs in data.read_sets(root, "train")]
    single = fusion.objective(state.model, config, fusion.batches_of(config, sets))
    loop.train_step(state, config, lambda _: ((single(0)[0] + single(1)[0]) / 2, {}))
    for name, value in state.model.state_dict().items():
        torch.testing.assert_close(two[f"model.{name}"], value, atol=2e-6, rtol=0)
