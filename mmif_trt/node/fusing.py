"""The node's fusions: which cases of a study are due, each in the worker process, and their outcome."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmif_trt.clinical.case import Case
from mmif_trt.clinical.child import Child
from mmif_trt.clinical.decoder import Decoder
from mmif_trt.node.audit import Audit
from mmif_trt.node.counters import Counters
from mmif_trt.node.settings import Settings
from mmif_trt.node.spool import Spool
from mmif_trt.node.worker import DONE, FAILED, POSTPONED
from mmif_trt.running import Stop, why

log = logging.getLogger("mmif_trt.node")


class Fusing:
    """Close it, or use `with`. For one thread. beat: called before each request to the worker, which takes
    study_s at most: a study may have many cases."""

    def __init__(
        self,
        settings: Settings,
        spool: Spool,
        counters: Counters,
        audit: Audit,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings, self.spool, self.counters, self.audit = settings, spool, counters, audit
        self._beat = beat
        megabytes = settings.max_fusion_bytes >> 20
        where = str(spool.root.absolute())
        self._child = Child("mmif_trt.node.worker", str(megabytes), where, settings.network)

    def __enter__(self) -> Fusing:
        self._child.start()  # the network is loaded while the first study arrives
        return self

    def __exit__(self, *_: object) -> None:
        self._child.stop()

    def study(self, decoder: Decoder, study: Path, stop: Stop) -> bool:
        """Whether all is settled: fused, or failed for good. False: lack of disk or memory, to be retried."""
        settled = True
        across = self.settings.options.registration == "rigid"
        cases, refused = self.spool.cases(study, decoder, across)
        cases.sort(key=lambda case: sum(self.spool.tries.count(self.spool.name(case)).values()))
        for words in refused:
            self.counters.add("series_refused_total")
            self.audit("fusion", "failure", study=study.name, reason=words)
            log.error("study %s: %s", study.name, words)
        for case in cases:
            if stop.reason:
                return False
            name = self.spool.name(case)
            if self.spool.larger(name):
                log.warning("case %s is skipped: a fusion of more instances is done", name)
                settled &= self._failed(name, "fewer instances than a fusion of this pair that is done")
            elif self.spool.tries.is_spent(name):
                self.counters.add("cases_set_aside_total")
                log.error("case %s is set aside: its fusion ended the process before", name)
                settled &= self._failed(name, "set aside: its fusion ended the process before")
            else:
                settled &= self._try(name, case, study.name, stop)
        if settled:
            self.spool.mark_fused(study)
        return settled

    def _try(self, name: str, case: Case, study: str, stop: Stop) -> bool:
        start = time.monotonic()
        before = self.spool.sent_before(name)
        if not self._is_ready(stop):
            return False
        try:
            result = self.spool.scratch(name)
            answer = self._ask(name, case, study, result, before, stop)
            if answer is None:
                return False
            if answer["outcome"] == DONE and self.spool.sent_before(name) != before:
                answer = {
                    "outcome": POSTPONED,
                    "message": "a partial fusion was sent meanwhile: the new one must refer to it",
                }
            if answer["outcome"] == DONE:
                gone = self.spool.queue(name, result)
        except OSError as error:
            answer = {"outcome": POSTPONED, "message": f"not written ({error.strerror})"}
        if answer["outcome"] == POSTPONED:
            self.counters.add("fusions_postponed_total")
            log.error("case %s: %s", name, answer["message"])
            self.spool.tries.forget(name)
            return False
        if answer["outcome"] == FAILED:
            self.counters.add("fusions_failed_total")
            log.error("case %s failed: %s", name, answer["message"])
            return self._failed(name, answer["message"])
        self.spool.tries.forget(name)
        seconds = time.monotonic() - start
        self.counters.add("fusions_total")
        self.counters.add("fusion_seconds_sum", seconds)
        self.audit("fusion", case=name, seconds=round(seconds, 1))
        log.info("case %s fused in %.1f s", name, seconds)
        if answer.get("doubt"):
            self.counters.add("registrations_in_doubt_total")
            log.warning("case %s: %s", name, answer["doubt"])
        for old in gone:
            log.info("case %s replaces %s, which was not sent yet", name, old)
        for mark in before:
            log.warning("case %s replaces %s, which the PACS has: it now has both", name, mark.name)
        return True

    def _is_ready(self, stop: Stop) -> bool:
        """Whether the process has loaded the network: a death until then is not the case's."""
        self._beat()
        try:
            answer = self._child.ask({"ready": True}, self.settings.study_s, lambda: stop.reason)
        except InterruptedError:
            return False
        except (EOFError, TimeoutError, ValueError):
            self.counters.add("worker_deaths_total")
            log.error("the process that fuses ended while it was starting (--max-fusion-mb?)")
            return False
        if answer["outcome"] != DONE:
            log.error("the process that fuses cannot start: %s", answer["message"])
        return bool(answer["outcome"] == DONE)

    def _ask(
        self, name: str, case: Case, study: str, result: Path, before: list[Path], stop: Stop
    ) -> dict[str, Any] | None:
        """The worker's answer; None if it died or the node stops: the case is retried."""
        attempt = self.spool.tries.next(name)
        request = {
            "attempt": str(attempt),
            "study": study,
            "a": case.a,
            "b": case.b,
            "registration": case.registration,
            "options": asdict(self.settings.options),
            "replaces": [uid for mark in before if (uid := self.spool.uid_of(mark))],
            "result": str(result),
        }
        self._beat()
        try:
            return self._child.ask(request, self.settings.study_s, lambda: stop.reason)
        except InterruptedError:
            self.spool.tries.forget(name)
            return None
        except (EOFError, TimeoutError, ValueError) as error:
            if stop.reason:  # the whole group of processes was told to end
                self.spool.tries.forget(name)
                return None
            self.counters.add("worker_deaths_total")
            slow = isinstance(error, TimeoutError)
            reason = f"took over {self.settings.study_s:g} s" if slow else "ended its process (memory?)"
            log.error("case %s %s", name, reason)
            self.audit("fusion", "failure", case=name, reason=reason)
            self.spool.tries.died(name, study, attempt)
            return None

    def _failed(self, name: str, reason: str) -> bool:
        """Whether the mark of a failed case could be written; without it the case is retried."""
        self.audit("fusion", "failure", case=name, reason=reason)
        try:
            self.spool.mark_failed(name, reason)
            self.spool.tries.forget(name)
        except OSError as error:
            log.error("case %s: not written (%s)", name, why(error))
            return False
        return True
