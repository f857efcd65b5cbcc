"""The part of a source's header that leaves the reading process: what DICOM output keeps and refers to."""

from __future__ import annotations

import base64
import io
from typing import Any

from mmif_trt.io.dicom.write import KEPT, as_stored, keep_bytes

PLAIN = ("modality", "source", "units", "frame", "space", "sha256")  # of Image, as they are
REFERRED = (
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)
# These identify patient and study: an invalid value is kept unchanged, so that the PACS still files the
# result under its study. Any other invalid value is left out.
IDENTITY = {
    "SpecificCharacterSet",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "StudyInstanceUID",
    "StudyID",
    "AccessionNumber",
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
}
CHARACTER_SET = 0x00080005
MAX_BYTES = 65_536  # a header of KEPT and REFERRED takes about 1,000


def header(dataset: Any) -> tuple[str, list[str]]:
    """(the kept elements as an explicit little endian dataset in base64, their bytes as they were read; the
    keywords that were left out: unreadable or, but for IDENTITY, invalid)."""
    from pydicom.datadict import keyword_for_tag
    from pydicom.dataset import Dataset

    small, left_out = Dataset(), []
    for keyword in (*KEPT, *REFERRED):
        if keyword in dataset:
            try:
                element = as_stored(dataset, keyword)
                _check(element, dataset.get("SpecificCharacterSet"), keyword in IDENTITY)
                small[element.tag] = element
            except Exception:  # pydicom may raise anything on bad bytes
                left_out.append(keyword)
    if not (data := _written(small)):  # which of them?
        for tag in list(small.keys()):
            alone = Dataset()
            alone[tag] = small.get_item(tag)
            if not _written(alone):
                left_out.append(keyword_for_tag(tag))
                del small[tag]
        data = _written(small)
    return base64.b64encode(data).decode("ascii"), left_out


def parsed(text: str) -> Any:
    """The dataset of `header`."""
    from pydicom.filereader import read_dataset

    return read_dataset(io.BytesIO(base64.b64decode(text)), is_implicit_VR=False, is_little_endian=True)


def _written(dataset: Any) -> bytes:
    """b"" if a value cannot be written, or if the whole is too long for the elements of KEPT."""
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset

    stream = DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = False, True
    try:
        keep_bytes(dataset)
        write_dataset(stream, dataset)
    except Exception:
        return b""
    data: bytes = stream.getvalue()
    return data if len(data) <= MAX_BYTES else b""


def _check(element: Any, charset: Any, is_identity: bool) -> None:
    """Raises an error if a value cannot be converted or, except for IDENTITY, does not match its Value
    Representation (PS3.5, 6.2). The element itself is not changed."""
    from pydicom import config
    from pydicom.dataset import Dataset
    from pydicom.valuerep import validate_value

    alone = Dataset()
    if charset and element.tag != CHARACTER_SET:
        alone.SpecificCharacterSet = charset
    keep_bytes(alone)
    alone[element.tag] = element
    converted = alone[element.tag]
    values = converted.value if converted.VM > 1 else [converted.value]
    for value in values if not is_identity else ():
        if value not in (None, ""):
            text = str(value) if converted.VR in ("DS", "IS", "DA", "TM", "DT") else value
            validate_value(converted.VR, text, config.RAISE)
