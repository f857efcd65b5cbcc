"""The DICOM node against dcmtk and Orthanc: a kill in the middle, a PACS that is down, peers that lie."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import phantoms
import pydicom
import pytest
from peers import Node, Orthanc, echoscu, needs, storescu, until
from phantoms import affine_of, write_mr, write_pet
from planted import MARK, OPTIONAL, plant_all

import mmif_trt

# SUV needs these.
ALLOWED = {"PatientWeight", "AcquisitionDate", "AcquisitionTime", "SeriesDate", "SeriesTime"}
GRID = ((90, 48, 40), (2.0, 4.0, 4.0))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two series of 90 slices, patient values planted; in the PET every field that a fusion can do without is
    malformed."""
    root = tmp_path_factory.mktemp("study")
    affine = affine_of("SPL", GRID[1], GRID[0])
    write_mr(root / "mr", affine, GRID[0])
    write_pet(root / "pt", affine, GRID[0])
    for path in (root / "pt").iterdir():
        dataset = pydicom.dcmread(path)
        plant_all(dataset, [keyword for keyword in OPTIONAL if keyword not in ALLOWED])
        dataset.save_as(path)
    return root


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[Orthanc]:
    needs("storescu", "echoscu")
    server = Orthanc(tmp_path / "orthanc")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def node(tmp_path: Path, pacs: Orthanc) -> Iterator[Node]:
    one = Node(tmp_path / "node ü", pacs.dicom, "--peer", "SCANNER", "--peer", "OTHER")
    one.start()
    yield one
    one.kill()


def no_patient_value(node: Node) -> None:
    text = node.log + node.web("/metrics").decode() + node.web("/health").decode()
    text += " ".join(str(path) for path in node.folder.rglob("*"))
    assert not [value for value in (*phantoms.PLANTED.values(), "PLANTED", "Zo", MARK) if value in text], text


def test_killed_in_the_middle_there_is_exactly_one_whole_fused_series(
    study: Path, pacs: Orthanc, node: Node
) -> None:
    assert echoscu(node.port) == 0
    assert storescu(node.port, study / "mr") == 0
    node.kill()  # one series is here, the other is not
    node.start()
    assert storescu(node.port, study / "pt") == 0
    until(lambda: list((node.folder / "spool" / "outgoing").glob("*.dcm")) or pacs.get("/instances"))
    node.kill()  # while the fused one is on its way, or just after
    node.start()
    (instance,) = until(lambda: pacs.get("/instances"))
    until(lambda: not list((node.folder / "spool" / "outgoing").iterdir()))
    assert storescu(node.port, study / "pt") == 0  # the scanner sends it again
    time.sleep(4)
    assert pacs.get("/instances") == [instance] and len(pacs.get("/series")) == 1
    tags = pacs.get(f"/instances/{instance}/simplified-tags")
    assert tags["NumberOfFrames"] == "90" and tags["PatientID"] == phantoms.PLANTED["PatientID"]
    assert len(tags["SourceImageSequence"]) == 180
    fused = mmif_trt.fuse(study / "mr", study / "pt")
    theirs = cv2.imdecode(
        np.frombuffer(pacs.raw(f"/instances/{instance}/frames/52/preview"), np.uint8), cv2.IMREAD_COLOR
    )
    np.testing.assert_array_equal(theirs[..., ::-1], fused.data[52])
    no_patient_value(node)
    assert node.stop() == 0


def test_a_pacs_that_is_down_loses_nothing(study: Path, pacs: Orthanc, node: Node) -> None:
    pacs.stop()
    for folder in ("mr", "pt"):
        assert storescu(node.port, study / folder) == 0
    until(lambda: node.metric("send_errors_total") >= 2)
    assert node.metric("queue_length") == 1 and node.metric("sent_total") == 0
    (waiting,) = (node.folder / "spool" / "outgoing").iterdir()
    whole = waiting.read_bytes()
    pacs.start()
    assert len(until(lambda: pacs.get("/instances"))) == 1
    until(lambda: node.metric("sent_total") == 1 and node.metric("queue_length") == 0)
    assert node.metric("instances_received_total") == 180 and node.metric("fusions_total") == 1
    no_patient_value(node)
    # As after a crash between the PACS's answer and our mark: the node asks the PACS by C-FIND.
    assert node.stop() == 0
    waiting.write_bytes(whole)
    (node.folder / "spool" / "sent" / waiting.stem).rename(node.folder / "spool" / "doubt" / waiting.stem)
    node.start()
    until(lambda: "was there already, not sent again" in node.log)
    until(lambda: node.metric("queue_length") == 0)
    assert len(pacs.get("/instances")) == 1 and node.log.count(" sent\n") == 1


def test_what_a_peer_may_not_do(study: Path, tmp_path: Path, node: Node) -> None:
    assert echoscu(node.port, called="WRONG") != 0
    assert (
        echoscu(node.port, calling="STRANGER") != 0
        and storescu(node.port, study / "mr", calling="STRANGER") != 0
    )
    with socket.create_connection(("127.0.0.1", node.port)) as half:
        half.sendall(b"\x01\x00\x00\x00\x00\xcd\x00\x01")  # an association request that stops here
    with socket.create_connection(("127.0.0.1", node.port)) as noise:
        noise.sendall(b"GET / HTTP/1.0\r\n\r\n")
    truncated = tmp_path / "cut"
    truncated.mkdir()
    data = next((study / "mr").iterdir()).read_bytes()
    (truncated / "x.dcm").write_bytes(data[: len(data) // 2])
    storescu(node.port, truncated)
    assert echoscu(node.port) == 0, "it still answers"
    assert not list((node.folder / "spool" / "outgoing").iterdir())
    assert node.metric("associations_rejected_total") >= 3
    no_patient_value(node)


@pytest.mark.nightly
def test_load_of_8_associations_and_2000_instances(tmp_path: Path, node: Node) -> None:
    affine = affine_of("SPL", (1.0, 4.0, 4.0), (250, 128, 128))
    folders = []
    for i in range(8):
        where = {"StudyInstanceUID": f"1.2.3.{i}"}
        folders.append(write_mr(tmp_path / f"s{i}", affine, (250, 128, 128), **where))
    sizes = []
    for _ in range(2):  # the second round sends the same instances again: nothing more is kept
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda folder: storescu(node.port, folder), folders)) == [0] * 8
        sizes.append(node.memory_mb())
    assert node.metric("instances_received_total") == 4000
    assert len(list((node.folder / "spool" / "incoming").rglob("*.dcm"))) == 2000
    print("resident MB after each round of 2,000:", sizes)
    assert sizes[1] < sizes[0] * 1.1 + 20
