"""`python -m mmif_trt` is the command line, and so is the program `mmif-trt`."""

from __future__ import annotations

import sys


def main() -> int:
    """cli.main, whose imports take a moment: Ctrl-C during them is an interrupt too."""
    try:
        from mmif_trt import cli

        return cli.main()
    except KeyboardInterrupt:
        print("mmif-trt: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
