"""A fused volume to files, atomically: NIfTI (RGB and luma), DICOM, PNG slices, a contact sheet."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from mmif_trt import __version__, io, weights
from mmif_trt.about import RESEARCH_USE
from mmif_trt.clinical import preview
from mmif_trt.files import (
    TMP_SUFFIX,
    OutputError,
    make_folder,
    remove_leftovers,
    sync_folder,
    temporary_prefix,
    write_atomic,
)
from mmif_trt.image import Image, InputError
from mmif_trt.io import raster
from mmif_trt.io.dicom import write as dicom_write
from mmif_trt.io.dicom.deidentify import deidentified
from mmif_trt.running import why
from mmif_trt.stages import geometry
from mmif_trt.volume import Fused, orient

LUMA = "_luma"


def kind_of(path: str) -> str:
    """ "nifti", "dicom", "picture" (of one slice) or "png" (a folder of slices), by the name's suffix. Raises
    InputError for any other."""
    name = path.lower()
    if name.endswith((".nii", ".nii.gz")):
        return "nifti"
    if name.endswith(".dcm"):
        return "dicom"
    suffix = os.path.splitext(name)[1]
    if suffix in io.FORMATS and not io.FORMATS[suffix].is_volume and not os.path.isdir(path):
        return "picture"
    if suffix and not name.endswith(os.sep) and not os.path.isdir(path):
        refuse_picture(path)
    return "png"


def names(path: str) -> list[str]:
    """The files that `save` writes under `path`; for slices, their folder."""
    if kind_of(path) != "nifti":
        return [path]
    end = 7 if path.lower().endswith(".nii.gz") else 4
    return [path, f"{path[:-end]}{LUMA}{path[-end:]}"]


def refuse_picture(path: str) -> NoReturn:
    raise InputError(f"{path}: expected .nii, .nii.gz, .dcm or a folder (of PNG slices) for a volume")


def save(
    path: str, fused: Fused, a: Image, b: Image, *, burn_in: bool = False, deidentify: bool = False
) -> list[str]:
    """Writes `fused` under `path`, see kind_of; returns the files. burn_in, deidentify: of DICOM."""
    kind = kind_of(path)
    if kind == "nifti":
        _, luma = names(path)
        was_there = os.path.exists(luma)
        io.write(luma, fused.luma)  # the RGB last: once it exists, all files do
        try:
            io.write(path, fused.image)
        except OutputError:
            if not was_there:
                os.unlink(luma)
            raise
        return [path, luma]
    if kind == "dicom":
        write_atomic(
            path, dicom_write.encode(dataset_of(fused, a, b, burn_in=burn_in, deidentify=deidentify))
        )
        return [path]
    if kind == "picture":
        slices = displayed(fused)
        if len(slices.data) > 1:
            refuse_picture(path)
        io.write(path, _slice(slices, 0))
        return [path]
    return _save_slices(Path(path), displayed(fused))


def _save_slices(folder: Path, picture: Image) -> list[str]:
    """slice_0001.png and so on, in a folder that gets its name once all are in it. Of two runs at once, the
    second to end is refused."""
    make_folder(folder.parent)
    remove_leftovers(folder.parent)
    unfinished = folder.with_name(f"{temporary_prefix()}{secrets.token_hex(8)}{TMP_SUFFIX}")
    names = [f"slice_{index + 1:04}.png" for index in range(len(picture.data))]
    try:
        unfinished.mkdir()
        for index, name in enumerate(names):
            io.write(unfinished / name, _slice(picture, index))
        sync_folder(unfinished)
        os.replace(unfinished, folder)  # replaces an empty folder too, but never one with files
        sync_folder(folder.parent)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be written ({why(error)}); expected a new or empty folder, with room"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return [str(folder / name) for name in names]


def _slice(volume: Image, index: int) -> Image:
    plane = np.ascontiguousarray(volume.data[index])
    return Image(plane, volume.value_range, source=volume.source, label=volume.label)


def displayed(fused: Fused) -> Image:
    """The fused volume as slices of its plane, in the radiologist's order."""
    assert fused.image.affine is not None
    data, affine = orient(fused.image.data, fused.image.affine, fused.plane)
    return replace(fused.image, data=data, affine=affine)


def dataset_of(fused: Fused, a: Image, b: Image, *, burn_in: bool = False, deidentify: bool = False) -> Any:
    """The derived DICOM dataset; patient and study are those of a, or of b if only b is DICOM."""
    record = fused.record
    registration = record["registration"]
    by = weights.title(fused.network)
    words = [
        f"mmif_trt {__version__}: luma fused by {by} from MRI and {b.modality or 'a second volume'}",
        f"registration {registration['registration']}, shift {registration['shift_mm']} mm",
        *geometry.doubts(record["b"]["notes"]),
        *(f"{side} limits {record[side]['limits']} ({record[side]['limits_from']})" for side in "ab"),
        f"palette {record['palette']['name'] if record['palette'] else 'none'}, plane {record['plane']}",
    ]
    dataset = dicom_write.derived(
        displayed(fused),
        [*a.headers, *b.headers],
        description=f"FUSED MRI+{(b.modality or 'second').upper()}",
        derivation="; ".join(words),
        version=__version__,
        weights_sha256=weights.onnx_sha256(fused.network),
        # A checksum identifies the source for whoever has it, so a de-identified object has none.
        sources_sha256="" if deidentify else dict(fused.image.label)["Source"],
        burn_in=burn_in,
    )
    return deidentified(dataset) if deidentify else dataset


def doubt(record: dict[str, Any]) -> str:
    """Why the registration in a case's record may be wrong, or ""."""
    b = record.get("b")
    notes = b.get("notes") if isinstance(b, dict) else None
    return "; ".join(geometry.doubts(notes)) if isinstance(notes, list) else ""


def save_preview(path: str, fused: Fused) -> None:
    drawn = preview.sheet(displayed(fused), f"mmif_trt {__version__}, {fused.plane}")
    write_atomic(path, raster.png.labelled(drawn, fused.image.label))


def report_of(fused: Fused, files: list[str]) -> bytes:
    head = {"mmif_trt": __version__, "use": RESEARCH_USE, "weights": weights.in_use(fused.network)}
    return (json.dumps({**head, **fused.record, "files": files}, indent=1) + "\n").encode()
