"""A derived dataset without its patient: the Basic Profile of PS3.15 table E.1-1, by dicom-anonymizer."""

from __future__ import annotations

from typing import Any

from mmif_trt.io.dicom.write import code


def deidentified(dataset: Any) -> Any:
    """The dataset by the Basic Profile of PS3.15 table E.1-1 (dicom-anonymizer), UIDs replaced.

    A profile on attributes cannot remove a face that can be rendered from the pixels (Recognizable Visual
    Features stays YES).
    """
    from dicomanonymizer import anonymize_dataset
    from dicomanonymizer.simpledicomanonymizer import get_UID

    def replace_references(data: Any, tag: Any) -> None:
        """Action U. The library empties the items of a sequence, which would leave dangling references."""
        for element in data[tag].value:
            for inner in element.iterall():
                if inner.VR == "UI" and "ClassUID" not in inner.keyword:
                    inner.value = get_UID(str(inner.value))

    ours = {
        keyword: dataset[keyword] for keyword in ("ImageComments", "SeriesDescription") if keyword in dataset
    }
    references = {(0x0008, 0x2112): replace_references, (0x0008, 0x1115): replace_references}
    anonymize_dataset(dataset, references)
    for element in dataset.iterall():
        if (
            element.VR == "DA" and element.value == "00010101"
        ):  # the library's dummy, which is not a valid date
            element.value = "19000101"
    for keyword, element in ours.items():  # they contain the label and no patient value
        dataset[keyword] = element
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = "PS3.15 Basic Profile, dicom-anonymizer"
    dataset.DeidentificationMethodCodeSequence = [code("113100", "Basic Application Confidentiality Profile")]
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset
