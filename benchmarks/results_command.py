"""The command line that lesions.py, quality.py, heldout.py and int8.py share: work on one file of results."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmif_trt.image import InputError

RESULTS = Path(__file__).resolve().parent / "results"


def parser(about: str) -> argparse.ArgumentParser:
    """about: the docstring of the program, shown as it is."""
    return argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_out(to: argparse.ArgumentParser, name: str) -> None:
    to.add_argument("--out", type=Path, default=RESULTS / name, metavar="JSON")


def add_data(to: argparse.ArgumentParser) -> None:
    to.add_argument("--data", type=Path, required=True, metavar="HARVARD")


def run(name: str, of: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Parses, and calls what the parser has as `run`. A user's mistake is one line and exit status 2."""
    args = of.parse_args(argv)
    try:
        args.run(args)
    except (InputError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    return 0
