"""What `mmif-trt`, `python`, `make`, `pip` and `torchrun` are while a page's commands run: see pages.py.

Commands run for real where that takes seconds, in this process: a new one takes seconds to import all. A
server is started, asked once whether it serves, and ended; for an archive only the command line is read; a
training prints its configuration; an installation and a make target are looked up, not made.
"""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from unittest import mock

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(folder) for folder in (REPO, REPO / "tests") if str(folder) not in sys.path]
from ports import free_port  # noqa: E402


def ended(main: Callable[[], object]) -> int:
    """The exit code of a process that does this."""
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def as_script(path: Path, *args: str) -> int:
    """A file as __main__, with its folder first where modules are looked for."""
    words, places = [str(path), *args], [str(path.parent), *sys.path]
    with mock.patch.object(sys, "argv", words), mock.patch.object(sys, "path", places):
        return ended(lambda: runpy.run_path(str(path), run_name="__main__"))


def as_module(name: str, *args: str) -> int:
    with mock.patch.object(sys, "argv", [name, *args]):
        return ended(lambda: runpy.run_module(name, run_name="__main__"))


def mmif_trt(args: list[str]) -> int:
    program = [sys.executable, "-m", "mmif_trt"]
    if args[:1] == ["node"]:
        return node(program, args)
    if args[0] in ("fetch", "store"):
        return archive(args)
    if args[:1] == ["study"] and args[1] in ("demo", "serve"):
        quiet = ["--no-browser"] if args[1] == "demo" else []
        return until_it_says("serving", [*program, *args, *quiet, "--port", str(free_port())])
    return as_module("mmif_trt", *args)


def archive(args: list[str]) -> int:
    """There is no PACS here: the command line is read, and what `fetch` would bring is made."""
    import phantoms

    from mmif_trt.cli import _parser

    given = _parser().parse_args(args)
    if args[0] == "fetch":
        affine = phantoms.affine_of(shape=(4, 20, 20), spacing=(5.0, 6.0, 6.0))
        phantoms.write_mr(given.output / "mr", affine, (4, 20, 20), SeriesInstanceUID="1.2.3")
        phantoms.write_pet(given.output / "pt", affine, (4, 20, 20), SeriesInstanceUID="1.2.4")
    return 0


def until_it_says(word: str, command: list[str]) -> int:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        said = any(line.startswith(word) for line in server.stdout)
        server.send_signal(signal.SIGTERM)
    return 0 if said else 1


def node(program: list[str], args: list[str]) -> int:
    """The node on ports of its own, until /health says ok."""
    port = free_port()
    args = [re.sub(r"@HOST:PORT", f"@127.0.0.1:{free_port()}", arg) for arg in args]
    args[args.index("--port") + 1] = str(free_port())
    if "--http-port" not in args:
        args += ["--http-port", ""]
    args[args.index("--http-port") + 1] = str(port)
    with subprocess.Popen([*program, *args, "--host", "127.0.0.1"]) as server:
        while server.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
                    ok = b'"ok"' in answer.read()
                    break
            except OSError:
                time.sleep(0.2)
        else:
            return server.returncode or 1
        server.send_signal(signal.SIGTERM)
    return 0 if ok and server.returncode in (0, 128 + signal.SIGTERM) else 1


def python(args: list[str]) -> int:
    if args[0] == "-m" and args[1].startswith("mmif_trt.train."):
        if args[1].endswith(".generate"):  # it has no configuration to print
            return as_module(args[1], "--help")
        return as_module(*args[1:], "--dry-run", "--threads", "1")
    if args[0].startswith("benchmarks/"):
        return as_script(REPO / args[0], "--help")
    raise NotImplementedError(f"python {args}")


def torchrun(args: list[str]) -> int:
    if importlib.util.find_spec("torch.distributed.run") is None:
        return 1
    return python(args[args.index("-m") :])


def make(args: list[str]) -> int:
    targets = [arg for arg in args if "=" not in arg and not arg.startswith("-")]
    makefile = (REPO / "Makefile").read_text()
    return 0 if all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets) else 1


def pip(args: list[str]) -> int:
    """Whether this package, and each extra that is named, is there to install."""
    (what,) = re.findall(r"(?:mmif-trt|\.)(?:\[([\w,]+)\])?$", args[-1])
    pyproject = (REPO / "pyproject.toml").read_text()
    extras = [extra for extra in what.split(",") if extra]
    return 0 if all(re.search(rf"^{extra} = \[", pyproject, re.MULTILINE) for extra in extras) else 1


PROGRAMS = {"mmif-trt": mmif_trt, "python": python, "torchrun": torchrun, "make": make, "pip": pip}

if __name__ == "__main__":
    os.environ["PYTHONPATH"] = str(REPO)
    sys.exit(PROGRAMS[Path(sys.argv[0]).name](sys.argv[1:]))
