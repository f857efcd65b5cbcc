"""The benchmark scripts run and write what they promise. No test looks at a time."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import REPO

from mmif_trt import runtimes, weights
from mmif_trt.ops import CPU_OPS

BENCHMARKS = REPO / "benchmarks"
MARKS = {"p50", "p95", "p99", "min", "mean", "n"}
STAGES = ["decode", "normalise_luma", "network", "recombine", "encode", "end_to_end"]


def test_help_measures_nothing() -> None:
    """A script that has no parser would run, and write over its committed result."""
    scripts = [path for path in BENCHMARKS.glob("*.py") if '__name__ == "__main__"' in path.read_text()]
    assert len(scripts) > 20
    parsers = ("ArgumentParser(", "results_command.")
    assert not [path.name for path in scripts if not any(one in path.read_text() for one in parsers)]


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a benchmark script by name, as Python finds it when the script runs."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        return __import__(name)

    return load


def check_conditions(result: dict[str, Any]) -> None:
    at = result["conditions"]
    assert at["cpu"]["model"] and at["cpu"]["cores"] >= 1 and at["python"] and at["os"]
    assert at["versions"]["mmif_trt"] and at["versions"]["numpy"] and at["date"].endswith("+00:00")
    assert {"commit", "uncommitted_changes", "load_average"} <= at.keys() and "load_average_end" in result
    files = weights.manifest()["models"]["lagn"]["files"]
    assert at["weights_sha256"] == {file: entry["sha256"] for file, entry in files.items()}


def test_latency(tmp_path: Path, module: Any) -> None:
    out = tmp_path / "new" / "latency.json"
    few = [
        "--repeats",
        "3",
        "--warmup",
        "1",
        "--matmul",
        "64",
        "--cold",
        "1",
        "--size",
        "40",
        "64",
        "--threads",
        "1",
    ]
    done = run("bench_latency.py", "--precision", "auto,fp32,bf16,fp7", *few, "--json", str(out))
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    check_conditions(result)
    assert result["settings"]["threads"] == 1 and result["settings"]["repeats"] == 3
    assert result["cold_start"]["status"] == "measured", result["cold_start"]
    assert set(result["cold_start"]["s"]) == {"import", "first_fuse", "second_fuse", "whole_process"}
    measured = [row for row in result["rows"] if row["status"] == "measured"]
    refused = [row for row in result["rows"] if row["status"] == "refused"]
    usable = {name for name, why_not in runtimes.available().items() if not why_not}
    assert {row["runtime"] for row in measured} == usable
    keys = [(row["runtime"], row["precision"], row["size_px"]) for row in measured]
    assert len(keys) == len(set(keys)), "one row per runtime, precision and size"
    assert {size for _, _, size in keys} == {40, 64}
    for row in measured:
        assert list(row["ms"]) == STAGES
        for samples in row["ms"].values():
            assert set(samples) == MARKS and samples["n"] == 3
            assert 0 < samples["min"] <= samples["p50"] <= samples["p95"] <= samples["p99"]
        assert min(row["pairs_per_s"], row["gflop_per_s"], row["matmul_gflop_per_s"], row["matmul_share"]) > 0
        assert row["gmac"] == pytest.approx(result["rows"][0]["gmac"]), "40 px is padded to 64"
    assert {row["runtime"] for row in refused if row["asked"] == "fp7"} == set(runtimes.NAMES)
    assert all(row["reason"] and "\n" not in row["reason"] for row in refused)
    asked = {(row["runtime"], p) for row in result["rows"] for p in row["asked"].split(", ")}
    assert asked == {(name, p) for name in runtimes.NAMES for p in ("auto", "fp32", "bf16", "fp7")}
    assert done.stdout.strip() == module("report").latency_tables(result).strip()


PEER = """
import torch
def make():
    return Largest()
class Largest(torch.nn.Module):
    def forward(self, a, b):
        return torch.maximum(a, b)
"""


def test_latency_of_rivals_and_peers(tmp_path: Path, module: Any) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    (tmp_path / "peer.py").write_text(PEER)
    few = [
        "--repeats",
        "2",
        "--warmup",
        "1",
        "--matmul",
        "64",
        "--cold",
        "0",
        "--size",
        "64",
        "--threads",
        "1",
    ]
    few += ["--runtime", "openvino,onnxruntime,cuda-graph", "--precision", "auto", "--stage", "decode"]
    few += ["--peer", f"{tmp_path}/peer.py:make", "--peer", f"{tmp_path}/peer.py:none"]
    files = {name: tmp_path / name for name in ("plot", "trace", "json")}
    done = run("bench_latency.py", *few, *(x for n, f in files.items() for x in (f"--{n}", str(f))))
    assert done.returncode == 0, done.stderr
    result = json.loads(files["json"].read_text())
    rows = {row["runtime"].rpartition("/")[2]: row for row in result["rows"]}
    measured = {name for name, row in rows.items() if row["status"] == "measured"}
    assert {"openvino", "onnxruntime", "peer.py:make"} <= measured
    assert list(rows["openvino"]["ms"]) == ["decode", "network", "end_to_end"]
    assert "gmac" not in rows["peer.py:make"] and "matmul_share" not in rows["onnxruntime"]
    assert "no callable 'none'" in rows["peer.py:none"]["reason"]
    assert result["peak_memory"]["host_mib"] > 20
    events = json.loads(files["trace"].read_text())["traceEvents"]
    timed = [event for event in events if event["ph"] == "X"]
    assert len(timed) == 5 * 2 * len(measured) and all(event["dur"] > 0 for event in timed)
    assert {event["args"]["name"] for event in events if event["ph"] == "M"} >= {"onnxruntime fp32"}
    import cv2

    picture = cv2.imread(str(files["plot"]))
    assert picture is not None and picture.shape[1] == 1200 and picture.std() > 5


def test_latency_of_two_networks(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    """In the rounds of one run; a table of the default alone has no column for it."""
    bench, report = module("bench_latency"), module("report")
    few = "--runtime openvino --precision fp32 --threads 1 --matmul 16 --size 64 --network lagn,lagn-quality"
    monkeypatch.setattr(sys, "argv", ["bench_latency.py", *few.split()])
    args = bench.parse()
    cases, refused = bench.load_cases([*args.runtime, "none"], args)
    assert [case.fuser.network for case in cases] == list(weights.NAMES)
    assert [row["network"] for row in refused] == list(weights.NAMES)
    for case in cases:
        case.ms[64, 1] = {"network": [1.0], "end_to_end": [2.0]}
        case.matmul_ms = [1.0]
    rows = [row for case in cases for row in bench.make_rows(case, args)]
    assert [row["network"] for row in rows] == list(weights.NAMES)
    assert rows[1]["gmac"] > 1.5 * rows[0]["gmac"] > 0, "each by its own dimensions"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    result = {"conditions": report.conditions(args.network), "settings": bench.settings(args)}
    result["rows"] = [*rows, *refused]
    result |= {"load_average_end": None, "cold_start": {"status": "refused", "reason": "not asked for"}}
    assert {name.partition(".")[0] for name in result["conditions"]["weights_sha256"]} == set(weights.NAMES)
    said, table, *_ = report.latency_tables(result).split("\n\n")
    assert "instructions ONEDNN_MAX_CPU_ISA=AVX2" in said, "a limited processor is not shown as a whole one"
    head, _, *lines = table.splitlines()
    assert head.split(" | ")[1] == "network" and len({line.count("|") for line in (head, *lines)}) == 1
    assert [line.split(" | ")[1] for line in lines] == list(weights.NAMES) * 2
    result["rows"] = rows[:1]
    assert "| runtime | precision | asked |" in report.latency_tables(result)
    monkeypatch.setattr(sys, "argv", ["bench_latency.py", "--network", "unet"])
    with pytest.raises(SystemExit):
        bench.parse()


def test_latency_refuses_what_it_cannot_count() -> None:
    done = run("bench_latency.py", "--size", "2048")
    assert done.returncode == 2 and "expected 16 to 1024" in done.stderr


def test_batch(tmp_path: Path, module: Any) -> None:
    out = tmp_path / "batch.json"
    decoders = ["opencv", "dali"] if importlib.util.find_spec("nvidia.dali") else ["opencv"]
    options = ["--pairs", "5", "--precision", "fp32", "--threads", "1", "--workers", "2"]
    options += ["--decode", *decoders]
    done = run("bench_batch.py", *options, "--json", str(out))
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    check_conditions(result)
    assert [(row["pairs"], row["decode"]) for row in result["rows"]] == [(5, x) for x in decoders]
    for row in result["rows"]:
        assert row["workers"] == 2 and row["runtime"]["name"] in runtimes.NAMES
        network = row["network_only_pairs_per_s"]
        assert row["ratio"] == pytest.approx(row["pairs_per_s"] / network["one_caller"], rel=1e-2)
        assert row["ratio_all_callers"] == pytest.approx(
            row["pairs_per_s"] / network["all_callers"], rel=1e-2
        )
        assert 0 < row["pairs_per_s_with_start"] < row["pairs_per_s"]
        assert all(row["worker_ms"][stage]["n"] == row["pairs"] for stage in ("decode", "fuse", "encode"))
        if Path("/proc/self/status").is_file():
            assert 20 < row["peak_rss_mib"] < 20_000
    assert done.stdout.strip() == module("report").batch_table(result).strip()


FEW_OPS = "--scale 1 --crop 64 --batch 2 --rounds 2 --warmup 1 --device cpu --threads 1 --copy-mib 8"


# torch.compile takes most of a minute.
@pytest.mark.parametrize("more", [(), pytest.param(("compile",), marks=pytest.mark.nightly)])
def test_ops(more: tuple[str, ...], tmp_path: Path, module: Any) -> None:
    pytest.importorskip("torch")
    out = tmp_path / "ops.json"
    few = [*FEW_OPS.split(), "--rival", "kernel", "eager", "sdpa", *more]
    done = run("bench_ops.py", *few, "--json", str(out))
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    check_conditions(result)
    found = {(row["op"], row["shift"], row["rival"]) for row in result["rows"]}
    attention = {("window_attention", s, r) for s in (0, 4) for r in ("kernel", "eager", "sdpa", *more)}
    loss = {("fusion_loss", None, r) for r in ("kernel", "eager", *more)}
    blocks = {(op, None, r) for op in (*CPU_OPS, "local_block hardswish") for r in ("kernel", "eager", *more)}
    assert found == attention | loss | blocks | {("training step", None, r) for r in ("kernel", "eager")}
    for row in result["rows"]:
        assert row["status"] == "measured", row
        assert min(row["ms"][phase]["min"] for phase in ("forward", "backward", "both")) > 0
        assert row["peak_mib"] > 0 and row["ms"]["both"]["n"] == 2
    assert module("report").ops_table(result).strip() in done.stdout


def test_network(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    out = tmp_path / "network.json"
    few = ["--device", "cpu", "--mode", "eager", "--size", "64", "--batch", "1", "2", "--rounds", "2"]
    done = run("bench_network.py", *few, "--json", str(out))
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    check_conditions(result)
    assert [(row["rival"], row["batch"]) for row in result["rows"]] == [
        ("eager float32", 1),
        ("eager float32", 2),
    ]
    assert all(row["copy_ms"]["to_device"]["min"] > 0 and row["peak_mib"] > 0 for row in result["rows"])


def test_batch_fails_with_the_message_of_the_command_line() -> None:
    done = run("bench_batch.py", "--pairs", "1", "--precision", "fp7")
    assert done.returncode != 0 and "fp7" in done.stderr


def test_batch_on_a_card_says_in_one_line_that_there_is_none() -> None:
    if not (reason := runtimes.available()["tensorrt"]):
        pytest.skip("a card that TensorRT can use")
    done = run("bench_batch.py", "--pairs", "1", "--runtime", "tensorrt", "--decode", "dali")
    assert done.returncode == 1
    assert done.stderr.strip() == f"bench_batch: runtime 'tensorrt' is not usable: {reason}"


@pytest.mark.parametrize("size", [(64, 64), (256, 256), (96, 160), (33, 40)])
def test_macs_are_those_of_the_network(size: tuple[int, int], module: Any) -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    from mmif_trt.models import load_model

    model = load_model("lagn").exportable()  # plain matmul, which the counter knows on every device
    height, width = (-(-side // model.config.multiple) * model.config.multiple for side in size)
    a = torch.rand(1, 1, height, width)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(a, a)
    assert 2 * module("flops").network_macs(model.config.as_dict(), *size) == counter.get_total_flops()


def test_the_readme_shows_the_committed_results() -> None:
    done = run("readme.py", "--check")
    assert done.returncode == 0, done.stderr


def test_it_fills_between_the_markers_only(tmp_path: Path, module: Any) -> None:
    readme = module("readme")
    text = "".join(
        f"before {n}\n<!-- {n}:begin -->\nold\n<!-- {n}:end -->\nafter {n}\n" for n in readme.TABLES
    )
    new = readme.filled(text, tmp_path)
    assert new == text.replace("old", "Not measured.") and readme.filled(new, tmp_path) == new
    with pytest.raises(SystemExit, match="markers"):
        readme.filled("no marker", tmp_path)


def test_percentiles(module: Any) -> None:
    found = module("report").percentiles(range(101))
    assert found == {"p50": 50, "p95": 95, "p99": 99, "min": 0, "mean": 50, "n": 101}


def test_plan_and_the_tables_of_clusters(tmp_path: Path, module: Any) -> None:
    pytest.importorskip("pydicom")
    out = tmp_path / "plan.json"
    few = ["--headers", "4", "--cases", "20", "--records", "20", "--json", str(out)]
    done = run("bench_plan.py", str(tmp_path / "work"), *few)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    check_conditions(result)
    assert result["plan"]["cases"] == 20 and result["headers"]["cpu_ms_per_header"] > 0
    tables = module("cluster_tables")
    assert "of 64 shares read (1 cases)" in tables.plan_table(result)
    null = {"cases": 9, "clock_ms_per_case": 1.5, "driver_cpu_ms_per_case": 0.5, "memory": []}
    both = {"batch": [1.0, 2.0], "ray": [1.1, 2.1]}
    volumes = dict.fromkeys(("cpu_s_per_case", "fixed_cpu_s", "clock_s"), both)
    volumes |= {"volumes": 8, "cpu_ratios": [1.1, 1.05]}
    table = tables.cluster_table({**result, "volumes": volumes, "null": null})
    assert "| CPU seconds per case | 1, 2 | 1.1, 2.1 |" in table and "| 1.5 |" in table
    each = {
        "clock_s": {"1": [8.0, 9.0], "2": [5.0, 6.0]},
        "cpu_s_per_case": {"1": [1.2, 1.2], "2": [1.2, 1.3]},
    }
    scaling = {**each, "volumes": 8, "threads_per_worker": 1, "precision": "fp32", "speedup": 1.55}
    table = tables.scaling_table({**result, "scaling": {**scaling, "speedups": [1.6, 1.5]}})
    assert (
        "| times as fast, median | 1 | 1.55 |" in table and "| cores busy (median) | 1.13 | 1.83 |" in table
    )
