"""A study from a PACS: C-FIND asks whether it exists, C-GET or C-MOVE fetches it (PS3.4, annex C)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mmif_trt import privacy
from mmif_trt.image import InputError
from mmif_trt.node import classes, guard
from mmif_trt.node.admission import Admission, Peer
from mmif_trt.node.server import MAX_HEADER_BYTES, study_of
from mmif_trt.running import Stop

privacy.patient_values_off()
ROOT = "1.2.840.10008.5.1.4.1.2.2"  # Study Root Query/Retrieve
FIND, MOVE, GET = f"{ROOT}.1", f"{ROOT}.2", f"{ROOT}.3"
SYNTAXES = ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"]  # of answers; deflated, one may be a bomb
TIMEOUT_S, FIND_S, MAX_ANSWERS = 60, 60.0, 10_000
STALL_S = 300.0  # longest time without an instance: a PACS need not report in between
MAX_BYTES, MAX_INSTANCE_BYTES, MAX_MEMORY_BYTES = 16 << 30, 512 << 20, 2 << 30
MOVE_ASSOCIATIONS = 8
COULD_NOT_SEND, UNKNOWN_TITLE = 0xA702, 0xA801  # some or all instances; of a C-MOVE (PS3.4 C.4.2.1.5)
Keep = Callable[[str, bytes], None]  # SOP Instance UID, the bytes of a PS3.10 file


@dataclass
class Pacs:
    """title, host, port: of the PACS. aet: ours. tls: as pynetdicom takes it. tls_back: context of the
    listener to which a C-MOVE sends."""

    title: str
    host: str
    port: int
    aet: str = "MMIF"
    tls: Any = None
    tls_back: Any = None

    def __str__(self) -> str:
        return f"{self.title}@{self.host}:{self.port}"


@dataclass
class Received:
    """What arrived. failed: that the PACS says it could not send; error: why one could not be kept. at: the
    last, by the monotonic clock."""

    count: int = 0
    size: int = 0
    failed: int = 0
    error: str = ""
    at: float = field(default_factory=time.monotonic)


def series_of(pacs: Pacs, study: str, stop: Stop) -> list[str]:
    """The Series Instance UIDs of a study, by C-FIND. Raises InputError if there is none, or no answer."""
    from pydicom.dataset import Dataset

    query = Dataset()
    query.QueryRetrieveLevel, query.StudyInstanceUID, query.SeriesInstanceUID = "SERIES", study, ""
    found: list[str] = []
    with _association(pacs, [FIND]) as association:
        end = time.monotonic() + FIND_S
        for status, answer in association.send_c_find(query, FIND):
            if "Status" not in status:
                raise InputError(
                    f"{pacs}: ended the association without answering a C-FIND; expected an answer"
                )
            if status.Status not in (0x0000, 0xFF00, 0xFF01):
                raise InputError(f"{pacs}: C-FIND failed (status {status.Status:04X}); expected an answer")
            if answer is not None:
                found.append(str(answer.get("SeriesInstanceUID", "")))
            if stop.reason or len(found) > MAX_ANSWERS or time.monotonic() > end:
                association.abort()
                raise InputError(f"{pacs}: {stop.reason or 'does not stop answering a C-FIND'}")
    if not found:
        raise InputError(f"{pacs}: no such study; expected a Study Instance UID that it has")
    return sorted({uid for uid in found if uid})


def fetch(
    pacs: Pacs, study: str, series: list[str], keep: Keep, stop: Stop, move_to: tuple[str, int] | None = None
) -> Received:
    """All instances of a study, or of some of its series, to `keep`. move_to: by C-MOVE to this address and
    port of ours, where the PACS knows our AE title; None: by C-GET. Raises InputError."""
    arrived = Received()
    on_store = [_handler(arrived, study, keep, stop)]
    if move_to is None:
        with (
            _association(pacs, [GET], storage=True, handlers=on_store) as association,
            _watched(association, arrived, stop),
        ):
            for query in _queries(study, series):
                _ask(pacs, association, association.send_c_get(query, GET), arrived, stop)
        return arrived
    with (
        _listening(pacs, *move_to, on_store),
        _association(pacs, [MOVE]) as association,
        _watched(association, arrived, stop),
    ):
        for query in _queries(study, series):
            _ask(pacs, association, association.send_c_move(query, pacs.aet, MOVE), arrived, stop)
    return arrived


@contextmanager
def _watched(association: Any, arrived: Received, stop: Stop) -> Iterator[None]:
    """Aborts the association when the run is to stop, when one could not be kept, or after STALL_S without
    an instance, however often the PACS says that it is at work."""
    done = threading.Event()
    association.dimse_timeout = None  # this thread's clock decides
    arrived.at = time.monotonic()

    def watch() -> None:
        while not done.wait(0.2):
            if time.monotonic() - arrived.at > STALL_S:
                arrived.error = arrived.error or f"sent no instance for {STALL_S:g} s; expected the study"
            if stop.reason or arrived.error:
                association.abort()
                association.dimse.msg_queue.put((None, None))  # for the thread that waits for an answer
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _queries(study: str, series: list[str]) -> Iterator[Any]:
    from pydicom.dataset import Dataset

    for uid in series or [""]:
        query = Dataset()
        query.QueryRetrieveLevel, query.StudyInstanceUID = "SERIES" if uid else "STUDY", study
        if uid:
            query.SeriesInstanceUID = uid
        yield query


def _ask(pacs: Pacs, association: Any, answers: Any, arrived: Received, stop: Stop) -> None:
    for status, _ in answers:
        code = status.get("Status")
        if stop.reason or arrived.error:
            association.abort()
            raise InputError(f"{pacs}: {arrived.error or stop.reason}")
        if code is None:
            raise InputError(f"{pacs}: ended the association; expected all instances")
        if code == 0xFF00:
            continue
        arrived.failed += int(status.get("NumberOfFailedSuboperations") or 0)
        if code not in (0x0000, 0xB000) and not (code == COULD_NOT_SEND and arrived.failed):
            what = f"gave up after {arrived.count} instances"
            if code == UNKNOWN_TITLE:
                what = f"does not know where to send for the AE title {pacs.aet}"
            raise InputError(
                f"{pacs}: {what} (status {code:04X}); expected the study: try the other of C-GET and C-MOVE "
                "(with --move-port), or one --series at a time"
            )


def _handler(arrived: Received, study: str, keep: Keep, stop: Stop) -> Any:
    """Takes instances of the study that was asked for, and no others: who sends them may be anybody."""
    from pynetdicom import evt

    def on_store(event: Any) -> int:
        if stop.reason or arrived.error:
            return 0xA700
        held = event.request.DataSet
        try:
            if getattr(held, "over", False):
                raise InputError(f"an instance over {MAX_INSTANCE_BYTES} bytes; expected a smaller one")
            held.seek(0)
            head = held.read(MAX_HEADER_BYTES)
            if study_of(head, event.context.transfer_syntax) != study:  # unlike pydicom's it inflates no bomb
                return 0xA900
            data = event.encoded_dataset()
            arrived.size += len(data)
            if arrived.size > MAX_BYTES:
                raise InputError(f"over {MAX_BYTES} bytes; expected a study within that limit")
            keep(str(event.request.AffectedSOPInstanceUID), data)
        except (InputError, OSError) as error:
            arrived.error = str(error)
            return 0xA700
        except Exception:  # pydicom raises whatever the bytes lead it to
            return 0xC000
        finally:
            if isinstance(held, guard.Held):
                held.free()
        arrived.count += 1
        arrived.at = time.monotonic()
        return 0x0000

    return evt.EVT_C_STORE, on_store


@contextmanager
def _association(pacs: Pacs, models: list[str], storage: bool = False, handlers: Any = ()) -> Iterator[Any]:
    from pynetdicom import AE, build_role, evt

    ae = AE(pacs.aet)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = TIMEOUT_S
    for model in models:
        ae.add_requested_context(model, SYNTAXES)
    contexts = classes.to_get(len(models)) if storage else []
    for uid, syntaxes in contexts:
        ae.add_requested_context(uid, syntaxes)
    limits = guard.Limits(1, MAX_INSTANCE_BYTES, MAX_BYTES) if storage else None
    association = ae.associate(
        pacs.host,
        pacs.port,
        ae_title=pacs.title,
        ext_neg=[build_role(uid, scp_role=True) for uid in dict.fromkeys(uid for uid, _ in contexts)],
        tls_args=pacs.tls,
        evt_handlers=[
            (evt.EVT_CONN_OPEN, guard.bound, [limits, guard.Budget(MAX_MEMORY_BYTES)]),
            *handlers,
        ],
    )
    accepted = association.accepted_contexts
    if not association.is_established and not association.rejected_contexts:
        raise InputError(f"{pacs}: no association; expected a PACS that accepts the AE title {pacs.aet}")
    if not accepted or accepted[0].abstract_syntax not in models:
        if association.is_established:
            association.release()
        raise InputError(
            f"{pacs}: does not offer the requested services; expected C-FIND with C-GET or C-MOVE"
        )
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


@contextmanager
def _listening(pacs: Pacs, host: str, port: int, handlers: Any) -> Iterator[None]:
    """A storage SCP for the PACS's answer to a C-MOVE: for its AE title alone, with the node's limits."""
    from pynetdicom import AE, evt

    ae: Any = AE(pacs.aet)
    ae.maximum_pdu_size, ae.maximum_associations = guard.MAX_PDU_BYTES, 1 << 16  # guard.py counts them
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = TIMEOUT_S
    classes.accept(ae, classes.syntaxes())
    handlers = [*handlers, (evt.EVT_CONN_CLOSE, lambda event: event.assoc.dimse.drop())]
    try:
        server: Any = ae.make_server(
            (host, port),
            evt_handlers=handlers,
            ssl_context=pacs.tls_back,
            server_class=guard.Server,
            request_handler=guard.Handler,
        )
    except OSError as error:
        raise InputError(
            f"--move-host {host}, --move-port {port}: {error.strerror}; expected a free port of this machine"
        ) from None
    server.limits = guard.Limits(MOVE_ASSOCIATIONS, MAX_INSTANCE_BYTES, MAX_BYTES)
    server.budget = guard.Budget(MAX_MEMORY_BYTES)
    server.admission = Admission(pacs.aet, (Peer(pacs.title),), MOVE_ASSOCIATIONS, bind_certificates=False)
    server.judging, server.refused = threading.Lock(), lambda reason, asked, address: None
    server.failed = lambda kind: None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
