"""How a run ends: signals that stop it politely, and one printable line for an error."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import signal
import time
import traceback
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mmif_trt.image import InputError

PACKAGE = os.path.dirname(os.path.abspath(__file__))
# What a kind of error means; the first that fits.
KINDS: tuple[tuple[type[BaseException], str], ...] = (
    (json.JSONDecodeError, "not JSON"),
    (UnicodeError, "text that cannot be decoded"),
    (zlib.error, "damaged compression"),
    (EOFError, "cut off"),
    (MemoryError, "too little memory"),
    (TimeoutError, "no answer in time"),
    (ConnectionError, "the connection broke"),
    (RecursionError, "nested too deeply"),
    (NotImplementedError, "of a kind that is not supported"),
    (LookupError, "an entry is missing"),
    (AttributeError, "an entry is missing"),
    (ArithmeticError, "a malformed value"),
    (TypeError, "a malformed value"),
    (ValueError, "a malformed value"),
)
CLINICAL = ("nibabel", "pydicom", "SimpleITK")  # what volumes need; an extra of the installation
ECHO_S = 1.0  # `timeout` and others signal a process and then its group: twice within this time is once


@dataclass(slots=True)
class Stop:
    """Why the run takes no new pair; empty while it goes on. Set by a signal handler or a worker."""

    reason: str = ""


@contextmanager
def stop_on_signal() -> Iterator[tuple[Stop, list[int]]]:
    """Ctrl-C and SIGTERM end the run after the current pairs; a second one ends the process at once.

    Yields the Stop for `run_pairs`, and the list of signals received.
    """
    stop = Stop()
    received: list[int] = []
    first_s = 0.0

    def on_signal(number: int, frame: object) -> None:
        nonlocal first_s
        if not received:
            first_s = time.monotonic()
        elif time.monotonic() - first_s > ECHO_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        stop.reason = stop.reason or f"interrupted ({signal.Signals(number).name})"
        received.append(number)

    # A signal that the parent told us to ignore (nohup, a background job) stays ignored.
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield stop, received
    finally:
        # After a signal the process is about to end. Its echo must not meet the default action on the way,
        # which the interpreter's shutdown restores for every handler but "ignore".
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if received else handler)


def lacking(module: str) -> str:
    """What to do where a module of CLINICAL is not installed."""
    return f"needs {module}; install it with pip install 'mmif-trt[clinical]'"


def refuse_without(module: str, what: str) -> None:
    """Raises InputError where a module of CLINICAL is not installed. what: needs it."""
    if importlib.util.find_spec(module) is None:
        raise InputError(f"{what}: {lacking(module)}")


def refuse_without_posix(what: str, otherwise: str) -> None:
    """Raises InputError on Windows, which lacks the limits and locks that `what` needs."""
    if importlib.util.find_spec("resource") is None:
        raise InputError(f"{what}: not on {platform.system()}; expected Linux or macOS (or WSL). {otherwise}")


def explain(error: BaseException) -> str:
    """One printable line. An error that is not ours is reported by its type and our line that caused it,
    because its text may quote a patient's value. MMIF_DEBUG=1 prints the full traceback to stderr."""
    if os.environ.get("MMIF_DEBUG") == "1":
        traceback.print_exception(error)
    if isinstance(error, InputError):
        text = str(error)
    elif isinstance(error, OSError):
        text = f"{error.filename or 'file'}: {why(error)}"
    elif isinstance(error, ModuleNotFoundError) and error.name in CLINICAL:
        text = lacking(error.name)
    else:
        text = f"internal error: {type(error).__name__}{_place(error)}; MMIF_DEBUG=1 shows the traceback"
    return one_line(text)


def why(error: BaseException) -> str:
    """What went wrong, in words for a message. An error's own text may quote a patient's value, so only ours
    is taken; of the others, what the system says, or what their kind means."""
    if isinstance(error, OSError) and error.__cause__ is not None:  # an OutputError
        error = error.__cause__
    if isinstance(error, InputError):
        return str(error)
    words = getattr(error, "strerror", None) or next((w for kind, w in KINDS if isinstance(error, kind)), "")
    return words or type(error).__name__


def _place(error: BaseException) -> str:
    """Our innermost line in the traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if os.path.dirname(frame.filename).startswith(PACKAGE)]
    return f" at {os.path.relpath(ours[-1].filename, PACKAGE)}:{ours[-1].lineno}" if ours else ""


def one_line(text: str) -> str:
    """File names may contain line breaks and terminal codes: neither belongs in a message."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
