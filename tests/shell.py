"""The command line, whose failures fail the test; in this process: a new one takes seconds to import all."""

from __future__ import annotations

import contextlib
import io
import subprocess
from pathlib import Path

from mmif_trt import cli


def mmif(*args: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    words, out, err = [*map(str, args)], io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main(words)
        except SystemExit as end:  # argparse's
            status = int(end.code or 0)
    done = subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and "internal error" not in done.stderr, done.stderr
    return done
