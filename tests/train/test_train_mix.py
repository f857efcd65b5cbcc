"""train/mix: the mean of checkpoints in given shares, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmif_trt.train import loop, mix


def checkpoint(folder: Path, value: float, model: str = '{"model": {"window": 8}}') -> str:
    folder.mkdir()
    tensors = {f"{part}.w": torch.full((2, 3), value) for part in ("model", "average")}
    save_file(tensors, folder / "checkpoint.safetensors", {"step": "7", "config": model})
    return f"{folder}/checkpoint.safetensors"


def test_shares_are_kept(tmp_path: Path) -> None:
    one, other = checkpoint(tmp_path / "one", 1.0), checkpoint(tmp_path / "other", 2.0)
    assert mix.main(["--out", str(tmp_path / "out"), f"0.25={one}", f"0.75={other}"]) == 0
    for part in ("average", "model"):
        tensors, config = loop.read_average(tmp_path / "out/checkpoint.safetensors", part)
        assert tensors["w"].eq(1.75).all() and config == {"model": {"window": 8}}


def test_what_does_not_fit_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, wide = checkpoint(tmp_path / "one", 1.0), checkpoint(tmp_path / "w", 2.0, '{"model": {"window": 4}}')
    for told, words in (
        ([f"0.5={one}"], "add up to 0.5; expected 1"),
        ([f"half={one}"], "expected SHARE=CHECKPOINT"),
        ([f"0.5={one}", f"0.5={wide}"], "another network"),
        ([f"1={tmp_path}/gone.safetensors"], "no such file"),
    ):
        assert mix.main(["--out", str(tmp_path / "out"), *told]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
