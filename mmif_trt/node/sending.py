"""The sender's thread: the queue to the PACS, in order."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path

from mmif_trt.dicomweb import SENT, UNREACHABLE
from mmif_trt.node.audit import Audit
from mmif_trt.node.pauses import Pauses
from mmif_trt.node.send import MAX_SEND_S, THERE, send
from mmif_trt.node.server import Counters
from mmif_trt.node.settings import Settings
from mmif_trt.node.spool import Spool
from mmif_trt.node.web import Pulse
from mmif_trt.running import Stop, why

log = logging.getLogger("mmif_trt.node")
POLL_S = 0.5


def send_all(
    settings: Settings, spool: Spool, counters: Counters, audit: Audit, pulse: Pulse, stop: Stop
) -> None:
    """A PACS that does not answer is retried at growing intervals; a refusal affects that instance alone."""
    again = Pauses(settings.retry_s)
    while not stop.reason:
        pulse.beat("send", MAX_SEND_S + 60)
        try:
            for path in spool.waiting() if again.due(UNREACHABLE) else []:
                pulse.beat("send", MAX_SEND_S + 60)
                if stop.reason or not _send_one(settings, spool, counters, audit, again, path, stop):
                    break
        except OSError as error:
            log.error("the spool cannot be read or written: %s", why(error))
        time.sleep(POLL_S)


def _send_one(
    settings: Settings,
    spool: Spool,
    counters: Counters,
    audit: Audit,
    again: Pauses,
    path: Path,
    stop: Stop,
) -> bool:
    """False if the PACS does not answer."""
    if not again.due(path.stem):
        return True
    try:
        answer, uid = send(settings, path, spool.in_doubt(path), lambda: spool.mark_doubt(path), stop)
    except FileNotFoundError:  # a larger set replaced it
        return True
    except Exception as error:
        log.error("sending failed: %s", why(error))
        answer, uid = UNREACHABLE, ""
    done = answer in (SENT, THERE)
    counters.add("sent_total" if done else "send_errors_total")
    title, host, _ = settings.send_to or ("", settings.pacs, 0)
    audit("send", "success" if done else f"failure {answer}", case=path.stem, peer=host, called_aet=title)
    if answer == UNREACHABLE:
        log.warning("the PACS does not answer, next try in %.0f s", again.later(UNREACHABLE))
        return False
    again.forget(UNREACHABLE)
    if done:
        with contextlib.suppress(OSError):  # otherwise it is asked for, or sent again
            spool.mark_sent(path, uid)
            spool.answered(path)
        again.forget(path.stem)
        log.info("case %s %s", path.stem, "sent" if answer == SENT else "was there already, not sent again")
    else:
        spool.answered(path)
        log.warning("the PACS refused %s, next try in %.0f s", path.stem, again.later(path.stem))
    return True
