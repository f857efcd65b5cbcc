"""conftest: the list at the end of a run says what was skipped for want of what."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from conftest import skip_reasons


def report(reason: str) -> Any:
    return SimpleNamespace(longrepr=("tests/test_x.py", 3, f"Skipped: {reason}"))


def test_skips_are_counted_by_reason() -> None:
    expected_failure = SimpleNamespace(longrepr="no tuple: an expected failure")
    reports: list[Any] = [report("no card"), report("no dcmtk"), expected_failure, report("no card")]
    found = skip_reasons(reports)
    assert found == {"no card": 2, "no dcmtk": 1}
