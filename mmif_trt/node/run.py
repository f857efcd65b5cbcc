"""`mmif-trt node`: receive, wait for quiet, pair, fuse, queue, send. The order of the node's work is here."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from pathlib import Path
from typing import Any

from mmif_trt.clinical import outputs
from mmif_trt.clinical.case import fuse, load
from mmif_trt.clinical.decoder import Decoder
from mmif_trt.files import OutputError
from mmif_trt.io.dicom import write as dicom_write
from mmif_trt.node import web
from mmif_trt.node.send import SENT, THERE, UNREACHABLE, send
from mmif_trt.node.server import Counters, Receiver
from mmif_trt.node.settings import Settings
from mmif_trt.node.spool import Spool
from mmif_trt.running import Stop, explain

log = logging.getLogger("mmif_trt.node")
POLL_S = 0.5
MAX_RETRY_S = 300.0


def serve(settings: Settings, fuser: Any, stop: Stop) -> bool:
    """Runs until `stop` has a reason, or a thread ends that never should: then False, and it is to be started
    anew. What is in the spool from before is taken up first."""
    spool, counters = Spool(settings.spool, settings.pseudonym_key), Counters()
    receiver = Receiver(settings, spool, counters)
    listener = receiver.start()
    sender = threading.Thread(target=_send_all, args=(settings, spool, counters, stop), name="send")

    dead: list[str] = []

    def ended() -> list[str]:
        names = [thread.name for thread in (listener, sender) if thread.ident and not thread.is_alive()]
        return dead if stop.reason else names  # looked at in this order: told to stop, the sender ends

    page = web.start(settings, spool, counters, ended)
    sender.start()
    log.info("listening on port %d%s", settings.port, " with TLS" if settings.tls else "")
    settled, again = dict[str, float](), _Pauses(settings.retry_s)
    try:
        with Decoder() as decoder:
            while not stop.reason and not dead:
                try:
                    for study in spool.studies():
                        arrived = _ready(settings, spool, receiver, study, settled)
                        if arrived is not None and again.due(study.name):
                            if _fuse_study(settings, spool, counters, fuser, decoder, study, stop):
                                settled[study.name] = arrived
                                again.forget(study.name)
                            elif not stop.reason:
                                log.warning("a study is tried again in %.0f s", again.later(study.name))
                    spool.forget(settings.keep_s, settled)
                except OSError as error:  # the disk: what is kept stays, and is looked at again
                    log.error("the spool cannot be read or written: %s", type(error).__name__)
                time.sleep(POLL_S)
                dead += ended()
    finally:
        stop.reason = stop.reason or f"a thread ended: {', '.join(dead) or 'fuse'}"
        receiver.stop()
        sender.join()
        if page is not None:
            page.shutdown()
    log.log(logging.ERROR if dead else logging.INFO, "stopped: %s", stop.reason)
    return not dead


def _ready(
    settings: Settings, spool: Spool, receiver: Receiver, study: Path, settled: dict[str, float]
) -> float | None:
    """When the last instance of a study arrived, where it was quiet since and there is something new."""
    quiet = spool.quiet_s(study)
    arrived = round(time.time() - quiet, 2)
    held = study.name in receiver.sending() and quiet < settings.hold_s
    is_new = abs(settled.get(study.name, -1) - arrived) > 0.1
    return arrived if quiet >= settings.quiet_s and not held and is_new else None


class _Pauses:
    """When something that failed is tried again: after `first_s`, then ever later, up to MAX_RETRY_S."""

    def __init__(self, first_s: float) -> None:
        self.first_s = first_s
        self._wait: dict[str, float] = {}
        self._due: dict[str, float] = {}

    def due(self, name: str) -> bool:
        return time.monotonic() >= self._due.get(name, 0.0)

    def later(self, name: str) -> float:
        """Sets and returns the next pause."""
        wait = min(2 * self._wait[name], MAX_RETRY_S) if name in self._wait else self.first_s
        self._wait[name], self._due[name] = wait, time.monotonic() + wait
        return wait

    def forget(self, name: str) -> None:
        self._wait.pop(name, None)
        self._due.pop(name, None)


def _fuse_study(
    settings: Settings, spool: Spool, counters: Counters, fuser: Any, decoder: Decoder, study: Any, stop: Stop
) -> bool:
    """Whether all is settled: fused, or failed for good. False: the disk or the memory, to be tried again."""
    settled = True
    for case in spool.cases(study, decoder, settings.options.registration == "rigid"):
        if stop.reason:
            return False
        name = spool.name(case)
        if spool.larger(name):
            log.warning("case %s is left: a fusion of more instances is done", name)
            settled &= _mark(spool, name, "fewer instances than a fusion of this pair that is done")
            continue
        start = time.monotonic()
        try:
            loaded = load(case, decoder, settings.options)
            _queue(spool, name, outputs.dataset_of(fuse(loaded, fuser), loaded.a, loaded.b))
        except (OutputError, MemoryError) as error:
            counters.add("fusions_postponed_total")
            log.error("case %s: %s", name, _without_path(error))
            settled = False
            continue
        except Exception as error:
            counters.add("fusions_failed_total")
            log.error("case %s failed: %s", name, explain(error))
            settled &= _mark(spool, name, explain(error))
            continue
        counters.add("fusions_total")
        counters.add("fusion_seconds_sum", time.monotonic() - start)
        log.info("case %s fused in %.1f s", name, time.monotonic() - start)
    return settled


def _mark(spool: Spool, name: str, reason: str) -> bool:
    """Whether the mark of a failed case could be written; without it the case is looked at again."""
    try:
        spool.mark_failed(name, reason)
    except OSError as error:
        log.error("case %s: %s", name, _without_path(error))
        return False
    return True


def _without_path(error: BaseException) -> str:
    cause = error.__cause__ or error
    return f"not written ({getattr(cause, 'strerror', None) or type(cause).__name__})"


def _queue(spool: Spool, name: str, dataset: Any) -> None:
    """To the PACS; where that has a fusion of a part of these instances, the new one names it."""
    before = spool.sent_before(name)
    uids = [uid for mark in before if (uid := spool.uid_of(mark))]
    if uids:
        words = f"replaces {', '.join(uids)}, made before all instances had arrived"
        dataset.DerivationDescription = f"{words}; {dataset.DerivationDescription}"[:1024]
    gone = spool.queue(name, dicom_write.encode(dataset))
    for old in gone:
        log.info("case %s takes the place of %s, which was not sent yet", name, old)
    for mark in before:
        log.warning("case %s replaces %s, which the PACS has: both are there", name, mark.name)


def _send_all(settings: Settings, spool: Spool, counters: Counters, stop: Stop) -> None:
    """The queue to the PACS, in order. One that does not answer is asked again, ever more seldom; one that
    refuses an instance is so for that instance alone."""
    again = _Pauses(settings.retry_s)
    while not stop.reason:
        try:
            for path in spool.waiting() if again.due(UNREACHABLE) else []:
                if stop.reason or not _send_one(settings, spool, counters, again, path):
                    break
        except OSError as error:
            log.error("the spool cannot be read or written: %s", type(error).__name__)
        time.sleep(POLL_S)


def _send_one(settings: Settings, spool: Spool, counters: Counters, again: _Pauses, path: Path) -> bool:
    """False where the PACS does not answer."""
    if not again.due(path.stem):
        return True
    try:
        answer, uid = send(settings, path, spool.in_doubt(path), lambda: spool.mark_doubt(path))
    except FileNotFoundError:  # a larger set took its place
        return True
    except Exception as error:
        log.error("sending failed: %s", type(error).__name__)
        answer, uid = UNREACHABLE, ""
    counters.add("sent_total" if answer in (SENT, THERE) else "send_errors_total")
    if answer == UNREACHABLE:
        log.warning("the PACS does not answer, next try in %.0f s", again.later(UNREACHABLE))
        return False
    again.forget(UNREACHABLE)
    if answer in (SENT, THERE):
        with contextlib.suppress(OSError):  # else it is asked for, or sent again as the same instance
            spool.mark_sent(path, uid)
            spool.answered(path)
        again.forget(path.stem)
        log.info("case %s %s", path.stem, "sent" if answer == SENT else "was there already, not sent again")
    else:
        spool.answered(path)
        log.warning("the PACS refused %s, next try in %.0f s", path.stem, again.later(path.stem))
    return True
