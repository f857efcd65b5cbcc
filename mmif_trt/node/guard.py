"""What a peer may make the node hold: one PDU, one instance, and a budget of memory for all peers together.

pynetdicom reads a PDU of whatever length its header announces, and gathers a message without an end, before
anybody asks who the peer is. These are its classes with a limit in each place.
"""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from socketserver import TCPServer
from typing import Any

from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

MAX_PDU_BYTES = 262_144  # announced to peers (PS3.8 D.1), and kept: a longer one ends the association
MAX_COMMAND_BYTES = 65_536
TIMEOUT_S = 30.0  # for a TLS handshake, and for the whole of one PDU: no peer holds a thread by dripping
SPARE_CONNECTIONS = 8  # over the associations: room to tell a peer that there is no room


@dataclass(frozen=True)
class Limits:
    """instance_bytes, association_bytes: of data sets, of one and of all in an association."""

    associations: int
    instance_bytes: int
    association_bytes: int


class Budget:
    """Bytes that are taken and given back, never more than `most` at a time."""

    def __init__(self, most: int) -> None:
        self.most, self.taken, self._turn = most, 0, threading.Lock()

    def take(self, count: int) -> bool:
        with self._turn:
            if self.taken + count > self.most:
                return False
            self.taken += count
            return True

    def give(self, count: int) -> None:
        with self._turn:
            self.taken -= count


class Held(BytesIO):
    """A data set as it arrives. Over a limit it lets go of all it has and keeps nothing more; `over` says so,
    and the C-STORE can be answered as PS3.4 wants (A700) and not by an abort."""

    def __init__(self, take: Callable[[int], bool], give: Callable[[int], None], most: int) -> None:
        super().__init__()
        self._take, self._give, self._most = take, give, most
        self.held, self.over = 0, False

    def write(self, data: Any) -> int:
        count = len(data)
        if not self.over and (self.held + count > self._most or not self._take(count)):
            self.over = True
            self.free()
        if self.over:
            return count
        self.held += count
        return super().write(data)

    def free(self) -> None:
        """Gives memory and budget back; may be called again."""
        self._give(self.held)
        self.held = 0
        with contextlib.suppress(BufferError):  # a view is still out: the memory goes with it
            self.seek(0)
            self.truncate()

    def __del__(self) -> None:
        self._give(self.held)
        self.held = 0


class _Command(BytesIO):
    def write(self, data: Any) -> int:
        if self.tell() + len(data) > MAX_COMMAND_BYTES:
            raise ValueError("a command set without an end")
        return super().write(data)


class _Messages(DIMSEServiceProvider):
    """Messages of one association, with limits; a command set that cannot be read ends the association."""

    def __init__(self, association: Any, limits: Limits, budget: Budget) -> None:
        super().__init__(association)
        self._limits, self._budget, self._left = limits, budget, limits.association_bytes

    def _take(self, count: int) -> bool:
        if count > self._left or not self._budget.take(count):
            return False
        self._left -= count
        return True

    def receive_primitive(self, primitive: Any) -> None:
        if self.message is None:
            self.message = DIMSEMessage()
            self.message.encoded_command_set = _Command()
            self.message.data_set = Held(self._take, self._budget.give, self._limits.instance_bytes)
        try:
            super().receive_primitive(primitive)
        except Exception:  # of pydicom, on bytes that are no command set
            self.message = None
            self.dul.event_queue.put("Evt19")

    def drop(self) -> None:
        """Lets go of a message that the peer did not finish."""
        message, self.message = self.message, None
        if message is not None and isinstance(message.data_set, Held):
            message.data_set.free()


class _Socket(AssociationSocket):
    def recv(self, nr_bytes: int) -> bytearray:
        """As the base class, of MAX_PDU_BYTES at most and within TIMEOUT_S; raises OSError."""
        channel = self.socket
        if channel is None or nr_bytes > MAX_PDU_BYTES:
            self._shutdown_socket()
            raise OSError("a PDU longer than the limit")
        out, got, end = bytearray(nr_bytes), 0, time.monotonic() + TIMEOUT_S
        while got < nr_bytes:
            channel.settimeout(max(0.001, end - time.monotonic()))
            try:
                count = channel.recv_into(memoryview(out)[got:])
            except TimeoutError:
                self._shutdown_socket()
                raise
            if not count:
                return out[:got]
            got += count
        channel.settimeout(TIMEOUT_S)
        return out


def bound(event: Any) -> None:
    """For EVT_CONN_OPEN of an association that we open: what answers there may be no PACS."""
    event.assoc.dul.socket.__class__ = _Socket


class Handler(RequestHandler):
    server: Server

    def handle(self) -> None:
        """TLS first, in this connection's own thread: a peer that never shakes hands delays nobody."""
        if isinstance(self.request, ssl.SSLSocket):
            with self.server.greeting():
                try:
                    self.request.do_handshake()
                except OSError:  # SSLError is one, and so is the time limit
                    self.server.refused()
                    with contextlib.suppress(OSError):
                        self.request.close()
                    return
        super().handle()

    def _create_association(self) -> Any:
        association = super()._create_association()
        association.dimse = _Messages(association, self.server.limits, self.server.budget)
        association.dul.socket.__class__ = _Socket  # it was just made, and no byte was read
        return association


class Server(ThreadedAssociationServer):
    """pynetdicom's server with limits. Set `limits`, `budget` and `refused` before the first request."""

    daemon_threads = True
    limits: Limits
    budget: Budget
    refused: Callable[[], None]
    _greeting = 0
    _turn = threading.Lock()

    @contextlib.contextmanager
    def greeting(self) -> Any:
        with self._turn:
            self._greeting += 1
        try:
            yield
        finally:
            with self._turn:
                self._greeting -= 1

    def get_request(self) -> Any:
        assert self.socket is not None
        client, address = self.socket.accept()
        client.settimeout(TIMEOUT_S)
        if self.ssl_context:
            client = self.ssl_context.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
        return client, address

    def shutdown(self) -> None:
        """Ends the listener and the associations: what was not acknowledged the peers send again."""
        TCPServer.shutdown(self)
        self.server_close()
        for association in self.active_associations:
            association.abort()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        room = self.limits.associations + SPARE_CONNECTIONS
        return len(self.active_associations) + self._greeting < room
