"""What a DICOM instance is, by its SOP class: an image to fuse, or a directory, report, segmentation."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from mmif_trt.image import InputError

ROOT = "1.2.840.10008.5.1.4.1.1"
PRIVATE = r"1\.[23]\.[0-9.]{1,60}"  # the form of vendors' roots; any other text may be anything
DIRECTORY = "1.2.840.10008.1.3.10"
# Objects with pixels that do not show the body: they were drawn on or computed from a picture.
DRAWN = {f"{ROOT}.{end}" for end in ("66.4", "66.5", "66.7", "481.2", "30")}


def sop_class(dataset: Any) -> str:
    meta = getattr(dataset, "file_meta", None)
    uid = dataset.get("SOPClassUID") or (meta.get("MediaStorageSOPClassUID") if meta else "")
    return str(uid or "")


def no_image(dataset: Any, header_only: bool = False) -> str:
    """The kind of an instance that is not an image ("Basic Text SR"); "" for an image, also a truncated one.
    header_only: the pixels were not read."""
    uid = sop_class(dataset)
    pixels = ("PixelData", "FloatPixelData", "DoubleFloatPixelData", *(["Rows"] if header_only else []))
    has_pixels = any(keyword in dataset for keyword in pixels)
    name = _name(uid)
    if uid == DIRECTORY or "DirectoryRecordSequence" in dataset:
        return "DICOM directory (DICOMDIR)"
    if uid in DRAWN or not has_pixels and uid and "Image" not in name:
        return name or f"private object ({uid if re.fullmatch(PRIVATE, uid) else 'unknown class'})"
    return ""


def _name(uid: str) -> str:
    from pydicom.uid import UID

    name = str(UID(uid).name) if re.fullmatch(r"[0-9.]{1,64}", uid) else ""
    return "" if name == uid else name.removesuffix(" Storage")


def is_localizer(dataset: Any) -> bool:
    kind = dataset.get("ImageType") or []
    return "LOCALIZER" in ([kind] if isinstance(kind, str) else list(kind))


def images(datasets: list[Any], name: str) -> tuple[list[Any], tuple[str, ...]]:
    """(the images, a note that counts the other objects). A localizer is no image beside others, as in a
    batch. Raises InputError if there is no image."""
    kinds = [no_image(dataset) for dataset in datasets]
    scouts = [not kind and is_localizer(dataset) for dataset, kind in zip(datasets, kinds, strict=True)]
    if sum(scouts) < kinds.count(""):
        kinds = ["localizer" if scout else kind for scout, kind in zip(scouts, kinds, strict=True)]
    kept = [dataset for dataset, kind in zip(datasets, kinds, strict=True) if not kind]
    others = Counter(kind for kind in kinds if kind)
    if not others:
        return kept, ()
    words = ", ".join(f"{count} x {kind}" for kind, count in sorted(others.items()))
    if not kept:
        raise InputError(f"{name}: {words}, no image; expected images (MR, CT, PET, NM)")
    return kept, (f"ignored: {words}",)


def wanted(dataset: Any, series: str) -> bool:
    """Whether `series` names the dataset's series by UID, number or description, in any case."""
    return series.strip().casefold() in {
        str(dataset.get(key) if dataset.get(key) is not None else "").strip().casefold()
        for key in ("SeriesInstanceUID", "SeriesNumber", "SeriesDescription")
    } - {""}


def series_words(datasets: list[Any]) -> str:
    """The series among datasets by number, description and count, for a user to choose from."""
    counts: Counter[str] = Counter(str(dataset.get("SeriesInstanceUID", "")) for dataset in datasets)
    first = {str(dataset.get("SeriesInstanceUID", "")): dataset for dataset in reversed(datasets)}
    ordered = sorted(first.items(), key=lambda item: (_number(item[1]), item[0]))
    return "; ".join(f"{title(dataset)} ({counts[uid]} files)" for uid, dataset in ordered[:8]) + (
        f"; and {len(ordered) - 8} more" if len(ordered) > 8 else ""
    )


def title(dataset: Any) -> str:
    """ "series 3 't1_mprage'"; the UID if it has neither number nor description."""
    number, words = dataset.get("SeriesNumber"), str(dataset.get("SeriesDescription") or "").strip()
    if number is None and not words:
        return f"series {dataset.get('SeriesInstanceUID', '')}"
    return " ".join(
        ["series", *([str(number)] if number is not None else []), *([repr(words)] if words else [])]
    )


def _number(dataset: Any) -> int:
    try:
        return int(dataset.get("SeriesNumber") or 0)
    except (TypeError, ValueError):
        return 0
