"""A pipe, a device, a socket or a link to itself never holds up a run, whatever its name, wherever it lies.

Each command has a time limit: without the guard it would wait for a writer that never comes.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import phantoms
import pytest
from conftest import REPO

from mmif_trt.files import is_regular, open_regular, read_regular
from mmif_trt.image import InputError

AFFINE = phantoms.affine_of(shape=(6, 32, 32), spacing=(5.0, 4.0, 4.0))
SAMPLES = REPO / "mmif_trt" / "samples"


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """One of each kind."""
    os.mkfifo(tmp_path / "pipe")
    os.symlink("loop", tmp_path / "loop")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        yield {"pipe": tmp_path / "pipe", "socket": tmp_path / "socket", "device": Path("/dev/zero")}


def test_nothing_but_a_regular_file_is_opened(odd: dict[str, Path], tmp_path: Path) -> None:
    for kind, path in odd.items():
        with pytest.raises(InputError, match=f"{path.name}: a .*{kind}; expected a regular file"):
            open_regular(path)
        assert not is_regular(path)
    with pytest.raises(OSError):
        read_regular(tmp_path / "loop")
    assert not is_regular(tmp_path / "loop")
    (tmp_path / "file").write_bytes(b"x")
    os.symlink("file", tmp_path / "link")
    assert read_regular(tmp_path / "link") == b"x" and is_regular(tmp_path / "link")


def run(cwd: Path, *words: str | Path, code: int) -> str:
    command = [sys.executable, "-m", "mmif_trt", *map(str, words)]
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    return done.stderr


def test_in_folders_they_are_passed_over(tmp_path: Path) -> None:
    """In a folder of studies, and in two of pictures, each with a pipe, a socket and a link to itself."""
    phantoms.write_mr(tmp_path / "s" / "mr", AFFINE, (6, 32, 32))
    phantoms.write_pet(tmp_path / "s" / "pt", AFFINE, (6, 32, 32))
    for side in ("mri", "pet"):
        (tmp_path / side).mkdir()
        (tmp_path / side / "a.png").write_bytes((SAMPLES / f"mri-pet_{side}.png").read_bytes())
    sockets = []
    for folder in ("s", "s/mr", "mri", "pet"):
        for name in ("0.dcm", "b.png", "IM0001"):
            os.mkfifo(tmp_path / folder / name)
        os.symlink("c.png", tmp_path / folder / "c.png")
        sockets.append(socket.socket(socket.AF_UNIX))
        sockets[-1].bind(str(tmp_path / folder / "d.png"))
    run(tmp_path, "batch", "s", "-o", "out", "--quiet", code=0)
    assert len(list((tmp_path / "out").glob("*_luma.nii"))) == 1
    run(tmp_path, "fuse", "mri", "pet", "-o", "fused", "--quiet", code=0)
    assert [path.name for path in (tmp_path / "fused").iterdir()] == ["a.png"]
    for one in sockets:
        one.close()


@pytest.mark.parametrize("option", ["a", "manifest", "manifest a", "key", "report"])
def test_as_an_argument_they_are_refused_by_name(
    option: str, tmp_path: Path, odd: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from mmif_trt.cli import main

    phantoms.write_mr(tmp_path / "mr", AFFINE, (6, 32, 32))
    phantoms.write_pet(tmp_path / "pt", AFFINE, (6, 32, 32))
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "m.csv").write_text(f"name,a,b\nx,{odd['pipe']},{tmp_path / 'pt'}\n")
    mr, pt, out = (str(tmp_path / name) for name in ("mr", "pt", "out"))
    words = {
        "a": ["fuse", str(odd["pipe"]), pt, "-o", f"{out}.nii"],
        "manifest": ["batch", str(tmp_path / "pipe.csv"), "-o", out],
        "manifest a": ["batch", str(tmp_path / "m.csv"), "-o", out, "--quiet"],
        "key": ["batch", str(tmp_path), "-o", out, "--pseudonym-key", str(odd["pipe"])],
        "report": ["fuse", mr, pt, "-o", f"{out}.nii", "--report", str(pipe)],
    }[option]
    assert main(words) in (1, 2)
    said = capsys.readouterr().err
    assert "a named pipe" in said and "pipe" in said and "Traceback" not in said


@pytest.fixture
def limited() -> Iterator[None]:
    """A library in C that waits for a pipe's writer is interrupted after 20 s."""

    def late(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_no_library_is_given_one_by_name(
    kind: str, limited: None, odd: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """OpenSSL waits for ever for the writer of a pipe."""
    from mmif_trt.cli import main

    path, out, spool = str(odd[kind]), str(tmp_path / "out"), str(tmp_path / "spool")
    (tmp_path / "pem").write_text("x")
    pem = str(tmp_path / "pem")
    node = ["node", "--aet", "M", "--port", "1", "--any-peer", "--send-to", "P@127.0.0.1:9", "--spool", spool]
    web = ["fetch", "--study", "1.2", "--dicomweb", "https://127.0.0.1:9/x", "-o", out]
    dimse = ["fetch", "--study", "1.2", "--from", "P@127.0.0.1:9", "-o", out]
    for words in (
        *([*node, "--tls", *files] for files in ((path, pem, pem), (pem, path, pem), (pem, pem, path))),
        [*node, "--audit", path],
        [*node, "--http-port", "2", "--http-token", path],
        [*node, "--pseudonym-key", path],
        [*web, "--dicomweb-ca", path],
        [*web, "--dicomweb-auth", path],
        [*dimse, "--tls", pem, pem, path],
        ["study", "serve", out, "--certificate", path, "--key", pem],
        ["study", "serve", out, "--certificate", pem, "--key", path],
    ):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert path in said and "expected a regular file" in said and said.count("\n") == 1, (words, said)
