"""The child's side of child.py: limits, silence, ending with the parent, and the loop over requests.

No file content reaches the child's stderr: libraries and codecs quote what they fail on. The answer reports
an error by its type. MMIF_DEBUG=1 lets stderr through.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable


def serve(
    megabytes: int,
    answer: Callable[[str], str],
    prepare: Callable[[], object] = lambda: None,
    abandoned: Callable[[], object] = lambda: None,
) -> None:
    """answer: from one line of JSON to another; the process has `megabytes` of address space. prepare: work
    before the first request; that request reports its errors. abandoned: called when the parent has ended
    without ending us, maybe twice and in another thread."""
    import resource

    limit = megabytes << 20
    with contextlib.suppress(ValueError, OSError):  # macOS lacks it; the parent's time limit remains
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _end_with_the_parent(abandoned)
    answers, errors = os.fdopen(os.dup(1), "w"), os.dup(2)
    silent = os.open(os.devnull, os.O_WRONLY) if os.environ.get("MMIF_DEBUG") != "1" else 2
    for descriptor in (1, 2):  # what a codec prints is not an answer
        os.dup2(silent, descriptor)
    with contextlib.suppress(Exception):
        prepare()
    try:
        for line in sys.stdin:
            answers.write(answer(line) + "\n")
            answers.flush()
    except BrokenPipeError:
        pass
    except BaseException as error:
        os.write(errors, f"mmif-trt: a process ended: {type(error).__name__}\n".encode())
        os._exit(1)
    abandoned()


def _end_with_the_parent(abandoned: Callable[[], object]) -> None:
    """The parent decides when to end: Ctrl-C on a terminal, `timeout` and a service manager also signal its
    children, and a killed parent sends nothing. The closed end of a pipe tells us. If memory runs out, the
    kernel should end us first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("500")
    except OSError:
        pass  # not Linux

    def watch() -> None:
        poll = select.poll()
        poll.register(0, 0)  # POLLHUP and POLLERR are always reported
        poll.poll()
        try:
            abandoned()
        finally:
            os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
