"""Who is admitted: waiting connections, the first PDU, AE titles, addresses, certificates.

A connection costs a peer nothing, but an association here is a scarce resource. So only a complete
association request (PS3.8, 9.3.2) of an allowed peer gets one; connections before that are kept apart: each
has a deadline and ends when the peer leaves, and if there are too many, the oldest is closed. A peer that
sends its request on connecting, as every modality does, is admitted whatever the others do.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

FIRST_PDU_S = 10.0  # for the TLS handshake and the complete request together
MAX_FIRST_BYTES = 131_072  # 128 presentation contexts of 30 transfer syntaxes each take 90,000
MAX_WAITING = 64  # connections without a request yet
MAX_WAITING_PER_ADDRESS = 32
RESOLVED_S = 30.0  # how long a name's addresses are good for
RESERVED = 4  # one place in this many is reserved for the addresses that --peer names
# (result, source, reason) of an A-ASSOCIATE-RJ (PS3.8, 9.3.4).
NO_SUCH_CALLING, NO_SUCH_CALLED, NO_ROOM = (1, 1, 3), (1, 1, 7), (2, 3, 2)


@dataclass(frozen=True)
class Peer:
    """An allowed peer: its AE title, and the address it must use, "" for any. port: where it listens for
    storage commitments, 0 if not stated."""

    aet: str
    host: str = ""
    port: int = 0


@dataclass(frozen=True)
class Asked:
    """A request and its transport. names: of the TLS certificate, empty without one."""

    calling: str
    called: str
    address: str
    names: frozenset[str] = frozenset()


class Refused(Exception):
    """reason: a word for /metrics and the log; answer: for an A-ASSOCIATE-RJ, None: just hang up."""

    def __init__(self, reason: str, answer: tuple[int, int, int] | None = None) -> None:
        super().__init__(reason)
        self.reason, self.answer = reason, answer


class Admission:
    """peers: None lets any AE title in. bound: AE titles to the certificate name that may use them."""

    def __init__(
        self, aet: str, peers: tuple[Peer, ...] | None, associations: int, bind_certificates: bool
    ) -> None:
        self.aet, self.peers, self.associations = aet, peers, associations
        self.bind_certificates = bind_certificates
        self._resolved: dict[str, tuple[set[str], float]] = {}  # host -> addresses, when they were asked for
        self._resolving = threading.Lock()
        for peer in peers or ():
            self._addresses(peer.host)
        self._waiting: dict[int, tuple[str, socket.socket]] = {}  # in order of arrival
        self._turn = threading.Lock()

    @contextlib.contextmanager
    def waiting(self, channel: socket.socket, address: str) -> Iterator[None]:
        """Keeps a connection without a request; closes the oldest if there are too many."""
        with self._turn:
            same = [key for key, (theirs, _) in self._waiting.items() if theirs == address]
            crowd = same if len(same) >= MAX_WAITING_PER_ADDRESS else list(self._waiting)
            if len(same) >= MAX_WAITING_PER_ADDRESS or len(self._waiting) >= MAX_WAITING:
                with contextlib.suppress(OSError):  # its own thread closes and removes it
                    self._waiting.pop(crowd[0])[1].shutdown(socket.SHUT_RDWR)
            self._waiting[id(channel)] = (address, channel)
        try:
            yield
        finally:
            with self._turn:
                self._waiting.pop(id(channel), None)

    def judge(self, asked: Asked) -> None:
        """Whether the peer may have an association; may wait for a name server. Raises Refused."""
        if asked.called != self.aet:
            raise Refused("called_aet", NO_SUCH_CALLED)
        if self.peers is not None:
            titles = [peer for peer in self.peers if peer.aet == asked.calling]
            if not titles:
                raise Refused("calling_aet", NO_SUCH_CALLING)
            if not any(not peer.host or asked.address in self._addresses(peer.host) for peer in titles):
                raise Refused("address", NO_SUCH_CALLING)
        if self.bind_certificates and not asked.names & _certified(asked.calling, self.peers):
            raise Refused("certificate", NO_SUCH_CALLING)

    def find_place(self, asked: Asked, open_from: list[str]) -> None:
        """open_from: the addresses of the open associations. Raises Refused."""
        room, known = self.associations, {x for found, _ in self._resolved.values() for x in found}
        if known and asked.address not in known:
            room -= room // RESERVED
        if len(open_from) >= room or open_from.count(asked.address) >= per_address(self.associations):
            raise Refused("full", NO_ROOM)

    def _addresses(self, host: str) -> set[str]:
        """Of a peer's host: looked up by one thread at a time, and at most every RESOLVED_S; otherwise, and
        while the name server is away, the last ones. Strangers who use the peer's title hold nobody up."""
        found, at = self._resolved.get(host, (set[str](), -RESOLVED_S))
        if host and time.monotonic() - at >= RESOLVED_S and self._resolving.acquire(blocking=False):
            try:
                found = _looked_up(host) or found
                self._resolved[host] = (found, time.monotonic())
            finally:
                self._resolving.release()
        return found


def per_address(associations: int) -> int:
    """How many associations one address may have, so that one peer cannot lock out the rest."""
    return max(2, associations // 2)


def request_of(channel: socket.socket, end: float) -> bytes:
    """The peer's complete first PDU. Raises Refused if it is not an association request, is not received by
    `end` (monotonic), or the peer leaves."""
    head = _exactly(channel, 6, end)
    kind, _, length = struct.unpack(">BBL", head)
    if kind != 1 or not 68 <= length <= MAX_FIRST_BYTES:
        raise Refused("not_dicom")
    return head + _exactly(channel, length, end)


def _exactly(channel: socket.socket, count: int, end: float) -> bytes:
    got = bytearray()
    while len(got) < count:
        channel.settimeout(max(0.001, end - time.monotonic()))
        try:
            part = channel.recv(count - len(got))
        except TimeoutError:
            raise Refused("silent") from None
        except OSError:
            raise Refused("left") from None
        if not part:
            raise Refused("left")
        got += part
    return bytes(got)


def asked_by(request: bytes, address: str, channel: Any) -> Asked:
    called, calling = (request[at : at + 16].decode("ascii", "replace").strip() for at in (10, 26))
    names: frozenset[str] = frozenset()
    if isinstance(channel, ssl.SSLSocket):
        names = frozenset(name.upper() for name in _names(channel.getpeercert() or {}))
    return Asked(calling, called, plain(address), names)


def _names(certificate: dict[str, Any]) -> Iterator[str]:
    """The common names and alternative names of a certificate."""
    for part in certificate.get("subject", ()):
        yield from (value for key, value in part if key == "commonName")
    yield from (value for _, value in certificate.get("subjectAltName", ()))


def rejection(answer: tuple[int, int, int]) -> bytes:
    return struct.pack(">BBLBBBB", 3, 0, 4, 0, *answer)


def plain(address: str) -> str:
    """An IPv4 address as such, also where a listener of both families gives it as an IPv6 one."""
    return address.removeprefix("::ffff:")


def _looked_up(host: str) -> set[str]:
    """The addresses of a host; none if no name server says."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return set()
    return {str(entry[4][0]) for entry in found}


Refusal = Callable[[str, Asked | None, str], None]  # reason, request, address


def _certified(calling: str, peers: tuple[Peer, ...] | None) -> set[str]:
    """The names of which a certificate must carry one: the AE title, or the host that --peer states for
    it."""
    return {calling.upper(), *(p.host.upper() for p in peers or () if p.aet == calling and p.host)}
