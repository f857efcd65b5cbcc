"""Shared fixtures, one thread per library, and a list of what was skipped for want of what.

MMIF_MAY_SKIP=REGEX turns every skip whose reason it does not match into a failure: on a machine that was set
up for what a test needs, a test that does not run is a fault and must not look like a success.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

# Before anything imports NumPy or torch; child processes inherit it. A second thread gains these small cases
# nothing, and on busy cores OpenMP's threads wait for each other without end.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
# For tests with several threads: a thread that waits for the others sleeps and does not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Where no bytecode may be written, each of the hundreds of child processes compiles the package anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

REPO = Path(__file__).resolve().parent.parent


def data_root() -> Path:
    """The folder that holds harvard/ and templates/: $MMIF_DATA, or shared/data beside the checkout."""
    return Path(os.environ.get("MMIF_DATA", REPO.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def harvard() -> Path:
    folder = data_root() / "harvard"
    if not folder.is_dir():
        pytest.skip(
            f"real image pairs not found at {folder}; set MMIF_DATA to the folder that holds harvard/"
        )
    return folder


@pytest.fixture(scope="session", autouse=True)
def kept_graphs() -> Iterator[None]:
    """OpenVINO compiles a graph once per process of tests, whichever Fuser loads it: that takes half a
    second, twice for precision "auto", and hundreds of commands here load the same network."""
    from mmif_trt.runtimes.openvino import OpenVinoRuntime

    compile_, kept = OpenVinoRuntime._compile, dict[Any, Any]()

    @functools.wraps(compile_)
    def compiled_once(self: OpenVinoRuntime, size: Any) -> Any:
        told = {k: v for k, v in vars(self).items() if isinstance(v, str | int) and k != "note"}
        key = (os.getpid(), size, *sorted(told.items()))
        if key not in kept:
            kept[key] = compile_(self, size)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OpenVinoRuntime, "_compile", compiled_once)
        yield


@pytest.fixture(scope="module")
def fresh_graphs(kept_graphs: None) -> Iterator[None]:
    """Each Fuser compiles its own, for tests of what one does: nothing that ran before may show."""
    from mmif_trt.runtimes.openvino import OpenVinoRuntime

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OpenVinoRuntime, "_compile", OpenVinoRuntime._compile.__wrapped__)
        yield


def skip_reasons(reports: list[pytest.TestReport]) -> Counter[str]:
    """How many tests and test files each reason skipped."""
    reasons: Counter[str] = Counter()
    for report in reports:
        if isinstance(report.longrepr, tuple | list):
            reasons[str(report.longrepr[2]).removeprefix("Skipped: ")] += 1
    return reasons


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons = skip_reasons(terminalreporter.stats.get("skipped", []))
    if reasons:
        terminalreporter.section("skipped for want of")
    for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
        terminalreporter.line(f"{count:5d}  {reason}")


def _refuse_skip(report: Any) -> None:
    may = os.environ.get("MMIF_MAY_SKIP")
    if may is None or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not re.search(may, reason):
        report.outcome = "failed"
        report.longrepr = f"{reason}\nMMIF_MAY_SKIP={may!r} allows no such skip"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    """A whole module that skips itself."""
    report = yield
    _refuse_skip(report)
    return report
