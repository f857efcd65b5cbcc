"""What leaves the reading process of a source's header: what DICOM out keeps and refers to, no more."""

from __future__ import annotations

from typing import Any

from mmif_trt.io.dicom.write import KEPT

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
# These say whose picture it is, and in which study: an invalid value goes on as it is, so that the result
# still meets its study in the PACS. Another invalid value is left out.
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
MAX_BYTES = 65_536  # as JSON; a header of KEPT and REFERRED has about 2,000


def header(dataset: Any) -> tuple[str, list[str]]:
    """(the kept elements as DICOM JSON, the keywords that were left out: unreadable or, but for IDENTITY,
    invalid)."""
    from pydicom.dataset import Dataset

    small, left_out = Dataset(), []
    for keyword in (*KEPT, *REFERRED):
        if keyword in dataset:
            try:
                element = dataset[keyword]
                if keyword not in IDENTITY:
                    _check(element)
                small[keyword] = element
            except Exception:  # pydicom raises whatever the bytes lead it to
                left_out.append(keyword)
    if not (text := _json(small)):  # which of them?
        for element in list(small):
            alone = Dataset()
            alone[element.tag] = element
            if not _json(alone):
                left_out.append(element.keyword)
                del small[element.tag]
        text = _json(small)
    return text, left_out


def _json(dataset: Any) -> str:
    """ "" where a value cannot be written, or is longer than any that KEPT names."""
    try:
        text: str = dataset.to_json()
    except Exception:
        return ""
    return text if len(text) <= MAX_BYTES else ""


def _check(element: Any) -> None:
    """Raises ValueError where a value is not of its Value Representation (PS3.5, 6.2)."""
    from pydicom import config
    from pydicom.valuerep import validate_value

    values = element.value if element.VM > 1 else [element.value]
    for value in values:
        if value not in (None, ""):
            text = str(value) if element.VR in ("DS", "IS", "DA", "TM", "DT") else value
            validate_value(element.VR, text, config.RAISE)
