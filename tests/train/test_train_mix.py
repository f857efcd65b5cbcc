"""train/mix: the mean of checkpoints in given shares, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmif_trt.train import checkpoints, mix


def checkpoint(
    folder: Path, value: float, model: str = '{"model": {"window": 8}}', shape: tuple[int, int] = (2, 3)
) -> str:
    folder.mkdir()
    tensors = {f"{part}.w": torch.full(shape, value) for part in ("model", "average")}
    save_file(tensors, folder / "checkpoint.safetensors", {"step": "7", "config": model})
    return f"{folder}/checkpoint.safetensors"


def test_shares_are_kept(tmp_path: Path) -> None:
    one, other = checkpoint(tmp_path / "one", 1.0), checkpoint(tmp_path / "other", 2.0)
    assert mix.main(["--out", str(tmp_path / "out"), f"0.25={one}", f"0.75={other}"]) == 0
    for part in ("average", "model"):
        tensors, config = checkpoints.read_average(tmp_path / "out/checkpoint.safetensors", part)
        assert tensors["w"].eq(1.75).all() and config == {"model": {"window": 8}}


def test_what_does_not_fit_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, wide = checkpoint(tmp_path / "one", 1.0), checkpoint(tmp_path / "w", 2.0, '{"model": {"window": 4}}')
    larger = checkpoint(tmp_path / "larger", 1.0, shape=(1, 3))
    for told, words in (
        ([f"0.5={one}"], "add up to 0.5; expected 1"),
        ([f"half={one}"], "expected SHARE=CHECKPOINT"),
        ([f"nan={one}"], "a share from 0 to 1"),
        ([f"1.5={one}"], "a share from 0 to 1"),
        ([f"0.5={one}", f"0.5={larger}"], "another network"),
        ([f"0.5={one}", f"0.5={wide}"], "another network"),
        ([f"1={tmp_path}/gone.safetensors"], "no such file"),
    ):
        assert mix.main(["--out", str(tmp_path / "out"), *told]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_training_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--out of one of the stages to mix lost its hours."""
    one, other = checkpoint(tmp_path / "one", 1.0), checkpoint(tmp_path / "other", 2.0)
    tensors = {f"{part}.w": torch.ones(2, 3) for part in ("model", "average", "optimiser")}
    (tmp_path / "run").mkdir()
    run = tmp_path / "run" / "checkpoint.safetensors"
    save_file(tensors, run, {"step": "7", "config": "{}"})
    for out, words in (("one", "one of those to mix"), ("run", "holds a training")):
        before = (tmp_path / out / "checkpoint.safetensors").read_bytes()
        assert mix.main(["--out", str(tmp_path / out), f"0.5={one}", f"0.5={other}"]) == 2
        assert f"{words}; expected another folder as --out" in capsys.readouterr().err
        assert (tmp_path / out / "checkpoint.safetensors").read_bytes() == before
    for _ in range(2):  # a mixture is made anew
        assert mix.main(["--out", str(tmp_path / "mixed"), f"0.5={one}", f"0.5={other}"]) == 0
    (tmp_path / "file").touch()
    assert mix.main(["--out", str(tmp_path / "file"), f"1={one}"]) == 2
    assert "file: cannot write there" in capsys.readouterr().err
