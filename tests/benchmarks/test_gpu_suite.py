"""benchmarks/gpu_suite.sh keeps its time, isolates its steps and writes its index, with a stub for Python."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO

SUITE = REPO / "benchmarks" / "gpu_suite.sh"
PROMISE_S = 480
# Writes down what it was asked, and does as Python's part of a step would: a result, a failure, or no end.
STUB = """#!/usr/bin/env bash
echo "$@" >> "$RECORD"
case "$*" in
  *"--op loss"*) echo "no such kernel" >&2; exit 3 ;;
  *"--op step"*) if [ -n "${HANG:-}" ]; then trap '' TERM; sleep 60 & wait; sleep 60; fi ;;
esac
if [ "${@: -2:1}" = --json ]; then echo '{"rows": []}' > "${@: -1}"; fi
"""


def start(tmp_path: Path, **extra: str) -> tuple[dict[str, Any], int, list[str], str]:
    """The index, the exit status, the commands that Python was given, and what was said."""
    stub = tmp_path / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)
    environment = {**os.environ, "OUT": str(tmp_path / "out"), "PYTHON": str(stub)}
    environment |= {"RECORD": str(tmp_path / "record"), "TORCH_CUDA_ARCH_LIST": "9.0", **extra}
    done = subprocess.run(
        ["bash", str(SUITE)], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    return index, done.returncode, (tmp_path / "record").read_text().splitlines(), done.stdout


def limits() -> dict[str, int]:
    return {m[1]: int(m[2]) for m in re.finditer(r"^\s*(?:step|bench) (\w+) (\d+) ", SUITE.read_text(), re.M)}


def test_the_limits_add_up_to_the_promise() -> None:
    found = limits()
    assert len(found) == 12 and min(found.values()) > 0
    last_words = re.search(r"^LAST_WORDS=(\d+)", SUITE.read_text(), re.M)
    assert last_words is not None
    asking_for_the_card = 10
    assert sum(found.values()) + int(last_words[1]) * len(found) + asking_for_the_card < PROMISE_S
    assert f"BUDGET:-{PROMISE_S}}}" in SUITE.read_text() and "under 8 minutes" in SUITE.read_text()


def test_a_step_that_fails_is_alone(tmp_path: Path) -> None:
    index, code, commands, said = start(tmp_path)
    steps = {step["name"]: step for step in index["steps"]}
    assert index["finished"] and index["card"] == "9.0" and index["budget_s"] == PROMISE_S
    expected = {"loss": 3} | ({} if steps["nvidia_smi"]["exit"] == 0 else {"nvidia_smi": 127})
    assert {name: step["exit"] for name, step in steps.items() if step["exit"]} == expected
    assert code == len(expected) and "failed: " in said and " loss" in said
    assert {name for name, step in steps.items() if step["json"]} == {
        *("network", "latency", "attention", "step", "attention_batch", "network_compile", "network_512"),
    }
    assert steps["loss"]["json"] is None and "no such kernel" in (tmp_path / "out" / "loss.log").read_text()
    assert set(limits()) - {"sanitizer"} <= set(steps) and len(commands) >= len(steps) - 1
    assert all(step["limit_s"] == limits()[name] for name, step in steps.items())


def test_a_step_without_an_end_is_ended_and_the_budget_kept(tmp_path: Path) -> None:
    """It does not even hear the signal; behind it nothing has time, and the index says so."""
    index, code, _, _ = start(tmp_path, BUDGET="9", HANG="1")
    steps = {step["name"]: step for step in index["steps"]}
    assert index["finished"] and index["seconds"] <= 9, "the promise, not a timing"
    assert steps["network"]["exit"] == 0 and steps["step"]["exit"] == 137 and steps["step"]["json"] is None
    behind = list(steps)[list(steps).index("step") + 1 :]
    assert behind and all(steps[name]["exit"] is None for name in behind)
    assert code == sum(step["exit"] != 0 for step in index["steps"])


def test_it_says_what_it_needs() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "OUT"}
    done = subprocess.run(["bash", str(SUITE)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode and "name a folder for the results in OUT" in done.stderr


SMALL = {
    "bench_network.py": "--size 64 --batch 1 2 --rounds 2 --warmup 1",
    "bench_ops.py": "--scale 1 --crop 64 --batch 2 --rounds 2 --warmup 1",
    "bench_latency.py": "--size 64 --batch 1 2 --repeats 2 --warmup 1 --matmul 64",
}


@pytest.mark.nightly
def test_every_benchmark_of_it_runs_on_the_cpu(tmp_path: Path) -> None:
    """With its own options, made small: a wrong name would cost the first card its minutes."""
    pytest.importorskip("torch")
    _, _, commands, _ = start(tmp_path, DEVICE="cpu")
    benches = [shlex.split(line) for line in commands if line.startswith("benchmarks/")]
    assert len(benches) == 8
    for script, *options in benches:
        small = SMALL[Path(script).name].split()
        command = [sys.executable, str(REPO / script), *options, *small]
        environment = {**os.environ, "PYTHONPATH": str(REPO)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        result = json.loads(Path(options[options.index("--json") + 1]).read_text())
        assert "unfinished" not in result
        assert any(row["status"] == "measured" for row in result["rows"]), result["rows"]
        print(script, [row.get("reason") for row in result["rows"] if row["status"] == "refused"])


def test_rows_are_written_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    report: Any = __import__("report")
    path = tmp_path / "new" / "x.json"
    report.write_so_far(path, {"rows": [1]})
    assert json.loads(path.read_text())["unfinished"] and json.loads(path.read_text())["rows"] == [1]
    report.write_json(path, {"rows": [1, 2]})
    assert json.loads(path.read_text()) == {"rows": [1, 2]} and len(list(path.parent.iterdir())) == 1
    report.write_so_far(None, {"rows": []})
