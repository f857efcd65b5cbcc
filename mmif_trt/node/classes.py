"""The SOP classes and transfer syntaxes in which a study may come from a PACS (PS3.4, annex C)."""

from __future__ import annotations

from typing import Any

from mmif_trt.io.dicom.syntaxes import readable

HTJ2K = "1.2.840.10008.1.2.4.20"  # its syntaxes begin so; still rare, they share a context
MAX_CONTEXTS = 128  # of an association (PS3.8, 9.3.2.2)
# What a study with images of the head may hold. The first are compressed in most archives.
# fmt: off
MAIN = (
    "MRImageStorage", "CTImageStorage", "PositronEmissionTomographyImageStorage",
    "NuclearMedicineImageStorage", "EnhancedMRImageStorage", "EnhancedCTImageStorage",
    "SecondaryCaptureImageStorage",
)
OTHER_IMAGES = (
    "EnhancedMRColorImageStorage", "EnhancedPETImageStorage", "LegacyConvertedEnhancedCTImageStorage",
    "LegacyConvertedEnhancedMRImageStorage", "LegacyConvertedEnhancedPETImageStorage",
    "MultiFrameGrayscaleByteSecondaryCaptureImageStorage",
    "MultiFrameGrayscaleWordSecondaryCaptureImageStorage", "MultiFrameTrueColorSecondaryCaptureImageStorage",
    "ComputedRadiographyImageStorage", "UltrasoundImageStorage",
)
# The PACS counts as failed what it may not send, or sends nothing more: one dose report, and a study would
# be incomplete.
BESIDE = (
    "SpatialRegistrationStorage", "DeformableSpatialRegistrationStorage", "BasicTextSRStorage",
    "EnhancedSRStorage", "ComprehensiveSRStorage", "XRayRadiationDoseSRStorage",
    "RadiopharmaceuticalRadiationDoseSRStorage", "KeyObjectSelectionDocumentStorage",
    "GrayscaleSoftcopyPresentationStateStorage", "ColorSoftcopyPresentationStateStorage",
    "SegmentationStorage", "RTStructureSetStorage", "RawDataStorage", "MRSpectroscopyStorage",
    "EncapsulatedPDFStorage", "ParametricMapStorage", "BlendingSoftcopyPresentationStateStorage",
    "PseudoColorSoftcopyPresentationStateStorage", "SurfaceSegmentationStorage",
    "RealWorldValueMappingStorage", "RTDoseStorage", "RTPlanStorage",
)
PRIVATE = (
    "1.3.12.2.1107.5.9.1",  # Siemens CSA Non-Image
    # Philips MR Spectrum, Series Data, Color Image, Examcard
    *(f"1.3.46.670589.11.0.0.12.{number}" for number in (1, 2, 3, 4)),
)
# fmt: on


def syntaxes() -> list[str]:
    """Uncompressed ones first. Not deflated: what arrives may be a bomb, and every peer can send it plainly
    (PS3.5, 10.1)."""
    return [str(x) for x in readable() if not x.is_deflated]


def accept(ae: Any, syntaxes: list[str]) -> None:
    """Storage of every class, PRIVATE too: many a sender ends its association at the first object that is not
    accepted, and the images behind it never come."""
    from pynetdicom import AllStoragePresentationContexts, register_uid
    from pynetdicom.service_class import StorageServiceClass

    for number, uid in enumerate(PRIVATE):  # otherwise pynetdicom ends the association
        register_uid(uid, f"PrivateStorage{number}", StorageServiceClass)
    for one in (*(context.abstract_syntax for context in AllStoragePresentationContexts), *PRIVATE):
        ae.add_supported_context(one, syntaxes)


def to_get(others: int) -> list[tuple[str, list[str]]]:
    """(SOP class, syntaxes) of each context that an association with so many others offers for C-GET.

    The PACS accepts one syntax per context: where it cannot decompress what it has stored, that syntax needs
    a context of its own. The first of a class has all of them, for a PACS that uses no other.
    """
    from pydicom import uid

    main, images, beside = (
        [str(getattr(uid, name)) for name in names] for names in (MAIN, OTHER_IMAGES, BESIDE)
    )
    packed = [x for x in syntaxes() if uid.UID(x).is_compressed]
    newest = [x for x in packed if x.startswith(HTJ2K)]
    plain = [x for x in syntaxes() if x not in packed]
    contexts = [
        *((one, syntaxes()) for one in (*main, *images)),
        *((one, plain) for one in (*beside, *PRIVATE, *main)),
        *((one, [syntax]) for syntax in packed if syntax not in newest for one in main),
        *((one, newest) for one in main if newest),
    ]
    return contexts[: MAX_CONTEXTS - others]
