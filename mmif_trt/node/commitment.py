"""Storage commitment (PS3.4, annex J): a peer asks which of its instances are safe, and is told.

The answer (N-EVENT-REPORT) goes to the address that --peer AET@HOST:PORT names, in a new association; for a
peer without a port, over the association that asked, as long as it is open.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from mmif_trt.node import tls
from mmif_trt.node.audit import Audit
from mmif_trt.node.settings import Settings
from mmif_trt.node.spool import Spool
from mmif_trt.running import why

log = logging.getLogger("mmif_trt.node")
CLASS, INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"  # Push Model and its well-known instance
REQUEST, ALL_SAFE, SOME_FAILED = 1, 1, 2  # action type; event types
NO_SUCH_ACTION, INVALID_ARGUMENT, NO_SUCH_INSTANCE, NO_ROOM = 0x0123, 0x0115, 0x0112, 0x0213
TIMEOUT_S = 30
MAX_REFERENCES = 20_000
MAX_BYTES = 256 * MAX_REFERENCES  # two UIDs of 64 characters, with their tags
# Not deflated: pydicom would inflate a question without bounds.
SYNTAXES = ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"]
ITEM = b"\xfe\xff\x00\xe0"  # the tag of a sequence's item
MAX_OPEN = 16  # answers under way: one to a peer that is away takes TIMEOUT_S


class Commitment:
    def __init__(self, settings: Settings, spool: Spool, audit: Audit) -> None:
        self.settings, self.spool, self.audit = settings, spool, audit
        self._places = threading.Semaphore(MAX_OPEN)

    def on_action(self, event: Any) -> tuple[int, None]:
        """The status of an N-ACTION; the answer follows from another thread."""
        if event.action_type != REQUEST:
            return NO_SUCH_ACTION, None
        held = event.request.ActionInformation
        data = held.getvalue() if held else b""
        if len(data) > MAX_BYTES or data.count(ITEM) > MAX_REFERENCES:  # pydicom takes 1 kB for an empty item
            return INVALID_ARGUMENT, None
        try:
            asked = event.action_information
            references = list(asked.ReferencedSOPSequence)
            transaction = str(asked.TransactionUID)
        except Exception:  # pydicom may raise anything on bad bytes
            return INVALID_ARGUMENT, None
        if not transaction or not 0 < len(references) <= MAX_REFERENCES:
            return INVALID_ARGUMENT, None
        if not self._places.acquire(blocking=False):
            return NO_ROOM, None
        thread = threading.Thread(
            target=self._answer, args=(event.assoc, transaction, references), daemon=True
        )
        thread.start()
        return 0x0000, None

    def report(self, transaction: str, references: list[Any]) -> tuple[int, Any]:
        """(event type, event information): what is in the spool is safe, the rest has failed."""
        from pydicom.dataset import Dataset

        safe, failed = [], []
        kept = self.spool.kept(str(one.get("ReferencedSOPInstanceUID", "")) for one in references)
        for reference in references:
            item = Dataset()
            item.ReferencedSOPClassUID = str(reference.get("ReferencedSOPClassUID", ""))
            item.ReferencedSOPInstanceUID = str(reference.get("ReferencedSOPInstanceUID", ""))
            if item.ReferencedSOPInstanceUID in kept:
                safe.append(item)
            else:
                item.FailureReason = NO_SUCH_INSTANCE
                failed.append(item)
        report = Dataset()
        report.TransactionUID = transaction
        if safe:
            report.ReferencedSOPSequence = safe
        if failed:
            report.FailedSOPSequence = failed
        return SOME_FAILED if failed else ALL_SAFE, report

    def _answer(self, asking: Any, transaction: str, references: list[Any]) -> None:
        try:
            self._report(asking, transaction, references)
        finally:
            self._places.release()

    def _report(self, asking: Any, transaction: str, references: list[Any]) -> None:
        title, kind = str(asking.requestor.ae_title).strip(), SOME_FAILED
        peer = next((p for p in self.settings.peers or () if p.aet == title and p.port), None)
        try:
            kind, report = self.report(transaction, references)
            if peer is None:
                told = self._tell(asking, kind, report)
            else:
                association = self._associate(title, peer.host, peer.port)
                told = association.is_established and self._tell(association, kind, report)
                if association.is_established:
                    association.release()
        except Exception as error:
            log.error("a storage commitment could not be reported: %s", why(error))
            told = False
        self.audit("commitment", "success" if told else "failure", calling_aet=title, safe=kind == ALL_SAFE)
        if not told:
            log.warning("%r did not accept a storage commitment; expected --peer AET@HOST:PORT", title)

    def _tell(self, association: Any, kind: int, report: Any) -> bool:
        status, _ = association.send_n_event_report(report, kind, CLASS, INSTANCE)
        return status.get("Status") == 0

    def _associate(self, title: str, host: str, port: int) -> Any:
        from pynetdicom import AE, build_role, evt

        from mmif_trt.node import guard

        ae = AE(self.settings.aet)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = TIMEOUT_S
        ae.add_requested_context(CLASS, SYNTAXES)
        role = build_role(CLASS, scp_role=True)  # we answer, though we open the association
        handlers: Any = [(evt.EVT_CONN_OPEN, guard.bound)]
        secured = tls.for_pacs(self.settings)
        secured = None if secured is None else (secured[0], host)
        return ae.associate(
            host, port, ae_title=title, ext_neg=[role], tls_args=secured, evt_handlers=handlers
        )
