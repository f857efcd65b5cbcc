"""What stands before the pages: how often a token may be tried, and how much a request may bring."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mmif_trt.study.store import token_hash

if TYPE_CHECKING:
    from fastapi import Request

MAX_BODY_BYTES = 16_384  # an answer has a few hundred
TRIES, TRIES_S = 10, 300.0  # wrong tokens from one address in so many seconds
MAX_ADDRESSES = 10_000


class Gate:
    """Knows admitted tokens (by hash) and counts wrong ones by address.

    From the limit on, nothing from that address is compared any more; who was admitted before goes on, so a
    guesser in the same department or behind the same proxy does not stop a reader at work.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._admitted: dict[str, int] = {}
        self._wrong: dict[str, list[float]] = {}

    def admit(self, address: str, token: str, reader_of: Callable[[str], int | None]) -> int | str:
        """The reader of the token; "locked" after too many wrong ones, "unknown" for one that is wrong."""
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
        while True:  # read whole here: nothing behind this has begun to answer yet
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
    text = f"The request is too large; expected {MAX_BODY_BYTES} bytes.\n".encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(text)).encode())]
    headers += [(b"connection", b"close"), (b"x-content-type-options", b"nosniff")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": text})
