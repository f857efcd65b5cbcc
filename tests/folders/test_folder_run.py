"""Pairs and batches in process, with a quick stand-in for the network that can be made to misbehave."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmif_trt import io, processes
from mmif_trt.files import TMP_SUFFIX, remove_leftovers, temporary_prefix, write_atomic
from mmif_trt.folders.pairs import Pair, plan_pairs, prepare_output
from mmif_trt.folders.run import Result, run_pairs, totals, write_report
from mmif_trt.image import Image, InputError
from mmif_trt.running import Stop, explain


class Mean:
    """Stands in for the network: calls `before`, then takes the mean; counts the pairs in hand."""

    def __init__(self, before: Callable[[Image], None] = lambda a: None) -> None:
        self.before, self.lock, self.now, self.most = before, threading.Lock(), 0, 0

    def takes_on_card(self, a: tuple[int, ...], b: tuple[int, ...]) -> bool:
        return False

    def fuse_images(self, a: Image, b: Image) -> Image:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            self.before(a)
            if a.size != b.size:
                raise InputError(f"{a.source}: {a.size}, {b.source}: {b.size}; expected equal sizes")
            return b.with_data(((a.data.astype(int) + b.data) // 2).astype(b.data.dtype))
        finally:
            with self.lock:
                self.now -= 1


def picture(seed: int, side: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)


def save(path: Path, data: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    io.write(path, Image(data))
    return path


def folders(root: Path, count: int) -> tuple[Path, Path, Path]:
    for i in range(count):
        save(root / "a" / f"p{i:03d}.png", picture(i))
        save(root / "b" / f"p{i:03d}.png", picture(1000 + i))
    return root / "a", root / "b", root / "out"


def fuse_folder(
    a: Path, b: Path, out: Path, fuser: Mean, *, overwrite: bool = False, **how: Any
) -> list[Result]:
    """Plan, prepare and run, as `mmif-trt fuse` does."""
    plan = plan_pairs(a, b, out, overwrite=overwrite)
    prepare_output(plan)
    return run_pairs(plan.pairs, fuser, **how)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refuse(match: str, *args: Path | str, **options: bool | str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        plan_pairs(*args, **options)  # type: ignore[arg-type]
    said = str(caught.value)
    assert "\n" not in said and "expected" in said


def test_fuses_a_folder_in_order_of_name(tmp_path: Path) -> None:
    a, b, out = folders(tmp_path, 12)
    early = threading.Event()

    def the_first_comes_last(image: Image) -> None:
        if image.source.endswith("p000.png"):
            early.wait(5)
        elif image.source.endswith("p005.png"):
            early.set()

    results = fuse_folder(a, b, out, Mean(the_first_comes_last), workers=3)
    assert [r.pair.name for r in results] == [f"p{i:03d}" for i in range(12)]
    assert early.is_set() and all(r.status == "done" for r in results)
    for i, result in enumerate(results):
        expected = (picture(i).astype(int) + picture(1000 + i)) // 2
        np.testing.assert_array_equal(io.read(result.pair.out).data, expected)


def test_only_as_many_pairs_as_workers_are_in_hand(tmp_path: Path) -> None:
    fuser = Mean(lambda image: time.sleep(0.005))
    assert len(fuse_folder(*folders(tmp_path, 30), fuser, workers=3)) == 30
    assert 2 <= fuser.most <= 3


def test_one_bad_pair_does_not_stop_the_others(tmp_path: Path) -> None:
    a, b, out = folders(tmp_path, 6)
    save(b / "p001.png", picture(1, side=30))
    (b / "p002.png").write_bytes(b"not a picture")

    def explode(image: Image) -> None:
        if image.source.endswith("p004.png"):
            raise RuntimeError("two\nlines \x1b[31m")

    results = fuse_folder(a, b, out, Mean(explode))
    assert [r.status for r in results] == ["done", "failed", "failed", "done", "failed", "done"]
    assert "p001.png" in results[1].message and "p002.png" in results[2].message
    assert results[4].message.startswith("internal error: RuntimeError at folders/run.py:")
    assert "two" not in results[4].message, "its text might quote a patient"
    assert names(out) == ["p000.png", "p003.png", "p005.png"]


def test_finished_pairs_are_skipped_until_overwrite(tmp_path: Path) -> None:
    a, b, out = folders(tmp_path, 4)
    fuse_folder(a, b, out, Mean())
    (out / "p001.png").write_bytes(b"")  # as after a crash of the machine
    (out / "p002.png").unlink()
    os.utime(out / "p003.png", (1, 1))
    again = fuse_folder(a, b, out, Mean())
    assert [r.status for r in again] == ["skipped", "done", "done", "skipped"]
    assert [bool(r.message) for r in again] == [False, False, False, True]  # p003: its inputs are newer
    assert all(len(r.sha256) == 3 for r in again)
    assert {r.status for r in fuse_folder(a, b, out, Mean(), overwrite=True)} == {"done"}


def test_a_run_without_unfinished_pairs_needs_no_fuser(tmp_path: Path) -> None:
    a, b, out = folders(tmp_path, 2)
    fuse_folder(a, b, out, Mean())
    assert {r.status for r in run_pairs(plan_pairs(a, b, out).pairs, None)} == {"skipped"}


def test_value_ranges_reach_the_fuser(tmp_path: Path) -> None:
    seen: list[tuple[float, float] | None] = []
    a, b, out = folders(tmp_path, 1)
    fuse_folder(a, b, out, Mean(lambda image: seen.append(image.value_range)), range_a=(10, 90))
    assert seen == [(10.0, 90.0)]


def test_stop_leaves_the_rest_untouched(tmp_path: Path) -> None:
    a, b, out = folders(tmp_path, 20)
    plan, stop = plan_pairs(a, b, out), Stop()
    prepare_output(plan)

    def on_result(result: Result) -> None:
        stop.reason = "enough"

    results = run_pairs(plan.pairs, Mean(), workers=2, stop=stop, on_result=on_result)
    assert 1 <= len(results) < 20 and {r.status for r in results} == {"done"}
    assert names(out) == [Path(r.pair.out).name for r in results]
    total = totals(results, 20, 1.0)
    assert total["done"] + total["not_started"] == total["pairs"] == 20


def test_a_raising_callback_ends_the_workers(tmp_path: Path) -> None:
    a, b, out = folders(tmp_path, 20)
    plan = plan_pairs(a, b, out)
    prepare_output(plan)
    with pytest.raises(ZeroDivisionError):
        run_pairs(plan.pairs, Mean(), workers=2, on_result=lambda result: 1 // 0)  # type: ignore[arg-type,return-value]
    assert not [t for t in threading.enumerate() if t.name.startswith("pair-")]


def test_a_full_disk_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, out = folders(tmp_path, 20)
    plan, stop = plan_pairs(a, b, out), Stop()
    prepare_output(plan)
    room, replace = iter(range(5)), os.replace

    def full(source: str, target: str) -> None:
        if next(room, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    results = run_pairs(plan.pairs, Mean(), workers=1, stop=stop)
    assert [r.status for r in results] == 5 * ["done"] + ["failed"]
    assert str(out) in stop.reason and "full" in stop.reason and "No space left" in results[-1].message
    assert len(names(out)) == 5


def test_report(tmp_path: Path) -> None:
    a, b, out = folders(tmp_path, 3)
    (b / "p001.png").write_bytes(b"")
    results = fuse_folder(a, b, out, Mean())
    write_report(tmp_path / "r.json", {"totals": totals(results, 3, 2.0)}, results)
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["totals"]["pairs_per_s"] == 1.0
    good, bad, _ = report["pairs"]
    sums = subprocess.run(["sha256sum", good["a"], good["b"], good["out"]], capture_output=True, text=True)
    assert [line.split()[0] for line in sums.stdout.splitlines()] == [
        good["sha256"][k] for k in ("a", "b", "out")
    ]
    assert set(good["ms"]) == {"decode", "fuse", "encode"} and min(good["ms"].values()) > 0
    assert bad["status"] == "failed" and "p001.png" in bad["message"] and "out" not in bad["sha256"]


def test_match_by_stem(tmp_path: Path) -> None:
    for name in ("one.png", "two.png", "three.png", ".hidden.png", "notes.txt"):
        save(tmp_path / "a" / "x.png", picture(0)).rename(tmp_path / "a" / name)
    for name in ("one.png", "two.TIF", "four.png"):
        save(tmp_path / "b" / "x.png", picture(0)).rename(tmp_path / "b" / name)
    (tmp_path / "b" / "three.png").mkdir()
    plan = plan_pairs(tmp_path / "a", tmp_path / "b", tmp_path / "out")
    assert [Path(pair.out).name for pair in plan.pairs] == ["one.png", "two.TIF"]
    assert len(plan.warnings) == 2 and "three" in plan.warnings[0] and "four" in plan.warnings[1]
    plan = plan_pairs(tmp_path / "a", tmp_path / "b", tmp_path / "out", suffix=".jp2")
    assert [Path(pair.out).name for pair in plan.pairs] == ["one.jp2", "two.jp2"]
    save(tmp_path / "a" / "two.tif", picture(0))
    refuse("two.png and two.tif", tmp_path / "a", tmp_path / "b", tmp_path / "out")


def test_two_files(tmp_path: Path) -> None:
    a, b = save(tmp_path / "a.png", picture(0)), save(tmp_path / "b.tif", picture(1))
    (pair,) = plan_pairs(a, b, tmp_path / "new.jp2").pairs
    assert Path(pair.out) == tmp_path / "new.jp2"
    (pair,) = plan_pairs(a, b, f"{tmp_path}/made/").pairs
    assert Path(pair.out) == tmp_path / "made" / "b.tif"
    refuse("expected .png, by --format", a, b, tmp_path / "x.tif", suffix=".png")
    refuse("suffix", a, b, tmp_path / "x.doc")


def test_what_cannot_be_paired(tmp_path: Path) -> None:
    a, b, out = folders(tmp_path, 1)
    file, empty = a / "p000.png", tmp_path / "empty"
    empty.mkdir()
    refuse("no such file or folder", a, tmp_path / "gone", out)
    refuse("is a folder, .* a file", a, file, out)
    refuse("an empty folder", a, empty, out)
    (empty / "notes.txt").write_text("x")
    refuse("no image among 1", empty, b, out)
    save(empty / "other.png", picture(0))
    refuse("no name in common", a, empty, out)
    if os.path.exists("/dev/null"):
        refuse("not a regular file", file, "/dev/null", tmp_path / "x.png")


def test_no_input_is_an_output(tmp_path: Path) -> None:
    a, b, out = folders(tmp_path, 2)
    refuse("input folder", a, b, a)
    (tmp_path / "link").symlink_to(b)
    refuse("input folder", a, b, tmp_path / "link")
    refuse("same file", a / "p000.png", b / "p000.png", a / "p000.png")
    refuse("same file", a / "p000.png", b / "p000.png", b, overwrite=True)  # a folder: it would be b/p000.png
    out.mkdir()
    (out / "p000.png").symlink_to(b / "p000.png")
    refuse("same file", a, b, out, overwrite=True)
    (out / "p000.png").unlink()
    os.link(a / "p001.png", out / "p000.png")  # another pair's input, as a hard link
    refuse("same file", a, b, out)


@pytest.mark.skipif(os.name != "posix", reason="looks up processes as POSIX does")
def test_leftovers_of_dead_processes_go_and_others_stay(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    ours, old = temporary_prefix(), time.time() - 2 * processes.LEASE_S
    gone = [f"{temporary_prefix(dead.pid)}00ff{TMP_SUFFIX}", f"{ours}01ff{TMP_SUFFIX}"]
    elsewhere = [f".0123abcd-{dead.pid}-{end}{TMP_SUFFIX}" for end in ("00ff", "01ff")]
    kept = [
        f"{temporary_prefix(os.getppid())}02ff{TMP_SUFFIX}",
        f"{ours}03ff{TMP_SUFFIX}",
        elsewhere[0],  # of another machine, where a process of that number may well run
        "y.png",
    ]
    for name in (*gone, *kept, elsewhere[1]):
        (tmp_path / name).write_bytes(b"half")
    folder = f"{temporary_prefix(dead.pid)}04ff{TMP_SUFFIX}"
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "slice_0001.png").write_bytes(b"half")
    os.utime(tmp_path / gone[1], (1, 1))  # our number, but before our time
    os.utime(tmp_path / elsewhere[1], (old, old))
    remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted(kept)


def test_write_atomic_names_what_remove_leftovers_looks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(os, "replace", lambda source, target: seen.append(os.path.basename(source)))
    write_atomic(tmp_path / "x", b"data")
    os.utime(tmp_path / seen[0], (1, 1))
    remove_leftovers(tmp_path)
    assert not names(tmp_path)


def test_debug_prints_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    explain(KeyError("x"))
    assert "Error" not in capsys.readouterr().err
    monkeypatch.setenv("MMIF_DEBUG", "1")
    assert explain(KeyError("x")).startswith("internal error: KeyError; MMIF_DEBUG=1")
    assert "KeyError" in capsys.readouterr().err


def test_a_vanished_input_gives_one_line(tmp_path: Path) -> None:
    gone = Pair("x", str(tmp_path / "gone.png"), str(tmp_path / "gone.png"), str(tmp_path / "out.png"))
    (result,) = run_pairs([gone], Mean())
    assert result.status == "failed"
    assert result.message.startswith(f"{tmp_path / 'gone.png'}: no such file")
