"""What a training on a GPU needs and a CPU does not show: one device throughout, and batches made ahead."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_data import write_sets

from mmif_trt.models.lagn import LAGN, LAGNConfig
from mmif_trt.train import coloured, data, fusion, loop, losses, workers
from mmif_trt.train.fidelity_losses import FidelityWeights

SMALL = LAGNConfig(local_dim=8, global_dim=32, global_depth=2)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[coloured.ColouredPairs]:
    root: Path = write_sets(tmp_path_factory.mktemp("sets"), "{split}{i}_slice")
    read = data.read_sets(root, "train")
    return [
        coloured.read_colours(root, "train", replace(pairs, generated=np.stack([pairs.a, pairs.b])))
        for pairs in read
    ]


def test_a_step_with_every_term_stays_on_its_device(
    sets: list[coloured.ColouredPairs], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's "meta" device computes shapes only, and refuses to mix with the CPU as a card does."""
    every = {field.name: 1.0 for field in fields(FidelityWeights)}
    config = fusion.FusionConfig(
        batch_size=6,
        crop_px=64,
        precision="fp32",
        taught=1.0,
        model=SMALL,
        loss=losses.LossWeights(predictability=4, generated_fused=1, rounding=1),
        fidelity=FidelityWeights(**every),
    )
    there = torch.device("meta")
    made = coloured.batch(sets, coloured.Mixture(0, 6, 64, 0.5, True), 0)
    assert made.sites, "lesions to lose"
    # What asks for a value: where there is none, any will do.
    real = {name: getattr(torch.Tensor, name) for name in ("__bool__", "item")}
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda x: True if x.is_meta else real["__bool__"](x))
    monkeypatch.setattr(torch.Tensor, "item", lambda x: 1.0 if x.is_meta else real["item"](x))
    monkeypatch.setattr(losses, "strong_uptake", lambda x: x.new_tensor(0.5))
    monkeypatch.setattr(loop, "device", lambda: there)
    nonzero = torch.fx.experimental._config
    monkeypatch.setattr(nonzero, "meta_nonzero_assume_all_nonzero", True)
    networks = [LAGN(SMALL).to(there) for _ in range(2)]
    batches = fusion.batches_of(config, sets)
    step = fusion.objective(networks[0], config, batches, lambda model, a, b, _: model(a, b), networks[1])
    loss, terms = step(0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.is_meta and {"flat", "taught", "rounding", "lesions/ct", "colour/pet"} <= terms.keys()
    assert all(parameter.grad is not None for parameter in networks[0].parameters())


def killed_at_its_end(worker: int) -> None:
    """For the second of two workers, while the first is waited for: now and then a library aborts at a
    process's end, most often on a busy machine."""
    atexit.register(os.kill, os.getpid(), signal.SIGKILL) if worker else atexit.register(time.sleep, 1)


def test_batches_made_ahead_are_the_same(
    sets: list[coloured.ColouredPairs], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that dies when it has done its work is no failure of a training: it was, at the very end."""
    monkeypatch.setattr(workers, "outlast", killed_at_its_end)
    mixture = coloured.Mixture(3, 2, 64, 0.5, planted=True, synthetic=0.3)
    here, ahead = coloured.Batches(sets, mixture), coloured.Batches(sets, mixture, workers=2)
    for number in (5, 7, 9):  # as the second of two processes asks
        one, other = here.of(number, apart=2), ahead.of(number, apart=2)
        assert one.modalities == other.modalities and one.sites == other.sites
        for name in ("a", "b", "rgb", "uptake", "strong", "known"):
            assert torch.equal(getattr(one, name), getattr(other, name))
    ahead.close()
    assert not multiprocessing.active_children()


def test_a_taught_network_comes_nearer_to_the_release(tmp_path: Path) -> None:
    root = write_sets(tmp_path, "{split}{i}_slice")
    pairs = [coloured.read_colours(root, "train", one) for one in data.read_sets(root, "train")]
    nothing = losses.LossWeights(**{field.name: 0.0 for field in fields(losses.LossWeights)})
    config = fusion.FusionConfig(
        steps=30,
        batch_size=3,
        crop_px=64,
        warmup_steps=2,
        precision="fp32",
        taught=1.0,
        model=SMALL,
        loss=nothing,
    )
    state = fusion.new_state(config)
    torch.manual_seed(5)
    step = fusion.objective(  # type: ignore[arg-type]
        state.model, config, fusion.batches_of(config, pairs), teacher=LAGN(SMALL).eval()
    )
    apart = [loop.train_step(state, config, step)[0] for _ in range(config.steps)]
    assert np.mean(apart[-5:]) < 0.7 * np.mean(apart[:5])
