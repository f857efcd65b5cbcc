"""The child's side of child.py: limits, silence, an end with the parent, and the loop over requests.

Nothing of a file reaches the child's stderr: libraries and codecs quote what they choke on. What goes wrong
is told in the answer, by its type. MMIF_DEBUG=1 lets stderr through.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable


def serve(megabytes: int, answer: Callable[[str], str], prepare: Callable[[], object] = lambda: None) -> None:
    """answer: one line of JSON for one; the process has `megabytes` of address space. prepare: what can be
    done before the first request; what goes wrong in it, the request tells."""
    import resource

    limit = megabytes << 20
    with contextlib.suppress(ValueError, OSError):  # macOS has none: the parent's time limit stays
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _end_with_the_parent()
    answers, errors = os.fdopen(os.dup(1), "w"), os.dup(2)
    silent = os.open(os.devnull, os.O_WRONLY) if os.environ.get("MMIF_DEBUG") != "1" else 2
    for descriptor in (1, 2):  # what a codec prints is no answer
        os.dup2(silent, descriptor)
    with contextlib.suppress(Exception):
        prepare()
    try:
        for line in sys.stdin:
            answers.write(answer(line) + "\n")
            answers.flush()
    except BaseException as error:
        os.write(errors, f"mmif-trt: a process ended: {type(error).__name__}\n".encode())
        os._exit(1)


def _end_with_the_parent() -> None:
    """The parent decides when to end: Ctrl-C on a terminal reaches all its children as well, and one that was
    killed says nothing. A pipe tells: its other end is closed. Where memory runs out, we go first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("500")
    except OSError:
        pass  # no Linux

    def watch() -> None:
        poll = select.poll()
        poll.register(0, 0)  # POLLHUP and POLLERR come unasked
        poll.poll()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
