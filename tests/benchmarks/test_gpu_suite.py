"""benchmarks/gpu_suite.sh keeps to its time, isolates its steps and returns its evidence; stubs stand in for
Python and the card's tools."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO

SUITE = REPO / "benchmarks" / "gpu_suite.sh"
PARTS = ("first", "second")
PROMISE_S = 560
# What a card machine sends back: at most so many files, of so many bytes, with names like these.
MOST_FILES, MOST_BYTES, NAME = 8, 16 << 20, re.compile(r"[A-Za-z0-9._-]+")
# Records its arguments and acts as a step's Python would: it writes a result, fails, or never ends.
STUB = """#!/usr/bin/env bash
case "$*" in *suite_summary.py*) exec %s "$@" ;; esac
echo "$PWD $@" >> "$RECORD"
for word in ${FAIL:-}; do case "$*" in *"$word"*) echo "no such kernel" >&2; exit 3 ;; esac; done
if [ -n "${HANG:-}" ]; then
  case "$*" in *"$HANG"*) trap '' TERM; echo "so far"; sleep 60 & wait; sleep 60 ;; esac
fi
if [ "${@: -2:1}" = --json ]; then echo '{"rows": []}' > "${@: -1}"; fi
"""
# Each tool runs the Python command it is given, as the real ones do.
TOOL = '#!/usr/bin/env bash\nwhile [ $# -gt 0 ]; do case "$1" in */python) exec "$@" ;; esac; shift; done\n'


def start(tmp_path: Path, part: str = "first", **extra: str) -> tuple[dict[str, Any], int, list[str], str]:
    """The index, the exit status, the commands that Python received, and the output."""
    tools = tmp_path / "bin"
    tools.mkdir(exist_ok=True)
    stub = tools / "python"
    stub.write_text(STUB % shlex.quote(sys.executable))
    for name in ("ncu", "compute-sanitizer", "nvidia-smi"):
        (tools / name).write_text(TOOL)
    for path in tools.iterdir():
        path.chmod(0o755)
    environment = {**os.environ, "OUT": str(tmp_path / "out"), "PYTHON": str(stub)}
    environment |= {"PATH": f"{tools}:{os.environ['PATH']}", "RECORD": str(tmp_path / "record")}
    environment |= {"TORCH_CUDA_ARCH_LIST": "9.0", **extra}
    done = subprocess.run(
        ["bash", str(SUITE), part], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    index = json.loads((tmp_path / "out" / f"{part}.json").read_text())
    return index, done.returncode, (tmp_path / "record").read_text().splitlines(), done.stdout


def archived(tmp_path: Path, part: str) -> dict[str, bytes]:
    with tarfile.open(tmp_path / "out" / f"{part}.tar.gz") as archive:
        files = {m.name: archive.extractfile(m) for m in archive.getmembers()}
        return {name: file.read() for name, file in files.items() if file is not None}


def limits(part: str) -> dict[str, int]:
    before, first, second = re.split(r"^if \[ .* first .*|^else\n", SUITE.read_text(), flags=re.M)
    text = before + (first if part == "first" else second)
    return {m[1]: int(m[2]) for m in re.finditer(r"^\s*(?:step|bench) (\w+) (\d+) ", text, re.M)}


@pytest.mark.parametrize("part", PARTS)
def test_the_limits_add_up_to_the_promise(part: str) -> None:
    found = limits(part)
    assert len(found) >= 12 and min(found.values()) > 0
    last_words = re.search(r"^LAST_WORDS=(\d+)", SUITE.read_text(), re.M)
    assert last_words is not None
    asking_for_the_card = 10
    assert sum(found.values()) + int(last_words[1]) * len(found) + asking_for_the_card < PROMISE_S
    assert f"BUDGET:-{PROMISE_S}}}" in SUITE.read_text() and "under 10 minutes" in SUITE.read_text()


def test_the_archive_fits_and_is_whole(tmp_path: Path) -> None:
    """Both calls into one folder: few files, small, with plain names; logs and rows of every step inside."""
    for part in PARTS:
        index, code, commands, said = start(tmp_path, part)
        steps = {step["name"]: step for step in index["steps"]}
        assert index["finished"] and index["part"] == part and index["card"] == "9.0"
        assert set(steps) == set(limits(part)) and all(
            s["limit_s"] == limits(part)[n] for n, s in steps.items()
        )
        assert {n: s["exit"] for n, s in steps.items() if s["exit"]} == {} and code == 0
        inside = archived(tmp_path, part)
        assert {f"{name}.log" for name in steps} | {"index.json", "summary.txt"} <= set(inside)
        assert {s["json"] for s in steps.values() if s["json"]} <= set(inside)
        assert json.loads(inside["index.json"]) == index
        assert (tmp_path / "out" / f"{part}.txt").read_bytes() == inside["summary.txt"]
        assert said.rindex(f"gpu_suite.sh {part}") > said.rindex("== ")
        assert said.splitlines()[-1].endswith("failed: none")
        build = next(line for line in commands if "build_ext" in line)
        assert build.split()[0].endswith("build/card"), "where no pyproject.toml is"
    there = [path for path in (tmp_path / "out").rglob("*")]
    assert len(there) <= MOST_FILES and all(path.is_file() for path in there)
    assert all(NAME.fullmatch(path.name) and path.stat().st_size < MOST_BYTES for path in there)
    assert not (REPO / "build" / "card" / "pyproject.toml").exists()


def test_a_file_too_large_to_send_stays_behind(tmp_path: Path) -> None:
    text = SUITE.read_text()
    assert '-size -"${LARGEST}"c' in text
    largest = re.search(r"^LARGEST=(\d+)", text, re.M)
    assert largest is not None and int(largest[1]) < MOST_BYTES


def test_a_failed_step_stops_no_other(tmp_path: Path) -> None:
    index, code, _, said = start(tmp_path, FAIL="loss.json test_cuda_device")
    steps = {step["name"]: step for step in index["steps"]}
    assert {name: step["exit"] for name, step in steps.items() if step["exit"]} == {"loss": 3, "tests": 3}
    assert code == 2 and "failed: loss tests" in said and index["finished"]
    assert steps["loss"]["json"] is None and b"no such kernel" in archived(tmp_path, "first")["loss.log"]
    assert steps["ncu"]["exit"] == 0 and set(steps) == set(limits("first"))


@pytest.mark.parametrize(
    ("what", "step"), [("preflight.py", "preflight"), ("build_ext", "build"), ("--built", "kernels")]
)
def test_without_card_or_kernels_nothing_is_measured(what: str, step: str, tmp_path: Path) -> None:
    """A failed build must not look green: the tests would skip, and plain torch would be timed as the
    kernel."""
    for part in PARTS:
        index, code, commands, said = start(tmp_path, part, FAIL=what)
        assert index["finished"] and index["steps"][-1] == index["steps"][-1] | {"name": step, "exit": 3}
        assert code == 1 and f"failed: {step}" in said
        assert not any("bench_" in line or "pytest" in line for line in commands)
        assert f"{step}.log" in archived(tmp_path, part)


def test_a_step_that_never_ends_is_killed_within_the_budget(tmp_path: Path) -> None:
    """It ignores even the signal; its output is in the archive, and steps left without time say so."""
    index, code, _, _ = start(tmp_path, BUDGET="9", HANG="check_kernels.py")
    steps = {step["name"]: step for step in index["steps"]}
    assert index["finished"] and index["seconds"] < 40, "it would have gone on for a minute"
    assert steps["kernels"]["exit"] == 0 and steps["correct"]["exit"] == 137
    assert steps["correct"]["json"] is None
    assert archived(tmp_path, "first")["correct.log"] == b"so far\n"
    behind = list(steps)[list(steps).index("correct") + 1 :]
    assert behind and all(steps[name]["exit"] is None for name in behind)
    assert code == sum(step["exit"] != 0 for step in index["steps"])


def test_every_file_it_names_is_there() -> None:
    """A moved test file would cost the card all its tests: pytest ends before the first."""
    text = SUITE.read_text()
    scripts = {f"benchmarks/{name}" for name in re.findall(r"\b\w+\.py\b", text)} - {"benchmarks/setup.py"}
    tests = set(re.findall(r"tests/[\w/]+\.py", text))
    scripts -= {f"benchmarks/{Path(path).name}" for path in tests}
    assert len(tests) >= 4 and len(scripts) >= 8
    assert [path for path in sorted(tests | scripts) if not (REPO / path).is_file()] == []


def test_output_is_unbuffered_and_skips_are_failures() -> None:
    text = SUITE.read_text()
    assert re.search(r"^export .*PYTHONUNBUFFERED=1", text, re.M) and re.search(
        r"^export MMIF_MAY_SKIP=", text, re.M
    )
    assert text.index("PYTORCH_NO_CUDA_MEMORY_CACHING=1") < text.index("step memcheck")
    assert "pytest" not in text[text.index("PYTORCH_NO_CUDA_MEMORY_CACHING=1") :]


def test_it_says_what_it_needs(tmp_path: Path) -> None:
    clean = {k: v for k, v in os.environ.items() if k != "OUT"}
    done = subprocess.run(["bash", str(SUITE)], env=clean, capture_output=True, text=True, check=False)
    assert done.returncode and "name a folder for the results in OUT" in done.stderr
    clean["OUT"] = str(tmp_path)
    done = subprocess.run(["bash", str(SUITE)], env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 64 and "gpu_suite.sh first|second" in done.stderr


SKIP = 'pytest.skip("no CUDA device", allow_module_level=True)'
SKIPPING = {
    "test_body.py": f"import pytest\ndef test_x():\n    {SKIP}\n",
    "test_module.py": f"import pytest\n{SKIP}\ndef test_x():\n    pass\n",
}


def test_a_skip_can_be_a_failure(tmp_path: Path) -> None:
    """The skip of one test and of a whole module."""
    for name, text in SKIPPING.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "conftest.py").write_text((REPO / "tests" / "conftest.py").read_text())

    def run(may_skip: str | None) -> tuple[int, str]:
        # Where $CI is set, pytest's summary repeats each message in full.
        environment = {k: v for k, v in os.environ.items() if k not in ("MMIF_MAY_SKIP", "CI")}
        environment |= {} if may_skip is None else {"MMIF_MAY_SKIP": may_skip}
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # they take most of the time
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
        command += ["--continue-on-collection-errors"]  # a module that must not skip ends in an error
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout

    assert run(None)[0] == run("no CUDA")[0] == 0
    for may in ("fewer than two", "^$"):
        code, said = run(may)
        assert code == 1 and "FAILED test_body.py" in said and "ERROR test_module.py" in said
        assert said.count("allows no such skip") == 2 and "no CUDA device" in said


@pytest.fixture
def summary(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    return __import__("suite_summary")


def test_the_summary_outlives_a_broken_file(summary: Any, tmp_path: Path) -> None:
    index = {"part": "first", "device": "cuda", "card": "9.0", "seconds": 3, "steps": []}
    (tmp_path / "index.json").write_text(json.dumps(index))
    (tmp_path / "loss.json").write_text('{"rows": [')
    rows = [
        {
            "op": "x",
            "dtype": "y",
            "case": [1],
            "output": "o",
            "error": 1.0,
            "plain_error": 0.1,
            "passes": False,
        }
    ]
    (tmp_path / "correct.json").write_text(json.dumps({"rows": rows}))
    columns = ["ID", "Kernel Name", *list(summary.NCU)[:2], "other"]
    lines = [columns, ["", "", "us", "%", ""], ["0", "fusion_loss_fwd_kernel", "12.5", "61", "9"]]
    log = "==PROF== talk\n" + "".join(",".join(f'"{cell}"' for cell in line) + "\n" for line in lines)
    (tmp_path / "ncu_rows.log").write_text(log)
    said = summary.summary(tmp_path)
    assert "loss.json\nnot shown: JSONDecodeError" in said and "1 of 1 outputs fail" in said
    assert re.search(r"kernel +time us +compute % %\nfusion_loss_fwd_kernel +12.5 +61", said)


SMALL = {
    "bench_network.py": "--size 64 --batch 1 2 --rounds 2 --warmup 1",
    "bench_ops.py": "--scale 1 --crop 64 --batch 2 --rounds 2 --warmup 1",
    "bench_latency.py": "--size 64 --batch 1 2 --repeats 2 --warmup 1 --matmul 64",
    "bench_training.py": "--steps 3 --crop 64 --batch 3",
    "bench_diffusion.py": "--batch 1 --draw-steps 10 --rounds 1 --warmup 1",
    "check_kernels.py": "",
}


@pytest.mark.nightly
@pytest.mark.parametrize("part", PARTS)
def test_each_of_its_benchmarks_runs_on_the_cpu(part: str, tmp_path: Path, summary: Any) -> None:
    """With its own options, made small: a wrong name would waste the minutes on a real card."""
    pytest.importorskip("torch")
    index, _, commands, _ = start(tmp_path, part, DEVICE="cpu")
    asked = [shlex.split(line)[1:] for line in commands if " benchmarks/" in line]
    benches = [words for words in asked if "--json" in words]
    assert len(benches) == {"first": 4, "second": 9}[part]
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "index.json").write_text(json.dumps(index))
    for script, *options in benches:
        out = folder / Path(options[options.index("--json") + 1]).name
        options[options.index("--json") + 1] = str(out)
        small = [*SMALL[Path(script).name].split()]
        command = [sys.executable, str(REPO / script), *options, *small]
        environment = {**os.environ, "PYTHONPATH": str(REPO)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        result = json.loads(out.read_text())
        assert "unfinished" not in result and result["rows"]
        measured = [row for row in result["rows"] if row.get("status", "measured") == "measured"]
        assert measured, result["rows"]
        print(script, [row.get("reason") for row in result["rows"] if row.get("status") == "refused"])
    assert "not shown" not in summary.summary(folder), summary.summary(folder)


def test_rows_are_written_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    report: Any = __import__("report")
    path = tmp_path / "new" / "x.json"
    report.write_so_far(path, {"rows": [1]})
    assert json.loads(path.read_text())["unfinished"] and json.loads(path.read_text())["rows"] == [1]
    report.write_json(path, {"rows": [1, 2]})
    assert json.loads(path.read_text()) == {"rows": [1, 2]} and len(list(path.parent.iterdir())) == 1
    report.write_so_far(None, {"rows": []})
