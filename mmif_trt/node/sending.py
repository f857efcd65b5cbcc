"""The sender's thread: the queue to the PACS, in order."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from mmif_trt.dicomweb import SENT, UNREACHABLE
from mmif_trt.node.audit import Audit
from mmif_trt.node.counters import Counters
from mmif_trt.node.pauses import Pauses
from mmif_trt.node.send import MAX_SEND_S, THERE, send
from mmif_trt.node.settings import Settings
from mmif_trt.node.spool import Spool
from mmif_trt.node.web import Pulse
from mmif_trt.running import Stop, why

log = logging.getLogger("mmif_trt.node")
POLL_S = 0.5
FAULTY = "faulty"


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
    except Exception as error:  # its file, or ours alone: the PACS was not even asked, or has answered
        log.error("case %s cannot be sent: %s", path.stem, why(error))
        answer, uid = FAULTY, ""
    done = answer in (SENT, THERE)
    counters.add("sent_total" if done else "send_errors_total")
    title, host, _ = settings.send_to or ("", settings.pacs, 0)
    audit("send", "success" if done else f"failure {answer}", case=path.stem, peer=host, called_aet=title)
    if answer == UNREACHABLE:
        log.warning("the PACS does not answer, next try in %.0f s", again.later(UNREACHABLE))
        return False
    if answer == FAULTY:  # it holds up no other
        log.warning("case %s: next try in %.0f s", path.stem, again.later(path.stem))
        return True
    again.forget(UNREACHABLE)
    if done:
        log.info("case %s %s", path.stem, "sent" if answer == SENT else "was there already, not sent again")
        try:
            spool.mark_sent(path, uid)
            spool.answered(path)
        except OSError as error:  # it is asked for, or sent again: not at every turn
            pause = again.later(path.stem)
            log.error("case %s is sent, and not marked: %s, next try in %.0f s", path.stem, why(error), pause)
        else:
            again.forget(path.stem)
    else:
        spool.answered(path)
        log.warning("the PACS refused %s, next try in %.0f s", path.stem, again.later(path.stem))
    return True
