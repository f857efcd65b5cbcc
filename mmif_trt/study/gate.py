"""Guards before the pages: how often a token may be tried, and how large a request may be."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mmif_trt.study.store import token_hash

if TYPE_CHECKING:
    from fastapi import Request

MAX_BODY_BYTES = 16_384  # an answer takes a few hundred
TRIES, TRIES_S = 10, 300.0  # wrong tokens from one address in so many seconds
MAX_ADDRESSES = 10_000


class Gate:
    """Knows admitted tokens (by hash) and counts wrong ones by address.

    Beyond the limit, nothing from that address is compared any more; already admitted readers continue, so a
    guesser in the same department or behind the same proxy does not interrupt them.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._admitted: dict[str, int] = {}
        self._wrong: dict[str, list[float]] = {}

    def admit(self, address: str, token: str, reader_of: Callable[[str], int | None]) -> int | str:
        """The reader of the token; "locked" after too many wrong ones, "unknown" for a wrong one."""
        digest = token_hash(token)
        with self._lock:
            if digest in self._admitted:
                return self._admitted[digest]
            now = self._clock()
            recent = [at for at in self._wrong.get(address, []) if now - at < TRIES_S]
            if len(recent) >= TRIES:
                return "locked"
            reader = reader_of(token)
            if reader is not None:
                self._admitted[digest] = reader
                return reader
            if len(self._wrong) >= MAX_ADDRESSES:  # a flood from many addresses must not fill the memory
                self._wrong.pop(next(iter(self._wrong)))
            self._wrong[address] = [*recent, now]
        return "unknown"


def client(request: Request) -> str:
    return request.client.host if request.client else "unknown"


class SameSite:
    """ASGI middleware: 421 for a Host that is not ours, 403 for a form sent by another site.

    Ours are addresses, which no name server can point elsewhere (DNS rebinding), localhost, the machine's own
    name, and `names`. A browser says by Origin which site a form comes from.
    """

    def __init__(self, app: Any, names: Sequence[str] = ()) -> None:
        self.app = app
        self._names = {name.lower() for name in (*names, "localhost", socket.gethostname(), socket.getfqdn())}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            host = headers.get(b"host", b"").decode("latin-1").lower()
            if not self._is_ours(host):
                await _refuse(send, 421, "This server has another name; the organiser can add it by --name.")
                return
            origin = headers.get(b"origin")
            sender = host if origin is None else _netloc_of(origin)
            if scope["method"] not in ("GET", "HEAD") and sender != host:
                await _refuse(send, 403, "This form was sent by another site.")
                return
        await self.app(scope, receive, send)

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:  # "[" and the like
            return False
        try:
            ipaddress.ip_address(name)
            return True
        except ValueError:
            return name in self._names


def _netloc_of(origin: bytes) -> str:
    """HOST:PORT of an Origin; "" if it has none."""
    try:
        return urlsplit(origin.decode("latin-1")).netloc.lower()
    except ValueError:
        return ""


class LimitBody:
    """ASGI middleware: 413 for a body over MAX_BODY_BYTES, announced or counted, without keeping it."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > MAX_BODY_BYTES:
            await _too_large(send)
            return
        body = b""
        while True:  # read completely here: no later layer has begun to answer yet
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            if len(body) > MAX_BODY_BYTES:
                await _too_large(send)
                return
            if not message.get("more_body"):
                break
        given = False

        async def replay() -> Any:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)


async def _too_large(send: Any) -> None:
    await _refuse(send, 413, f"The request is too large; expected {MAX_BODY_BYTES} bytes at most.")


async def _refuse(send: Any, status: int, words: str) -> None:
    text = f"{words}\n".encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(text)).encode())]
    headers += [(b"connection", b"close"), (b"x-content-type-options", b"nosniff")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})
