"""benchmarks/card_stages: what bench_latency.py reports about a card, on the fake card and with torch's CPU
clock."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO
from fake_card import FakeCard
from fake_engine import install, usable_modules

FEW = ["--repeats", "3", "--warmup", "1", "--matmul", "64", "--cold", "0", "--threads", "1", "--size", "64"]
OF_A_CARD = ["host_to_device", "network", "device_to_host", "call_overhead"]
ORDER = ["decode", "normalise_luma", *OF_A_CARD, "recombine", "encode", "end_to_end"]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a benchmark script by name, as Python finds it when the script runs."""
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    yield __import__


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeCard:
    made = install(monkeypatch, tmp_path / "cache")
    usable_modules(monkeypatch)
    return made


def run(bench: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, Any]:
    out = Path(arguments[-1])
    monkeypatch.setattr(sys, "argv", ["bench_latency.py", *FEW, *arguments[:-1], "--json", str(out)])
    bench("bench_latency").main()
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_the_stages_of_a_call_are_the_call(bench: Any) -> None:
    found = bench("card_stages").split(20.0, [[1.0, 5.0, 2.0], [0.5, 4.0, 1.5]])
    assert list(found) == OF_A_CARD
    assert found == {"host_to_device": 1.5, "network": 9.0, "device_to_host": 3.5, "call_overhead": 6.0}
    assert sum(found.values()) == 20.0


def test_tensorrt_on_a_card(
    bench: Any, fake: FakeCard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    result = run(
        bench, monkeypatch, "--runtime", "tensorrt,openvino", "--batch", "1", "4", "16", str(tmp_path / "x")
    )
    rows = {(row["runtime"], row["batch"]): row for row in result["rows"] if "batch" in row}
    for batch in (1, 4):
        row = rows["tensorrt", batch]
        assert list(row["ms"]) == ORDER
        medians = {name: row["ms"][name]["p50"] for name in OF_A_CARD}
        # The fake card's clock: two uploads of 1 ms, a network of 5, a download of 2, for a batch as for one
        # pair.
        assert (medians["host_to_device"], medians["network"], medians["device_to_host"]) == (2, 5, 2)
        assert row["network_pairs_per_s"] == batch * 200 and row["device_mib"] > 0
        assert list(rows["openvino", batch]["ms"]) == [
            x for x in ORDER if x not in OF_A_CARD or x == "network"
        ]
        assert "device_mib" not in rows["openvino", batch]
    assert rows["tensorrt", 4]["device_mib"] >= rows["tensorrt", 1]["device_mib"]
    over = rows["tensorrt", 16]
    assert over["status"] == "refused" and "batch 16 of 64 x 64 px; this engine takes" in over["reason"]
    assert rows["openvino", 16]["status"] == "measured", "one runtime's limit is not another's"
    said = capsys.readouterr().out
    stages = next(line for line in said.splitlines() if "host_to_device" in line)
    assert [x.strip() for x in stages.strip("| ").split("|")][4:] == ORDER
    assert "| device MiB |" in said and "refused: batch 16" in said
    assert result["conditions"]["device"]["name"] == "Fake RTX" and "on Fake RTX (driver " in said


def test_torch_between_events(bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The CPU's clock in place of CUDA events: the same marks, the same columns."""
    torch = pytest.importorskip("torch")
    stages = bench("card_stages")
    seen: list[str] = []
    monkeypatch.setattr(stages.TorchCard, "forget_peak", lambda self: seen.append("forget"))
    monkeypatch.setattr(stages.TorchCard, "peak_mib", lambda self: 12.5)
    latency = bench("bench_latency")
    monkeypatch.setattr(
        latency, "card_of", lambda runtime: stages.TorchCard(runtime) if runtime.name == "torch" else None
    )
    result = run(
        bench,
        monkeypatch,
        "--runtime",
        "torch",
        "--precision",
        "fp32",
        "--batch",
        "1",
        "2",
        str(tmp_path / "x"),
    )
    assert [row["batch"] for row in result["rows"]] == [1, 2]
    for row in result["rows"]:
        assert list(row["ms"]) == ORDER and row["device_mib"] == 12.5
        assert all(row["ms"][name]["min"] > 0 for name in ORDER)
    assert seen == ["forget"] * 6, "at the beginning of each turn"
    module = torch.nn.Identity()
    events: list[Any] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = float(len(events)) ** 2
            events.append(self)

        def elapsed_time(self, end: Any) -> float:
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    runtime = bench("rivals").TorchRival("a/peer.py:f", module.forward, None)
    runtime._module = lambda a, b: torch.maximum(a, b)
    card = stages.TorchCard(runtime)
    card._device = torch.device("cuda")
    import numpy as np

    x = np.zeros((2, 32, 32), np.float32)
    assert card.infer(x, x).shape == x.shape
    assert card.laps == [[1.0, 3.0, 5.0]] and len(events) == 4, "four events, their distances in order"


def test_a_peer_of_one_pair_says_so(bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    peer = tmp_path / "peer.py"
    peer.write_text(
        "import torch\n"
        "def make():\n    return One()\n"
        "def broken():\n    return lambda a, b: a.no_such_thing\n"
        "class One(torch.nn.Module):\n"
        "    def forward(self, a, b):\n"
        "        if len(a) > 1:\n            raise ValueError('one pair only')\n"
        "        return torch.maximum(a, b)\n"
    )
    options = [
        "--runtime",
        "onnxruntime",
        "--precision",
        "auto",
        "--peer",
        f"{peer}:make",
        "--peer",
        f"{peer}:broken",
        "--batch",
        "1",
        "2",
    ]
    result = run(bench, monkeypatch, *options, str(tmp_path / "x"))
    rows = {(row["runtime"].rpartition("/")[2], row["batch"]): row for row in result["rows"]}
    assert rows["peer.py:make", 1]["status"] == "measured"
    assert rows["peer.py:make", 2]["reason"] == "batch 2: ValueError: one pair only"
    assert "AttributeError" in rows["peer.py:broken", 1]["reason"], "and the others still count"


def test_each_stage_and_each_call_is_an_nvtx_range(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trace_events, ranges = bench("trace_events"), []
    monkeypatch.setattr(
        trace_events, "_nvtx", lambda: (lambda name: ranges.append(name), lambda: ranges.append("pop"))
    )
    run(bench, monkeypatch, "--runtime", "openvino", "--precision", "fp32", str(tmp_path / "x"))
    stages = [name for name in ORDER if name not in (*OF_A_CARD, "end_to_end") or name == "network"]
    call = ["openvino 64 px, batch 1", *(x for name in stages for x in (name, "pop")), "pop"]
    assert ranges == call * 3


def test_nvtx_without_torch(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nvtx = pytest.importorskip("nvtx")
    monkeypatch.setitem(sys.modules, "torch", None)
    trace = bench("trace_events").Trace()
    assert (trace._push, trace._pop) == (nvtx.push_range, nvtx.pop_range)
    trace.push("a stage")
    trace.pop()
    monkeypatch.setitem(sys.modules, "nvtx", None)
    assert (bench("trace_events").Trace()._push) is None
