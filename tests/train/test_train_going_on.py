"""Trainings that stop and go on: from the same sources only, whatever ends them, and disks that refuse."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
import torch
from conftest import REPO
from disks import disk
from ports import free_port
from safetensors.torch import load_file, save_file
from training_data import write_sets

from mmif_trt.image import InputError
from mmif_trt.models.lagn import LAGNConfig
from mmif_trt.train import checkpoints, data, fusion, loop, workers

CONFIG = fusion.FusionConfig(
    steps=3,
    batch_size=1,
    crop_px=32,
    warmup_steps=2,
    precision="fp32",
    model=LAGNConfig(local_dim=8, global_dim=32, global_depth=2),
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_sets(tmp_path / "data", "{split}{i}_slice")


def words(root: Path, out: Path, *more: str) -> list[str]:
    told = ["--data", str(root), "--out", str(out), "--threads", "1", "--batch-size", "1", "--crop-px", "32"]
    return [*told, "--precision", "fp32", *more]


def expected_images(path: Path, root: Path, level: int) -> Path:
    """As train/generate.py writes them, all of one level."""
    sets = data.read_sets(root, "train")
    tensors = {p.modality: torch.full((2, *p.a.shape), level, dtype=torch.uint8) for p in sets}
    save_file(tensors, path, {p.modality: data.digest(p) for p in sets})
    return path


def with_one_pixel_changed(root: Path, copy: Path) -> Path:
    shutil.copytree(root, copy)
    path = copy / "mri-pet" / "train" / "mri" / "train0_slice.png"
    picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert picture is not None
    picture[0, 0] ^= 1
    assert cv2.imwrite(str(path), picture)
    return copy


def test_a_run_goes_on_from_the_same_sources_only(root: Path, tmp_path: Path) -> None:
    """It mixed both in silence, and a finished stage passed for one of the new data."""
    init, other_init = (
        fusion.train(replace(CONFIG, seed=seed), root, tmp_path / f"{seed}") for seed in (1, 2)
    )
    made, other_made = (expected_images(tmp_path / f"made{level}", root, level) for level in (3, 9))
    other = with_one_pixel_changed(root, tmp_path / "other")
    made_there = expected_images(tmp_path / "made there", other, 3)
    whole = load_file(fusion.train(CONFIG, root, tmp_path / "whole", init, made))
    path = fusion.train(CONFIG, root, tmp_path / "run", init, made, stop_after=1)
    before = path.read_bytes()
    for name, changed in (
        ("data", (other, tmp_path / "run", init, made_there)),
        ("init", (root, tmp_path / "run", other_init, made)),
        ("generated", (root, tmp_path / "run", init, other_made)),
        ("generated", (root, tmp_path / "run", init, None)),
    ):
        said = rf"made from something else: {name} \w{{12}}, now \w+; expected the same, or --out NEW"
        with pytest.raises(InputError, match=said):
            fusion.train(CONFIG, *changed)
    state = fusion.new_state(CONFIG)
    state.sources = {"processes": "2"}
    with pytest.raises(InputError, match="processes 1, now 2"):
        checkpoints.load_checkpoint(path, state, CONFIG)
    assert path.read_bytes() == before
    init.unlink()  # needed at the start only
    resumed = load_file(fusion.train(CONFIG, root, tmp_path / "run", init, made))
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)


def test_a_checkpoint_of_an_earlier_release_goes_on(root: Path, tmp_path: Path) -> None:
    """It does not say what it was made from."""
    path = fusion.train(CONFIG, root, tmp_path / "run", stop_after=1)
    save_file(load_file(path), path, {"step": "1", "config": checkpoints.as_json(CONFIG)})
    assert fusion.train(CONFIG, root, tmp_path / "run") == path
    assert "data" in checkpoints.recorded_sources(checkpoints.open_checkpoint(path).metadata())


def foreign(path: Path, how: str) -> None:
    tensors, config = load_file(path), checkpoints.as_json(CONFIG)
    if how == "cut off":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "no tensors":
        save_file({"x": torch.zeros(1)}, path, {"step": "1", "config": config})
    elif how == "other shapes":
        save_file(
            {k: v[..., None].clone() for k, v in tensors.items()}, path, {"step": "1", "config": config}
        )
    else:
        save_file(
            tensors, path, {"step": how, "config": config} if how != "list" else {"step": "1", "config": "[]"}
        )


@pytest.mark.parametrize("how", ["cut off", "no tensors", "other shapes", "one", "-1", "list"])
def test_a_spoilt_checkpoint_is_one_line(
    how: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = words(root, tmp_path / "run", "--steps", "2")
    assert fusion.main([*out, "--stop-after", "1"]) == 0
    assert "checkpoint.safetensors: step 1 of 2, " in capsys.readouterr().out, "and not 2 steps"
    path = tmp_path / "run" / "checkpoint.safetensors"
    given = checkpoints.open_checkpoint(path).metadata()["config"]
    foreign(path, how)
    if how in ("no tensors", "other shapes"):
        save_file(load_file(path), path, {"step": "1", "config": given})
    assert fusion.main(out) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "step/s" not in line]
    assert len(lines) == 1 and lines[0].startswith(f"error: {path}: ") and "; expected " in lines[0]


def test_a_place_that_cannot_be_written_is_one_line(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("kept")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        assert fusion.main(words(root, out, "--steps", "1")) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and f"{out}: cannot write there" in lines[0]
    assert (tmp_path / "file").read_text() == "kept"


def test_a_full_disk_keeps_the_checkpoint_before(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with disk(tmp_path / "small", "6m") as small:
        out = words(root, small / "run", "--steps", "2")
        assert fusion.main([*out, "--stop-after", "1"]) == 0
        path = small / "run" / "checkpoint.safetensors"
        before = path.read_bytes()
        (small / "filler").write_bytes(b"x" * (6_000_000 - len(before) - 500_000))
        assert fusion.main(out) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith(f"error: {path}: cannot be written (No space left on device); expected")
        assert path.read_bytes() == before
        names = {p.name.split(".")[0] for p in path.parent.iterdir() if p.name != ".lock"}
        assert names == {"checkpoint", "config", "events"}


def test_a_disk_too_full_for_tensorboard_is_named(root: Path, tmp_path: Path) -> None:
    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    state, path = fusion.new_state(CONFIG), tmp_path / "checkpoint.safetensors"
    zero = sum((0 * p).sum() for p in state.model.parameters())
    with pytest.raises(InputError, match=f"^{tmp_path}: cannot be written \\(No space left on device\\)"):
        loop.run(state, replace(CONFIG, steps=1), path, lambda _: (torch.as_tensor(zero), {}), full)


def test_without_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No training began in a container without git."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert loop.source_commit() == "unknown"


# Signals to all processes of a run, as Ctrl-C and a scheduler send them


def test_workers_start_with_signals_blocked_and_then_outlast_them() -> None:
    code = "import signal; print(sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))))"
    with workers.starting():
        blocked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (blocked.stdout, after.stdout) == (f"{sorted(map(int, workers.ENDINGS))}\n", "[]\n")
    code = """
import os, signal
from mmif_trt.train import workers
with workers.starting():
    if os.fork() == 0:
        for number in workers.ENDINGS:
            os.kill(os.getpid(), number)
        workers.outlast(0)
        os.write(1, b"outlasted")
        os.kill(os.getpid(), signal.SIGTERM)
        os.write(1, b", twice")
print(os.wait()[1])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout == f"outlasted{int(signal.SIGTERM)}\n"


@pytest.mark.parametrize("number", workers.ENDINGS)
def test_a_signal_to_every_process_ends_the_run_with_a_checkpoint(
    number: signal.Signals, root: Path, tmp_path: Path
) -> None:
    """SIGTERM killed the workers: a traceback and no checkpoint, or, while they started, a run that hung."""
    command = [
        sys.executable,
        "-m",
        "mmif_trt.train.fusion",
        *words(root, tmp_path / "run", "--workers", "1"),
    ]
    with subprocess.Popen(
        command, cwd=REPO, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    ) as run:
        assert run.stderr is not None
        os.read(run.stderr.fileno(), 1)  # the bar, before the first batch
        os.killpg(run.pid, number)
        try:
            _, errors = run.communicate(timeout=60)
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == 128 + number and b"Traceback" not in errors
    assert b"checkpoint.safetensors: stopped at step " in errors.splitlines()[-1]


def test_a_folder_takes_one_training_at_a_time(root: Path, tmp_path: Path) -> None:
    """Also of two that differ, before either has written a checkpoint; in its own way a process is not."""
    out = tmp_path / "out"
    out.mkdir()
    holder = (
        "import sys; from pathlib import Path; from mmif_trt.train.checkpoints import held;"
        "file = held(Path(sys.argv[1])); print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", holder, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        with pytest.raises(InputError, match="another training is at work there; let it end, or --out NEW"):
            fusion.train(CONFIG, root, out)
        # The second of two processes ended with a traceback: the first had broken their connection.
        several = ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
        told = [sys.executable, "-m", *several, "-m", "mmif_trt.train.fusion", *words(root, out)]
        said = subprocess.run(told, cwd=REPO, capture_output=True, text=True, check=False).stderr
        assert "another training is at work there" in said and "[rank1]" not in said, said
        assert [path.name for path in out.iterdir()] == [".lock"]
    fusion.train(CONFIG, root, out, stop_after=1)
    fusion.train(CONFIG, root, out)
