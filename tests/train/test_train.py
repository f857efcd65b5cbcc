"""train: each loss term at known inputs, a run that learns and resumes bit for bit, and bad data in one
line."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from training_data import write_sets

from mmif_trt.image import InputError
from mmif_trt.measure import metrics
from mmif_trt.models.lagn import LAGNConfig
from mmif_trt.ops import reference
from mmif_trt.train import checkpoints, coloured, data, fusion, loop, losses

CONFIG = fusion.FusionConfig(
    steps=6,
    batch_size=3,
    crop_px=64,
    warmup_steps=2,
    precision="fp32",  # bfloat16 takes ten times as long where a processor emulates it
    model=LAGNConfig(local_dim=8, global_dim=32, global_depth=2),
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_sets(tmp_path / "data", "{i}")


def pictures(seed: int, count: int = 2, side: int = 48) -> torch.Tensor:
    """[count, 1, side, side] in [0, 1], smooth enough to have gradients of all sizes."""
    rng = np.random.default_rng(seed)
    stack = [cv2.GaussianBlur(rng.random((side, side)), (0, 0), 1.5) for _ in range(count)]
    x = torch.from_numpy(np.stack(stack)).float()[:, None]
    return (x - x.min()) / (x.max() - x.min())


def close(result: torch.Tensor, expected: float | list[float], tolerance: float = 1e-5) -> None:
    assert result.tolist() == pytest.approx(expected, abs=tolerance)


# Losses


def test_correlation() -> None:
    x, y = pictures(6), pictures(7)
    expected = [float(np.corrcoef(p.flatten(), q.flatten())[0, 1]) for p, q in zip(x, y, strict=True)]
    close(losses.correlation(x, y), expected, 1e-4)
    mask = (y > 0.5).float()
    inside = [
        float(np.corrcoef(p[m > 0], q[m > 0])[0, 1])
        for p, q, m in zip(x.numpy(), y.numpy(), mask.numpy(), strict=True)
    ]
    close(losses.correlation(x, y, mask), inside, 1e-4)
    constant = torch.full_like(x, 0.3).requires_grad_()
    result = losses.correlation(constant, y)
    close(result, [0, 0], 1e-3)
    result.sum().backward()
    assert constant.grad is not None and constant.grad.isfinite().all()


def test_complement_is_zero_for_the_sum_and_two_for_nothing() -> None:
    a, b = pictures(8), pictures(9)
    close(losses.complement_loss(a + b, a, b), [0, 0], 1e-4)
    close(
        losses.complement_loss(-(a + b), a - 2 * b, b - 2 * a),
        losses.complement_loss(a + b, a, b).tolist(),
        2,
    )
    assert (losses.complement_loss(a, a, b) > 0.4).all(), "nothing of b is in it"


def test_function_does_not_see_brightness_and_contrast() -> None:
    f, b = pictures(10), pictures(11)
    base = losses.function_loss(f, b)
    close(losses.function_loss(0.4 * f + 0.3, b), base.tolist(), 1e-3)
    close(losses.function_loss(0.5 * b + 0.2, b), [0, 0], 1e-3)
    close(losses.function_loss(1 - b, b), [2, 2], 1e-3)
    outside = b.clone()
    outside[..., :24] = 0
    changed = f.clone()
    changed[..., :8] = 1 - f[..., :8]  # further than the blur's reach from b's foreground
    close(losses.function_loss(changed, outside), losses.function_loss(f, outside).tolist(), 1e-6)


def test_detail_is_what_the_metric_measures() -> None:
    a, b = pictures(19), pictures(20)
    close(losses.detail_loss(a, a, b), [0, 0], 1e-4)
    close(losses.detail_loss(0.5 * a + 0.2, a, b), [0, 0], 1e-4)
    close(losses.detail_loss(1 - a, a, b), [2, 2], 1e-4)
    f = torch.maximum(a, b)
    triples = zip(*(255 * x[:, 0].double().numpy() for x in (a, b, f)), strict=True)
    close(
        losses.detail_loss(f, a, b), [1 - metrics.detail_kept(*triple) for triple in triples], 0.1
    )  # Sobel smooths
    b[1] = 0
    close(losses.detail_loss(f, a, b)[1], 1)


def test_rounding_is_the_mean_of_the_largest_thousandth() -> None:
    f = torch.zeros(1, 1, 50, 60)
    other = f.clone()
    other[0, 0, 0, :4] = torch.tensor([0.3, -0.2, 0.1, 0.05])  # 3,000 pixels: the three largest count
    close(losses.rounding_loss(f, other), [0.2])


def test_structure_sees_faint_contrast() -> None:
    """A texture of four levels on mid grey: losing it costs far more than with SSIM's usual constants."""

    def structure(f: torch.Tensor, source: torch.Tensor, *constants: float) -> torch.Tensor:
        return reference.fusion_loss(f, source, source, None, None, *constants)[:, 2]

    texture = 0.5 + 4 / 255 * (pictures(15, 1) - 0.5)
    flat = torch.full_like(texture, 0.5)
    close(structure(texture, texture, losses.C1, losses.C2), [0])
    assert structure(flat, texture, losses.C1, losses.C2) > 4 * structure(flat, texture)
    noise = 0.5 + 0.5 / 255 * (pictures(16, 1) - 0.5)
    assert structure(flat, noise, losses.C1, losses.C2) < 0.02, "half a level is noise"


def test_edge_is_the_edge_preservation_that_the_metric_measures() -> None:
    a, b = (torch.nn.functional.pad(pictures(seed), (2, 2, 2, 2)) for seed in (17, 18))  # no border effect
    for f in (a, torch.maximum(a, b), (a + b) / 2):
        x, y, z = (255 * p[:, 0].double().numpy() for p in (a, b, f))
        expected = [1 - metrics.qabf(*pair) for pair in zip(x, y, z, strict=True)]
        close(losses.edge_loss(f, a, b), expected, 0.1)  # which does not wrap the angle at a half turn
    assert (losses.edge_loss(a, a, a) < 0.02).all() and (
        losses.edge_loss(b, torch.zeros_like(b), b) < 0.03
    ).all()
    flat = torch.full_like(a, 0.4).requires_grad_()
    losses.edge_loss(flat, a, flat.detach()).sum().backward()
    assert flat.grad is not None and flat.grad.isfinite().all()


def test_the_whole_loss_is_the_weighted_sum_by_modality() -> None:
    a, b, f = pictures(12, 3), pictures(13, 3), pictures(14, 3)
    given: dict[str, float] = {"intensity": 2, "gradient": 3, "structure": 5, "complement": 7}
    given |= {"intensity_ct": 17, "gradient_ct": 37, "structure_ct": 23, "complement_ct": 19}
    given |= {"function_pet": 11, "function_spect": 13, "edge": 41, "edge_ct": 43}
    given |= {"detail_pet": 47, "detail_spect": 53}
    total, terms = losses.fusion_loss(f, a, b, ["spect", "ct", "pet"], losses.LossWeights(**given))
    constants = losses.C1, losses.C2
    intensity, gradient, structure = reference.fusion_loss(f, a, b, None, None, *constants).unbind(1)
    each = (
        torch.tensor([2, 17, 2]) * intensity
        + torch.tensor([3, 37, 3]) * gradient
        + torch.tensor([5, 23, 5]) * structure
        + torch.tensor([41, 43, 41]) * losses.edge_loss(f, a, b)
        + torch.tensor([7, 19, 7]) * losses.complement_loss(f, a, b)
        + torch.tensor([13, 0, 11]) * losses.function_loss(f, b)
        + torch.tensor([53, 0, 47]) * losses.detail_loss(f, a, b)
    )
    close(total, float(each.mean()), 1e-3)
    close(terms["structure"], float(structure.mean()))
    names = {"intensity", "gradient", "structure", "edge", "complement", "function", "detail"}
    assert set(terms) == names
    close(terms["function"], float(losses.function_loss(f, b).mean()))
    without = losses.fusion_loss(f, a, b, ["ct"] * 3, losses.LossWeights(**{**given, "edge_ct": 0.0}))
    assert set(without[1]) == names - {"edge", "function", "detail"}, "a term of weight 0 is not computed"


def test_crops_in_another_palette_count_as_told() -> None:
    rng = torch.Generator().manual_seed(3)
    f, a, b = torch.rand(3, 2, 1, 32, 32, generator=rng).unbind(0)

    def total(share: float, *repainted: bool) -> float:
        told = losses.LossWeights(repainted=share)
        return losses.fusion_loss(f, a, b, ["pet"] * 2, told, repainted=torch.tensor(repainted))[0].item()

    plain = losses.fusion_loss(f, a, b, ["pet"] * 2, losses.LossWeights())[0].item()
    assert total(0.4, False, False) == pytest.approx(plain) == pytest.approx(total(1.0, True, True))
    assert total(0.4, True, True) == pytest.approx(0.4 * plain)
    assert 0.4 * plain < total(0.4, True, False) < plain


# Batches


def test_a_batch_is_a_function_of_seed_and_step(root: Path) -> None:
    sets = data.read_sets(root, "train")
    assert [s.modality for s in sets] == ["ct", "pet", "spect"] and sets[0].names == ("0", "1")
    a, b, modalities = data.batch(sets, 0, 7, 3, 32)
    again = data.batch(sets, 0, 7, 3, 32)
    assert torch.equal(a, again[0]) and torch.equal(b, again[1])
    assert not torch.equal(a, data.batch(sets, 0, 8, 3, 32)[0])
    assert not torch.equal(a, data.batch(sets, 1, 7, 3, 32)[0])
    assert a.shape == b.shape == (3, 1, 32, 32) and a.dtype == torch.float32
    assert sorted(modalities) == ["ct", "pet", "spect"] and a.min() >= 0 and a.max() <= 1


def test_crops_of_a_pair_stay_registered(root: Path) -> None:
    pairs = data.read_sets(root, "train")[0]
    same = replace(pairs, b=pairs.a)
    for seed in range(8):
        a, b = data.crop(same, np.random.default_rng(seed), 32)
        np.testing.assert_array_equal(a, b)


# Training


def test_training_lowers_the_loss(root: Path) -> None:
    config, sets = replace(CONFIG, steps=40), data.read_sets(root, "train")
    in_colour = [coloured.read_colours(root, "train", pairs) for pairs in sets]
    state = fusion.new_state(config)
    a, b, modalities = data.batch(sets, 99, 0, 6, 64)

    def loss() -> float:
        with torch.no_grad():
            return losses.fusion_loss(state.model(a, b), a, b, modalities, config.loss)[0].item()

    before = loss()
    step = fusion.objective(state.model, config, fusion.batches_of(config, in_colour))
    for _ in range(30):
        loop.train_step(state, config, step)
    assert loss() < 0.97 * before
    close(torch.tensor(loop.learning_rate(config, 0)), config.learning_rate / 2, 1e-6)


def test_a_stopped_run_goes_on_to_the_same_bits(root: Path, tmp_path: Path) -> None:
    whole = load_file(fusion.train(CONFIG, root, tmp_path / "whole"))
    half = load_file(fusion.train(CONFIG, root, tmp_path / "halves", stop_after=3))
    resumed = load_file(fusion.train(CONFIG, root, tmp_path / "halves"))
    assert whole.keys() == resumed.keys() and {k.split(".")[0] for k in whole} == {
        "model",
        "average",
        "optimiser",
    }
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert not torch.equal(half["model.stem.weight"], whole["model.stem.weight"])
    assert not torch.equal(whole["average.stem.weight"], whole["model.stem.weight"])
    assert json.loads((tmp_path / "halves" / "config.json").read_text())["steps"] == CONFIG.steps
    assert not list(tmp_path.rglob("*.tmp")), "checkpoints are renamed into place"


def test_init_starts_from_the_average_of_another_run(root: Path, tmp_path: Path) -> None:
    first = fusion.train(CONFIG, root, tmp_path / "first")
    still = replace(CONFIG, steps=1, learning_rate=0.0, seed=5)
    second = load_file(fusion.train(still, root, tmp_path / "second", init=first))
    expected = load_file(first)
    for key in (k.removeprefix("average.") for k in expected if k.startswith("average.")):
        assert torch.equal(second[f"model.{key}"], expected[f"average.{key}"])
    with pytest.raises(InputError, match=r"none\.safetensors: no such file; expected a checkpoint"):
        fusion.train(still, root, tmp_path / "third", init=tmp_path / "none.safetensors")


def test_a_signal_ends_the_run_with_a_checkpoint(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C lost the steps since the last checkpoint, in a traceback."""
    true_step = loop.train_step

    def signalled(state: checkpoints.State, *rest: Any) -> Any:
        done = true_step(state, *rest)
        if state.step == 2:
            signal.raise_signal(signal.SIGTERM)
        return done

    arguments = ["--data", str(root), "--out", str(tmp_path / "run"), "--threads", "1", "--steps", "4"]
    arguments += ["--batch-size", "1", "--crop-px", "32", "--precision", "fp32"]
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(loop, "train_step", signalled)
    try:
        assert fusion.main(arguments) == 128 + signal.SIGTERM
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert "checkpoint.safetensors: stopped at step 2; the same command goes on" in capsys.readouterr().err
    monkeypatch.setattr(loop, "train_step", true_step)
    assert fusion.main(arguments) == 0
    once = ["--out", str(tmp_path / "once")]
    assert fusion.main([*arguments, *once]) == 0
    parts, whole = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("run", "once"))
    assert all(torch.equal(parts[key], whole[key]) for key in whole)


def test_another_configuration_in_the_same_folder_is_refused(root: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, precision="bf16")  # the default
    path = fusion.train(replace(config, steps=1), root, tmp_path / "run")
    before = {p: p.read_bytes() for p in (path, path.with_name("config.json"))}
    other = replace(config, steps=2, loss=replace(config.loss, edge=3.0), hold_out=("ct:1",))
    told = (
        r"configuration: hold_out \[\], now \['ct:1'\], loss\.edge [\d.]+, now 3\.0, steps 1, now 2; expected"
    )
    with pytest.raises(InputError, match=told):
        checkpoints.load_checkpoint(path, fusion.new_state(other), other)
    with pytest.raises(InputError, match=r"checkpoint\.safetensors: made with another configuration"):
        fusion.train(replace(config, steps=2), root, tmp_path / "run")
    assert all(p.read_bytes() == content for p, content in before.items())


def test_a_loss_that_is_not_finite_stops_the_run(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_loss, calls = losses.fusion_loss, []

    def nan_at_the_fifth(*arguments: Any) -> Any:
        calls.append(1)
        total, terms = true_loss(*arguments)
        return (total * float("nan") if len(calls) == 5 else total), terms

    monkeypatch.setattr(fusion, "fusion_loss", nan_at_the_fifth)
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 4 \(batch of seed 0\)"):
        fusion.train(CONFIG, root, tmp_path / "run", checkpoint_every=2)
    with safe_open(tmp_path / "run" / "checkpoint.safetensors", "pt") as file:
        assert file.metadata()["step"] == "4"
        assert all(file.get_tensor(key).isfinite().all() for key in file.keys())  # noqa: SIM118
    monkeypatch.undo()
    assert load_file(fusion.train(CONFIG, root, tmp_path / "run"))  # and it can go on


def test_a_gradient_that_is_not_finite_leaves_the_network_as_it_was(root: Path, tmp_path: Path) -> None:
    """The root of 0 has the loss 0 and no gradient."""
    state = fusion.new_state(CONFIG)
    before = {k: v.clone() for k, v in state.tensors().items()}

    def objective(step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return sum((0 * p.sum()).square().sqrt() for p in state.model.parameters()), {}  # type: ignore[return-value]

    with pytest.raises(FloatingPointError, match=r"the gradient is nan at step 0 \(batch of seed 0\)"):
        loop.train_step(state, CONFIG, objective)
    assert all(torch.equal(v, before[k]) for k, v in state.tensors().items())


# The command


def test_dry_run_prints_the_configuration_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["--data", "D", "--out", str(tmp_path / "run"), "--steps", "12", "--function-pet", "0.5"]
    assert fusion.main([*told, "--dry-run", "--threads", "1"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["steps"] == 12 and printed["loss"]["function_pet"] == 0.5 and printed["data"] == "D"
    assert printed["model"] == asdict(LAGNConfig()) and printed["commit"]
    assert not list(tmp_path.iterdir())


def test_every_option_says_what_it_is() -> None:
    """Each weight of the loss in its own words, with its modality; a weight without words fails here."""
    told = [(a.option_strings[-1], a.help) for a in fusion.options(fusion.FusionConfig())._actions]
    assert not [option for option, text in told if not text]
    weights = [text for option, text in told if text and "weight of " in text]
    assert len(set(weights)) == len(weights) > 30


@pytest.mark.parametrize("below", ["-1", "0", "nan", "inf"])
def test_a_bound_that_no_output_can_have_is_refused(below: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fusion.main(["--data", "D", "--out", "O", "--dry-run", f"--below={below}"])
    assert "argument --below: " in capsys.readouterr().err


def spoil(root: Path, how: str) -> None:
    folder = root / "mri-pet" / "train"
    if how == "no sets":
        for modality in data.SETS:
            (root / f"mri-{modality}").rename(root / modality)
    elif how == "no folder":
        (folder / "pet").rename(folder / "other")
    elif how == "no validation":
        (root / "mri-ct" / "val").rename(root / "mri-ct" / "test")
    elif how == "names":
        (folder / "pet" / "1.png").rename(folder / "pet" / "2.png")
    elif how == "unreadable":
        (folder / "mri" / "0.png").write_text("not a picture")
    elif how == "12 bits":
        for path in (folder / "mri").iterdir():
            deep = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(np.uint16) << 4  # type: ignore[union-attr]
            cv2.imwrite(str(path), deep)
    elif how == "sizes":
        cv2.imwrite(str(folder / "mri" / "0.png"), np.zeros((32, 64), np.uint8))


@pytest.mark.parametrize(
    ("how", "crop_px", "message"),
    [
        ("no sets", 64, "none of the folders mri-ct, mri-pet, mri-spect"),
        ("no folder", 64, "no such folder; expected mri-pet/train/ with mri/ and pet/"),
        ("no validation", 64, "no such folder; expected mri-ct/val/"),
        ("names", 64, "names on one side only, or none: ['1', '2']; expected equal names"),
        ("unreadable", 64, "0.png: not a readable picture"),
        ("12 bits", 64, "train/mri: nothing above 15 of 255, nearly black; expected 8 bits, or 16 in full"),
        ("sizes", 64, "sizes [(32, 64), (64, 64)]; expected one size"),
        ("good", 128, "crop_px 128; expected multiples of 32, at most 64"),
        ("good", 40, "crop_px 40; expected multiples of 32"),
    ],
)
def test_bad_data_gives_one_line_and_exit_code_2(
    how: str, crop_px: int, message: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(root, how)
    arguments = ["--data", str(root), "--out", str(tmp_path / "run"), "--threads", "1", "--steps", "1"]
    code = fusion.main([*arguments, "--batch-size", "1", "--crop-px", str(crop_px)])
    lines = capsys.readouterr().err.splitlines()
    assert code == 2 and len(lines) == 1, lines
    assert lines[0].startswith("error: ") and message in lines[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--steps", "0", "a whole number, 1 or more"),
        ("--steps", "-5", "a whole number, 1 or more"),
        ("--batch-size", "0", "a whole number, 1 or more"),
        ("--threads", "0", "a whole number, 1 or more"),
        ("--seed", "-1", "a whole number, 0 or more"),
        ("--workers", "-1", "a whole number, 0 or more"),
        ("--learning-rate", "-1", "a number, 0 or more"),
        ("--intensity", "nan", "a number, 0 or more"),
        ("--synthetic", "2", "a number, 0 to 1"),
    ],
)
def test_what_no_training_can_use_is_refused_at_once(
    option: str, value: str, expected: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A learning rate below 0 trained, no steps claimed a checkpoint, and the others were tracebacks."""
    with pytest.raises(SystemExit, match="^2$"):
        fusion.main(["--data", str(root), "--out", str(tmp_path / "run"), option, value])
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"error: argument {option}: {value!r}; expected {expected}" in last
    assert not (tmp_path / "run").exists()


def test_the_command_trains(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", str(root), "--out", str(tmp_path / "run"), "--threads", "1", "--steps", "1"]
    assert fusion.main([*arguments, "--batch-size", "1", "--crop-px", "32"]) == 0
    assert "step 1 of 1, " in capsys.readouterr().out
    names = {p.name.split(".")[0] for p in (tmp_path / "run").iterdir() if p.name != ".lock"}
    assert names == {"checkpoint", "config", "events"}
