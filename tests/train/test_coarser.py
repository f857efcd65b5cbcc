"""A coarser network from a finer one: the same from tokens that are alike, and a training begins there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_train import CONFIG
from training_data import write_sets

from mmif_trt.image import InputError
from mmif_trt.models.lagn import LAGN, LAGNConfig, relative_position_index
from mmif_trt.train import coarser, fusion, loop

FINE = LAGNConfig(local_dim=8, global_dim=32, global_depth=2)


def fine() -> LAGN:
    torch.manual_seed(4)
    return LAGN(FINE).eval()


@torch.no_grad()
def test_four_tokens_that_are_alike_are_one() -> None:
    model = fine()
    coarse = coarser.coarser(model.state_dict(), FINE)
    config = coarse.config
    assert (config.stride, config.window) == (8, 4) and config.multiple == FINE.multiple
    x = torch.randn(1, FINE.local_dim, 4, 6).repeat_interleave(4, 2).repeat_interleave(4, 3)
    fine_tokens, tokens = model.embed(x), coarse.embed(x)
    torch.testing.assert_close(tokens, fine_tokens[..., ::2, ::2])
    pair = ((model, fine_tokens, 2), (coarse, tokens, 4))
    before, ours = (torch.pixel_shuffle(net.unembed(y), times) for net, y, times in pair)
    # Along each side a coarse token has four places; each takes that of the nearer half: 0 0 1 1.
    before, ours = (x.unflatten(2, (-1, 4)).unflatten(4, (-1, 4)) for x in (before, ours))
    nearer = torch.tensor([0, 0, 1, 1])
    torch.testing.assert_close(ours, before[:, :, :, nearer][..., nearer])


@torch.no_grad()
def test_biases_are_those_of_the_same_offset() -> None:
    model = fine()
    coarse = coarser.coarser(model.state_dict(), FINE)
    ours, before = (net.blocks[1].attention for net in (coarse, model))
    index = {side: relative_position_index(side) for side in (4, 8)}
    for first in range(16):
        for second in range(16):
            told = ours.bias_table[index[4][first, second]]
            at = [8 * (token // 4) + token % 4 for token in (first, second)]
            torch.testing.assert_close(told, before.bias_table[index[8][at[0], at[1]]])


def test_a_training_begins_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_sets(tmp_path / "data", "{split}{i}_slice")
    full = fusion.train(CONFIG, root, tmp_path / "full", stop_after=1)
    assert coarser.main(["--out", str(tmp_path / "coarse"), str(full)]) == 0
    path = Path(capsys.readouterr().out.strip())
    tensors, config = loop.read_average(path)
    made = LAGNConfig(**config["model"])
    assert made.stride == 8 and made.window == 4
    begun = fusion.new_state(fusion.FusionConfig(model=made))
    loop.start_from(path, begun, made)
    assert all(torch.equal(v, tensors[k]) for k, v in begun.average.state_dict().items())


def test_what_cannot_be_halved_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="window 3; expected an even one"):
        coarser.coarser({}, LAGNConfig(window=3))
    assert coarser.main(["--out", str(tmp_path), str(tmp_path / "none.safetensors")]) == 2
    assert "none.safetensors: no such file; expected" in capsys.readouterr().err
