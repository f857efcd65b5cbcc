"""setup.py's choices, and what the package does with a binary that does not load."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import threading
import warnings
from contextlib import AbstractContextManager, nullcontext
from importlib import util
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import REPO

from mmif_trt import ops

SETUP = (REPO / "setup.py").read_text()


def setup(*, torch: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python setup.py --version`, which makes every choice and builds nothing."""
    hide = "" if torch else "sys.modules['torch'] = None; "
    code = f"import sys; {hide}sys.argv = ['setup.py', '--version']; exec(open('setup.py').read())"
    clean = {k: v for k, v in os.environ.items() if k not in ("CUDA_HOME", "MMIF_CUDA")}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, env=clean | environment, capture_output=True, text=True
    )


def test_without_torch_it_is_pure_python_and_says_so() -> None:
    done = setup(torch=False)
    assert done.returncode == 0, done.stderr
    assert "no torch in the build environment: a pure-Python install" in done.stdout


def test_with_torch_it_says_what_it_builds() -> None:
    pytest.importorskip("torch")
    done = setup(MMIF_CUDA="0")
    assert done.returncode == 0, done.stderr
    assert "mmif_trt: kernels for CPU, torch" in done.stdout


def test_cuda_insisted_on_names_what_is_missing() -> None:
    torch = pytest.importorskip("torch")
    if torch.version.cuda:
        pytest.skip("this torch is built for CUDA")
    done = setup(MMIF_CUDA="1")
    assert done.returncode and "a torch built for CUDA" in done.stderr
    done = setup(MMIF_CUDA="1", CUDA_HOME="/nowhere")
    assert done.returncode and "a CUDA toolkit (nvcc; looked in /nowhere)" in done.stderr
    done = setup(torch=False, MMIF_CUDA="1")
    assert done.returncode and "what is missing is torch" in done.stderr


def test_unknown_wish() -> None:
    done = setup(MMIF_CUDA="yes")
    assert done.returncode and "MMIF_CUDA is 'yes'; expected 0 or 1" in done.stderr


def test_sources_are_listed_by_hand_and_all_there() -> None:
    listed = {word for word in SETUP.split('"') if word.startswith("csrc/")}
    there = {str(p.relative_to(REPO)) for p in (REPO / "csrc").rglob("*") if p.suffix in (".cpp", ".cu")}
    assert listed == there
    assert len(SETUP.splitlines()) <= 110


def test_the_source_distribution_holds_what_a_build_needs(tmp_path: Path) -> None:
    """Without torch too; every source and header, the weights, the pages, and no binary."""
    tree = tmp_path / "tree"
    left_out = shutil.ignore_patterns("_C*", "__pycache__", "*.egg-info")
    for name in ("csrc", "mmif_trt"):
        shutil.copytree(REPO / name, tree / name, ignore=left_out)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, tree)
    (tree / "tests").mkdir()
    (tree / "tests/test_alone.py").touch()  # setuptools takes such files, without what they import
    code = "import sys; sys.modules['torch'] = None; from setuptools import build_meta; "
    code += "build_meta.build_sdist('.')"
    subprocess.run([sys.executable, "-c", code], cwd=tree, check=True, capture_output=True)
    (made,) = tree.glob("*.tar.gz")
    with tarfile.open(made) as archive:
        held = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    listed = subprocess.run(
        ["git", "ls-files", "csrc", "mmif_trt"], cwd=REPO, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert not set(listed.stdout.split()) - held
    assert not [name for name in held if name.endswith((".so", ".pyc")) or name.startswith("tests")]


def break_binary(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.delenv("MMIF_KERNELS", raising=False)
    monkeypatch.setattr(ops, "util", SimpleNamespace(find_spec=lambda name: object()))
    monkeypatch.setattr(ops, "import_module", fail)


def test_a_binary_that_does_not_load_is_reported_once_and_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    break_binary(monkeypatch, ImportError("_C.so: undefined symbol: _ZN3c10\nmore"))
    with pytest.warns(UserWarning, match=r"build it again \(_C.so: undefined symbol: _ZN3c10\); plain torch"):
        devices, reason = ops._load()
    assert not devices and "more" not in reason


def test_a_missing_binary_gives_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MMIF_KERNELS", raising=False)
    monkeypatch.setattr(ops, "util", SimpleNamespace(find_spec=lambda name: None))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        devices, reason = ops._load()
    assert not devices and reason == ops.NOT_BUILT


def test_kernels_can_be_turned_off() -> None:
    code = "from mmif_trt import ops; print(sorted(ops.KERNEL_DEVICES), ops.KERNELS)"
    environment = {**os.environ, "MMIF_KERNELS": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[] turned off by MMIF_KERNELS=0"


def test_the_developers_environment_has_them() -> None:
    """make test builds the kernels; a silent fallback to plain operations would test nothing."""
    if not (REPO / ".venv").is_dir() or Path(sys.prefix) != REPO / ".venv":
        pytest.skip("not the environment that make test makes")
    assert util.find_spec("mmif_trt._C") is not None and "cpu" in ops.KERNEL_DEVICES, ops.KERNELS


def test_plain_operations_end_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "KERNEL_DEVICES", frozenset({"cpu"}))
    with pytest.raises(ValueError), ops.plain_operations():
        with ops.plain_operations():
            pass
        assert not ops.kernels_available("cpu")
        raise ValueError
    assert ops.kernels_available("cpu")


def test_plain_operations_leave_other_threads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two threads within its own state, while the other is in the opposite one."""
    monkeypatch.setattr(ops, "KERNEL_DEVICES", frozenset({"cpu"}))
    entered, seen = threading.Barrier(2), dict[str, bool]()

    def look(name: str, context: AbstractContextManager[None]) -> None:
        with context:
            entered.wait(60)
            seen[name] = ops.kernels_available("cpu")
            entered.wait(60)

    threads = [
        threading.Thread(target=look, args=("plain", ops.plain_operations())),
        threading.Thread(target=look, args=("kernels", nullcontext())),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"plain": False, "kernels": True} and ops.kernels_available("cpu")


def test_a_card_that_the_binary_has_no_code_for_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    asked: list[int] = []
    monkeypatch.setattr(ops, "KERNEL_DEVICES", frozenset({"cpu", "cuda"}))
    monkeypatch.setattr(ops, "_CARDS", {})
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext(asked.append(index)))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "B200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (10, 0))
    loads = SimpleNamespace(mmif_trt=SimpleNamespace(cuda_code_loads=lambda: asked[-1] == 1))
    monkeypatch.setattr(torch, "ops", loads)

    def on(index: int | None, dtype: str = "float16") -> bool:
        device = SimpleNamespace(type="cuda", index=index)
        found: bool = ops.has_kernel(SimpleNamespace(device=device, dtype=getattr(torch, dtype)))  # type: ignore
        return found

    with pytest.warns(UserWarning, match=r"no code for B200, compute capability 10.0; .*ARCH_LIST=10.0\)"):
        assert not on(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not on(None) and on(1) and not on(1, "float64")
    assert asked == [0, 1]


def test_the_compiler_takes_the_cards_answer_as_a_constant() -> None:
    torch = pytest.importorskip("torch")

    def marked() -> None: ...

    torch.compiler.assume_constant_result(marked)
    assert marked.__dict__.items() <= ops.card_has_code.__dict__.items()
    assert marked.__dict__, "torch marks such functions otherwise now: follow it in ops/__init__.py"


def test_every_generation_of_cards_has_code() -> None:
    """Machine code of one compute capability runs on the higher ones of its major; PTX on all that follow."""
    listed = SETUP.split('ARCHITECTURES = "')[1].split('"')[0].split(";")
    majors = {entry.split(".")[0] for entry in listed}
    assert {"8", "9", "10", "12"} <= majors
    assert "9.0+PTX" in listed, "what lies between 10 and 12"
    assert listed[-1].endswith("+PTX"), "what comes after all"
