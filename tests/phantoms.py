"""A head that exists as a function of millimetres, and the files that real encoders make of it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

SOP = {
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "PT": "1.2.840.10008.5.1.4.1.1.128",
}
PLANTED = {"PatientName": "Müller^Zoë", "PatientID": "PLANTED-4711", "PatientBirthDate": "19511224"}
STUDY = "1.2.826.0.1.3680043.8.498.4711.1"
FRAME = "1.2.826.0.1.3680043.8.498.4711.2"
RIGHT_MM, HOT_MM = np.array([38.0, 10, 5]), np.array([-30.0, -12, 14])  # RAS+: right of the middle, left


def head(points: np.ndarray) -> np.ndarray:
    """Values 0..1000 at RAS+ mm [..., 3]: an ellipsoid without any symmetry, with inner parts."""

    def blob(centre: Any, radii: Any) -> np.ndarray:
        inside: np.ndarray = 1 / (1 + np.exp(6 * (np.linalg.norm((points - centre) / radii, axis=-1) - 1)))
        return inside

    values = 350 * blob((0, 0, 0), (62, 78, 55)) + 300 * blob(RIGHT_MM, (12, 14, 10))
    values += 250 * blob((-10, 42, 15), (14, 8, 16)) - 200 * blob((5, -20, -12), (10, 22, 9))
    return np.asarray(values + 100 * blob((0, -30, 35), (20, 12, 8)))


def uptake(points: np.ndarray) -> np.ndarray:
    """0..1000: the head, faintly, and one hot spot at the patient's left."""
    hot = np.exp(-(((points - HOT_MM) / 8) ** 2).sum(axis=-1))
    return np.asarray(0.3 * head(points) + 700 * hot)


def grid(affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """RAS+ mm [S, R, C, 3] of every voxel."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return np.asarray(index @ affine[:3, :3].T + affine[:3, 3])


def affine_of(
    orientation: str = "SPL",
    spacing: tuple[float, float, float] = (5.0, 3.0, 3.0),
    shape: tuple[int, int, int] = (24, 60, 48),
    turn_deg: tuple[float, float, float] = (0, 0, 0),
    tilt: float = 0.0,
    middle: tuple[float, float, float] = (0, 0, 0),
) -> np.ndarray:
    """(slice, row, column) to RAS+ mm, the grid's middle at `middle`. tilt: row mm that each slice slips."""
    axes = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    columns = np.array([axes[letter] for letter in orientation], float).T
    for axis, angle in enumerate(np.radians(turn_deg)):
        i, j = [k for k in range(3) if k != axis]
        rotation = np.eye(3)
        rotation[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        columns = rotation @ columns
    affine = np.eye(4)
    affine[:3, :3] = columns * spacing
    affine[:3, 0] += tilt * columns[:, 1]
    affine[:3, 3] = np.array(middle) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def slices(
    values: np.ndarray, affine: np.ndarray, modality: str = "MR", *, series: str | None = None, **tags: Any
) -> list[Dataset]:
    """One dataset per slice: 16-bit, rescaled for CT and PET, with patient and study planted."""
    intercept = -1024.0 if modality == "CT" else 0.0
    series, lps = series or generate_uid(), np.diag([-1.0, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    row, column = lps[:3, 2] / spacing[2], lps[:3, 1] / spacing[1]
    out = []
    for i, plane in enumerate(values):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SpecificCharacterSet = "ISO_IR 192"
        dataset.SOPClassUID, dataset.SOPInstanceUID = SOP[modality], generate_uid()
        dataset.update(dict.fromkeys(()))
        for keyword, value in (PLANTED | {"PatientSex": "F"}).items():
            setattr(dataset, keyword, value)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = (
            STUDY,
            series,
            FRAME,
        )
        dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = "20260102"
        dataset.StudyTime = dataset.SeriesTime = dataset.AcquisitionTime = "100000"
        dataset.StudyID, dataset.AccessionNumber, dataset.Modality = "1", "ACC-PLANTED", modality
        dataset.SeriesNumber, dataset.InstanceNumber = {"MR": 1, "CT": 2, "PT": 3}[modality], i + 1
        dataset.Manufacturer, dataset.ImageType = "phantom", ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.ReferringPhysicianName = dataset.PositionReferenceIndicator = ""
        where = lps[:3, 3] + i * lps[:3, 0]
        dataset.ImagePositionPatient = [f"{x:.6f}" for x in where]
        dataset.ImageOrientationPatient = [f"{x:.9f}" for x in (*row, *column)]
        dataset.PixelSpacing = [f"{spacing[1]:.6f}", f"{spacing[2]:.6f}"]
        dataset.SliceThickness = f"{spacing[0]:.6f}"
        dataset.Rows, dataset.Columns = plane.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = (
            16,
            16,
            15,
            0,
        )
        if modality in ("CT", "PT"):
            dataset.RescaleSlope, dataset.RescaleIntercept = "1", str(intercept)
        if modality == "MR":
            dataset.WindowCenter, dataset.WindowWidth = "500", "1000"
            dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions = "SE", "NONE", ""
            dataset.MRAcquisitionType, dataset.EchoTime, dataset.EchoTrainLength = "2D", "10", "1"
        if modality == "PT":
            pet_tags(dataset)
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)
        dataset.PixelData = np.rint(plane - intercept).astype("<u2").tobytes()
        out.append(dataset)
    return out


def pet_tags(dataset: Dataset) -> None:
    """FDG: half of the dose left at the scan, 70 kg: SUVbw = BQML * 70000 / 200e6."""
    dose = Dataset()
    dose.RadiopharmaceuticalStartTime = "081013"
    dose.RadionuclideTotalDose, dose.RadionuclideHalfLife = "400000000", "6587"
    dataset.RadiopharmaceuticalInformationSequence = [dose]
    dataset.Units, dataset.DecayCorrection = "BQML", "START"
    dataset.CorrectedImage, dataset.PatientWeight = ["ATTN", "DECY"], "70"


def encoded(dataset: Dataset) -> bytes:
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def write_series(folder: Path, datasets: list[Dataset]) -> Path:
    """Files in the reverse order, with names that say nothing: the geometry gives the order."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, dataset in enumerate(reversed(datasets)):
        (folder / f"{dataset.Modality}{i:04}").write_bytes(encoded(dataset))
    return folder


def write_mr(
    folder: Path, affine: np.ndarray, shape: tuple[int, int, int] = (24, 60, 48), **tags: Any
) -> Path:
    return write_series(folder, slices(head(grid(affine, shape)), affine, **tags))


def write_pet(
    folder: Path, affine: np.ndarray, shape: tuple[int, int, int] = (20, 40, 40), **tags: Any
) -> Path:
    """Up to about SUV 8."""
    return write_series(folder, slices(20 * uptake(grid(affine, shape)), affine, "PT", **tags))


def write_nifti(path: Path, values: np.ndarray, affine: np.ndarray, dtype: str = "<f4") -> Path:
    """values [S, R, C] with our affine, stored as nibabel would: (column, row, slice)."""
    nibabel.Nifti1Image(values.T.astype(dtype), affine[:, [2, 1, 0, 3]]).to_filename(path)
    return path


def write_registration(
    path: Path, frame: str, items: list[tuple[Any, list[np.ndarray]]], **tags: Any
) -> Path:
    """A Spatial Registration into `frame`. items: (a frame, or the UIDs of images; LPS matrices of it)."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.66.1", generate_uid()
    dataset.SpecificCharacterSet, dataset.PatientSex = "ISO_IR 192", "F"
    for keyword, value in PLANTED.items():
        setattr(dataset, keyword, value)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = STUDY, generate_uid()
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = frame, ""
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = "20260102"
    dataset.StudyTime = dataset.SeriesTime = dataset.ContentTime = "110000"
    dataset.StudyID, dataset.AccessionNumber, dataset.ReferringPhysicianName = "1", "ACC-PLANTED", ""
    dataset.Modality, dataset.SeriesNumber, dataset.InstanceNumber = "REG", 9, 1
    dataset.Manufacturer = dataset.ManufacturerModelName = "phantom"
    dataset.DeviceSerialNumber, dataset.SoftwareVersions = "1", "1"
    dataset.Laterality = ""
    dataset.ContentLabel, dataset.ContentDescription, dataset.ContentCreatorName = "REG", "", ""
    dataset.RegistrationSequence = []
    for of, matrices in items:
        item, registration = Dataset(), Dataset()
        if isinstance(of, str):
            item.FrameOfReferenceUID = of
        else:
            item.ReferencedImageSequence = []
            for uid in of:
                image = Dataset()
                image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = SOP["PT"], uid
                item.ReferencedImageSequence.append(image)
        registration.RegistrationTypeCodeSequence, registration.MatrixSequence = [], []
        for matrix in matrices:
            part = Dataset()
            part.FrameOfReferenceTransformationMatrixType = "RIGID"
            part.FrameOfReferenceTransformationMatrix = [f"{x:.10f}"[:16] for x in matrix.ravel()]
            registration.MatrixSequence.append(part)
        item.MatrixRegistrationSequence = [registration]
        dataset.RegistrationSequence.append(item)
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    path.write_bytes(encoded(dataset))
    return path
