"""/health (JSON) and /metrics (Prometheus text), on a port of their own, without a value of a patient."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable
from typing import Any

from mmif_trt.image import InputError
from mmif_trt.node.server import Counters
from mmif_trt.node.settings import Settings
from mmif_trt.node.spool import Spool


def start(
    settings: Settings, spool: Spool, counters: Counters, ended: Callable[[], list[str]]
) -> http.server.HTTPServer | None:
    """ended: the names of threads that ended; /health then answers 503. None without --http-port."""
    if settings.http_port is None:
        return None

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            dead, gauges = ended(), dict[str, int]()
            try:
                gauges = {"queue_length": len(spool.waiting()), "studies_held": len(spool.studies())}
            except OSError:
                dead.append("spool")
            if self.path == "/health":
                body = json.dumps({"status": "failing" if dead else "ok", "failed": dead, **gauges})
                kind = "application/json"
            elif self.path == "/metrics":
                body, kind = _prometheus(counters.snapshot(), gauges), "text/plain; version=0.0.4"
            else:
                self.send_error(404)
                return
            self.send_response(503 if dead and self.path == "/health" else 200)
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
