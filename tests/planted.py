"""Values of a patient in 63 fields, each malformed in a way of its own, as careless devices write them."""

from __future__ import annotations

from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

MARK = "ZZPHI"
# What the fusion can do without: all of them wrong at once must not fail a case.
# fmt: off
OPTIONAL = (
    "PatientName", "PatientBirthDate", "PatientSex", "PatientAge", "PatientSize", "PatientWeight",
    "PatientAddress", "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber",
    "ReferringPhysicianName", "PositionReferenceIndicator", "SeriesNumber", "SeriesDescription",
    "SeriesDate", "SeriesTime", "AcquisitionDate", "AcquisitionTime", "ContentDate", "ContentTime",
    "InstanceNumber", "BodyPartExamined", "PatientComments", "OtherPatientIDs", "EthnicGroup", "Occupation",
    "PatientBirthTime", "PatientTelephoneNumbers", "InstitutionName", "OperatorsName", "ProtocolName",
    "StationName", "RequestingPhysician", "AdditionalPatientHistory", "WindowCenter", "WindowWidth",
    "LossyImageCompression", "SmallestImagePixelValue", "EchoTime", "RepetitionTime", "Manufacturer",
)
# fmt: on
# Without these there is no fusion: each gets a message, and none may quote it.
# fmt: off
NEEDED = (
    "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID",
    "FrameOfReferenceUID", "Modality", "ImageType", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "RescaleSlope", "RescaleIntercept", "PhotometricInterpretation", "NumberOfFrames",
    "SpecificCharacterSet", "Units", "DecayCorrection", "CorrectedImage",
    "RadiopharmaceuticalInformationSequence",
)
# fmt: on
WRONG = (
    "{mark}^JOHN 70,5 kg",
    "24.12.1951 {mark}",
    "{mark}\\{mark}\\{mark}",
    "{mark}" + "x" * 300,
    "\x1b[31m{mark}\xff\xfe",
)


def plant(dataset: Any, keyword: str, text: str, vr: str | None = None) -> None:
    """The bytes of `text` as the value, unchecked, as a careless device writes it."""
    tag = Tag(tag_for_keyword(keyword))
    vr = vr or dictionary_VR(tag)
    vr = "LO" if " or " in vr or vr in ("SQ", "US", "SS") else vr
    if vr in ("PN", "LO", "SH", "ST", "LT", "UC", "UT"):  # pydicom writes no text of a broken encoding
        text = text.replace("\x1b", "")
    value = text.encode("ascii", "ignore")
    dataset._dict[tag] = RawDataElement(tag, vr, len(value), value + b" " * (len(value) % 2), 0, False, True)


def plant_all(dataset: Any, keywords: tuple[str, ...] | list[str]) -> None:
    """Each of `keywords` malformed, in each of the ways by turns."""
    for index, keyword in enumerate(keywords):
        plant(dataset, keyword, WRONG[index % len(WRONG)].format(mark=MARK))
