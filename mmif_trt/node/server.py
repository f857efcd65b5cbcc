"""What the node's peers may do: C-ECHO and C-STORE, by pynetdicom, within limits. Independent of fusion."""

from __future__ import annotations

import logging
import threading
import time
import zlib
from collections import deque
from typing import Any

from mmif_trt.image import InputError
from mmif_trt.io.dicom.syntaxes import readable
from mmif_trt.node import classes, commitment, tls
from mmif_trt.node.admission import Admission, Asked
from mmif_trt.node.audit import Audit
from mmif_trt.node.counters import WHY, Counters
from mmif_trt.node.settings import Settings
from mmif_trt.node.spool import CORRECTED, DIFFERENT, Spool
from mmif_trt.running import why

log = logging.getLogger("mmif_trt.node")
# COERCED, a warning (PS3.4 B.2.3): the stored values differ from those sent.
SUCCESS, COERCED, OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0x0000, 0xB000, 0xA700, 0xC000
NETWORK_TIMEOUT_S = 30
ACSE_TIMEOUT_S = 5  # the request has been read when pynetdicom comes in
KEPT = {DIFFERENT: "the first is kept", CORRECTED: "the new one is kept, and the study is fused again"}
MAX_HEADER_BYTES = 1 << 20  # which must contain the Study Instance UID


class Receiver:
    """The SCP. `start` returns its thread at once; `stop` ends associations and the listener."""

    def __init__(self, settings: Settings, spool: Spool, counters: Counters, audit: Audit) -> None:
        self.settings, self.spool, self.counters, self.audit = settings, spool, counters, audit
        self._recent: deque[float] = deque()
        self._turn = threading.Lock()
        self._open: dict[Any, set[str]] = {}  # association, a thread -> its studies
        self._server: Any = None

    def start(self) -> threading.Thread:
        from pynetdicom import AE, evt
        from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

        from mmif_trt.node import guard

        ae: Any = AE(self.settings.aet)
        ae.maximum_pdu_size = guard.MAX_PDU_BYTES
        ae.maximum_associations = 1 << 16  # guard.py checks number and AE titles before pynetdicom runs
        ae.acse_timeout = ACSE_TIMEOUT_S
        ae.dimse_timeout = ae.network_timeout = NETWORK_TIMEOUT_S
        ae.add_supported_context(Verification)
        ae.add_supported_context(commitment.CLASS, commitment.SYNTAXES)
        classes.accept(ae, [str(syntax) for syntax in readable()])  # what could not be fused is not accepted
        handlers = [
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_C_ECHO, self._on_echo),
            (evt.EVT_N_ACTION, commitment.Commitment(self.settings, self.spool, self.audit).on_action),
            (evt.EVT_ESTABLISHED, self._on_established),
            (evt.EVT_CONN_CLOSE, self._on_close),
        ]
        address = (self.settings.host, self.settings.port)
        secured = tls.for_peers(self.settings)
        tls.for_pacs(self.settings)  # reports now what is wrong with it
        try:
            server: Any = ae.make_server(
                address,
                evt_handlers=handlers,
                ssl_context=secured,
                server_class=guard.Server,
                request_handler=guard.Handler,
            )
        except OSError as error:
            raise InputError(
                f"--host {self.settings.host}, --port {self.settings.port}: {error.strerror}; expected an "
                "address of this machine and a free port"
            ) from None
        server.limits = guard.Limits(
            self.settings.max_associations,
            self.settings.max_instance_bytes,
            self.settings.max_association_bytes,
        )
        server.budget = guard.Budget(self.settings.max_memory_bytes)
        server.admission = Admission(
            self.settings.aet,
            self.settings.peers,
            self.settings.max_associations,
            self.settings.tls is not None and not self.settings.tls_any_peer,
        )
        server.judging, server.refused, server.failed = threading.Lock(), self._on_refused, self._on_failed
        self._server = server
        listener = threading.Thread(target=server.serve_forever, name="listen", daemon=True)
        listener.start()
        return listener

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()

    def sending(self) -> set[str]:
        """The studies (by folder name) of which an open association has sent something. A connection may
        close before what it brought is stored: so the thread that stores tells, not the connection."""
        with self._turn:
            self._open = {one: studies for one, studies in self._open.items() if one.is_alive()}
            return {study for studies in self._open.values() for study in studies}

    def _on_echo(self, event: Any) -> int:
        self.counters.add("echoes_total")
        return SUCCESS

    def _on_refused(self, reason: str, asked: Asked | None, address: str) -> None:
        """Each is counted by its reason. Connections without a request are not logged one by one: a monitor
        that checks the port makes one per second."""
        self.counters.add(f"refused_{reason}_total")
        self.counters.add("associations_rejected_total" if asked else "connections_refused_total")
        if asked is None and reason in ("left", "silent"):
            return
        titles = {} if asked is None else {"calling_aet": asked.calling, "called_aet": asked.called}
        self.audit("refusal", "failure", reason=reason, peer=address, **titles)
        if asked is None:
            log.warning("a connection from %s was refused: %s", address, WHY[reason])
        else:
            log.warning("an association of %r at %s was refused: %s", asked.calling, address, WHY[reason])

    def _on_failed(self, kind: str) -> None:
        self.counters.add("connections_failed_total")
        log.error("a connection ended: %s", kind)

    def _on_established(self, event: Any) -> None:
        self.counters.add("associations_total")
        self.audit("association", **_who(event.assoc))

    def _on_close(self, event: Any) -> None:
        event.assoc.dimse.drop()
        if event.assoc.requestor.primitive is not None:
            self.audit("association_end", **_who(event.assoc))

    def _on_store(self, event: Any) -> int:
        """Size, rate and room are checked on the bytes, before anything is decoded."""
        held, study = event.request.DataSet, ""
        try:
            status, study = self._keep(event, held)
        except Exception as error:
            log.error("an instance could not be stored: %s", why(error))
            status = OUT_OF_RESOURCES if isinstance(error, OSError | MemoryError) else CANNOT_UNDERSTAND
        finally:
            held.free()
        outcome = "success" if status in (SUCCESS, COERCED) else f"failure {status:04X}"
        self.audit("instance", outcome, study=study, **_who(event.assoc))
        taken = status in (SUCCESS, COERCED)
        self.counters.add("instances_received_total" if taken else "instances_refused_total")
        return status

    def _keep(self, event: Any, held: Any) -> tuple[int, str]:
        """(the status of one C-STORE, its study's folder); Success only once the instance is on disk."""
        size = held.held
        if held.over:
            log.warning("an instance was refused: over the limit of %s", held.over)
            return OUT_OF_RESOURCES, ""
        if self.spool.room() < self.settings.min_free_bytes + size:
            log.warning(
                "an instance of %d bytes was refused: the disk of the spool is full (--min-free-mb)", size
            )
            return OUT_OF_RESOURCES, ""
        if self.spool.used() + size > self.settings.max_spool_bytes:
            log.warning("an instance of %d bytes was refused: the spool is full (--max-spool-mb)", size)
            return OUT_OF_RESOURCES, ""
        if self._too_fast():
            log.warning("an instance was refused: over %g per second (--max-per-s)", self.settings.max_per_s)
            return OUT_OF_RESOURCES, ""
        uid = str(event.request.AffectedSOPInstanceUID)
        held.seek(0)
        study = study_of(held.read(MAX_HEADER_BYTES), event.context.transfer_syntax)
        if not study:
            return CANNOT_UNDERSTAND, ""
        name = self.spool.folder(study).name
        with self._turn:  # before it is stored: the study may look quiet
            self._open.setdefault(event.assoc, set()).add(name)
        with held.getbuffer() as body:  # no copy: an instance may take half of the allowed memory
            kept = self.spool.put(study, uid, _file_start(event), body)
        if kept in (DIFFERENT, CORRECTED):
            self.counters.add(f"instances_{kept}_total")
            log.warning(
                "study %s: an instance was received again with different content: %s", name, KEPT[kept]
            )
        return COERCED if kept == DIFFERENT else SUCCESS, name

    def _too_fast(self) -> bool:
        now = time.monotonic()
        with self._turn:
            while self._recent and self._recent[0] < now - 1:
                self._recent.popleft()
            if len(self._recent) >= self.settings.max_per_s:
                return True
            self._recent.append(now)
        return False


def _who(association: Any) -> dict[str, str]:
    """The peer of an association, for the audit trail."""
    return {
        "peer": str(association.requestor.address_info.address),
        "calling_aet": str(association.requestor.ae_title).strip(),
        "called_aet": str(association.requestor.primitive.called_ae_title).strip(),
    }


def _file_start(event: Any) -> bytes:
    """Preamble and meta information (PS3.10, 7.1) of a file of the received data set."""
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_file_meta_info

    stream = DicomBytesIO()
    write_file_meta_info(stream, event.file_meta)
    return b"\0" * 128 + b"DICM" + stream.getvalue()


def study_of(data: bytes, syntax: Any) -> str:
    """Study Instance UID at the start of an encoded dataset, "" if absent or unreadable."""
    import io

    from pydicom.filereader import read_dataset

    if syntax.is_deflated:
        try:  # no more than a header may have: never inflates a bomb
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, MAX_HEADER_BYTES)
        except zlib.error:
            return ""
    stream = io.BytesIO(data)

    def after(tag: Any, vr: Any, length: int) -> bool:
        return bool(tag > 0x0020000D)

    try:
        dataset = read_dataset(stream, syntax.is_implicit_VR, syntax.is_little_endian, stop_when=after)
        return str(dataset.get("StudyInstanceUID", ""))
    except Exception:  # pydicom raises whatever the bytes lead it to, OSError too: no lack of room
        return ""
