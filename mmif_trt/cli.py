"""The command line: dispatches to commands/. Exit code 0 all well, 1 some failed, 2 usage: nothing done.

Heavy imports are inside the functions, so that --help and a mistyped option answer at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from mmif_trt.about import RESEARCH_USE, VERSION
from mmif_trt.commands import batch, demo, engine, eval, fuse, info, node, report, study
from mmif_trt.commands.arguments import say
from mmif_trt.image import InputError
from mmif_trt.running import explain

COMMANDS = (fuse, eval, info, batch, node, demo, engine, report, study)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; argv without the program's name, None: the process's own. Returns the exit code."""
    try:
        args = _parser().parse_args(argv)
        return int(args.run(args))
    except KeyboardInterrupt:  # before or after the part of `fuse` that ends its pairs first
        return say("interrupted", 130)
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
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
