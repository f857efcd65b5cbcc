"""`mmif-trt node`: receive, wait for quiet, pair, fuse, queue, send. This file has the order of the node's
work."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

from mmif_trt.clinical.decoder import Decoder
from mmif_trt.machine import address
from mmif_trt.node import web
from mmif_trt.node.audit import Audit
from mmif_trt.node.counters import Counters
from mmif_trt.node.fusing import Fusing
from mmif_trt.node.pauses import Pauses
from mmif_trt.node.sending import send_all
from mmif_trt.node.server import Receiver
from mmif_trt.node.settings import Settings
from mmif_trt.node.spool import Spool
from mmif_trt.node.web import Pulse
from mmif_trt.running import Stop, explain, why

log = logging.getLogger("mmif_trt.node")
POLL_S = 0.5
ROUND_S = 2.0  # then the studies are listed anew: one that has just become quiet goes first


def serve(settings: Settings, stop: Stop) -> bool:
    """Runs until `stop` has a reason, or a thread ends that never should: then False, and it should be
    restarted. First resumes what is in the spool. Raises InputError if another node has the spool, a port is
    taken, or a file that an option names cannot be used."""
    counters, pulse = Counters(), Pulse()
    audit = Audit(settings.audit, settings.aet)
    with Spool(settings.spool, settings.pseudonym_key) as spool:
        receiver = Receiver(settings, spool, counters, audit)
        listener = receiver.start()
        sender = threading.Thread(
            target=send_all, args=(settings, spool, counters, audit, pulse, stop), name="send"
        )
        dead: list[str] = []

        def ended() -> list[str]:
            names = [thread.name for thread in (listener, sender) if thread.ident and not thread.is_alive()]
            return dead if stop.reason else names  # checked in this order: when told to stop, the sender ends

        def failing() -> list[str]:
            return [*ended(), *(["audit"] if audit.fails else [])]

        try:
            close_page = web.start(settings, spool, counters, failing, pulse)
        except BaseException:
            receiver.stop()
            raise
        sender.start()
        _say_start(settings, audit)
        try:
            _fuse_all(settings, spool, counters, audit, pulse, receiver, stop, dead, ended)
        finally:
            stop.reason = stop.reason or f"a thread ended: {', '.join(dead) or 'fuse'}"
            receiver.stop()
            sender.join()
            close_page()
            audit("stop", "failure" if dead else "success", reason=stop.reason)
            audit.close()
    log.log(logging.ERROR if dead else logging.INFO, "stopped: %s", stop.reason)
    return not dead


def _say_start(settings: Settings, audit: Audit) -> None:
    peers = settings.peers
    named = "any" if peers is None else ", ".join(f"{p.aet}@{p.host}" if p.host else p.aet for p in peers)
    where = address(settings.host, settings.port)
    audit("start", address=where)
    audit(
        "configuration",
        tls=settings.tls is not None,
        peers=named,
        pacs=settings.pacs,
        network=settings.network,
        http=None if settings.http_port is None else address(settings.http_host, settings.http_port),
    )
    log.info("listening on %s%s", where, " with TLS" if settings.tls else "")
    if peers is None:
        log.warning("--any-peer: whoever reaches the port may store")
    elif not peers:
        log.warning("no --peer: every association is refused; expected --peer AET[@HOST], or --any-peer")


def _fuse_all(
    settings: Settings,
    spool: Spool,
    counters: Counters,
    audit: Audit,
    pulse: Pulse,
    receiver: Receiver,
    stop: Stop,
    dead: list[str],
    ended: Any,
) -> None:
    """This thread's work until `stop` or a dead thread: the studies that are quiet, one after the other."""
    settled, again = dict[str, int](), Pauses(settings.retry_s)

    def beat() -> None:
        pulse.beat("fuse", settings.study_s + 60)

    with Decoder(folder=spool.root) as decoder, Fusing(settings, spool, counters, audit, beat) as fusing:
        while not stop.reason and not dead:
            beat()
            try:
                spool.ensure()
                begun = time.monotonic()
                for study in _in_order(spool):
                    arrivals = _ready(settings, spool, receiver, study, settled)
                    if arrivals is not None and again.due(study.name):
                        beat()
                        if _fuse(fusing, decoder, study, stop):
                            settled[study.name] = arrivals
                            again.forget(study.name)
                        elif not stop.reason:
                            log.warning("a study will be retried in %.0f s", again.later(study.name))
                        if time.monotonic() - begun > ROUND_S:
                            break
                for name in spool.forget(settings.keep_s, settled):
                    audit("delete", study=name)
                    settled.pop(name)
            except OSError as error:  # the disk: stored files stay, and are processed later
                log.error("the spool cannot be read or written: %s", why(error))
            time.sleep(POLL_S)
            dead += ended()


def _in_order(spool: Spool) -> list[Path]:
    """First what was never settled; then what arrived last: a node that was just started reads the headers of
    all that it keeps, to see that it is settled. Suspects (see tries.py) go last."""
    suspects = spool.tries.studies()

    def place(study: Path) -> tuple[bool, bool, int]:
        is_fused, arrivals = spool.is_fused(study), spool.arrivals(study)
        return study.name in suspects, is_fused, -arrivals if is_fused else arrivals

    return sorted(spool.studies(), key=place)


def _fuse(fusing: Fusing, decoder: Decoder, study: Path, stop: Stop) -> bool:
    """See Fusing.study. An error that nobody expected is one study's: it ends neither the node, nor the next
    one after a restart."""
    try:
        return fusing.study(decoder, study, stop)
    except OSError:  # the disk, or memory for a process: everybody's
        raise
    except Exception as error:
        log.error("study %s: %s", study.name, explain(error))
        return False


def _ready(
    settings: Settings, spool: Spool, receiver: Receiver, study: Path, settled: dict[str, int]
) -> int | None:
    """How much of a study has arrived, if it has been quiet since and there is something new."""
    quiet, arrivals = spool.quiet_s(study), spool.arrivals(study)
    held = study.name in receiver.sending() and quiet < settings.hold_s
    is_new = settled.get(study.name) != arrivals
    return arrivals if quiet >= settings.quiet_s and not held and is_new else None
