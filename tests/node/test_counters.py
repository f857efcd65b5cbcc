"""What /metrics has is what the page says and what the code counts."""

from __future__ import annotations

import re

import pytest
from conftest import REPO

pytest.importorskip("pynetdicom", reason="needs the clinical extra")

from mmif_trt.node.counters import NAMES, WHY, Counters


def test_every_counter_is_there_from_the_start_and_on_the_page() -> None:
    assert set(Counters().snapshot()) == set(NAMES) and not any(Counters().snapshot().values())
    page = (REPO / "docs/guides/node.md").read_text().partition("## Metrics")[2].partition("\n## ")[0]
    rows = [re.findall(r"`([^`]+)`", row) for row in page.splitlines() if row.startswith("| `")]
    told: set[str] = set()
    for first, *others in rows:
        if "REASON" in first:
            told |= {first.replace("REASON", reason) for reason in others if "/" not in reason}
        else:
            told |= {first, *others}
    gauges = {"queue_length", "studies_held", "cases_failed", "cases_set_aside", "threads_failed"}
    assert told == set(NAMES) | gauges


def test_what_the_code_counts_is_a_counter() -> None:
    source = "".join(path.read_text() for path in (REPO / "mmif_trt/node").glob("*.py"))
    counted = set(re.findall(r"\"(\w+_(?:total|sum))\"", source)) - {"_total"}
    assert counted <= set(NAMES), counted - set(NAMES)
    assert set(re.findall(r"Refused\(\"(\w+)\"", source)) == set(WHY)
