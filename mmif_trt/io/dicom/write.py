"""A fused volume as DICOM: one multi-frame Secondary Capture in the study of its sources, by pydicom.

Why this SOP class: its IOD allows colour with the geometry of every frame (Multi-frame True Color SC has the
Pixel Measures, Plane Position and Plane Orientation macros), single-frame SC has no plane, and no modality's
own class allows RGB. One instance also means that a series is never incomplete. CT without a palette is grey:
Multi-frame Grayscale Word SC.
"""

from __future__ import annotations

import hashlib
import io
from datetime import datetime, timezone
from typing import Any

import cv2
import numpy as np

from mmif_trt.image import RAS_LPS, Image, InputError, letter_of
from mmif_trt.io.dicom.stack import RIGHT_ANGLE

COLOUR_SC = "1.2.840.10008.5.1.4.1.1.7.4"
GREY_SC = "1.2.840.10008.5.1.4.1.1.7.3"
LABEL = "RESEARCH USE ONLY"
MARK = "mmif_trt fusion - research use only, not for diagnosis"
SERIES_NUMBER = 9000  # plus that of a
# Patient, study and clinical context, unchanged from the source (PS3.3 C.7.1.1, C.7.2.1, C.7.2.2).
KEPT = (
    "SpecificCharacterSet",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "StudyDescription",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PositionReferenceIndicator",
)
TEXT = {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UI"}
REQUIRED_EMPTY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
)


def derived(
    image: Image,
    sources: list[Any],
    *,
    description: str,
    derivation: str,
    version: str,
    weights_sha256: str,
    sources_sha256: str = "",
    burn_in: bool = False,
) -> Any:
    """The dataset of `image`, a volume in display order: RGB uint8 or grey uint16.

    sources: the headers of every source instance, those of the one whose patient and study are kept first.
    description: of the series. derivation: Derivation Description, what was done. sources_sha256: of the
    source files, as text. burn_in: write MARK into the pixels. UIDs are new, but the same for the same
    sources, texts and weights: a run repeated after a crash makes no second series. Raises InputError if no
    source is DICOM, and for slices without right angles.
    """
    if not sources:
        raise InputError(
            f"{image.source}: no DICOM among the sources; expected at least one, for its patient and study"
        )
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    dataset, first = Dataset(), sources[0]
    for keyword in KEPT:
        if (element := as_stored(first, keyword)) is not None:
            dataset[element.tag] = element
    for keyword in (
        *REQUIRED_EMPTY,
        "AccessionNumber",
        "ReferringPhysicianName",
        "PositionReferenceIndicator",
    ):
        if keyword not in dataset:
            setattr(dataset, keyword, "")
    _identity(dataset, image, sources, f"{derivation}{version}{weights_sha256}{burn_in}")
    _what_it_is(dataset, sources, description, derivation, burn_in)
    _equipment(dataset, version, weights_sha256, sources_sha256)
    _geometry(dataset, image)
    _pixels(dataset, image, burn_in)
    keep_bytes(dataset)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def as_stored(dataset: Any, keyword: str) -> Any:
    """A text element with its bytes as read, for a dataset of explicit VR; None if absent. The bytes stay
    undecoded: decoding would replace those outside the declared character set.

    Raises ValueError for a value that is not text.
    """
    from pydicom.datadict import dictionary_VR

    element = dataset.get_item(keyword) if keyword in dataset else None
    if element is None or not element.is_raw:
        return element
    vr = element.VR if element.VR not in (None, "UN") else dictionary_VR(element.tag)
    value = element.value or b""
    if vr not in TEXT or len(value) > 65_534:  # a 16-bit length
        raise ValueError(keyword)
    return element._replace(VR=vr, length=len(value), value=value, is_implicit_VR=False)


def keep_bytes(dataset: Any) -> None:
    """Tells pydicom that the dataset is already explicit little endian, in its own character set: then
    elements that were read and not decoded are written byte for byte."""
    dataset.set_original_encoding(False, True, dataset._character_set)


def encode(dataset: Any) -> bytes:
    """The bytes of a PS3.10 file."""
    import pydicom

    stream = io.BytesIO()
    pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def _identity(dataset: Any, image: Image, sources: list[Any], settings: str) -> None:
    from pydicom.uid import generate_uid

    uids = sorted(str(source.SOPInstanceUID) for source in sources)
    text = "\n".join([*uids, settings, hashlib.sha256(image.data.tobytes()).hexdigest()])
    dataset.SOPClassUID = COLOUR_SC if image.is_colour else GREY_SC
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=["instance", text])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["series", text])
    dataset.FrameOfReferenceUID = image.frame or generate_uid(entropy_srcs=["frame", text])
    now = datetime.now(timezone.utc).astimezone()
    for what in ("InstanceCreation", "Content", "Series"):
        setattr(dataset, f"{what}Date", now.strftime("%Y%m%d"))
        setattr(dataset, f"{what}Time", now.strftime("%H%M%S"))
    dataset.TimezoneOffsetFromUTC = now.strftime("%z")
    dataset.SeriesNumber = SERIES_NUMBER + min(int(sources[0].get("SeriesNumber") or 0), 9999)
    dataset.InstanceNumber = 1


def code(value: str, meaning: str, scheme: str = "DCM") -> Any:
    from pydicom.dataset import Dataset

    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def _what_it_is(dataset: Any, sources: list[Any], description: str, derivation: str, burn_in: bool) -> None:
    from pydicom.dataset import Dataset

    dataset.Modality, dataset.ConversionType = "OT", "WSD"
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.SeriesDescription = f"{description} {LABEL}"[:64]
    dataset.ImageComments = MARK
    dataset.DerivationDescription = derivation[:1024]
    # CID 7203 has no code for fusion and may be extended.
    fusion = code("FUSION", "Multi-modality image fusion", "99MMIF")
    dataset.DerivationCodeSequence = [code("113085", "Spatial resampling"), fusion]
    dataset.BurnedInAnnotation = "YES" if burn_in else "NO"
    dataset.RecognizableVisualFeatures = "YES"  # a head in thin slices can be rendered to a face
    lossy = any(str(source.get("LossyImageCompression", "00")) == "01" for source in sources)
    dataset.LossyImageCompression = "01" if lossy else "00"
    if known := _lossy_steps(sources):  # PS3.3 C.7.6.1.1.5: the highest ratio of each method
        dataset.LossyImageCompressionMethod = list(known)
        dataset.LossyImageCompressionRatio = [f"{ratio:g}" for ratio in known.values()]
    by_series: dict[str, list[Any]] = {}
    references = []
    for source in sources:
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = (
            source.SOPClassUID,
            source.SOPInstanceUID,
        )
        by_series.setdefault(str(source.SeriesInstanceUID), []).append(reference)
        with_purpose = Dataset()
        with_purpose.update(reference)
        purpose = code("121322", "Source image for image processing operation")
        with_purpose.PurposeOfReferenceCodeSequence = [purpose]
        references.append(with_purpose)
    dataset.SourceImageSequence = references
    dataset.ReferencedSeriesSequence = []
    for uid, instances in by_series.items():
        item = Dataset()
        item.SeriesInstanceUID, item.ReferencedInstanceSequence = uid, instances
        dataset.ReferencedSeriesSequence.append(item)


def _lossy_steps(sources: list[Any]) -> dict[str, float]:
    """Method -> the highest ratio of the lossy sources that state both."""
    steps: dict[str, float] = {}
    for source in sources:
        methods, ratios = (
            [value] if isinstance(value, str | int | float) else list(value or [])
            for value in (source.get("LossyImageCompressionMethod"), source.get("LossyImageCompressionRatio"))
        )
        for method, ratio in zip(methods, ratios, strict=False):
            steps[str(method)] = max(steps.get(str(method), 0.0), float(ratio))
    return steps


def _equipment(dataset: Any, version: str, weights_sha256: str, sources_sha256: str) -> None:
    from pydicom.dataset import Dataset

    dataset.Manufacturer = dataset.ManufacturerModelName = "mmif_trt"
    dataset.SoftwareVersions = version
    dataset.DeviceSerialNumber = weights_sha256[:16]
    dataset.SecondaryCaptureDeviceManufacturer = "mmif_trt"
    dataset.SecondaryCaptureDeviceSoftwareVersions = version
    used = Dataset()
    used.Manufacturer = used.ManufacturerModelName = "mmif_trt"
    used.SoftwareVersions = version
    made_of = f"; {sources_sha256}" if sources_sha256 else ""
    used.ContributionDescription = f"image fusion, weights sha256 {weights_sha256}{made_of}; {LABEL}"
    used.ContributionDateTime = f"{dataset.ContentDate}{dataset.ContentTime}"
    used.PurposeOfReferenceCodeSequence = [code("109102", "Processing Equipment")]
    dataset.ContributingEquipmentSequence = [used]


def _geometry(dataset: Any, image: Image) -> None:
    from pydicom.dataset import Dataset

    assert image.affine is not None
    lps = (RAS_LPS @ image.affine)[:3]
    spacing = np.linalg.norm(lps[:, :3], axis=0)
    row, column = lps[:, 2] / spacing[2], lps[:, 1] / spacing[1]
    if abs(row @ column) >= RIGHT_ANGLE:  # PS3.3 C.7.6.2.1.1 knows no such slice, and no viewer shows it
        raise InputError(
            f"{image.source}: a sheared grid (gantry tilt, affine registration), whose slices along this "
            "plane have no right angles; expected another --plane for DICOM, or NIfTI"
        )
    pitch = abs(float(lps[:, 0] @ np.cross(row, column)))
    measures, orientation, shared = Dataset(), Dataset(), Dataset()
    letters = [letter_of(image.affine[:3, axis]) for axis in (2, 1)]
    dataset.PatientOrientation = [{"S": "H", "I": "F"}.get(letter, letter) for letter in letters]
    measures.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[2])]
    measures.SliceThickness = measures.SpacingBetweenSlices = _decimal(pitch)
    orientation.ImageOrientationPatient = [_decimal(x) for x in (*row, *column)]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    dataset.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for index in range(image.data.shape[0]):
        position, group = Dataset(), Dataset()
        position.ImagePositionPatient = [_decimal(x) for x in lps[:, 3] + index * lps[:, 0]]
        group.PlanePositionSequence = [position]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    dataset.NumberOfFrames = len(groups)
    if len(groups) > 1:
        dataset.FrameIncrementPointer = 0x00182005  # Slice Location Vector
        dataset.SliceLocationVector = [_decimal(index * pitch) for index in range(len(groups))]


def _decimal(value: float) -> str:
    """A DS of at most 16 characters; minus zero is zero."""
    return f"{float(value) + 0.0:.10f}"[:16].rstrip("0").rstrip(".") if abs(value) > 1e-10 else "0"


def _pixels(dataset: Any, image: Image, burn_in: bool) -> None:
    data = np.ascontiguousarray(image.data)
    if data.dtype != (np.uint8 if image.is_colour else np.uint16):
        raise InputError(f"{image.source}: {data.dtype}; expected RGB uint8 or grey uint16")
    if burn_in:
        data = np.stack([marked(plane) for plane in data])
    dataset.Rows, dataset.Columns = data.shape[1:3]
    bits = data.dtype.itemsize * 8
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = (
        bits,
        bits,
        bits - 1,
        0,
    )
    if image.is_colour:
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    else:
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "0", "1", "US"
        dataset.PresentationLUTShape = "IDENTITY"
        dataset.WindowCenter, dataset.WindowWidth = "32768", "65536"
    pixels = data.astype(data.dtype.newbyteorder("<")).tobytes()
    dataset.PixelData = pixels + b"\0" * (len(pixels) % 2)
    dataset["PixelData"].VR = "OB" if image.is_colour else "OW"


def marked(plane: np.ndarray) -> np.ndarray:
    """A copy with LABEL at the bottom, white on black; one word per line if a slice is narrow."""
    out = np.ascontiguousarray(plane).copy()
    height, width = out.shape[:2]
    font, white = cv2.FONT_HERSHEY_PLAIN, float(np.iinfo(out.dtype).max)
    lines = [LABEL] if width >= 160 else LABEL.split()
    widest = max(cv2.getTextSize(line, font, 1.0, 1)[0][0] for line in lines)
    scale = min(1.0, 0.95 * width / widest)
    pitch = round(12 * scale) + 3
    out[max(0, height - len(lines) * pitch - 2) :] = 0
    for index, line in enumerate(reversed(lines)):
        cv2.putText(out, line, (1, height - 2 - index * pitch), font, scale, (white,) * 3, 1, cv2.LINE_8)
    return out
