"""The README and the pages of docs/: their fenced blocks, and a folder in which the commands can run."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import stat
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import cv2
import numpy as np
import phantoms
import scenery
import shim
from conftest import REPO

PAGES = [REPO / "README.md", *sorted((REPO / "docs").rglob("*.md"))]
RUN = ("sh", "python")
# C++ and protobuf, of the integrators' page, are held to the exported graph by a test of their own.
KNOWN = (*RUN, "json", "text", "cpp", "protobuf")
SIZE = (48, 40)


def tables() -> ModuleType:
    """docs/tables.py, which is no module of a package."""
    spec = importlib.util.spec_from_file_location("tables", REPO / "docs/tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Block(NamedTuple):
    language: str
    code: str


def name(page: Path) -> str:
    return str(page.relative_to(REPO))


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [Block(language, textwrap.dedent(code)) for _, language, code in found]


def commands(code: str) -> list[list[str]]:
    """The words of each line of shell. A page needs nothing else of one: no pipe, no variable, no pattern."""
    found = []
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        found.append([*words])
        bare = re.sub("'[^']*'", "", line)
        assert not re.search(r"[][|;&<>()$`*?~{}!\\]", bare), f"expected plain words: {line}"
    return [words for words in found if words]


def pictures(folder: Path, names: tuple[str, ...] = ("one", "two", "three"), seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for one in names:
        assert cv2.imwrite(str(folder / f"{one}.png"), rng.integers(0, 255, SIZE, dtype=np.uint8))


def sandbox(folder: Path, page: Path) -> Path:
    """Stand-ins for what the page names in capitals; returns a folder of programs to put before PATH."""
    text = page.read_text()
    if "MRI_FOLDER" in text:
        pictures(folder / "MRI_FOLDER")
        pictures(folder / "PET_FOLDER", seed=1)
    if "mri.png" in text:
        pictures(folder, ("mri",))
        pictures(folder, ("pet",), seed=1)
    for inner in ("SOURCES/mri", "SOURCES/ct", "FUSED", "FUSED_2"):
        if "SOURCES" in text:
            pictures(folder / inner, seed=len(inner))
    if "--plant" in text:  # lesions need a head to stand in
        for inner, pixels in (
            ("SOURCES/mri", scenery.mri()),
            ("SOURCES/ct", scenery.ct()),
            ("FUSED", scenery.ct()),
        ):
            shutil.rmtree(folder / inner)
            (folder / inner).mkdir()
            assert cv2.imwrite(str(folder / inner / "one.png"), pixels)
    for root in [folder] * ("MRI_SERIES" in text) + [folder / "STUDY_ROOT"] * ("STUDY_ROOT" in text):
        phantoms.write_mr(root / "MRI_SERIES", phantoms.affine_of())
        phantoms.write_pet(root / "PET_SERIES", phantoms.affine_of())
    if "BIDS_ROOT" in text:
        subject = folder / "BIDS_ROOT/sub-01"
        for kind, name, values in (("anat", "T1w", phantoms.head), ("pet", "pet", phantoms.uptake)):
            (subject / kind).mkdir(parents=True)
            grid = phantoms.grid(phantoms.affine_of(), (24, 60, 48))
            phantoms.write_nifti(subject / kind / f"sub-01_{name}.nii", values(grid), phantoms.affine_of())
        (subject.parent / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    for block in blocks(page):
        if block.language == "json":
            (folder / "study.json").write_text(block.code)
    programs = folder / ".bin"
    programs.mkdir()
    text = Path(shim.__file__).read_text().replace("__file__", repr(shim.__file__))
    for program in shim.PROGRAMS:
        path = programs / program
        path.write_text(f"#!{sys.executable}\n{text}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return programs
