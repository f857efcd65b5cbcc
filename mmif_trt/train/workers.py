"""Processes that make batches ahead, and the signals that end a run.

Ctrl-C at a terminal, and the SIGTERM of a scheduler, reach every process of a run. They are for the main
process alone, which needs its workers to finish the step in hand and writes a checkpoint.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

ENDINGS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def starting() -> Iterator[None]:
    """Start workers inside: they begin with these signals blocked, and this process gets them afterwards.

    A process that dies while `multiprocessing` starts it (spawn) leaves its parent waiting for ever: the
    parent itself holds the other end of the pipe through which it sends the data.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows, where no signal reaches them
        yield
        return
    resource_tracker.ensure_running()  # started inside, it would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def outlast(worker: int) -> None:
    """In a worker that has started: a second SIGTERM ends one that hangs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL) and None)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDINGS)
