"""The command line: dispatches to commands/.

Exit code 0: success. 1: some failed, or the reader of the output has closed it (head, less). 2: a usage or
input error, nothing was done. 130: interrupted; 128 + N: ended by signal N.

Heavy imports are inside the functions, so that --help and usage errors are immediate.
"""

from __future__ import annotations

import argparse
import contextlib
import io as text_io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from mmif_trt.about import RESEARCH_USE, VERSION
from mmif_trt.commands import (
    batch,
    demo,
    engine,
    eval,
    fetch,
    fuse,
    info,
    node,
    plan,
    report,
    status,
    store,
    study,
    view,
)
from mmif_trt.commands.arguments import say
from mmif_trt.image import InputError
from mmif_trt.running import explain

COMMANDS = (fuse, eval, info, batch, plan, status, node, fetch, store, demo, engine, report, study, view)


def _text(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("is empty (an unset variable of the shell?); expected a value")
    return text


class _Parser(argparse.ArgumentParser):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # An empty path would be the working folder.
        self.register("type", None, _text)
        self.register("type", Path, lambda text: Path(_text(text)))

    def add_subparsers(self, **kwargs: Any) -> Any:
        commands = super().add_subparsers(**kwargs)
        commands.type = str  # it takes all words that follow: the command's own parser names the empty one
        return commands

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; argv without the program's name, None: the process's own. Returns the exit code after
    flushing all output, so that nothing can fail when the interpreter ends."""
    _open_streams()
    try:
        code = _run(argv)
    except SystemExit:  # --help, --version, a usage error
        if not _flush():
            raise SystemExit(1) from None
        raise
    return code if _flush() else code or 1


def _open_streams() -> None:
    """Without a standard stream (<&-, 2>&-, pythonw, a service), input is empty, output is discarded, and no
    file opened later gets its number: a child has a stream of its own there. A file name outside the
    terminal's encoding is shown escaped."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            silent = os.open(os.devnull, os.O_RDWR)
            try:
                os.fstat(number)
            except OSError:
                os.dup2(silent, number)
            if silent == number:
                os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(silent, mode, encoding="utf-8"))
        elif isinstance(stream, text_io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _flush() -> bool:
    """False if output cannot be written: the reader has closed it, or its disk is full."""
    written = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            written = False
            with contextlib.suppress(OSError, ValueError):  # the rest is discarded, at the end too
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return written


def _run(argv: Sequence[str] | None) -> int:
    try:
        args = _parser().parse_args(argv)
        return int(args.run(args))
    except KeyboardInterrupt:  # outside the part of `fuse` that finishes its pairs first
        return say("interrupted", 130)
    except BrokenPipeError:  # the reader of our output (head, less) has closed it
        _flush()
        return 1
    except Exception as error:
        return say(explain(error), 2 if isinstance(error, InputError | OSError) else 1)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="mmif-trt", description=f"Fuse brain MRI with CT, PET or SPECT. {RESEARCH_USE}")
    parser.add_argument("--version", action="version", version=f"mmif-trt {VERSION}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return parser
