"""benchmarks/timing.py measures by the device's clock, on a simulated device; no fallback is timed under the
name of what it replaces."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import REPO

torch = pytest.importorskip("torch")


class Device:
    """A host and a device with clocks in ms: work runs in order, once it is enqueued."""

    def __init__(self) -> None:
        self.now = 0.0  # of the host
        self.free = 0.0  # when the device will have done all its work

    def work(self, ms: float) -> None:
        self.free = max(self.free, self.now) + ms

    def host(self, ms: float) -> None:
        self.now += ms

    def wait(self) -> None:
        self.now = max(self.now, self.free)

    def event(self, enable_timing: bool) -> Any:
        device, at = self, SimpleNamespace(ms=0.0)

        def record() -> None:
            device.work(0)
            at.ms = device.free

        at.record, at.query = record, lambda: at.ms <= device.now
        at.elapsed_time = lambda end: end.ms - at.ms
        return at


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device()
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    timing: Any = __import__("timing")
    monkeypatch.setattr(timing, "WARMUP_S", 0.0)
    for name, what in {
        "Event": made.event,
        "synchronize": made.wait,
        "_sleep": lambda cycles: made.work(cycles / timing.CYCLES_PER_MS),
        "current_device": lambda: 0,
        "get_device_properties": lambda device: SimpleNamespace(L2_cache_size=50 << 20),
    }.items():
        monkeypatch.setattr(torch.cuda, name, what)
    flushed = SimpleNamespace(zero_=lambda: made.work(0.05))
    monkeypatch.setattr(torch, "empty", lambda size, **_: flushed if size == 100 << 20 else None)
    return made


def rival(device: Device, host_ms: float, device_ms: float, waits: bool = False) -> Callable[..., None]:
    def run(given: Any, mark: Callable[[], None]) -> None:
        for _ in range(2):  # forward, backward
            device.host(host_ms)
            device.work(device_ms)
            if waits:
                device.wait()
            mark()

    return run


def samples(device: Device, run: Callable[..., None]) -> Any:
    timing: Any = __import__("timing")
    inputs = [(SimpleNamespace(device=SimpleNamespace(type="cuda")),)]
    return timing.take_turns({"it": run}, inputs, rounds=3, warmup=1)["it"]


@pytest.mark.parametrize("host_ms", [0.001, 0.045, 5.0])
def test_the_device_is_timed_not_the_host(host_ms: float, device: Device) -> None:
    """A forward of 17 us that takes 45 us to launch takes 17 us, and more than 45 as called."""
    found = samples(device, rival(device, host_ms, 0.017))
    for phase in found.device:
        assert phase == pytest.approx([0.017] * 3)
    for phase in found.as_called:
        assert all(max(host_ms, 0.017) - 1e-9 <= ms <= host_ms + 0.0171 for ms in phase)
    assert found.phases() is found.device


def test_a_call_that_waits_for_the_device_has_no_device_time(device: Device) -> None:
    found = samples(device, rival(device, 0.01, 0.02, waits=True))
    assert found.device == [] and found.phases() is found.as_called
    assert [len(phase) for phase in found.as_called] == [3, 3]


def test_compiled_raises_where_dynamo_would_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ninth shape of one code object: torch.compile runs it eagerly and says so in a log only."""
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    compiled: Any = __import__("compiled")
    calls: list[int] = []

    def backend(graph: Any, _: Any) -> Any:
        calls.append(1)
        return graph.forward

    def double(x: Any) -> Any:
        return x * 2

    compiled.forget()
    plain = torch.compile(double, dynamic=False, backend=backend)
    for n in range(1, 11):
        plain(torch.ones(n))
    assert len(calls) == 8, "dynamo's limit is another now"
    compiled.forget()
    monkeypatch.setattr(torch, "compile", lambda call, **how: real(call, backend=backend, **how))
    ours = compiled.compiled(double)
    for n in range(1, 9):
        ours(torch.ones(n))
    with pytest.raises(Exception) as caught:
        ours(torch.ones(9))
    assert type(caught.value).__name__ == "FailOnRecompileLimitHit"
    compiled.forget()
    assert compiled.compiled(double)(torch.ones(9)).sum() == 18


real = torch.compile


def test_no_row_of_a_kernel_that_did_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """With plain torch alone, every rival named kernel is refused, and the others count."""
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    from mmif_trt import ops

    bench: Any = __import__("bench_ops")
    few = ["--op", "attention", "loss", "blocks", "step", "--scale", "1", "--crop", "64", "--batch", "1"]
    few += ["--rounds", "1", "--warmup", "1", "--shift", "0", "--rival", "kernel", "eager", "--device", "cpu"]
    rows: list[dict[str, Any]] = []
    monkeypatch.setattr(bench.report, "write_so_far", lambda path, result: rows.extend(result["rows"]))
    monkeypatch.setattr("sys.argv", ["bench_ops.py", *few])
    monkeypatch.setattr(bench, "copy_gb_per_s", lambda device, mib: 10.0)
    with ops.plain_operations():
        bench.main()
    by_rival = {name: [row for row in rows if row["rival"] == name] for name in ("kernel", "eager")}
    assert all(row["status"] == "refused" and "no kernel" in row["reason"] for row in by_rival["kernel"])
    assert all(row["status"] == "measured" for row in by_rival["eager"])
    assert {row["op"] for row in by_rival["kernel"]} == {row["op"] for row in by_rival["eager"]}


def test_the_fp32_reference_runs_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch lets convolutions run in TF32 unless told otherwise; the caller's setting is restored."""
    from mmif_trt.runtimes.torch import TorchRuntime, float_products

    def state() -> tuple[bool, bool, bool]:
        cudnn = torch.backends.cudnn
        return cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, cudnn.enabled

    before, seen = state(), []
    torch.set_float32_matmul_precision("high")
    try:
        mine = state()
        x = torch.zeros(1, 1, 4, 4)
        TorchRuntime(lambda a, b: seen.append(state()) or a, "cpu").network(x, x)
        with float_products(tf32=True):
            seen.append(state())
        assert seen == [(False, False, True), (True, True, True)] and state() == mine
    finally:
        torch.set_float32_matmul_precision("highest")
    assert state() == before


def test_a_copy_without_git_is_given_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    conditions: Any = __import__("conditions")
    monkeypatch.setattr(conditions, "_git", lambda *arguments: None)
    monkeypatch.delenv("MMIF_COMMIT", raising=False)
    assert conditions.conditions()["commit"] is None
    assert conditions.conditions()["uncommitted_changes"] is None, "unknown is not no"
    monkeypatch.setenv("MMIF_COMMIT", "0123456789abcdef-dirty")
    found = conditions.conditions()
    assert (found["commit"], found["uncommitted_changes"]) == ("0123456789ab", True)
    monkeypatch.setenv("MMIF_COMMIT", "0123456789abcdef")
    assert conditions.conditions()["uncommitted_changes"] is False
