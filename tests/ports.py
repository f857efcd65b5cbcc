"""Ports for the servers that tests start."""

from __future__ import annotations

import os
import socket
from itertools import count

# Below those that the system gives to clients (from 32768 on Linux), above those of Ray's workers (to 19999).
# Processes that test at the same time have numbers close together: each begins in a hundred of its own.
FIRST, HUNDREDS = 20_000, 120
_numbers = count(os.getpid() % HUNDREDS * 100)


def free_port() -> int:
    """A port that nothing listens on, and another with each call: one that the system picks can go to a
    client, or to another test's server, before its own server takes it."""
    for number in _numbers:
        port = FIRST + number % (HUNDREDS * 100)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError
