"""The node's peers: C-ECHO and C-STORE in, C-STORE out, by pynetdicom. Knows nothing of fusion."""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmif_trt.image import InputError
from mmif_trt.node.spool import Spool

log = logging.getLogger("mmif_trt.node")
SUCCESS, OUT_OF_RESOURCES, NOT_AUTHORISED, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0x0124, 0xC000
MAX_PDU_BYTES = 262_144
NETWORK_TIMEOUT_S = 30


@dataclass(frozen=True)
class Settings:
    aet: str
    port: int
    spool: Path
    send_to: tuple[str, str, int]  # AE title, host, port
    host: str = "0.0.0.0"
    peers: frozenset[str] = frozenset()  # AE titles that may store; empty: any
    quiet_s: float = 10.0
    http_port: int | None = None
    max_instance_bytes: int = 512 << 20
    max_per_s: float = 500.0  # instances, from all peers
    max_associations: int = 16
    min_free_bytes: int = 1 << 30
    keep_s: float = 86_400.0
    retry_s: float = 5.0
    options: dict[str, Any] = field(default_factory=dict)  # of Fuser.fuse_volumes
    tls: tuple[str, str, str] | None = None  # certificate, key, and authority file of the peers


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
    """The SCP. `start` returns at once; `stop` ends associations and the listener."""

    def __init__(self, settings: Settings, spool: Spool, counters: Counters) -> None:
        self.settings, self.spool, self.counters = settings, spool, counters
        self._recent: deque[float] = deque()
        self._turn = threading.Lock()
        self._server: Any = None

    def start(self) -> None:
        from pynetdicom import AE, AllStoragePresentationContexts, evt
        from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)  # it quotes datasets
        ae: Any = AE(self.settings.aet)
        ae.maximum_pdu_size = MAX_PDU_BYTES
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
        ]
        address = (self.settings.host, self.settings.port)
        context = _tls(self.settings, server=True)
        try:
            self._server = ae.start_server(address, block=False, evt_handlers=handlers, ssl_context=context)
        except OSError as error:
            raise InputError(
                f"--port {self.settings.port}: {error.strerror}; accepted is a free port"
            ) from None

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()

    def _on_echo(self, event: Any) -> int:
        self.counters.add("echoes_total")
        return SUCCESS

    def _on_rejected(self, event: Any) -> None:
        self.counters.add("associations_rejected_total")
        log.warning("an association was rejected (AE title or number)")

    def _on_store(self, event: Any) -> int:
        """Size, rate and room are judged by the bytes, before anything is decoded."""
        try:
            data = event.request.DataSet.getbuffer()
            if (
                data.nbytes > self.settings.max_instance_bytes
                or self.spool.room() < self.settings.min_free_bytes
            ):
                self.counters.add("instances_refused_total")
                log.warning(
                    "an instance of %d bytes was refused: too large, or the disk is full", data.nbytes
                )
                return OUT_OF_RESOURCES
            if self._too_fast():
                self.counters.add("instances_refused_total")
                return OUT_OF_RESOURCES
            uid = str(event.request.AffectedSOPInstanceUID)
            study = _study_of(data, event.context.transfer_syntax)
            if not study:
                self.counters.add("instances_refused_total")
                return CANNOT_UNDERSTAND
            self.spool.put(study, uid, event.encoded_dataset())
            self.counters.add("instances_received_total")
            return SUCCESS
        except Exception as error:
            log.error("an instance could not be kept: %s", type(error).__name__)
            self.counters.add("instances_refused_total")
            return OUT_OF_RESOURCES if isinstance(error, OSError | MemoryError) else CANNOT_UNDERSTAND

    def _too_fast(self) -> bool:
        now = time.monotonic()
        with self._turn:
            while self._recent and self._recent[0] < now - 1:
                self._recent.popleft()
            if len(self._recent) >= self.settings.max_per_s:
                return True
            self._recent.append(now)
        return False


def _study_of(data: memoryview, syntax: Any) -> str:
    """Study Instance UID of an encoded dataset, "" where there is none; of a deflated one never: the whole
    would have to be inflated."""
    import io

    from pydicom.filereader import read_dataset

    from mmif_trt.io.dicom import quiet

    if syntax.is_deflated:
        return ""
    with quiet():
        stream = io.BytesIO(bytes(data[: 1 << 20]))

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


def _tls(settings: Settings, *, server: bool) -> Any:
    if settings.tls is None:
        return None
    certificate, key, authority = settings.tls
    try:
        if server:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority)
            context.verify_mode = ssl.CERT_REQUIRED
        else:
            context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=authority)
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise InputError(
            f"--tls: {type(error).__name__}; accepted are certificate, key and authority, PEM"
        ) from None
    return context if server else (context, settings.send_to[1])


def send(settings: Settings, path: Path) -> bool:
    """C-STORE of one file to the PACS; whether it said Success (or a warning: it keeps the instance)."""
    import pydicom
    from pynetdicom import AE

    dataset = pydicom.dcmread(path)
    ae = AE(settings.aet)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = NETWORK_TIMEOUT_S
    ae.connection_timeout = NETWORK_TIMEOUT_S
    ae.add_requested_context(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID)
    title, host, port = settings.send_to
    association = ae.associate(host, port, ae_title=title, tls_args=_tls(settings, server=False))
    if not association.is_established:
        return False
    try:
        status = association.send_c_store(dataset)
    finally:
        association.release()
    code = status.get("Status", 0xFFFF)
    return bool(code == SUCCESS or code >> 12 == 0xB)
