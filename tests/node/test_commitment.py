"""Storage commitment over real associations: to a port of the peer's, and over the one that asked."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from peers import until
from ports import free_port
from pydicom.dataset import Dataset

from mmif_trt.node.admission import Peer
from mmif_trt.node.audit import Audit
from mmif_trt.node.commitment import (
    ALL_SAFE,
    CLASS,
    INSTANCE,
    ITEM,
    MAX_BYTES,
    MAX_OPEN,
    MAX_REFERENCES,
    NO_ROOM,
    SOME_FAILED,
    Commitment,
)
from mmif_trt.node.counters import Counters
from mmif_trt.node.server import Receiver
from mmif_trt.node.settings import Settings
from mmif_trt.node.spool import Spool

pynetdicom = pytest.importorskip("pynetdicom", reason="needs the clinical extra")

MR = "1.2.840.10008.5.1.4.1.1.4"


def request(*instances: str) -> Dataset:
    asked = Dataset()
    asked.TransactionUID = "1.2.3.99"
    asked.ReferencedSOPSequence = []
    for instance in instances:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = MR, instance
        asked.ReferencedSOPSequence.append(item)
    return asked


@pytest.mark.parametrize("how", ["own port", "same association"])
def test_what_is_safe_is_reported(tmp_path: Path, how: str) -> None:
    told: list[tuple[int, Dataset]] = []
    come = threading.Event()

    def on_report(event: Any) -> tuple[int, None]:
        told.append((event.event_type, event.event_information))
        come.set()
        return 0, None

    handlers: Any = [(pynetdicom.evt.EVT_N_EVENT_REPORT, on_report)]
    scanner: Any = pynetdicom.AE("SCANNER")
    scanner.add_supported_context(CLASS, scu_role=False, scp_role=True)  # we answer as the SCP
    port = free_port()
    listener = scanner.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
    peer = Peer("SCANNER", "127.0.0.1", port if how == "own port" else 0)
    settings = Settings("MMIF", free_port(), tmp_path, ("PACS", "127.0.0.1", 2), peers=(peer,))
    spool = Spool(tmp_path)
    spool.put("1.2", "1.2.3.4", b"", memoryview(b"x"))
    receiver = Receiver(settings, spool, Counters(), Audit(None, "MMIF"))
    receiver.start()
    try:
        scanner.add_requested_context(CLASS)
        association = scanner.associate("127.0.0.1", settings.port, ae_title="MMIF", evt_handlers=handlers)
        assert association.is_established
        for instances, kind, failed in (
            (["1.2.3.4"], ALL_SAFE, []),
            (["1.2.3.4", "9.9"], SOME_FAILED, ["9.9"]),
        ):
            come.clear()
            status, _ = association.send_n_action(request(*instances), 1, CLASS, INSTANCE)
            assert status.Status == 0
            until(come.is_set)
            assert told[-1][0] == kind and told[-1][1].TransactionUID == "1.2.3.99"
            items = told[-1][1].get("FailedSOPSequence") or []
            assert [item.ReferencedSOPInstanceUID for item in items] == failed
            assert told[-1][1].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.3.4"
        assert association.send_n_action(request("1.2"), 2, CLASS, INSTANCE)[0].Status == 0x0123
        assert association.send_n_action(request(), 1, CLASS, INSTANCE)[0].Status == 0x0115
        association.release()
        bomb: Any = pynetdicom.AE("SCANNER")
        bomb.add_requested_context(CLASS, "1.2.840.10008.1.2.1.99")
        assert not bomb.associate("127.0.0.1", settings.port, ae_title="MMIF").is_established
    finally:
        receiver.stop()
        listener.shutdown()


@pytest.mark.parametrize("data", [ITEM * (MAX_REFERENCES + 1), b"\0" * (MAX_BYTES + 1)])
def test_a_question_without_an_end_is_not_decoded(data: bytes, tmp_path: Path) -> None:
    asked = Commitment(Settings("MMIF", 1, tmp_path, None), Spool(tmp_path), Audit(None, "MMIF"))
    sent = SimpleNamespace(ActionInformation=io.BytesIO(data))
    event = SimpleNamespace(action_type=1, action_information=request("1.2"), assoc=None, request=sent)
    assert asked.on_action(event)[0] == 0x0115


def test_a_crowd_of_questions_takes_no_crowd_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answer to a peer that is away takes half a minute."""
    asked = Commitment(Settings("MMIF", 1, tmp_path, None), Spool(tmp_path), Audit(None, "MMIF"))
    away = threading.Event()
    monkeypatch.setattr(Commitment, "_report", lambda *_: away.wait(60))
    sent = SimpleNamespace(ActionInformation=io.BytesIO())
    event = SimpleNamespace(action_type=1, action_information=request("1.2"), assoc=None, request=sent)
    assert [asked.on_action(event)[0] for _ in range(MAX_OPEN + 3)] == [0] * MAX_OPEN + [NO_ROOM] * 3
    away.set()
    until(lambda: asked.on_action(event)[0] == 0)
