"""A child process of ours that answers requests in JSON lines; the parent's side."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

MAX_ANSWER_BYTES = 256 << 20  # 20,000 headers take about 40 MB; the memory limit covers only the child
STEP_S = 0.5


class Child:
    """`python -m module words...`, started at the first request and again after it died. For one thread."""

    def __init__(self, module: str, *words: str, pass_fds: tuple[int, ...] = ()) -> None:
        self._command = [sys.executable, "-m", module, *words]
        self._pass_fds = pass_fds
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it unless it runs, without waiting for it."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=self._pass_fds
            )

    def ask(
        self, request: dict[str, Any], seconds: float, stopped: Callable[[], object] = lambda: False
    ) -> dict[str, Any]:
        """Raises EOFError if the child died on it, TimeoutError if it took too long, InterruptedError if
        `stopped` became true, ValueError for too long an answer; the child is then ended."""
        self.start()
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write((json.dumps(request) + "\n").encode())
            self._process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._line(seconds, stopped))
            return answer
        except BrokenPipeError:
            self.stop()
            raise EOFError from None
        except BaseException:
            self.stop()
            raise

    def _line(self, seconds: float, stopped: Callable[[], object]) -> bytes:
        assert self._process is not None and self._process.stdout is not None
        end, out, got = time.monotonic() + seconds, self._process.stdout.fileno(), bytearray()
        while not got.endswith(b"\n"):
            left = end - time.monotonic()
            if not select.select([out], [], [], max(0.0, min(left, STEP_S)))[0]:
                if stopped():
                    raise InterruptedError
                if left <= 0:
                    raise TimeoutError
                continue
            part = os.read(out, 1 << 20)
            if not part:
                raise EOFError
            got += part
            if len(got) > MAX_ANSWER_BYTES:
                raise ValueError("too long an answer")
        return bytes(got)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream:
                    stream.close()
            self._process = None
