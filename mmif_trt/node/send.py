"""C-STORE of the fused series to the PACS, by pynetdicom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmif_trt.node import tls
from mmif_trt.node.settings import Settings

TIMEOUT_S = 30
SENT, REFUSED, UNREACHABLE = "sent", "refused", "unreachable"


def send(settings: Settings, path: Path) -> tuple[str, str]:
    """One file to the PACS; (answer, SOP Instance UID).

    SENT where it said Success or a warning (then it keeps the instance), REFUSED where it answered with a
    failure or takes no such class, UNREACHABLE where there was no answer.
    """
    import pydicom
    from pynetdicom import AE, evt

    from mmif_trt.node import guard

    dataset = pydicom.dcmread(path)
    uid = str(dataset.SOPInstanceUID)
    ae = AE(settings.aet)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = TIMEOUT_S
    ae.connection_timeout = TIMEOUT_S
    ae.add_requested_context(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID)
    title, host, port = settings.send_to
    handlers: Any = [(evt.EVT_CONN_OPEN, guard.bound)]
    secured = tls.for_pacs(settings)
    association = ae.associate(host, port, ae_title=title, tls_args=secured, evt_handlers=handlers)
    if not association.is_established:
        return REFUSED if association.rejected_contexts else UNREACHABLE, uid
    try:
        status = association.send_c_store(dataset)
    finally:
        association.release()
    code = status.get("Status")
    if code is None:
        return UNREACHABLE, uid
    return SENT if code == 0 or code >> 12 == 0xB else REFUSED, uid
