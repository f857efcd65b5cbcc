"""The README and the pages of docs/ are executable: their Python and their commands run, on stand-ins where
they name a user's folders; the notebook runs, and the site builds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pages
import pytest
import shim
from conftest import REPO

NEEDS = {
    "reader-study": ("fastapi", "statsmodels"),
    "evaluation": ("jinja2",),
    "console": ("tensorrt_rtx", "onnx"),
    "integrators": ("tensorrt_rtx", "onnx"),
    "training": ("torch", "safetensors", "tensorboard"),
    "volumes": ("pydicom", "nibabel", "SimpleITK"),
    "viewer": ("pydicom", "nibabel", "SimpleITK"),
    "programs": ("pydicom", "nibabel", "SimpleITK"),
    "node": ("pynetdicom",),
    "cluster": ("pydicom", "nibabel", "SimpleITK"),
    "README": ("pynetdicom",),
}
RUNNABLE = [page for page in pages.PAGES if any(block.language in pages.RUN for block in pages.blocks(page))]


@pytest.mark.parametrize("page", RUNNABLE, ids=pages.name)
def test_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks in their order, in one folder; what a command writes with -o is there afterwards."""
    for module in NEEDS.get(page.stem, ()):
        pytest.importorskip(module)
    programs = pages.sandbox(tmp_path, page)
    monkeypatch.chdir(tmp_path)
    # For the programs that commands start.
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    monkeypatch.setenv("MMIF_ENGINES", str(tmp_path / "engines"))
    for language, code in pages.blocks(page):
        if language == "python":
            exec(compile(code, str(page), "exec"), {"__name__": "__main__"})
        if language != "sh":
            continue
        for program, *words in pages.commands(code):
            assert shim.PROGRAMS[program](words) == 0, (program, words)
        for output in re.findall(r"^mmif-trt .* -o (\S+)(?!.*--dry-run)", code, re.MULTILINE):
            path = tmp_path / output
            assert path.stat().st_size > 0 if path.is_file() else any(path.iterdir()), output


def test_the_site_builds_without_a_broken_link(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs mkdocs: pip install 'mmif-trt[docs]'")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f", REPO / ".mkdocs.yml"]
    done = subprocess.run(
        [*map(str, build), "-d", str(tmp_path)], cwd=REPO, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    reference = (tmp_path / "reference/python/index.html").read_text()
    assert "mmif_trt.fuse" in reference and "modality_b" in reference


def test_the_notebook_runs() -> None:
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient: pip install 'mmif-trt[docs]'")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(REPO / "docs/tour.ipynb", as_version=4)
    assert not [cell for cell in notebook.cells if cell.get("outputs")], "committed without outputs"
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(REPO)}}).execute()
    shown = [out for cell in notebook.cells for out in cell.get("outputs", []) if "data" in out]
    assert sum("image/png" in out["data"] for out in shown) == 4
