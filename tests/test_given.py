"""given: a type checker knows what `fuse` and `Fuser` return, and their options; help() stays."""

from __future__ import annotations

import inspect
import os
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mmif_trt

REPO = Path(__file__).parent.parent
# Without the stages and runtimes: seconds less. What is skipped is Any.
CONFIG = """[mypy]
strict = true
ignore_missing_imports = true
follow_imports = silent
[mypy-mmif_trt.volume,mmif_trt.models.*,mmif_trt.runtimes.*,mmif_trt.io.*,mmif_trt.stages.*,cv2.*]
follow_imports = skip
"""
ARRAYS = {"(x, x)": "numpy.ndarray", "(x, t)": "numpy.ndarray", "(t, t)": "user.Tensor"}
NAMED = ('("a.nii", x)', "(x, Path())", '("a.nii", "b.nii")', "(i, i)", "(t, i)")
CALLS = ARRAYS | dict.fromkeys(NAMED, "mmif_trt.image.Image") | {"(c, c)": "Any"}
HEAD = """from pathlib import Path
import numpy as np
from mmif_trt import Fuser, Image, fuse
class Tensor:  # torch takes seconds
    def detach(self) -> None: pass
class Card:
    @property
    def __cuda_array_interface__(self) -> int: return 0
def user(x: np.ndarray, t: Tensor, i: Image, c: Card) -> None:
"""


def test_what_type_checkers_infer(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "mypy.ini").write_text(CONFIG)
    lines, expected = [], []
    for name, function in (("fuse", mmif_trt.fuse), ("Fuser()", mmif_trt.Fuser.__call__)):
        given = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        options = ", ".join(f"{p.name}={p.default!r}" for p in given)
        for call, result in CALLS.items():
            lines.append(f"    reveal_type({name}{call[:-1]}, {options}))\n")
            expected.append(f'note: Revealed type is "{result}')
        lines += [f"    {name}(x, x, colour=None)\n", f"    {name}(1, x)\n"]
        expected += ['error: Unexpected keyword argument "colour"', "error: No overload variant"]
    (tmp_path / "user.py").write_text(HEAD + "".join(lines))
    command = [sys.executable, "-m", "mypy", "user.py", "--cache-dir", str(tmp_path / "cache")]
    env = {**os.environ, "MYPYPATH": f"{tmp_path}{os.pathsep}{REPO}"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    said: dict[str, str] = {}
    for line in re.findall(r"^user.py:.*$", done.stdout, re.MULTILINE):
        said.setdefault(line.split(":")[1], line)  # of an error the first line says what
    assert len(said) == len(expected), done.stdout + done.stderr
    for line, words in zip(said.values(), expected, strict=True):
        assert words in line, line


def test_overloads_hide_nothing() -> None:
    for function in (mmif_trt.fuse, mmif_trt.Fuser.__call__):
        assert {"value_range", "plane", "modality_b"} <= inspect.signature(function).parameters.keys()
        assert "**options" not in pydoc.render_doc(function)
