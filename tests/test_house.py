"""The house rules that a machine can check: file and function sizes, and one direction of imports."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest
from conftest import REPO

PACKAGE = REPO / "mmif_trt"
MODULES = sorted(p for p in PACKAGE.rglob("*.py"))
STAGES = ("io", "geometry", "palettes", "normalise", "colour", "tiling", "runtimes", "models")
HEAVY = {"torch", "openvino", "cv2", "PIL", "scipy", "skimage", "onnx", "nvidia", "pycuda", "tensorrt_rtx"}


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Full names of what a file imports; names under TYPE_CHECKING do not count."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in nodes:
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def name(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_files_and_functions_are_small(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= 330, "a Python file has about 300 lines at most"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno <= 60, f"{node.name} has over 60 lines"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_knows_only_the_image_and_itself(stage: str) -> None:
    folder = PACKAGE / stage
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{stage}.py"]
    allowed = ("mmif_trt.image", f"mmif_trt.{stage}", "mmif_trt.weights")
    allowed += {"runtimes": ("mmif_trt.models",), "models": ("mmif_trt.ops",)}.get(stage, ())
    for file in files:
        ours = {x for x in imports(file) if x.startswith("mmif_trt")}
        ours = {x for x in ours if not x.startswith(allowed) and x != "mmif_trt.weights"}
        assert not ours, f"{name(file)} reaches into {ours}"


def test_the_image_knows_nobody() -> None:
    assert not {x for x in imports(PACKAGE / "image.py") if x.startswith("mmif_trt")}


def test_inference_files_do_not_import_torch_at_the_top() -> None:
    for path in MODULES:
        if name(path).startswith(("train/", "models/lagn", "models/autoencoder", "models/denoiser", "ops/")):
            continue
        assert not {x.split(".")[0] for x in imports(path, top_level_only=True)} & {
            "torch",
            "scipy",
            "skimage",
        }, path


def test_eager_imports_are_light() -> None:
    for file in ("__init__.py", "image.py", "fuser.py", "runtimes/__init__.py", "weights/__init__.py"):
        assert not {x.split(".")[0] for x in imports(PACKAGE / file, top_level_only=True)} & HEAVY, file


def test_no_machine_path_or_registry_host_is_committed() -> None:
    words = ["/wo" + "rk/", "/ro" + "ot/", "pypi" + ".org", "files.python" + "hosted"]
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for file in filter(None, listed.stdout.split("\0")):
        path = REPO / file
        if path.suffix in {".py", ".md", ".toml", ".json", ".sh", ""} and path.is_file():
            text = path.read_text(errors="replace")
            assert not [w for w in words if w in text], file
