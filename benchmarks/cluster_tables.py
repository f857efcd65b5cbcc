"""The tables of bench_cluster.py and bench_plan.py, for report.py."""

from __future__ import annotations

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


def plan_table(result: dict[str, Any]) -> str:
    headers, plan, status = result["headers"], result["plan"], result["status"]
    rows = [
        ["a header read, CPU ms", headers["cpu_ms_per_header"]],
        ["a case paired and written, CPU ms", plan["cpu_ms_per_case"]],
        ["a case in the plan, bytes (266 files)", plan["bytes_per_case"]],
        [f"peak MB after {plan['cases'] // 10} and {plan['cases']} cases", _all(plan["peak_mb"])],
        [f"one of 64 shares read ({plan['share']}), CPU s", plan["share_cpu_s"]],
        ["a record read by status, CPU ms", status["cpu_ms_per_record"]],
    ]
    settings = {"headers": headers["headers"], "cases": plan["cases"], "records": status["records"]}
    table = report.markdown(["", ""], rows)
    return f"{table}\n\n{report.sentence({**result, 'settings': settings})}"


def _all(values: list[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
