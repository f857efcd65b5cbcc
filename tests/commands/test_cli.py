"""The command line as a user meets it: whole processes, real files, the real network. Where only words are
looked at, `mmif` runs it in this process."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from conftest import REPO
from pictures import png_file
from shell import mmif

from mmif_trt import io
from mmif_trt.files import TMP_SUFFIX, temporary_prefix
from mmif_trt.image import Image

MMIF = [sys.executable, "-m", "mmif_trt"]
LONG = 200  # pairs: enough to stop a run in the middle of them
ENV = {**os.environ, "PYTHONPATH": str(REPO), "MMIF_DEBUG": "0"}


def run(*args: str | Path, code: int, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """One run to its end: it must exit with this code, and print no traceback whatever happens."""
    command = [*MMIF, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, env={**ENV, **(env or {})}, timeout=120)
    check(done, code)
    return done


def check(done: subprocess.CompletedProcess[str], code: int) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and "internal error" not in done.stderr, done.stderr


def picture(seed: int, colour: bool = False, side: int = 32) -> np.ndarray:
    """Blocks and noise on an exactly black border."""
    rng = np.random.default_rng(seed)
    data = np.kron(rng.integers(40, 216, (side // 8, side // 8, 3)), np.ones((8, 8, 1)))
    data = (data + rng.integers(-30, 30, data.shape)).astype(np.uint8)
    data[:4] = 0
    return data if colour else data[..., 0]


def save(path: Path, data: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    io.write(path, Image(data))
    return path


def make_folders(root: Path, count: int) -> tuple[Path, Path]:
    for i in range(count):
        save(root / "mri" / f"p{i:03d}.png", picture(i))
        save(root / "pet" / f"p{i:03d}.png", picture(1000 + i, colour=True))
    return root / "mri", root / "pet"


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two folders of LONG pairs; no test writes there."""
    return make_folders(tmp_path_factory.mktemp("long"), LONG)


def pixels(folder: Path) -> dict[str, bytes]:
    """Name -> pixels of every file in a folder, hidden ones too; each must decode."""
    return {entry.name: io.read(entry).data.tobytes() for entry in sorted(folder.iterdir())}


def report(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def start_and_wait(out: Path, *args: str | Path, enough: int = 5) -> subprocess.Popen[str]:
    """A run that has written `enough` files and is still running."""

    def with_the_default_sigint() -> None:  # a shell starts its background jobs with it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    command = [*MMIF, "fuse", *map(str, args), "-o", str(out)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=ENV, preexec_fn=with_the_default_sigint
    )
    until = time.monotonic() + 60
    while len(list(out.glob("*.png")) if out.is_dir() else []) < enough:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.002)
    return process


def in_own_mounts(script: str, code: int) -> subprocess.CompletedProcess[str]:
    """A shell script that may mount: the mounts vanish with it. Skips where the kernel forbids that."""
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode
    ):
        pytest.skip("needs `unshare -rm` (user namespaces) to mount a file system")
    command = ["unshare", "-rm", "sh", "-ec", script]
    done = subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=120)
    check(done, code)
    return done


def test_folders_report_skip_and_overwrite(tmp_path: Path) -> None:
    mri, pet = make_folders(tmp_path, 6)
    save(mri / "alone.png", picture(1))
    fuse = ("fuse", mri, pet, "-o", tmp_path / "new" / "out", "--report", tmp_path / "r.json")
    first = run(*fuse, code=0)
    assert "pairs/s" in first.stderr and "alone" in first.stderr and "6 fused" in first.stderr
    assert "%|" not in first.stderr, "a bar, where stderr is no terminal"
    assert not first.stdout
    head = report(tmp_path / "r.json")
    assert head["totals"]["done"] == 6 and len(head["pairs"]) == 6 and not head["stopped"]
    assert head["runtime"]["precision"] in ("bf16", "fp32") and head["conditions"]["cpu"]["cores"] >= 1
    assert len(head["weights"]["lagn"]["sha256"]["lagn.onnx"]) == 64
    fused = io.read(tmp_path / "new" / "out" / "p000.png")
    assert fused.is_colour and not fused.data[:4].any() and len(pixels(tmp_path / "new" / "out")) == 6

    (tmp_path / "new" / "out" / "p003.png").unlink()
    second = mmif(*fuse, "--quiet")
    assert not second.stderr
    states = {pair["name"]: pair["status"] for pair in report(tmp_path / "r.json")["pairs"]}
    assert [name for name, state in states.items() if state == "done"] == ["p003"]
    assert [p["sha256"] for p in report(tmp_path / "r.json")["pairs"]] == [p["sha256"] for p in head["pairs"]]
    assert "6 fused" in mmif(*fuse, "--overwrite").stderr


def test_two_files_and_value_range(tmp_path: Path) -> None:
    a = save(tmp_path / "a.png", picture(0).astype(np.uint16) * 16)
    b = save(tmp_path / "b.tif", picture(1).astype(np.uint16) * 16)
    mmif("fuse", a, b, "-o", tmp_path / "whole.png")
    mmif("fuse", a, b, "-o", f"{tmp_path}/o/", "--value-range", "0", "4095", "--format", "jp2")
    whole, stated = io.read(tmp_path / "whole.png").data, io.read(tmp_path / "o" / "b.jp2").data
    assert whole.dtype == stated.dtype == np.uint16
    assert len(np.unique(stated)) > 256 and not np.array_equal(whole, stated) and stated.max() <= 4095
    assert "1 skipped" in mmif("fuse", a, b, "-o", tmp_path / "whole.png", code=0).stderr


def bad_folders(root: Path) -> dict[str, tuple[str, ...]]:
    """Pairs of every bad kind between good ones. Returns what the one line about each must say."""
    mri, pet = make_folders(root, 2)
    for name in (
        "unequal",
        "truncated",
        "text",
        "bomb",
        "lying",
        "cmyk",
        "alpha",
        "nan",
        "swapped",
        "folder",
    ):
        save(mri / f"{name}.png", picture(1))
    for name in ("zero", "flat", "opaque"):
        save(mri / f"{name}.png", np.full((32, 32), 0 if name == "zero" else 90, np.uint8))
    save(pet / "unequal.png", picture(1, side=40))
    whole = (pet / "p000.png").read_bytes()
    (pet / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (pet / "text.png").write_text("dear all,\n")
    (pet / "bomb.png").write_bytes(png_file(100_000, 100_000, 8, 2, bytes(1000)))
    (pet / "lying.png").write_bytes(png_file(64, 64, 8, 0, bytes(33 * 32)))
    PIL.Image.fromarray(picture(2, colour=True)).convert("CMYK").save(pet / "cmyk.jpg")
    half = np.dstack([picture(2, colour=True), np.full((32, 32), 128, np.uint8)])
    PIL.Image.fromarray(half).save(pet / "alpha.png")
    PIL.Image.fromarray(np.dstack([half[..., :3], np.full((32, 32), 255, np.uint8)])).save(pet / "opaque.png")
    PIL.Image.fromarray(np.full((32, 32), np.nan, np.float32)).save(pet / "nan.tif")
    save(mri / "swapped.png", picture(3, colour=True))
    save(pet / "swapped.png", picture(3))
    save(pet / "folder.png", picture(3))
    save(pet / "zero.png", np.zeros((32, 32, 3), np.uint8))
    save(pet / "flat.png", np.full((32, 32, 3), 90, np.uint8))
    return {
        "unequal": ("mri/unequal.png", "32 x 32", "pet/unequal.png", "40 x 40"),
        "truncated": ("pet/truncated.png",),
        "text": ("pet/text.png", "dear al", "PNG"),
        "bomb": ("pet/bomb.png", "100000 x 100000", "4096"),
        "lying": ("pet/lying.png", "64 x 64"),
        "cmyk": ("pet/cmyk.jpg", "CMYK", "RGB"),
        "alpha": ("pet/alpha.png", "alpha"),
        "nan": ("pet/nan.tif", "NaN", "finite"),
        "swapped": ("mri/swapped.png", "colour", "grey"),
        "folder": ("out/folder.png", "exists"),
    }


def test_bad_pairs_are_reported_and_the_rest_go_on(tmp_path: Path) -> None:
    expected = bad_folders(tmp_path)
    out = tmp_path / "out"
    (out / "folder.png").mkdir(parents=True)
    sources = (tmp_path / "mri", tmp_path / "pet")
    done = mmif("fuse", *sources, "-o", out, "--report", tmp_path / "r.json", code=1)
    pairs = {pair["name"]: pair for pair in report(tmp_path / "r.json")["pairs"]}
    assert {name for name, pair in pairs.items() if pair["status"] == "failed"} == set(expected)
    for name, words in expected.items():
        message = pairs[name]["message"]
        assert all(word in message for word in words), message
        assert "expected" in message, message
        assert [line for line in done.stderr.splitlines() if message in line], f"{name} is missing on stderr"
    (out / "folder.png").rmdir()
    assert set(pixels(out)) == {"p000.png", "p001.png", "zero.png", "flat.png", "opaque.png"}
    assert not io.read(out / "zero.png").data.any()
    flat = io.read(out / "flat.png").data.astype(int)
    assert np.abs(flat - 90).max() <= 8  # training demands it of flat pairs; these weights stay within 2


def test_usage_errors_write_nothing(tmp_path: Path) -> None:
    mri, pet = make_folders(tmp_path, 2)
    (tmp_path / "empty").mkdir()
    save(tmp_path / "other" / "x.png", picture(0))
    file, out = mri / "p000.png", tmp_path / "out"
    cases: dict[tuple[str | Path, ...], str] = {
        (mri, tmp_path / "empty", "-o", out): "an empty folder",
        (mri, tmp_path / "other", "-o", out): "no name in common",
        (mri, pet / "p000.png", "-o", out): "is a folder",
        (mri, tmp_path / "gone", "-o", out): "gone: no such file",
        (mri, pet, "-o", mri): "input folder",
        (file, pet / "p000.png", "-o", file): "same file",
        (mri, pet, "-o", file): "p000.png: the name of a file; expected that of a folder",
        (mri, pet, "-o", file / "below"): "below: cannot write there",
        (mri, pet, "-o", out, "--value-range", "9", "1"): "--value-range of A: 9 1",
        (mri, pet, "-o", out, "--value-range-b", "0", "nan"): "--value-range of B: 0 nan",
        (mri, pet, "-o", out, "--workers", "0"): "--workers",
        (mri, pet, "-o", out, "--format", "bmp"): "--format",
        (mri, pet, "-o", out, "--report", tmp_path / "r.txt"): "ending in .json",
        (mri, pet): "-o",
    }
    before = sorted(tmp_path.rglob("*"))
    for args, words in cases.items():
        done = mmif("fuse", *args, code=2)
        assert words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert sorted(tmp_path.rglob("*")) == before
    assert (
        "'abacus'; expected auto" in mmif("fuse", mri, pet, "-o", out, "--runtime", "abacus", code=2).stderr
    )
    assert not any(out.iterdir())


def test_a_read_only_output_folder(tmp_path: Path) -> None:
    mri, pet = make_folders(tmp_path, 2)
    (tmp_path / "out").mkdir()
    fuse = shlex.join([*MMIF, "fuse", str(mri), str(pet), "-o", str(tmp_path / "out")])
    done = in_own_mounts(f"mount -t tmpfs -o ro none {shlex.quote(str(tmp_path / 'out'))}; exec {fuse}", 2)
    assert "out: cannot write there (Read-only file system); expected" in done.stderr


def test_a_full_output_folder(tmp_path: Path, long: tuple[Path, Path]) -> None:
    out, kept = tmp_path / "out", tmp_path / "kept"
    out.mkdir()
    kept.mkdir()
    at = shlex.quote(str(out))
    fuse = shlex.join([*MMIF, "fuse", *map(str, long), "-o", str(out), "--report", str(tmp_path / "r.json")])
    keep = f"cp -a {at}/. {shlex.quote(str(kept))}"
    done = in_own_mounts(
        f"mount -t tmpfs -o size=64k none {at}; code=0; {fuse} || code=$?; {keep}; exit $code", 1
    )
    totals = report(tmp_path / "r.json")["totals"]
    assert totals["done"] == len(pixels(kept)) > 0 < totals["failed"] and totals["not_started"] > LONG // 2
    assert "No space left on device" in done.stderr and f"stopped: the disk of {out} is full" in done.stderr


def test_kill_in_the_middle_then_a_second_run(tmp_path: Path, long: tuple[Path, Path]) -> None:
    out, clean = tmp_path / "out", tmp_path / "clean"
    process = start_and_wait(out, *long)
    process.kill()
    process.communicate()
    left = f"{temporary_prefix(process.pid)}0123456789abcdef{TMP_SUFFIX}"  # what a kill during a write leaves
    (out / left).write_bytes(b"\x89PNG half a file")
    finished = len(list(out.glob("*.png")))
    assert process.returncode == -signal.SIGKILL and 5 <= finished < LONG
    run("fuse", *long, "-o", out, "--report", tmp_path / "r.json", code=0)
    totals = report(tmp_path / "r.json")["totals"]
    assert (totals["skipped"], totals["done"]) == (finished, LONG - finished)
    mmif("fuse", *long, "-o", clean, "--workers", "1", "--quiet")
    assert len(pixels(out)) == LONG and pixels(out) == pixels(clean)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_lets_the_pairs_in_hand_finish(
    tmp_path: Path, long: tuple[Path, Path], number: signal.Signals
) -> None:
    out = tmp_path / "out"
    process = start_and_wait(out, *long, "--report", tmp_path / "r.json")
    process.send_signal(number)
    time.sleep(0.05)
    process.send_signal(number)  # as `timeout` does: to the process, then to its group
    _, told = process.communicate(timeout=60)
    check(subprocess.CompletedProcess([], process.returncode, None, told), 128 + number)
    found = report(tmp_path / "r.json")
    assert found["stopped"] == f"interrupted ({number.name})" and f"interrupted ({number.name})" in told
    assert found["totals"]["done"] == len(pixels(out)) < LONG and not found["totals"]["failed"]
    assert found["totals"]["done"] + found["totals"]["not_started"] == LONG


def test_eval(tmp_path: Path) -> None:
    _, pet = make_folders(tmp_path, 2)
    table = tmp_path / "table.csv"
    text = run("eval", tmp_path, pet, "--baselines", "-o", table, code=0).stdout
    assert "Qabf" in text and "average" in text and "fused" in text and "2 pairs" in text
    assert len(table.read_text().splitlines()) == 1 + 3 * (2 + 1)
    assert "ending in .csv" in mmif("eval", tmp_path, pet, "-o", pet / "p000.png", code=2).stderr
    (pet / "p001.png").write_bytes(b"no picture")
    assert "p001.png" in mmif("eval", tmp_path, pet, code=2).stderr


def test_info_version_and_no_command() -> None:
    text = run("info", code=0).stdout
    assert "research use only" in text and "runtime openvino" in text and "lagn.onnx sha256" in text
    found = json.loads(mmif("info", "--json").stdout)
    assert found["runtimes"]["openvino"] == "" and found["default"]["name"] == "openvino"
    assert found["cpu"]["cores"] >= 1 and len(found["weights"]["lagn"]["sha256"]["lagn.onnx"]) == 64
    assert mmif("--version").stdout.startswith("mmif-trt ")
    assert "COMMAND" in mmif(code=2).stderr


def test_demo(tmp_path: Path) -> None:
    text = run("demo", tmp_path / "demo", code=0).stdout
    assert "mri-spect" in text and "simulated" in text and "median of 20" in text
    assert {p.name for p in (tmp_path / "demo").iterdir()} == {
        *("contact_sheet.png", "mri-ct.png", "mri-pet.png", "mri-spect.png")
    }
    assert io.read(tmp_path / "demo" / "mri-ct.png").data.max() > 255  # 12 bits stay
    sheet = io.read(tmp_path / "demo" / "contact_sheet.png").data
    assert sheet.shape[1] > 3 * 256 and np.median(sheet) < 60
