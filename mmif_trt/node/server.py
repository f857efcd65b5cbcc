"""What the node's peers may do: C-ECHO and C-STORE, by pynetdicom, within limits. Knows nothing of fusion."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from mmif_trt.image import InputError
from mmif_trt.node import tls
from mmif_trt.node.settings import Settings
from mmif_trt.node.spool import Spool

log = logging.getLogger("mmif_trt.node")
SUCCESS, OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000
NETWORK_TIMEOUT_S = 30
MAX_HEADER_BYTES = 1 << 20  # in which the Study Instance UID must stand


@dataclass
class Counters:
    """For /metrics; increments under one lock."""

    values: dict[str, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, name: str, by: float = 1) -> None:
        with self.lock:
            self.values[name] = self.values.get(name, 0) + by

    def snapshot(self) -> dict[str, float]:
        with self.lock:
            return dict(self.values)


class Receiver:
    """The SCP. `start` returns its thread at once; `stop` ends associations and the listener."""

    def __init__(self, settings: Settings, spool: Spool, counters: Counters) -> None:
        self.settings, self.spool, self.counters = settings, spool, counters
        self._recent: deque[float] = deque()
        self._turn = threading.Lock()
        self._open: dict[int, set[str]] = {}  # association -> its studies
        self._server: Any = None

    def start(self) -> threading.Thread:
        from pynetdicom import AE, AllStoragePresentationContexts, evt
        from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

        from mmif_trt.node import guard

        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)  # it quotes datasets
        ae: Any = AE(self.settings.aet)
        ae.maximum_pdu_size = guard.MAX_PDU_BYTES
        ae.maximum_associations = self.settings.max_associations
        ae.require_called_aet = True
        ae.require_calling_aet = sorted(self.settings.peers)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = NETWORK_TIMEOUT_S
        ae.add_supported_context(Verification)
        for context in AllStoragePresentationContexts:
            ae.add_supported_context(context.abstract_syntax, _transfer_syntaxes())
        handlers = [
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_C_ECHO, self._on_echo),
            (evt.EVT_REJECTED, self._on_rejected),
            (evt.EVT_CONN_CLOSE, self._on_close),
        ]
        address = (self.settings.host, self.settings.port)
        secured = tls.for_peers(self.settings)
        tls.for_pacs(self.settings)  # what is wrong with it is told now
        try:
            server: Any = ae.make_server(
                address,
                evt_handlers=handlers,
                ssl_context=secured,
                server_class=guard.Server,
                request_handler=guard.Handler,
            )
        except OSError as error:
            raise InputError(f"--port {self.settings.port}: {error.strerror}; expected a free port") from None
        server.limits = guard.Limits(
            self.settings.max_associations,
            self.settings.max_instance_bytes,
            self.settings.max_association_bytes,
        )
        server.budget = guard.Budget(self.settings.max_memory_bytes)
        server.refused = self._on_no_handshake
        self._server = server
        listener = threading.Thread(target=server.serve_forever, name="listen", daemon=True)
        listener.start()
        return listener

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()

    def sending(self) -> set[str]:
        """The studies (by their folder's name) of which an open association brought something."""
        with self._turn:
            return {study for studies in self._open.values() for study in studies}

    def _on_echo(self, event: Any) -> int:
        self.counters.add("echoes_total")
        return SUCCESS

    def _on_rejected(self, event: Any) -> None:
        self.counters.add("associations_rejected_total")
        log.warning("an association was rejected (AE title or number)")

    def _on_no_handshake(self) -> None:
        self.counters.add("tls_refused_total")
        log.warning("a connection was refused: no TLS, or no certificate that the authority signed")

    def _on_close(self, event: Any) -> None:
        event.assoc.dimse.drop()
        with self._turn:
            self._open.pop(id(event.assoc), None)

    def _on_store(self, event: Any) -> int:
        """Size, rate and room are judged by the bytes, before anything is decoded."""
        held = event.request.DataSet
        try:
            status = self._keep(event, held)
        except Exception as error:
            log.error("an instance could not be kept: %s", type(error).__name__)
            status = OUT_OF_RESOURCES if isinstance(error, OSError | MemoryError) else CANNOT_UNDERSTAND
        finally:
            held.free()
        self.counters.add("instances_received_total" if status == SUCCESS else "instances_refused_total")
        return status

    def _keep(self, event: Any, held: Any) -> int:
        """The status of one C-STORE; Success only where the instance is on the disk."""
        size = held.held
        if held.over:
            log.warning("an instance was refused: over a limit of size or memory")
            return OUT_OF_RESOURCES
        if (
            self.spool.room() < self.settings.min_free_bytes + size
            or self.spool.used() + size > self.settings.max_spool_bytes
        ):
            log.warning("an instance of %d bytes was refused: no room in the spool", size)
            return OUT_OF_RESOURCES
        if self._too_fast():
            log.warning("an instance was refused: over %g a second", self.settings.max_per_s)
            return OUT_OF_RESOURCES
        uid = str(event.request.AffectedSOPInstanceUID)
        held.seek(0)
        study = _study_of(held.read(MAX_HEADER_BYTES), event.context.transfer_syntax)
        if not study:
            return CANNOT_UNDERSTAND
        with self._turn:  # before it lies there: the study may look quiet
            self._open.setdefault(id(event.assoc), set()).add(self.spool.folder(study).name)
        with held.getbuffer() as body:  # no copy: an instance may be half of the memory that is allowed
            self.spool.put(study, uid, _file_start(event), body)
        return SUCCESS

    def _too_fast(self) -> bool:
        now = time.monotonic()
        with self._turn:
            while self._recent and self._recent[0] < now - 1:
                self._recent.popleft()
            if len(self._recent) >= self.settings.max_per_s:
                return True
            self._recent.append(now)
        return False


def _file_start(event: Any) -> bytes:
    """Preamble and meta information (PS3.10, 7.1) of a file of the received data set."""
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_file_meta_info

    stream = DicomBytesIO()
    write_file_meta_info(stream, event.file_meta)
    return b"\0" * 128 + b"DICM" + stream.getvalue()


def _study_of(data: bytes, syntax: Any) -> str:
    """Study Instance UID of the start of an encoded dataset, "" where there is none; of a deflated one never:
    the whole would have to be inflated."""
    import io

    from pydicom.filereader import read_dataset

    if syntax.is_deflated:
        return ""
    stream = io.BytesIO(data)

    def after(tag: Any, vr: Any, length: int) -> bool:
        return bool(tag > 0x0020000D)

    dataset = read_dataset(stream, syntax.is_implicit_VR, syntax.is_little_endian, stop_when=after)
    return str(dataset.get("StudyInstanceUID", ""))


def _transfer_syntaxes() -> list[str]:
    from pydicom import uid

    return [
        uid.ExplicitVRLittleEndian,
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.JPEGLosslessSV1,
        uid.JPEGLSLossless,
        uid.JPEG2000Lossless,
        uid.RLELossless,
    ]
