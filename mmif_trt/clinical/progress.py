"""How far a run is, only from the records in its output: on any machine that sees them, at any time."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from mmif_trt.clinical import outputs, records
from mmif_trt.storage import Store

WINDOW_S = 3600.0  # over which a rate is reported
MINUTE_S = 60.0
SHOWN = 5


@dataclass
class Progress:
    """cases: of the newest record's plan. interrupted: in progress when their process ended. machines: active
    ones. failures: the first (name, message). in_doubt: done cases whose registration may be wrong; doubts:
    the first (name, why). rate: done cases per second over the last hour that had any."""

    cases: int = 0
    done: int = 0
    failed: int = 0
    running: int = 0
    interrupted: int = 0
    machines: list[str] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    in_doubt: int = 0
    doubts: list[tuple[str, str]] = field(default_factory=list)
    rate: float | None = None

    @property
    def left(self) -> int:
        return max(0, self.cases - self.done - self.failed)

    @property
    def left_s(self) -> float | None:
        return self.left / self.rate if self.rate else None


def of(store: Store) -> Progress:
    """Reads every record once; memory grows with the minutes of the run, not with the number of cases."""
    found, minutes, machines = Progress(), Counter[int](), set[str]()
    newest, first, last = 0.0, float("inf"), 0.0
    for record in records.all_records(store):
        status, finished = record["status"], float(record.get("finished") or 0)
        touched = max(finished, float(record.get("began") or 0))
        if record.get("of") and touched >= newest:
            newest, found.cases = touched, int(record["of"])
        if status == records.DONE:
            found.done += 1
            if why := outputs.doubt(record):
                found.in_doubt += 1
                if len(found.doubts) < SHOWN:
                    found.doubts.append((record["name"], why))
            if finished:
                minutes[int(finished // MINUTE_S)] += 1
                first = min(first, float(record.get("began") or finished))
                last = max(last, finished)
        elif status == records.FAILED:
            found.failed += 1
            if len(found.failures) < SHOWN:
                found.failures.append((record["name"], str(record.get("message"))))
        elif records.is_at_work(record):
            found.running += 1
            machines.add(str(record["process"]["place"]["host"]))
        else:
            found.interrupted += 1
    found.machines = sorted(machines)
    found.rate = _rate(minutes, first, last, found.running > 0)
    found.cases = max(found.cases, found.done + found.failed + found.running + found.interrupted)
    return found


def _rate(minutes: Counter[int], first: float, last: float, is_at_work: bool) -> float | None:
    """Up to now if the run goes on: the rate of a stalled run falls by the minute."""
    end = max(last, time.time()) if is_at_work else last
    begin = max(first, end - WINDOW_S)
    count = sum(number for minute, number in minutes.items() if (minute + 1) * MINUTE_S > begin)
    return count / (end - begin) if count and end > begin else None
