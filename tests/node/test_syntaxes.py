"""The node accepts the transfer syntaxes that `fuse` reads, and finds the study in each."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import numpy as np
import phantoms
import pydicom
import pytest
from peers import needs, until
from ports import free_port
from pydicom import uid

pytest.importorskip("pynetdicom", reason="needs the clinical extra")

from mmif_trt.dicomweb import SENT
from mmif_trt.io import dicom
from mmif_trt.io.dicom import meta
from mmif_trt.io.dicom.syntaxes import readable, table
from mmif_trt.node.send import send
from mmif_trt.node.server import study_of
from mmif_trt.node.settings import Settings
from mmif_trt.running import Stop

AFFINE = phantoms.affine_of(shape=(1, 32, 32))


def test_the_list() -> None:
    """From scanners and archives: lossless and 12-bit JPEG, JPEG-LS, JPEG 2000, HTJ2K, deflated."""
    offered = {str(syntax) for syntax in readable()}
    for number in ("50", "51", "57", "70", "80", "81", "90", "91", "201", "202", "203"):
        assert f"1.2.840.10008.1.2.4.{number}" in offered
    assert {uid.RLELossless, uid.DeflatedExplicitVRLittleEndian, uid.ExplicitVRBigEndian} <= offered
    assert not [x for x in offered if x.startswith("1.2.840.10008.1.2.4.10")], "no video"
    assert len(offered) == len(readable()) == table().count("\n") - 2


@pytest.mark.parametrize("syntax", [x for x in readable() if not x.is_compressed or x.is_deflated])
def test_plain_ones_are_read_and_their_study_found(syntax: uid.UID) -> None:
    plane = np.arange(1024).reshape(1, 32, 32) % 1000
    dataset = phantoms.slices(plane, AFFINE)[0]
    if syntax == uid.ExplicitVRBigEndian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
    data = stream.getvalue()
    assert (dicom.decode(data, "x.dcm").data == plane).all()
    at = meta.transfer_syntax(data, "x.dcm")[1]
    assert study_of(data[at : at + 4000], syntax) == phantoms.STUDY


@pytest.mark.parametrize(
    "syntax", [uid.RLELossless, uid.JPEG2000Lossless, uid.JPEGLSLossless, uid.HTJ2KLossless]
)
def test_compressed_ones_are_read(syntax: uid.UID) -> None:
    plane = np.arange(1024).reshape(1, 32, 32) % 1000
    dataset = phantoms.slices(plane, AFFINE)[0]
    try:
        dataset.compress(syntax, generate_instance_uid=False)
    except (NotImplementedError, RuntimeError):
        pytest.skip("no encoder for it here")
    assert (dicom.decode(phantoms.encoded(dataset), "x.dcm").data == plane).all()


@pytest.mark.parametrize("accepted", ["+xi", "+xe", "+x="])
def test_a_pacs_that_accepts_one_of_the_plain_ones_gets_the_result(accepted: str, tmp_path: Path) -> None:
    """Implicit VR alone (+xi) is what a peer must accept at least (PS3.5, 10.1)."""
    needs("storescp")
    dataset, port = phantoms.slices(np.arange(1024).reshape(1, 32, 32), AFFINE)[0], free_port()
    (tmp_path / "a.dcm").write_bytes(phantoms.encoded(dataset))
    (tmp_path / "pacs").mkdir()
    command = ["storescp", accepted, "-od", str(tmp_path / "pacs"), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    settings = Settings("MMIF", 1, tmp_path, ("PACS", "127.0.0.1", port))
    try:
        until(lambda: send(settings, tmp_path / "a.dcm", False, lambda: None, Stop())[0] == SENT, 20)
    finally:
        process.kill()
        process.wait()
    (kept,) = (tmp_path / "pacs").iterdir()
    assert pydicom.dcmread(kept).PixelData == dataset.PixelData
