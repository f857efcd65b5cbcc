"""The house rules that a machine can check: file and function sizes, and one direction of imports."""

from __future__ import annotations

import ast
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from conftest import REPO

PACKAGE = REPO / "mmif_trt"
MODULES = sorted(p for p in PACKAGE.rglob("*.py"))
# From the ground up. A module imports its own room and the rooms of lower floors; rooms of one floor do not
# know each other. A longer name wins: a module may live on another floor than its room.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("image", "about", "processes"),
    ("machine", "files", "running", "privacy", "http_server", "scratch"),
    ("stages", "weights", "ops", "overwriting", "storage"),
    ("models", "io", "label"),
    ("runtimes", "samples", "dicomweb"),
    ("volume", "given"),
    ("fuser", "view"),
    ("measure", "folders", "clinical"),
    ("train", "report", "node", "cluster", "plugin"),
    ("study",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
HEAVY = {"torch", "openvino", "cv2", "PIL", "scipy", "skimage", "onnx", "nvidia", "pycuda", "tensorrt_rtx"}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(path: Path, top_level_only: bool = False, types: bool = False) -> set[str]:
    """Full names of what a file imports; types: those under TYPE_CHECKING too."""
    tree = parsed(path)
    nodes = tree.body if top_level_only else ast.walk(tree)
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in nodes:
        if id(node) in hidden and not types:
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
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno <= 60, f"{node.name} has over 60 lines"


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(module: str) -> int:
    """The floor of the longest name in FLOORS that holds the module."""
    inner = module.removeprefix("mmif_trt").removeprefix(".")
    at = [(len(room), i) for i, rooms in enumerate(FLOORS) for room in rooms if within(inner, room)]
    assert at, f"{module}: on no floor; give its room a place in FLOORS"
    return max(at)[1]


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


@cache
def known() -> dict[str, Path]:
    return {module_of(path): path for path in MODULES}


@cache
def ours(path: Path, types: bool = False) -> set[str]:
    """The modules of this package that a file imports, lazily too; a name stands for the module it is in.

    The version in the package's door does not count: everybody may say it.
    """
    modules, found = known(), set()
    for full in imports(path, types=types):
        while full and full not in modules:
            full = full.rpartition(".")[0]
        if full and full != "mmif_trt":
            found.add(full)
    return found - {module_of(path)}


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_imports_its_own_floor_or_lower_ones(path: Path) -> None:
    module = module_of(path)
    if module == "mmif_trt":
        return  # the door names all, when asked for
    above = {other for other in ours(path) if floor_of(other) > floor_of(module)}
    assert not above, f"{module} reaches up to {above}"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_rooms_of_one_floor_do_not_know_each_other(path: Path) -> None:
    module = module_of(path)
    if module == "mmif_trt":
        return
    floor = FLOORS[floor_of(module)]
    inner = module.removeprefix("mmif_trt.")
    room = max((room for room in floor if within(inner, room)), key=len)
    beside = {
        other
        for other in ours(path)
        if floor_of(other) == floor_of(module) and not within(other.removeprefix("mmif_trt."), room)
    }
    assert not beside, f"{module} knows its neighbours {beside}"


def scripts() -> dict[str, set[str]]:
    """What the files of benchmarks import of each other."""
    found = {path.stem: path for path in (REPO / "benchmarks").glob("*.py")}
    return {
        stem: {full.partition(".")[0] for full in imports(path, types=True)} & found.keys() - {stem}
        for stem, path in found.items()
    }


@pytest.mark.parametrize("which", ["mmif_trt", "benchmarks"])
def test_no_circle_of_modules(which: str) -> None:
    """Not by types alone either: a file is read before those that use it."""
    package = {module: ours(path, types=True) for module, path in known().items()}
    graph = package if which == "mmif_trt" else scripts()
    state: dict[str, str] = {}

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert state.get(module) != "open", " -> ".join((*trail, module))
        if module in state:
            return
        state[module] = "open"
        for other in sorted(graph[module]):
            visit(other, (*trail, module))
        state[module] = "done"

    for module in graph:
        visit(module, ())


def test_files_of_tests_have_names_of_their_own() -> None:
    """pytest imports them by name alone: of two with one name the second cannot be collected."""
    names = Counter(path.name for path in (REPO / "tests").rglob("test_*.py"))
    assert not [name for name, count in names.items() if count > 1]


def test_the_image_knows_nobody() -> None:
    assert not ours(PACKAGE / "image.py")


@pytest.mark.parametrize("path", sorted((PACKAGE / "stages").rglob("*.py")), ids=name)
def test_a_stage_knows_no_other_stage(path: Path) -> None:
    own = path.relative_to(PACKAGE / "stages").parts[0]  # a folder is one stage: its parts know each other
    others = {other.split(".")[2] for other in ours(path) if other.startswith("mmif_trt.stages.")}
    assert others <= {own}


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
