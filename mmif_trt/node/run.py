"""`mmif-trt node`: receive, wait for quiet, pair, fuse, queue, send. The order of the node's work is here."""

from __future__ import annotations

import http.server
import json
import logging
import threading
import time
from typing import Any

from mmif_trt import outputs
from mmif_trt.batch import Stop, explain
from mmif_trt.console.decoder import Decoder
from mmif_trt.image import InputError
from mmif_trt.io import dicom_write
from mmif_trt.node.server import Counters, Receiver, Settings, send
from mmif_trt.node.spool import Spool

log = logging.getLogger("mmif_trt.node")
POLL_S = 0.5
MAX_RETRY_S = 300.0


def serve(settings: Settings, fuser: Any, stop: Stop) -> None:
    """Runs until `stop` has a reason. What is in the spool from before is taken up first."""
    spool, counters = Spool(settings.spool), Counters()
    receiver = Receiver(settings, spool, counters)
    receiver.start()
    web = _web(settings, spool, counters)
    sender = threading.Thread(target=_send_all, args=(settings, spool, counters, stop), name="send")
    sender.start()
    log.info("listening on port %d", settings.port)
    looked: dict[str, float] = {}
    try:
        with Decoder() as decoder:
            while not stop.reason:
                try:
                    for study in spool.studies():
                        quiet = spool.quiet_s(study)
                        arrived = round(time.time() - quiet, 2)
                        if quiet >= settings.quiet_s and abs(looked.get(study.name, -1) - arrived) > 0.1:
                            _fuse_study(settings, spool, counters, fuser, decoder, study, stop)
                            looked[study.name] = arrived
                    spool.forget(settings.keep_s)
                except OSError as error:  # the disk: what is kept stays, and is looked at again
                    log.error("the spool cannot be read or written: %s", type(error).__name__)
                time.sleep(POLL_S)
    finally:
        stop.reason = stop.reason or "error"
        receiver.stop()
        sender.join()
        if web is not None:
            web.shutdown()
    log.info("stopped: %s", stop.reason)


def _fuse_study(
    settings: Settings, spool: Spool, counters: Counters, fuser: Any, decoder: Decoder, study: Any, stop: Stop
) -> None:
    for case in spool.cases(study):
        if stop.reason:
            return
        name = spool.name(case)
        start = time.monotonic()
        try:
            a, b = decoder.read(case.a), decoder.read(case.b)
            fused = fuser.fuse_volumes(a, b, **settings.options)
            spool.queue(name, dicom_write.encode(outputs.dataset_of(fused, a, b)))
        except InputError as error:
            spool.mark_failed(name, explain(error))
            counters.add("fusions_failed_total")
            log.error("case %s failed: %s", name, explain(error))
            continue
        except Exception as error:  # perhaps the disk: tried again at the next start or arrival
            counters.add("fusions_failed_total")
            log.error("case %s: %s", name, type(error).__name__)
            continue
        counters.add("fusions_total")
        counters.add("fusion_seconds_sum", time.monotonic() - start)
        log.info("case %s fused in %.1f s", name, time.monotonic() - start)


def _send_all(settings: Settings, spool: Spool, counters: Counters, stop: Stop) -> None:
    """The queue to the PACS, in order; a PACS that is down is asked again, ever more seldom."""
    wait = settings.retry_s
    while not stop.reason:
        done = True
        for path in spool.waiting():
            try:
                done = send(settings, path)
            except Exception as error:
                log.error("sending failed: %s", type(error).__name__)
                done = False
            counters.add("sent_total" if done else "send_errors_total")
            if not done:
                log.warning("the PACS did not take %s, next try in %.0f s", path.stem, wait)
                break
            spool.mark_sent(path)
            log.info("case %s sent", path.stem)
        end = time.monotonic() + (POLL_S if done else wait)
        wait = settings.retry_s if done else min(wait * 2, MAX_RETRY_S)
        while not stop.reason and time.monotonic() < end:
            time.sleep(0.1)


def _web(settings: Settings, spool: Spool, counters: Counters) -> http.server.HTTPServer | None:
    """/health (JSON) and /metrics (Prometheus text), on a port of their own, without a value of a patient."""
    if settings.http_port is None:
        return None

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            gauges = {"queue_length": len(spool.waiting()), "studies_held": len(spool.studies())}
            if self.path == "/health":
                body, kind = json.dumps({"status": "ok", **gauges}), "application/json"
            elif self.path == "/metrics":
                body, kind = _prometheus(counters.snapshot(), gauges), "text/plain; version=0.0.4"
            else:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: Any) -> None:
            pass

    try:
        server = http.server.ThreadingHTTPServer((settings.host, settings.http_port), Handler)
    except OSError as error:
        raise InputError(
            f"--http-port {settings.http_port}: {error.strerror}; accepted is a free port"
        ) from None
    threading.Thread(target=server.serve_forever, name="web", daemon=True).start()
    return server


def _prometheus(counters: dict[str, float], gauges: dict[str, int]) -> str:
    lines = []
    for kind, values in (("counter", counters), ("gauge", gauges)):
        for name, value in sorted(values.items()):
            lines += [f"# TYPE mmif_{name} {kind}", f"mmif_{name} {value:g}"]
    return "\n".join(lines) + "\n"
