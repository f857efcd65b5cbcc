"""The fused series to the PACS: C-STORE by pynetdicom, or STOW-RS."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmif_trt import dicomweb
from mmif_trt.dicomweb import REFUSED, SENT, UNREACHABLE
from mmif_trt.node import tls
from mmif_trt.node.settings import Settings
from mmif_trt.running import Stop

log = logging.getLogger("mmif_trt.node")

TIMEOUT_S = 30
FIND_S, MAX_ANSWERS = 60.0, 100  # a C-FIND by instance has one answer
MAX_SEND_S = 900.0  # of one case, asking included
THERE = "there"
EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
FIND = "1.2.840.10008.5.1.4.1.2.2.1"  # Study Root Query/Retrieve Information Model (PS3.4 C.6.2)


def send(
    settings: Settings, path: Path, in_doubt: bool, before: Callable[[], None], stop: Stop
) -> tuple[str, str]:
    """One file to the PACS; (answer, SOP Instance UID).

    SENT if it answered Success or a warning (then it keeps the instance), THERE if it was asked and has it
    already, REFUSED if it answered with a failure or does not accept the class, UNREACHABLE if there was no
    answer. in_doubt: an earlier answer was lost, so the PACS is asked first; if it does not answer C-FIND,
    the same instance is sent again. before: called just before sending. stop: ends asking.
    """
    import pydicom

    dataset = pydicom.dcmread(path)
    uid = str(dataset.SOPInstanceUID)
    if settings.dicomweb is not None:
        if in_doubt and dicomweb.holds(settings.dicomweb, dataset):
            return THERE, uid
        before()
        return dicomweb.store(settings.dicomweb, dataset), uid
    if in_doubt and _is_there(settings, dataset, stop):
        return THERE, uid
    # Implicit VR too, which every peer must accept and some accept alone (PS3.5, 10.1).
    syntaxes = dict.fromkeys((str(dataset.file_meta.TransferSyntaxUID), IMPLICIT))
    association = _associate(settings, dataset.SOPClassUID, *syntaxes)
    if not association.is_established:
        return REFUSED if association.rejected_contexts else UNREACHABLE, uid
    try:
        before()
        status = association.send_c_store(dataset)
    finally:
        association.release()
    code = status.get("Status")
    if code is None:
        return UNREACHABLE, uid
    return SENT if code == 0 or code >> 12 == 0xB else REFUSED, uid


def _associate(settings: Settings, of: str, *syntaxes: str) -> Any:
    """An association with the PACS, established or not. of: an abstract syntax. syntaxes: each is offered in
    a context of its own, so that the PACS accepts all that it can and a data set keeps its own, if it may."""
    from pynetdicom import AE, evt

    from mmif_trt.node import guard

    ae = AE(settings.aet)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = TIMEOUT_S
    ae.connection_timeout = TIMEOUT_S
    for syntax in syntaxes:
        ae.add_requested_context(of, syntax)
    assert settings.send_to is not None
    title, host, port = settings.send_to
    handlers: Any = [(evt.EVT_CONN_OPEN, guard.bound)]
    secured = tls.for_pacs(settings)
    return ae.associate(host, port, ae_title=title, tls_args=secured, evt_handlers=handlers)


def _is_there(settings: Settings, dataset: Any, stop: Stop) -> bool:
    """By C-FIND at the level of instances, with every key above it (PS3.4 C.4.1.2). In its own
    association: a PACS that ends it when asked must still be sent to."""
    from pydicom.dataset import Dataset

    query = Dataset()
    query.QueryRetrieveLevel = "IMAGE"
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        setattr(query, keyword, dataset[keyword].value)
    association = _associate(settings, FIND, EXPLICIT, IMPLICIT)  # deflated, an answer may be a bomb
    if not association.is_established:
        return False
    try:
        end = time.monotonic() + FIND_S
        for count, (_, answer) in enumerate(association.send_c_find(query, FIND)):
            if answer is not None and answer.get("SOPInstanceUID") == dataset.SOPInstanceUID:
                association.abort()  # whatever else it would send
                return True
            if stop.reason or count >= MAX_ANSWERS or time.monotonic() > end:
                log.warning("the PACS does not stop answering a C-FIND: association aborted")
                association.abort()
                return False
        return False
    finally:
        if association.is_established:
            association.release()
