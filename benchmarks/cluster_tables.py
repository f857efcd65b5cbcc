"""The tables of bench_cluster.py and bench_plan.py, for readme.py."""

from __future__ import annotations

import json
import statistics
from typing import Any

import report


def cluster_table(result: dict[str, Any]) -> str:
    volumes, null = result["volumes"], result["null"]
    head = ["", "mmif-trt batch", "batch --on ray"]
    rows = [
        ["CPU seconds per case", *(_all(volumes["cpu_s_per_case"][name]) for name in ("batch", "ray"))],
        ["ray to batch, per round", "1", _all(volumes["cpu_ratios"])],
        ["fixed CPU seconds of a run", *(_all(volumes["fixed_cpu_s"][name]) for name in ("batch", "ray"))],
        ["seconds by the clock", *(_all(volumes["clock_s"][name]) for name in ("batch", "ray"))],
    ]
    empty = [["empty case, ms by the clock", null["clock_ms_per_case"]]]
    empty += [["empty case, CPU ms of the driver", null["driver_cpu_ms_per_case"]]]
    for mark in null["memory"]:
        empty += [[f"MB of the driver after {mark['cases']} cases", mark["driver_mb"]]]
        empty += [[f"MB of Ray's control store after {mark['cases']}", mark["gcs_mb"]]]
    settings = {"volumes": volumes["volumes"], "empty cases": null["cases"]}
    tables = [report.markdown(head, rows), report.markdown(["two workers that do nothing", ""], empty)]
    return "\n\n".join([*tables, report.sentence({**result, "settings": settings})])


def scaling_table(result: dict[str, Any]) -> str:
    scaling = result["scaling"]
    rows = [
        ["seconds by the clock", *(_all(scaling["clock_s"][n]) for n in "12")],
        ["CPU seconds per case", *(_all(scaling["cpu_s_per_case"][n]) for n in "12")],
        ["cores busy (median)", *(f"{_busy(scaling, n):.2f}" for n in "12")],
        ["times as fast, per round", "1", _all(scaling["speedups"])],
        ["times as fast, median", "1", f"{scaling['speedup']:g}"],
    ]
    settings = {"volumes": scaling["volumes"], "threads per worker": scaling["threads_per_worker"]}
    settings |= {"precision": scaling["precision"]}
    table = report.markdown(["", "one worker", "two workers"], rows)
    return f"{table}\n\n{report.sentence({**result, 'settings': settings})}"


def _busy(scaling: dict[str, Any], workers: str) -> float:
    pairs = zip(scaling["cpu_s_per_case"][workers], scaling["clock_s"][workers], strict=True)
    return statistics.median(cpu * scaling["volumes"] / clock for cpu, clock in pairs)


def plan_table(result: dict[str, Any]) -> str:
    headers, plan, status = result["headers"], result["plan"], result["status"]
    rows = [
        ["a header read, CPU ms", headers["cpu_ms_per_header"]],
        ["a case written into the plan, CPU ms", plan["cpu_ms_per_case"]],
        ["a case in the plan, bytes (266 files)", plan["bytes_per_case"]],
        [f"peak MB after {plan['cases'] // 10} and {plan['cases']} cases", _all(plan["peak_mb"])],
        [f"one of 64 shares read ({plan['share']}), CPU s", plan["share_cpu_s"]],
        ["a record read by status, CPU ms", status["cpu_ms_per_record"]],
    ]
    settings = {"headers": headers["headers"], "cases": plan["cases"], "records": status["records"]}
    table = report.markdown(["", ""], rows)
    return f"{table}\n\n{report.sentence({**result, 'settings': settings})}"


def cost_sentences() -> str:
    """Of the page on clusters: what Ray costs beside one machine's run."""
    cluster, scaled = (
        json.loads((report.RESULTS / f"{name}_cpu.json").read_text()) for name in ("cluster", "scaling")
    )
    volumes, scaling = cluster["volumes"], scaled["scaling"]
    low, high = min(volumes["cpu_ratios"]), max(volumes["cpu_ratios"])
    fixed = (statistics.median(volumes["fixed_cpu_s"][name]) for name in ("ray", "batch"))
    more = next(fixed) - next(fixed)
    times, cores = scaling["speedups"], scaled["conditions"]["cpu"]["cores"]
    load = scaled["conditions"]["load_average"][0]
    empty = cluster["null"]["driver_cpu_ms_per_case"]
    return (
        f"Per case, `--on ray` used {low:.2f} to {high:.2f} times the CPU time of `mmif-trt batch`, and "
        f"{more:.1f} s of CPU more per run; an empty case takes {empty:.1f} ms of the driver's CPU. On "
        f"{cores} cores two workers of one thread were {scaling['speedup']:.2f} times as fast as one "
        f"({min(times):.2f} to {max(times):.2f} in single rounds, load average {load:.1f} at the start)."
    )


FILES, MILLION = 266, 1_000_000


def million_table() -> str:
    """Of the page on clusters: what was measured per case, and the same for a million."""
    cluster, plan = (
        json.loads((report.RESULTS / f"{name}_cpu.json").read_text()) for name in ("cluster", "plan")
    )
    header, pair = plan["headers"]["cpu_ms_per_header"], plan["plan"]["cpu_ms_per_case"]
    size, record = plan["plan"]["bytes_per_case"], plan["status"]["cpu_ms_per_record"]
    fuse = statistics.median(cluster["volumes"]["cpu_s_per_case"]["batch"])
    driver, mark = cluster["null"]["driver_cpu_ms_per_case"], cluster["null"]["memory"]
    memory = " and ".join(f"{m['driver_mb']:.0f} MB after {m['cases']}" for m in mark)
    hours = f"{header * FILES * MILLION / 3.6e6:.0f} core hours"
    rows = [
        [
            "headers to read",
            f"{header} ms of CPU for each of {FILES}",
            f"{hours}; `plan --part` shares it out",
        ],
        ["writing the plan", f"{pair} ms of CPU", f"{pair * MILLION / 6e4:.0f} min"],
        ["the plan on the disk", f"{size} bytes", f"{size / 1e3:.1f} GB; a run reads its own share alone"],
        ["fusing 91 x 109 x 91 voxels", f"{fuse:.2f} s of CPU", f"{fuse * MILLION / 3600:.0f} core hours"],
        [
            "a record read by `status`",
            f"{record} ms of CPU",
            f"{record * MILLION / 1e3:.0f} s, and the storage",
        ],
        ["Ray's driver", f"{driver} ms of CPU", f"{driver * MILLION / 6e4:.0f} min; {memory}"],
    ]
    return report.markdown(["", "per case", "for a million"], rows)


def _all(values: list[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
