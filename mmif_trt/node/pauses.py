"""When to retry something that failed: soon, then at growing intervals."""

from __future__ import annotations

import time

MAX_RETRY_S = 300.0


class Pauses:
    """After `first_s`, then twice as long each time, up to MAX_RETRY_S; by name."""

    def __init__(self, first_s: float) -> None:
        self.first_s = first_s
        self._wait: dict[str, float] = {}
        self._due: dict[str, float] = {}

    def due(self, name: str) -> bool:
        return time.monotonic() >= self._due.get(name, 0.0)

    def later(self, name: str) -> float:
        """Sets and returns the next pause."""
        wait = min(2 * self._wait[name], MAX_RETRY_S) if name in self._wait else self.first_s
        self._wait[name], self._due[name] = wait, time.monotonic() + wait
        return wait

    def forget(self, name: str) -> None:
        self._wait.pop(name, None)
        self._due.pop(name, None)
