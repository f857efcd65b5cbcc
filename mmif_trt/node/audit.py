"""The audit trail: one JSON line per event, to a file or to syslog.

Events have the names and codes of DICOM Audit Messages (PS3.15 A.5.3) where these exist. A line has the time
(UTC), the outcome, the peer's address and AE titles, and the pseudonym of a case: never a patient's value.
JSON escapes control characters, so a malicious AE title cannot forge a line or move a cursor.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import stat
import threading
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from mmif_trt.files import refuse_irregular
from mmif_trt.image import InputError

log = logging.getLogger("mmif_trt.node")
SYSLOG, SOCKETS = "syslog", ("/dev/log", "/var/run/syslog")
# Event ID and Event Type Code of PS3.15 A.5.3 with their code values (CID 400, 401). Without a code: ours.
EVENTS = {
    "start": ("Application Activity", "110100", "Application Start", "110120"),
    "stop": ("Application Activity", "110100", "Application Stop", "110121"),
    "configuration": ("Security Alert", "110113", "Software Configuration", "110131"),
    "refusal": ("Security Alert", "110113", "Node Authentication", "110126"),
    "association": ("Network Entry", "110108", "Attach", "110124"),
    "association_end": ("Network Entry", "110108", "Detach", "110125"),
    "instance": ("DICOM Instances Transferred", "110104", "", ""),
    "send": ("DICOM Instances Transferred", "110104", "", ""),
    "commitment": ("Storage Commitment", "", "", ""),
    "query": ("Query", "110112", "", ""),
    "delete": ("DICOM Study Deleted", "110105", "", ""),
    "fusion": ("Fusion", "", "", ""),
}
MAX_TEXT = 200
FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK


class Audit:
    """to: a file, which is appended to (mode 0600), "syslog", or None for nowhere. Raises InputError.

    If the file is renamed (logrotate) or deleted, the next event begins a new one under its name. fails: the
    last event could not be written (a full disk). The node goes on, and says so in /health.
    """

    def __init__(self, to: str | None, aet: str) -> None:
        self._aet, self._turn = aet, threading.Lock()
        self.fails = self._lost = False
        self._descriptor: int | None = None
        self._path = ""
        self._syslog: logging.Logger | None = None
        if to == SYSLOG:
            self._syslog = _syslog(self._lose)
        elif to is not None:
            refuse_irregular(to, "--audit")
            self._path = os.path.abspath(to)
            try:
                self._descriptor = os.open(self._path, FLAGS, 0o600)
            except OSError as error:
                raise InputError(
                    f"--audit {to}: {error.strerror}; expected a writable file, or {SYSLOG}"
                ) from None

    def __call__(self, kind: str, outcome: str = "success", **values: Any) -> None:
        """One event. kind: of EVENTS. values: text and numbers; "" and None are left out."""
        if self._descriptor is None and self._syslog is None:
            return
        event, code, type_, type_code = EVENTS[kind]
        line = {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "event": event,
            "event_code": code,
            "type": type_,
            "type_code": type_code,
            "kind": kind,
            "outcome": outcome,
            "node": self._aet,
            "pid": os.getpid(),
            **{key: _short(value) for key, value in values.items()},
        }
        text = json.dumps({key: value for key, value in line.items() if value not in ("", None)})
        with self._turn:
            self._lost = False
            if self._syslog is not None:
                self._syslog.info(text)
            else:
                self._append(text.encode() + b"\n")
            if self._lost and not self.fails:
                log.error("the audit trail cannot be written: events are lost; expected room, or a syslog")
            self.fails = self._lost

    def _append(self, line: bytes) -> None:
        """A line that finds no room is cut off again, so that the next one begins a line."""
        try:
            descriptor = self._opened()
            end = os.lseek(descriptor, 0, os.SEEK_END)
            if os.write(descriptor, line) < len(line):
                os.ftruncate(descriptor, end)
                self._lose()
        except OSError:
            self._lose()

    def _opened(self) -> int:
        """The file that has the name now."""
        assert self._descriptor is not None
        try:
            if os.path.samestat(os.stat(self._path), os.fstat(self._descriptor)):
                return self._descriptor
        except FileNotFoundError:
            pass
        fresh = os.open(self._path, FLAGS, 0o600)
        if not stat.S_ISREG(os.fstat(fresh).st_mode):
            os.close(fresh)
            raise OSError("no regular file")
        os.close(self._descriptor)
        self._descriptor = fresh
        return fresh

    def _lose(self) -> None:
        self._lost = True

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _short(value: Any) -> Any:
    return value[:MAX_TEXT] if isinstance(value, str) else value


def _syslog(failed: Callable[[], None]) -> logging.Logger:
    from logging.handlers import SysLogHandler

    class Handler(SysLogHandler):
        def handleError(self, record: logging.LogRecord) -> None:  # by default it prints the event
            failed()

    log = logging.getLogger("mmif_trt.audit")
    log.propagate = False
    log.setLevel(logging.INFO)
    address = next((path for path in SOCKETS if os.path.exists(path)), None)
    if address is None:
        raise InputError(f"--audit {SYSLOG}: no syslog socket here; expected /dev/log, or a file")
    try:
        handler = Handler(address, SysLogHandler.LOG_AUTHPRIV, socket.SOCK_DGRAM)
    except OSError as error:
        raise InputError(f"--audit {SYSLOG}: {error.strerror}; expected a syslog that listens") from None
    handler.ident = "mmif-trt: "
    log.addHandler(handler)
    return log
