"""The cost of a cluster over `mmif-trt batch`: CPU seconds of all processes, and the cost of an empty case.

    python benchmarks/bench_cluster.py TEMPLATES OUT [--volumes 8] [--rounds 2] [--null 10000]
    python benchmarks/bench_cluster.py TEMPLATES OUT --scaling [--volumes 8] [--rounds 2]

TEMPLATES holds T1.nii and PET.nii (91 x 109 x 91, see the data's README). The same volumes by `mmif-trt
batch` and by `mmif-trt batch --on ray` with one worker of all cores, in turn, each with FEW and with all
volumes: the difference is the cost of a case, the rest the cost of a run. CPU seconds are those of a control
group that contains every process of the run. On a busy machine they say more than the clock, whose seconds
are reported beside them. Empty cases go through two workers that do nothing; memory is that of the driver and
of Ray's control store. Writes benchmarks/results/cluster_cpu.json.

--scaling: the same volumes by one worker and by two, of one thread each, all of them up and warm; in every
round both, in turn. Writes benchmarks/results/scaling_cpu.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import report

from mmif_trt.cluster.driver import READY, Driver, Event
from mmif_trt.cluster.ray_engine import RayEngine, Size, connected
from mmif_trt.machine import usable_cores
from mmif_trt.running import Stop

FEW = 2
TABLE = "name,a,b,modality_b,low_a,high_a,low_b,high_b"


@dataclass(frozen=True)
class Null:
    """Work that does nothing."""

    def open(self, cpus: int, stop: Stop) -> tuple[Callable[[Any], Any], Callable[[], object]]:
        return lambda items: items, lambda: None


def tree_s(command: list[str]) -> tuple[float, float]:
    """(CPU seconds of the command and of all that it starts, seconds by the clock)."""
    with group() as folder:
        start = time.perf_counter()
        enter = f'echo $$ > {folder}/cgroup.procs && exec "$@"'
        subprocess.run(["sh", "-c", enter, "sh", *command], check=True, env=report.environment())
        clock = time.perf_counter() - start
        while (folder / "cgroup.procs").read_text():  # Ray's processes end after their driver
            time.sleep(0.1)
        return used_s(folder), clock


@contextlib.contextmanager
def group() -> Iterator[Path]:
    """A control group of its own, version 1 or 2; raises SystemExit where none may be made."""
    for root, account in (("/sys/fs/cgroup/cpuacct", "cpuacct.usage"), ("/sys/fs/cgroup", "cpu.stat")):
        folder = Path(root) / f"mmif-bench-{os.getpid()}"
        with contextlib.suppress(OSError):
            folder.mkdir()
            if (folder / account).exists():
                try:
                    yield folder
                finally:
                    folder.rmdir()
                return
            folder.rmdir()
    raise SystemExit("no control group may be made here; run it as root, or where cgroups are delegated")


def used_s(folder: Path) -> float:
    if (folder / "cpuacct.usage").exists():
        return int((folder / "cpuacct.usage").read_text()) / 1e9
    said = dict(line.split() for line in (folder / "cpu.stat").read_text().splitlines())
    return int(said["usage_usec"]) / 1e6


def run_s(out: Path, volumes: int, on_ray: bool) -> tuple[float, float]:
    shutil.rmtree(out / "fused", ignore_errors=True)
    command = [sys.executable, "-m", "mmif_trt", "batch", str(out / f"list{volumes}.csv")]
    command += ["-o", str(out / "fused"), "--quiet"]
    if on_ray:
        command += ["--on", "ray", "--cpus-per-worker", str(usable_cores())]
    return tree_s(command)


def volumes(out: Path, templates: Path, count: int, rounds: int) -> dict[str, Any]:
    for number in (FEW, count):
        manifest(out, templates, number)
    found: dict[str, list[float]] = {"batch": [], "ray": [], "batch_fixed": [], "ray_fixed": []}
    clocks: dict[str, list[float]] = {"batch": [], "ray": []}
    for _ in range(rounds):
        for name, on_ray in (("batch", False), ("ray", True)):
            (few, _), (all_, clock) = (run_s(out, number, on_ray) for number in (FEW, count))
            case = (all_ - few) / (count - FEW)
            found[name].append(case)
            found[f"{name}_fixed"].append(few - FEW * case)
            clocks[name].append(clock)
    ratios = [ray / batch for ray, batch in zip(found["ray"], found["batch"], strict=True)]
    return {
        "volumes": count,
        "cpu_s_per_case": {name: rounded(found[name]) for name in ("batch", "ray")},
        "cpu_ratio": round(statistics.median(ratios), 3),
        "cpu_ratios": rounded(ratios),
        "fixed_cpu_s": {name: rounded(found[f"{name}_fixed"]) for name in ("batch", "ray")},
        "clock_s": {name: rounded(values) for name, values in clocks.items()},
    }


def manifest(out: Path, templates: Path, count: int) -> Path:
    folder, path = templates.resolve(), out / f"list{count}.csv"
    rows = [f"v{i:03},{folder}/T1.nii,{folder}/PET.nii,pet,0,0.9,0,1" for i in range(count)]
    path.write_text("\n".join([TABLE, *rows]) + "\n")
    return path


def scaling(out: Path, templates: Path, count: int, rounds: int) -> dict[str, Any]:
    """One worker and two, of one thread each, on the same cases. CPU seconds: of this process and all of Ray,
    while the cases run."""
    from mmif_trt.clinical import planning
    from mmif_trt.clinical.cases import STAGES, How
    from mmif_trt.clinical.records import Output, Run
    from mmif_trt.cluster.work import Cases, lost_case
    from mmif_trt.fuser import Fuser
    from mmif_trt.storage import Folder

    runtime = Fuser().runtime
    todo, _ = planning.plan(str(manifest(out, templates, count)), bytes(32))
    how = How(Output(Folder(out / "fused"), ".nii"), Run(runtime=runtime.name, precision=runtime.precision))
    work, found = Cases(how, "scaling"), list[Any]()
    clocks: dict[int, list[float]] = {1: [], 2: []}
    cpus: dict[int, list[float]] = {1: [], 2: []}
    lost = lambda case: lost_case(work, case)  # noqa: E731

    def timed(engine: Any, workers: int) -> tuple[float, float]:
        shutil.rmtree(out / "fused", ignore_errors=True)
        found.clear()
        cpu, start = used_s(folder), time.perf_counter()
        Driver(engine, workers, found.append, lost, Stop(), in_flight=STAGES).run(todo)
        seconds, cpu = time.perf_counter() - start, used_s(folder) - cpu
        if [one.status for one in found] != ["done"] * count:
            raise SystemExit(f"{len(found)} of {count} cases came back, or not all done: {found[-1:]}")
        return seconds, cpu

    with inside() as folder, connected(None, Size(3)) as ray, contextlib.ExitStack() as ends:
        engines = {n: Ready(ends.enter_context(RayEngine(ray, work, Size(n))), n) for n in clocks}
        for workers, engine in engines.items():
            timed(engine, workers)  # every worker has its network
        for number in range(rounds):
            for workers in sorted(engines, reverse=number % 2 == 1):
                clock, cpu = timed(engines[workers], workers)
                clocks[workers].append(clock)
                cpus[workers].append(cpu / count)
    ratios = [one / two for one, two in zip(clocks[1], clocks[2], strict=True)]
    return {
        "volumes": count,
        "threads_per_worker": 1,
        "precision": runtime.precision,
        "clock_s": {str(n): rounded(values) for n, values in clocks.items()},
        "cpu_s_per_case": {str(n): rounded(values) for n, values in cpus.items()},
        "speedup": round(statistics.median(ratios), 3),
        "speedups": rounded(ratios),
    }


@contextlib.contextmanager
def inside() -> Iterator[Path]:
    """This process, and all that it starts, in a control group of their own."""
    with group() as folder:
        outside = folder.parent / "cgroup.procs"
        (folder / "cgroup.procs").write_text(str(os.getpid()))
        try:
            yield folder
        finally:
            outside.write_text(str(os.getpid()))
            while (folder / "cgroup.procs").read_text():  # Ray's processes end after their driver
                time.sleep(0.1)


def rounded(values: list[float]) -> list[float]:
    return [round(value, 3) for value in values]


def null(count: int) -> dict[str, Any]:
    """Empty cases through two workers."""
    size, done, marks = Size(2), [0], list[dict[str, Any]]()

    def on_result(_: Any) -> None:
        done[0] += 1
        if done[0] in (count // 10, count):
            marks.append({"cases": done[0], "driver_mb": rss_mb(os.getpid()), "gcs_mb": gcs_mb()})

    with connected(None, size) as ray, RayEngine(ray, Null(), size) as engine:
        driver = Driver(Ready(engine, size.workers), size.workers, on_result, str, Stop())
        done[0], cpu, start = 0, time.process_time(), time.perf_counter()
        driver.run(range(count))
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    if done[0] != count:
        raise SystemExit(f"{done[0]} of {count} empty cases came back: the workers do not start")
    return {
        "cases": count,
        "clock_ms_per_case": round(1e3 * seconds / count, 3),
        "driver_cpu_ms_per_case": round(1e3 * cpu / count, 3),
        "memory": marks,
    }


class Ready:
    """An engine whose workers are all up: else a run begins with the first, and may end without the last."""

    def __init__(self, engine: RayEngine, workers: int) -> None:
        self._engine, self._ready, waiting = engine, list[Event](), set(range(workers))
        for number in waiting:
            engine.start(number)
        while waiting:
            for event in engine.wait(1):
                if event.kind != READY:
                    raise SystemExit(f"worker {event.worker} does not start: {event.why or event.kind}")
                waiting.discard(event.worker)

    def start(self, worker: int) -> None:
        self._ready.append(Event(READY, worker))

    def give(self, worker: int, ticket: int, items: tuple[Any, ...]) -> None:
        self._engine.give(worker, ticket, items)

    def wait(self, seconds: float) -> list[Any]:
        ready, self._ready = self._ready, []
        return ready or self._engine.wait(seconds)


def rss_mb(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def gcs_mb() -> float:
    """Of the control store that is a child of this process."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(") ")
            if fields[0].endswith("(gcs_server") and int(fields[2].split()[1]) == os.getpid():
                return rss_mb(int(folder.name))
    return float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("templates", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--volumes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--null", type=int, default=10_000)
    parser.add_argument("--scaling", action="store_true", help="from one worker to two, instead")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    target = args.json or report.RESULTS / f"{'scaling' if args.scaling else 'cluster'}_cpu.json"
    here = str(Path(__file__).resolve().parent)  # the workers know `Null` by its module's name
    os.environ["PYTHONPATH"] = os.pathsep.join([report.environment()["PYTHONPATH"], here])
    args.out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"conditions": report.conditions()}
    if args.scaling:
        result["scaling"] = scaling(args.out, args.templates, args.volumes, args.rounds)
    else:
        result["volumes"] = volumes(args.out, args.templates, args.volumes, args.rounds)
        from bench_cluster import null as by_name  # not of __main__

        result["null"] = by_name(args.null)
    result["load_average_end"] = report.load_average()
    report.write_json(target, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
