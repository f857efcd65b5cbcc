"""What /metrics counts. Each counter is there from the start, at 0: a monitor sees its first rise, and a
missing name is a mistyped one."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

# Why an association, or a connection without a request (silent, left), was refused: in words for the log.
WHY = {
    "called_aet": "it called another AE title than ours",
    "calling_aet": "its AE title is not one of --peer",
    "address": "its AE title belongs to another address, by --peer AET@HOST",
    "certificate": "its TLS certificate names neither its AE title nor its host",
    "full": "no place is free for it",
    "not_dicom": "not an association request",
    "tls": "no TLS, or no certificate signed by the authority",
    "silent": "nothing came within the time limit",
    "left": "the peer left before its request",
}
NAMES = (
    "associations_total",
    "associations_rejected_total",
    "connections_refused_total",
    "connections_failed_total",
    *(f"refused_{reason}_total" for reason in WHY),
    *(f"http_refused_{reason}_total" for reason in ("full", "slow", "tls", "token")),
    "echoes_total",
    "instances_received_total",
    "instances_refused_total",
    "instances_different_total",
    "instances_corrected_total",
    "fusions_total",
    "fusion_seconds_sum",
    "registrations_in_doubt_total",
    "fusions_failed_total",
    "fusions_postponed_total",
    "worker_deaths_total",
    "cases_set_aside_total",
    "series_refused_total",
    "sent_total",
    "send_errors_total",
)


@dataclass
class Counters:
    """Increments under one lock."""

    values: dict[str, float] = field(default_factory=lambda: dict.fromkeys(NAMES, 0))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, name: str, by: float = 1) -> None:
        with self.lock:
            self.values[name] = self.values.get(name, 0) + by

    def snapshot(self) -> dict[str, float]:
        with self.lock:
            return dict(self.values)
