"""The network: its budget, its windows, and what holds by construction."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from typing import Any

import pytest
import torch

from mmif_trt.models.lagn import LAGN, LAGNConfig, WindowAttention, relative_position_index, shift_mask
from mmif_trt.stages import colour


def reference_attention(layer: WindowAttention, x: torch.Tensor) -> torch.Tensor:
    """Slow truth: for each token a loop over its window in the shifted image, one mask per region, no cyclic
    roll."""
    B, H, W, C = x.shape
    window, shift, heads, d = layer.window, layer.shift, layer.heads, layer.head_dim
    qkv = layer.qkv(x).reshape(B, H, W, 3, heads, d)
    out = torch.zeros(B, H, W, heads, d, dtype=x.dtype)
    index = relative_position_index(window)

    def home(y: int, x: int) -> tuple[int, int, int, int, int]:
        """window row and column, region row and column, and place in the window of one token after the
        shift"""
        sy, sx = (y - shift) % H, (x - shift) % W
        wrapped_y, wrapped_x = y < shift, x < shift
        return sy // window, sx // window, wrapped_y, wrapped_x, sy % window * window + sx % window

    for y in range(H):
        for x_ in range(W):
            wy, wx, ry, rx, n = home(y, x_)
            mates = [(v, u) for v in range(H) for u in range(W) if home(v, u)[:4] == (wy, wx, ry, rx)]
            places = torch.tensor([home(v, u)[4] for v, u in mates])
            k = torch.stack([qkv[:, v, u, 1] for v, u in mates], 1)  # [B, n, heads, d]
            value = torch.stack([qkv[:, v, u, 2] for v, u in mates], 1)
            score = torch.einsum("bhd,bnhd->bhn", qkv[:, y, x_, 0], k) * d**-0.5
            score = score + layer.bias_table[index[n, places]].T
            out[:, y, x_] = torch.einsum("bhn,bnhd->bhd", score.softmax(-1), value)
    return layer.proj(out.reshape(B, H, W, C))


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("exportable", [False, True])
def test_window_attention_equals_the_loop(shift: int, exportable: bool) -> None:
    torch.manual_seed(0)
    layer = WindowAttention(8, 4, window=4, shift=shift).double()
    torch.nn.init.normal_(layer.bias_table)
    layer.exportable = exportable
    x = torch.randn(2, 8, 12, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x), reference_attention(layer, x), rtol=1e-5, atol=1e-6)


def test_relative_position_index_has_one_entry_per_offset() -> None:
    index = relative_position_index(8)
    y, x = torch.arange(64) // 8, torch.arange(64) % 8
    pairs = {}
    for i in range(64):
        for j in range(64):
            pairs.setdefault((int(y[i] - y[j]), int(x[i] - x[j])), set()).add(int(index[i, j]))
    assert len(pairs) == 225
    assert all(len(entries) == 1 for entries in pairs.values())
    assert len(set.union(*pairs.values())) == 225


def test_shift_mask_only_touches_border_windows() -> None:
    mask = shift_mask(32, 32, 8, 4)[:, 0].reshape(4, 4, 64, 64)
    assert (mask[:3, :3] == 0).all()
    assert (mask[3] < 0).any(dim=(1, 2)).all() and (mask[:, 3] < 0).any(dim=(1, 2)).all()


def test_budget() -> None:
    model = LAGN()
    assert sum(p.numel() for p in model.parameters()) <= 600_000
    macs = 0

    def count(module: torch.nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        nonlocal macs
        if isinstance(module, torch.nn.Conv2d):
            macs += out.numel() * module.weight[0].numel()
        elif isinstance(module, torch.nn.Linear):
            macs += out.numel() * module.in_features
        elif isinstance(module, WindowAttention):
            macs += 2 * out.numel() * module.window**2  # scores, and their product with the values

    for module in model.modules():
        module.register_forward_hook(count)
    model(torch.rand(1, 1, 256, 256), torch.rand(1, 1, 256, 256))
    assert 0.5e9 < macs <= 2e9


SMALL = LAGNConfig(local_dim=8, global_dim=32, global_depth=2)
COARSE_BELOW = replace(SMALL, stride=8, window=4, below=2.0, activation="hardswish")
FAR = replace(COARSE_BELOW, reach="brightest")


@pytest.mark.parametrize("config", [SMALL, COARSE_BELOW, FAR], ids=["quarter", "eighth", "brightest"])
def test_by_construction(config: LAGNConfig) -> None:
    torch.manual_seed(1)
    model = LAGN(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    a, colours = torch.rand(2, 1, 64, 96), torch.rand(2, 3, 64, 96)
    a[..., :20] = 0
    colours[..., 10:30] = 0
    planes = torch.from_numpy(colour.planes(colours.movedim(1, -1).numpy()))
    b, brightest = planes[:, :1], colours.amax(1, keepdim=True)
    f = model(a, planes)
    assert f.shape == a.shape
    assert (f[..., 10:20] == 0).all(), "both are black"
    assert torch.equal(f[..., :10], b[..., :10]) and torch.equal(f[..., 20:30], a[..., 20:30]), "one is black"
    assert f.min() >= 0 and f.max() <= 1
    weaker = torch.minimum(a, brightest if config.reach == "brightest" else b)
    least, most = torch.maximum(a, b) - config.below * weaker, torch.maximum(a, b) + weaker
    assert (f <= most + 1e-6).all() and (f >= least - 1e-6).all()
    assert (f - torch.maximum(a, b)).abs().max() > 0.1, "the bounds are not met by copying alone"
    assert (f < (a - b).abs() - 0.05).any() == (config.below > 1)
    beyond = (torch.maximum(a, b) - f) / torch.minimum(a, b).clamp(min=1e-6)
    assert (beyond > config.below + 0.1).any() == (config.reach == "brightest")


def test_a_grey_source_is_fused_alike_whatever_the_reach() -> None:
    torch.manual_seed(2)
    near, far = LAGN(COARSE_BELOW), LAGN(FAR)
    far.load_state_dict(near.state_dict())
    a, b = torch.rand(1, 1, 32, 32), torch.rand(1, 2, 32, 32)
    assert torch.equal(near(a, b[:, :1]), far(a, b[:, :1])) and not torch.equal(near(a, b), far(a, b))


def test_a_checkpoint_of_two_lumas_gives_the_same_pictures_and_learns_from_there() -> None:
    torch.manual_seed(0)
    before, now = LAGN(SMALL), LAGN(SMALL)
    tensors = before.state_dict()
    tensors["stem.weight"][:, 8:] = 0
    old = {k: v[:, :8] if k == "stem.weight" else v for k, v in tensors.items()}
    now.load_state_dict(old)
    a, b = torch.rand(1, 1, 32, 32), torch.rand(1, 2, 32, 32)
    assert torch.equal(now(a, b), before(a, b)) and torch.equal(now(a, b), now(a, b[:, :1]))
    now(a, b).sum().backward()
    grown = now.stem.weight.grad
    assert grown is not None and grown[:, 8:].abs().sum() > 0
    assert old["stem.weight"].shape[1] == 8, "the caller's own stay as they are"


def test_the_second_plane_counts_and_one_plane_is_grey() -> None:
    torch.manual_seed(0)
    model = LAGN(SMALL)
    a, b = torch.rand(1, 1, 32, 32), torch.rand(1, 2, 32, 32)
    grey = torch.cat([b[:, :1], torch.zeros_like(b[:, :1])], 1)
    assert torch.equal(model(a, b[:, :1]), model(a, grey)) and not torch.equal(model(a, b), model(a, grey))


def test_the_share_bends_at_zero_without_a_kink() -> None:
    """Slope 1 on both sides, up to 1 above and -below beneath: weights trained with one bound are a start for
    another."""
    x = torch.linspace(-6, 6, 1201, dtype=torch.double, requires_grad=True)
    for below in (1.0, 2.0):
        share = LAGN(replace(SMALL, below=below)).share(x)
        (slope,) = torch.autograd.grad(share.sum(), x)
        slope[600] = 1  # where both are equal, each has half the slope
        assert (slope > 0).all() and slope.diff().abs().max() < 0.02, "no step in the slope, 1 at 0"
        share = share.detach()
        assert share[-1] == pytest.approx(1, abs=1e-4) and share[0] == pytest.approx(-below, abs=0.02)


@pytest.mark.parametrize("config", [SMALL, COARSE_BELOW], ids=["quarter", "eighth"])
def test_exportable_switch_changes_no_number(config: LAGNConfig) -> None:
    torch.manual_seed(2)
    model = LAGN(config).eval()
    a, b = torch.rand(2, 1, 64, 96), torch.rand(2, 1, 64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(model.exportable()(a, b), model.exportable(False)(a, b), rtol=0, atol=1e-6)


def ddp_worker(rank: int, world: int, port: int, queue: Any) -> None:
    """One rank of a data-parallel step on its half of a batch; rank 0 sends the gradients back."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    model, a, b = small_step()
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    parallel(a[rank : rank + 1], b[rank : rank + 1]).square().mean().backward()
    if rank == 0:
        queue.put([p.grad.numpy() for p in model.parameters() if p.grad is not None])
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def small_step() -> tuple[LAGN, torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    model = LAGN(LAGNConfig(local_dim=8, global_dim=32, global_depth=2))
    return model, torch.rand(2, 1, 64, 64), torch.rand(2, 1, 64, 64)


def test_data_parallel_gradients_are_those_of_the_whole_batch() -> None:
    """Two processes with half a batch each, over gloo: the kernels' gradients join like any others."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", __name__])  # imported once for both
    queue = context.SimpleQueue()
    ranks = [context.Process(target=ddp_worker, args=(rank, 2, port, queue)) for rank in range(2)]
    for process in ranks:
        process.start()
    result = queue.get()
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    model, a, b = small_step()
    model(a, b).square().mean().backward()
    expected = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(result) == len(expected) == len(list(model.parameters()))
    for x, y in zip(result, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(x), y, rtol=1e-3, atol=1e-6)
