"""Limits on what a peer can make the node hold: one PDU, one instance, and a memory budget for all peers.

pynetdicom reads a PDU of any length its header announces, and collects an endless message, before anyone
checks the peer. These are its classes with a limit in each place.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from socketserver import TCPServer
from typing import Any

from pynetdicom import evt
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from mmif_trt.node.admission import (
    FIRST_PDU_S,
    Admission,
    Refusal,
    Refused,
    asked_by,
    plain,
    rejection,
    request_of,
)

MAX_PDU_BYTES = 262_144  # announced to peers (PS3.8 D.1) and enforced: a longer one ends the association
MAX_COMMAND_BYTES = 65_536
MAX_ANSWER_BYTES = 4 << 20  # of a peer that we ask: what it finds, or the UIDs that it could not send
TIMEOUT_S = 30.0  # for one complete PDU: no peer holds a thread by sending slowly


@dataclass(frozen=True)
class Limits:
    """instance_bytes, association_bytes: of one data set, and of all in an association."""

    associations: int
    instance_bytes: int
    association_bytes: int


class Budget:
    """A budget of bytes to take and give back, never more than `most` at a time."""

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
    """A data set as it arrives. Over a limit it drops its content and keeps nothing more; `over` names the
    option of the limit, and the C-STORE can be answered as PS3.4 requires (A700) instead of by an abort.

    take: of the association's and the node's limits; names the one that is reached, "" if none is.
    """

    def __init__(self, take: Callable[[int], str], give: Callable[[int], None], most: int) -> None:
        super().__init__()
        self._take, self._give, self._most = take, give, most
        self.held, self.over = 0, ""

    def write(self, data: Any) -> int:
        count = len(data)
        if not self.over:
            self.over = "--max-mb" if self.held + count > self._most else self._take(count)
            if self.over:
                self.free()
        if self.over:
            return count
        self.held += count
        return super().write(data)

    def free(self) -> None:
        """Releases memory and budget; may be called again."""
        self._give(self.held)
        self.held = 0
        with contextlib.suppress(BufferError):  # a view still exists: the memory is freed with it
            self.seek(0)
            self.truncate()

    def __del__(self) -> None:
        self._give(self.held)
        self.held = 0


class _Short(BytesIO):
    """A command set, or an answer: over its limit it ends the association."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self._most:
            raise ValueError("a message without an end")
        return super().write(data)


class _Messages(DIMSEServiceProvider):
    """Messages of one association, with limits; an unreadable command set ends the association. limits: None
    for one that brings no instances, only answers."""

    def __init__(self, association: Any, limits: Limits | None, budget: Budget) -> None:
        super().__init__(association)
        self._limits, self._budget = limits, budget
        self._left = limits.association_bytes if limits else 0

    def _take(self, count: int) -> str:
        """The option whose limit does not allow it; "" where it is taken."""
        if count > self._left:
            return "--max-association-mb"
        if not self._budget.take(count):
            return "--max-memory-mb"
        self._left -= count
        return ""

    def receive_primitive(self, primitive: Any) -> None:
        if self.message is None:
            self.message = DIMSEMessage()
            self.message.encoded_command_set = _Short(MAX_COMMAND_BYTES)
            self.message.data_set = (
                Held(self._take, self._budget.give, self._limits.instance_bytes)
                if self._limits
                else _Short(MAX_ANSWER_BYTES)
            )
        try:
            super().receive_primitive(primitive)
        except Exception:  # from pydicom, on bytes that are not a command set
            self.message = None
            self.dul.event_queue.put("Evt19")
            if self.assoc.is_requestor:  # who waits for an answer need not wait for its time limit
                self.msg_queue.put((None, None))

    def drop(self) -> None:
        """Drops a message that the peer did not finish."""
        message, self.message = self.message, None
        if message is not None and isinstance(message.data_set, Held):
            message.data_set.free()


class _Socket(AssociationSocket):
    # Bytes read before the association existed. It gets this class after its creation, so that no
    # __init__ of ours runs: for an association that we open, nothing was read.
    first = bytearray()

    @property
    def ready(self) -> bool:
        return bool(self.first) or super().ready

    def recv(self, nr_bytes: int) -> bytearray:
        """Like the base class, but at most MAX_PDU_BYTES and within TIMEOUT_S; raises OSError."""
        if self.first:
            out, self.first = self.first[:nr_bytes], self.first[nr_bytes:]
            return out
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
                self._wake()
                return out[:got]
            got += count
        channel.settimeout(TIMEOUT_S)
        return out

    def close(self) -> None:
        super().close()
        self._wake()

    def _wake(self) -> None:
        """The peer has gone: an acceptor that waits for a request frees its place now."""
        association = self.assoc
        if association.is_acceptor and association.requestor.primitive is None:
            association.dul.to_user_queue.put(None)  # type: ignore[arg-type]


def bound(event: Any, limits: Limits | None = None, budget: Budget | None = None) -> None:
    """For EVT_CONN_OPEN of an association that we open: what answers there may not be a PACS. limits: of the
    instances that come over it (C-GET); None: none do."""
    event.assoc.dul.socket.__class__ = _Socket
    event.assoc.dimse = _Messages(event.assoc, limits, budget or Budget(0))


def _in_their_order(event: Any) -> None:
    """For EVT_REQUESTED: of a context that names a compressed syntax first, that one is accepted. A peer that
    cannot decompress what it has stored could send nothing in ours, which begins with uncompressed ones."""
    asked: dict[str, list[Any]] = {}
    for context in event.assoc.requestor.primitive.presentation_context_definition_list:
        first = next(iter(context.transfer_syntax), None)
        if first is not None and first.is_transfer_syntax and first.is_compressed:
            asked.setdefault(context.abstract_syntax, []).extend(context.transfer_syntax)
    for context in event.assoc.acceptor.supported_contexts:
        theirs = asked.get(context.abstract_syntax, [])
        ours = [x for x in theirs if x in context.transfer_syntax]
        context.transfer_syntax = list(dict.fromkeys([*ours, *context.transfer_syntax]))


class Handler(RequestHandler):
    server: Server

    def handle(self) -> None:
        """TLS and the request first, in this connection's own thread; then pynetdicom takes over."""
        server, address = self.server, self.client_address[0]
        asked = None
        try:
            with server.admission.waiting(self.request, address):
                end = time.monotonic() + FIRST_PDU_S
                self._shake_hands()
                request = request_of(self.request, end)
            asked = asked_by(request, address, self.request)
            server.admission.judge(asked)
            with server.judging:
                server.admission.find_place(asked, server.addresses())
                association = self._create_association()
                association.dul.socket.first = bytearray(request)
                evt.trigger(association, evt.EVT_CONN_OPEN, {"address": self.client_address})
                association.start()
        except Refused as refused:
            server.refused(refused.reason, asked, address)
            with contextlib.suppress(OSError):
                if refused.answer is not None:
                    self.request.settimeout(1.0)
                    self.request.sendall(rejection(refused.answer))
            server.shutdown_request(self.request)

    def _shake_hands(self) -> None:
        if isinstance(self.request, ssl.SSLSocket):
            self.request.settimeout(FIRST_PDU_S)
            try:
                self.request.do_handshake()
            except OSError:  # includes SSLError and the time limit
                raise Refused("tls") from None

    def _create_association(self) -> Any:
        association = super()._create_association()
        association.dimse = _Messages(association, self.server.limits, self.server.budget)
        association.dul.socket.__class__ = _Socket  # it was just created, and no byte was read
        association.bind(evt.EVT_REQUESTED, _in_their_order)
        return association


class Server(ThreadedAssociationServer):
    """pynetdicom's server with limits. Set all of these before the first request."""

    daemon_threads = True
    limits: Limits
    budget: Budget
    admission: Admission
    refused: Refusal
    failed: Callable[[str], None]
    judging: Any

    def get_request(self) -> Any:
        assert self.socket is not None
        client, address = self.socket.accept()
        client.settimeout(TIMEOUT_S)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if self.ssl_context:
            client = self.ssl_context.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
        return client, address

    def addresses(self) -> list[str]:
        """The addresses of the open associations."""
        infos = [association.requestor.address_info for association in self.active_associations]
        return [plain(info.address) for info in infos if info is not None]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Logs an error in a connection's thread by its type alone, without a traceback."""
        kind = sys.exc_info()[0]
        self.failed(kind.__name__ if kind else "")

    def shutdown(self) -> None:
        """Ends the listener and the associations: peers resend what was not acknowledged."""
        TCPServer.shutdown(self)
        self.server_close()
        for association in self.active_associations:
            association.abort()
