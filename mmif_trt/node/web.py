"""/health (JSON) and /metrics (Prometheus text), on their own port, without patient values."""

from __future__ import annotations

import hmac
import json
import threading
import time
from collections.abc import Callable
from typing import Any

from mmif_trt.files import read_regular
from mmif_trt.image import InputError
from mmif_trt.node import tls
from mmif_trt.node.counters import Counters
from mmif_trt.node.settings import Settings
from mmif_trt.node.spool import Spool
from mmif_trt.running import why

CONNECTIONS, PER_ADDRESS = 64, 32
LOOPBACK = ("127.0.0.1", "::1", "localhost")
TOKEN_BYTES = 16  # at least


class Pulse:
    """When each thread of the node last completed a cycle; one older than its limit counts as stopped."""

    def __init__(self) -> None:
        self._at: dict[str, tuple[float, float]] = {}

    def beat(self, name: str, limit_s: float) -> None:
        """The thread is alive and will beat again within limit_s."""
        self._at[name] = (time.monotonic(), limit_s)

    def ages(self) -> dict[str, float]:
        now = time.monotonic()
        return {name: round(now - at, 1) for name, (at, _) in list(self._at.items())}

    def late(self) -> list[str]:
        now = time.monotonic()
        return [name for name, (at, limit_s) in list(self._at.items()) if now - at > limit_s]


def start(
    settings: Settings, spool: Spool, counters: Counters, ended: Callable[[], list[str]], pulse: Pulse
) -> Callable[[], None]:
    """Returns a function that stops it. ended: the names of ended threads and of whatever else has failed; if
    any, /health answers 503.

    Without --http-port it starts nothing. Raises InputError if the port is taken, or open to the network with
    neither a token nor TLS.
    """
    if settings.http_port is None:
        return lambda: None
    from mmif_trt import http_server

    token = _token(settings.http_token)
    if settings.http_host not in LOOPBACK and token is None and not settings.http_tls:
        raise InputError(
            f"--http-host {settings.http_host}: open to the network; expected --http-token FILE or --http-tls"
        )
    pages = _Pages(spool, counters, ended, pulse, token)
    server = http_server.server(
        pages.application,
        connections=CONNECTIONS,
        per_address=PER_ADDRESS,
        refused=lambda reason: counters.add(f"http_refused_{reason}_total"),
        ssl_context=tls.for_peers(settings) if settings.http_tls else None,
    )
    where = f"--http-port {settings.http_port}"
    channel = http_server.listening(settings.http_host, settings.http_port, where)
    thread = threading.Thread(target=server.run, args=([channel],), name="web", daemon=True)
    thread.start()

    def stop() -> None:
        server.should_exit = True
        thread.join(10)

    return stop


def _token(path: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        token = read_regular(path).strip()
    except OSError as error:
        raise InputError(f"--http-token {path}: {why(error)}; expected a file with a token") from None
    if len(token) < TOKEN_BYTES:
        raise InputError(f"--http-token {path}: {len(token)} bytes; expected {TOKEN_BYTES} or more")
    return token


class _Pages:
    def __init__(
        self,
        spool: Spool,
        counters: Counters,
        ended: Callable[[], list[str]],
        pulse: Pulse,
        token: bytes | None,
    ) -> None:
        self.spool, self.counters, self.ended, self.pulse, self.token = spool, counters, ended, pulse, token

    async def application(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        status, kind, body = self.answer(scope)
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        headers += [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if status == 405:
            headers.append((b"allow", b"GET, HEAD"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body if scope["method"] != "HEAD" else b""})

    def answer(self, scope: Any) -> tuple[int, str, bytes]:
        if self.token is not None:
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self.token):
                self.counters.add("http_refused_token_total")
                return 401, "text/plain", b"a token is needed\n"
        if scope["method"] not in ("GET", "HEAD"):
            return 405, "text/plain", b"expected GET\n"
        if scope["path"] == "/health":
            return self.health()
        if scope["path"] == "/metrics":
            dead, gauges = self.look()
            gauges["threads_failed"] = len(dead)
            return 200, "text/plain; version=0.0.4", _prometheus(self.counters.snapshot(), gauges).encode()
        return 404, "text/plain", b"expected /health or /metrics\n"

    def look(self) -> tuple[list[str], dict[str, int]]:
        dead, gauges = [*self.ended(), *self.pulse.late()], dict[str, int]()
        try:
            gauges = self.spool.gauges()
        except OSError:
            dead.append("spool")
        return sorted(set(dead)), gauges

    def health(self) -> tuple[int, str, bytes]:
        dead, gauges = self.look()
        said = {
            "status": "failing" if dead else "ok",
            "failed": dead,
            **gauges,
            "heartbeat_s": self.pulse.ages(),
        }
        return 503 if dead else 200, "application/json", json.dumps(said).encode()


def _prometheus(counters: dict[str, float], gauges: dict[str, int]) -> str:
    lines = []
    for kind, values in (("counter", counters), ("gauge", gauges)):
        for name, value in sorted(values.items()):
            lines += [f"# TYPE mmif_{name} {kind}", f"mmif_{name} {value!r}"]  # all digits: it counts
    return "\n".join(lines) + "\n"
