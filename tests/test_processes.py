"""A Fuser in worker processes, a command line without its streams, the cores that a container grants, and
what a message says of an error."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import phantoms
import pytest
import scenery
from conftest import REPO
from shell import mmif

import mmif_trt
from mmif_trt import __main__ as program
from mmif_trt.clinical import pseudonym
from mmif_trt.files import OutputError
from mmif_trt.image import InputError
from mmif_trt.machine import address, cpu_quota
from mmif_trt.measure.scores import Row, Scores, write_scores
from mmif_trt.running import explain, why

pytestmark = pytest.mark.usefixtures("fresh_graphs")

A, B = (np.random.default_rng(seed).integers(0, 255, (64, 64), np.uint8) for seed in (1, 2))


def test_a_fuser_pickles() -> None:
    fuser = mmif_trt.Fuser(precision="fp32", threads=1)
    again = pickle.loads(pickle.dumps(fuser))
    np.testing.assert_array_equal(again(A, B), fuser(A, B))
    assert (again.runtime.name, again.runtime.precision) == (fuser.runtime.name, "fp32")


def test_a_fuser_says_so_after_a_fork() -> None:
    """It waited for the parent's threads for ever (streams=2, torch)."""
    fuser = mmif_trt.Fuser(runtime="openvino", precision="fp32", streams=2)
    fuser(A, B)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(100)
        try:
            fuser(A, B)
        except InputError as error:
            os.write(write, str(error).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        said = answer.read()
    assert os.waitpid(child, 0)[1] == 0
    assert "made before a fork; expected one made in each process" in said and "\n" not in said


FORKED = """
import os, signal, sys, numpy as np, mmif_trt
x = np.zeros((64, 64), np.uint8)
runtime = {runtime!r}
{before}
child = os.fork()
if child == 0:
    signal.alarm(60)
    try:
        {within}
        print("fused")
    except mmif_trt.InputError as error:
        print(error)
    sys.exit()  # as a server's worker ends, and not by os._exit
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
OURS = "fuser = mmif_trt.Fuser(runtime, 'fp32', threads=2, streams=2); fuser(x, x)"
EACH = "mmif_trt.fuse(x, x, runtime=runtime, precision='fp32')"


@pytest.mark.parametrize(
    ("runtime", "before", "within", "said"),
    [
        ("openvino", OURS + "; del fuser", "pass", "fused"),
        ("openvino", OURS, "del fuser; " + OURS, "fused"),
        ("openvino", EACH, EACH, "fused"),
        ("openvino", OURS + "; del fuser", EACH, "has freed a Fuser; expected multiprocessing's"),
        ("torch", OURS, OURS, "has used it; expected threads=1, or multiprocessing's"),
    ],
)
def test_a_forked_child_fuses_or_says_why_not_and_ends(
    runtime: str, before: str, within: str, said: str
) -> None:
    """It waited at its exit for the parent's threads for ever, or ended by a signal; and in a Fuser of its
    own where the parent had freed one, or had used torch."""
    pytest.importorskip(runtime)
    code = FORKED.format(runtime=runtime, before=before, within=within)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO)
    assert (done.returncode, "\n" in done.stdout.strip()) == (0, False), done.stderr
    assert said in done.stdout


def test_signals_are_handled_after_fusers_are_freed() -> None:
    """Each OpenVINO core had put back the signal stack of one freed before it: a segmentation fault."""
    code = """
import gc, signal, numpy as np, mmif_trt
x = np.zeros((64, 64), np.uint8)
fusers = [mmif_trt.Fuser(runtime="openvino", precision="fp32", threads=1) for _ in range(3)]
for fuser in fusers:
    fuser(x, x)
del fuser
while fusers:
    del fusers[0]
    gc.collect()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
signal.raise_signal(signal.SIGTERM)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO)
    assert (done.returncode, done.stdout.strip()) == (0, "handled"), done.stderr


def shell(line: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(REPO), "MMIF": f"{sys.executable} -m mmif_trt"}
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=env, timeout=300)


def test_closed_streams_fail_no_run(tmp_path: Path) -> None:
    for name, pixels in (("a", A), ("b", B)):
        mmif_trt.write(tmp_path / f"{name}.png", mmif_trt.Image(pixels))
    done = shell(f"cd {tmp_path}; $MMIF fuse a.png b.png -o f.png --quiet >&- 2>&-")
    assert done.returncode == 0 and (tmp_path / "f.png").exists()
    affine = phantoms.affine_of(shape=(4, 32, 32), spacing=(5.0, 6.0, 6.0))
    points = phantoms.grid(affine, (4, 32, 32))
    for name, values in (("a", phantoms.head), ("b", phantoms.uptake)):
        phantoms.write_nifti(tmp_path / f"{name}.nii", np.rint(values(points)), affine, "<u2")
    ranges = (
        "--value-range 0 1000 --modality-b pet"  # the reading process has its own streams in their places
    )
    done = shell(f"cd {tmp_path}; $MMIF fuse a.nii b.nii -o f.nii {ranges} <&- >&- 2>&-")
    assert done.returncode == 0 and (tmp_path / "f.nii").exists()
    gone = shell("$MMIF info | true; echo ${PIPESTATUS[0]}")
    assert gone.stdout.strip() in ("0", "1") and "Exception ignored" not in gone.stderr, gone.stderr
    gone = shell("$MMIF --help | true; echo ${PIPESTATUS[0]}")
    assert gone.stdout.strip() in ("0", "1") and "Exception ignored" not in gone.stderr, gone.stderr


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_a_name_of_other_bytes_gets_its_table(tmp_path: Path, suffix: str) -> None:
    name = os.fsdecode(b"M\xfcller.png")
    scores = Scores([Row("LAGN", name, {"ssim": 0.5})], {"LAGN": {"ssim": 0.5}}, 1)
    write_scores(tmp_path / f"t{suffix}", scores)
    written = (tmp_path / f"t{suffix}").read_bytes()
    assert (b"M\xfcller.png" if suffix == ".csv" else rb"M\udcfcller.png") in written


def test_names_of_other_bytes_are_shown_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from an old share, or any umlaut under LANG=C: each such name was an internal error."""
    for module in ("jinja2", "matplotlib"):
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"M\xfcller")
    for path, pixels in (
        (f"{name}/mri/{name}.png", scenery.mri()),
        (f"{name}/ct/{name}.png", scenery.ct()),
        (f"fused/{name}.png", scenery.ct()),
    ):
        Path(path).parent.mkdir(parents=True)
        assert cv2.imwrite("x.png", pixels)
        os.rename("x.png", path)
    one = [f"{name}/mri/{name}.png", f"{name}/ct/{name}.png", f"fused/{name}.png"]
    mmif("view", *one, "-o", f"{name}.html", "--title", name)
    mmif("eval", name, "--plant", "planted", "--per-kind", "1")
    mmif("report", name, "--method", f"{name}=fused", "-o", "report.html", "--no-baselines")
    sets = [{"modality": "ct", "sources": name, "methods": {"a": "fused", "b": "fused"}}]
    Path("study.json").write_text(json.dumps({"title": "x", "readers": 1, "sets": sets}))
    assert (
        mmif("study", "create", "study.json", "study", code=2).stderr.count("\n") == 1
    )  # texts of a database
    for page in (f"{name}.html", "report.html"):
        assert "M?ller" in Path(page).read_text()


def test_ctrl_c_while_the_command_line_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.__import__", interrupt)
    assert program.main() == 130
    monkeypatch.undo()
    assert capsys.readouterr().err == "mmif-trt: interrupted\n"


@pytest.mark.parametrize("call", ["fsync", "link"])
def test_a_key_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(InputError, match=r"\.pseudonym-key: cannot be written \(No space left on device\)"):
        pseudonym.key_in(tmp_path)


V2, V1 = "0::/a/b\n", "4:cpu,cpuacct:/a/b\n3:memory:/a/b\n0::/\n"
QUOTAS: dict[str, tuple[str, dict[str, str], float | None]] = {
    "v2": (V2, {"a/b/cpu.max": "150000 100000"}, 1.5),
    "v2 of the parent": (V2, {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, 0.5),
    "v2 in a container": ("0::/\n", {"cpu.max": "200000 100000"}, 2.0),
    "v2 none": (V2, {"a/b/cpu.max": "max 100000"}, None),
    "v1": (V1, {"cpu/a/b/cpu.cfs_quota_us": "50000", "cpu/a/b/cpu.cfs_period_us": "100000"}, 0.5),
    "v1 in a container": (
        V1,
        {"cpu,cpuacct/cpu.cfs_quota_us": "300000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
        3.0,
    ),
    "v1 none": (V1, {"cpu/a/b/cpu.cfs_quota_us": "-1", "cpu/a/b/cpu.cfs_period_us": "100000"}, None),
    "no cgroups": ("", {}, None),
}


@pytest.mark.parametrize("kind", QUOTAS)
def test_a_quota_counts_as_cores(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    groups, files, expected = QUOTAS[kind]
    for name, text in {
        "proc/self/cgroup": groups,
        **{f"sys/fs/cgroup/{x}": y for x, y in files.items()},
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert cpu_quota(tmp_path) == expected
    from mmif_trt import machine

    monkeypatch.setattr(machine, "cpu_quota", lambda: expected)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert machine.usable_cores() == {None: 64, 0.5: 1, 1.5: 2, 2.0: 2, 3.0: 3}[expected]


def test_an_error_is_put_in_words_and_not_quoted() -> None:
    full = OutputError("x: cannot be written")
    full.__cause__ = OSError(28, "No space left on device")
    secret = "PLANTED^NAME"
    for error, words in (
        (full, "No space left on device"),
        (PermissionError(13, "Permission denied", secret), "Permission denied"),
        (InputError("two words of ours"), "two words of ours"),
        (json.JSONDecodeError(secret, secret, 0), "not JSON"),
        (UnicodeDecodeError("utf-8", secret.encode(), 0, 1, "x"), "text that cannot be decoded"),
        (KeyError(secret), "an entry is missing"),
        (ValueError(secret), "a malformed value"),
        (TimeoutError(), "no answer in time"),
        (RuntimeError(secret), "RuntimeError"),
    ):
        assert why(error) == words
    assert explain(TimeoutError()) == "file: no answer in time"


def test_an_ipv6_address_has_brackets() -> None:
    given = ("127.0.0.1", "node.example", "::1", "[::1]")
    assert [address(host, 80) for host in given] == [
        "127.0.0.1:80",
        "node.example:80",
        "[::1]:80",
        "[::1]:80",
    ]
