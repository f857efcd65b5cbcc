"""uvicorn with bounds: every connection has a deadline, and none locks out another.

Above a number of open connections, uvicorn answers 503 to everybody, and it waits for ever for an unfinished
request. Here a connection has HEAD_S for a whole request, counted from its opening or the last answer,
however slowly the bytes arrive; if there are too many, the longest idle one of the same address is closed,
then the longest idle one of all. A connection that is being answered is never closed for another. With TLS
all of this counts from before the handshake, which asyncio's own servers leave unbounded.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from mmif_trt.image import InputError

HEAD_S = 10.0
MAX_HEAD_BYTES = 16_384


class Doors:
    """The open connections of one server. refused: called with the reason when the bounds close one."""

    def __init__(self, most: int, per_address: int, refused: Callable[[str], None]) -> None:
        self.most, self.per_address, self.refused = most, per_address, refused
        self.open: dict[Bounded | Handshake, float] = {}  # when each was last used

    def enter(self, protocol: Bounded | Handshake) -> None:
        self.open[protocol] = time.monotonic()
        same = [other for other in self.open if other.address == protocol.address]
        crowd = same if len(same) > self.per_address else list(self.open)
        if len(same) > self.per_address or len(self.open) > self.most:
            idle = [other for other in crowd if other is not protocol and not other.is_busy()]
            self.close(min(idle, key=self.open.__getitem__, default=protocol), "full")

    def close(self, protocol: Bounded | Handshake, reason: str) -> None:
        self.open.pop(protocol, None)
        self.refused(reason)
        protocol.transport.abort()


class Bounded(H11Protocol):
    def __init__(self, *args: Any, doors: Doors, **more: Any) -> None:
        super().__init__(*args, **more)
        self._doors, self.address = doors, ""
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        self._arm()
        self._doors.enter(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._doors.open.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self in self._doors.open:
            self._doors.open[self] = time.monotonic()
            self._arm()

    def is_busy(self) -> bool:
        """Whether a complete request was received and is not answered yet."""
        whole = self.conn.their_state in (h11.DONE, h11.MUST_CLOSE)
        return self.cycle is not None and not self.cycle.response_complete and whole

    def _arm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(HEAD_S, self._late)

    def _late(self) -> None:
        if self.is_busy():
            self._arm()
        elif not self.transport.is_closing():
            self._doors.close(self, "slow")


class Handshake(asyncio.Protocol):
    """A connection before TLS: within the same bounds, and at most HEAD_S. Then `inner` has it."""

    def __init__(self, inner: Bounded, context: Any, doors: Doors) -> None:
        self.inner, self.address = inner, ""
        self.transport: Any = None
        self._context, self._doors = context, doors
        self._early = bytearray()  # a request may come with the last part of the handshake

    def connection_made(self, transport: Any) -> None:
        transport.pause_reading()  # the first bytes are for TLS
        self.transport, peer = transport, transport.get_extra_info("peername")
        self.address = peer[0] if peer else ""
        self._task = asyncio.get_running_loop().create_task(self._shake_hands(transport))
        self._doors.enter(self)

    def data_received(self, data: bytes) -> None:
        self._early += data

    def is_busy(self) -> bool:
        return False

    async def _shake_hands(self, transport: Any) -> None:
        loop, secured = asyncio.get_running_loop(), None
        try:
            if not transport.is_closing():
                secured = await loop.start_tls(
                    transport, self, self._context, server_side=True, ssl_handshake_timeout=HEAD_S
                )
        except OSError:  # SSLError, a time limit, a peer that leaves
            pass
        if self not in self._doors.open:  # closed for another one
            return
        if secured is None or secured.is_closing():
            self._doors.close(self, "tls")
            return
        del self._doors.open[self]
        secured.set_protocol(self.inner)
        self.inner.connection_made(secured)
        if self._early:
            self.inner.data_received(bytes(self._early))


def listening(host: str, port: int, option: str) -> socket.socket:
    """A listening socket. Raises InputError if it cannot listen. option: for the message."""
    channel = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        channel.bind((host, port))
        channel.listen(128)
    except OSError as error:
        channel.close()
        raise InputError(f"{option}: {error.strerror}; expected a free port here") from error
    return channel


def server(
    application: Any,
    *,
    connections: int,
    per_address: int,
    refused: Callable[[str], None] = lambda reason: None,
    ssl_context: Any = None,
    certificate: str | None = None,
    key: str | None = None,
    proxy: str | None = None,
) -> uvicorn.Server:
    """A uvicorn server; run it with the sockets of `listening`. No access log. proxy: the only address whose
    X-Forwarded-For and X-Forwarded-Proto are used.

    Raises InputError if certificate and key do not load.
    """
    doors, secured = Doors(connections, per_address, refused), ssl_context

    def accept(*args: Any, **more: Any) -> asyncio.Protocol:
        inner = Bounded(*args, doors=doors, **more)
        return inner if secured is None else Handshake(inner, secured, doors)

    config = uvicorn.Config(
        application,
        http=accept,  # type: ignore[arg-type]
        loop="asyncio",
        interface="asgi3",
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="critical",  # what a broken client sends is not worth a log, and may contain a link
        log_config=None,
        server_header=False,
        date_header=False,
        proxy_headers=proxy is not None,
        forwarded_allow_ips=proxy or "",
        ssl_certfile=certificate,
        ssl_keyfile=key,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        timeout_keep_alive=int(HEAD_S),
        timeout_graceful_shutdown=5,
    )
    try:
        config.load()
    except OSError as error:
        raise InputError(f"--certificate, --key: {error.strerror}; expected PEM files") from error
    secured, config.ssl = secured or config.ssl, None
    return uvicorn.Server(config)
