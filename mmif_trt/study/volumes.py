"""Volumes in a study: all on the MRI's grid, in the viewer's form, with nothing that reveals a method."""

from __future__ import annotations

import re
from typing import Any

from mmif_trt import io
from mmif_trt.image import InputError
from mmif_trt.view import pack, page, triple
from mmif_trt.volume import Options

LEVELS = 4096  # of a grey source
PLANES = ("axial", "coronal", "sagittal")
SEEN = re.compile(r"(\d{1,4}(-\d{1,4})?( |$))*")
MOST = 2000  # characters of what was seen in one plane


def are_volumes(paths: list[str]) -> bool:
    """Whether the files of a study are volumes. Raises InputError if only some are."""
    kinds = {io.format_of(path).is_volume: path for path in reversed(paths)}
    if len(kinds) > 1:
        raise InputError(f"{kinds[True]}: a volume, {kinds[False]}: a picture; expected one kind in a study")
    return True in kinds


def volumes_of(
    paths: dict[str, str], modality: str, ranges: dict[str, tuple[float, float]]
) -> dict[str, bytes]:
    """A case's volumes as pack.to_file makes them, by the keys of paths: mri, other, then methods.

    ranges: black and white by "mri", the modality and "fused"; for defaults see triple.limits_of. Raises
    InputError for volumes that do not overlap.
    """
    read = {key: io.read(path) for key, path in paths.items()}
    for key, image in read.items():
        if not image.is_volume:
            raise InputError(f"{paths[key]}: a picture without geometry; expected a volume")
    if "fused" in ranges:
        for key in [key for key in read if key not in ("mri", "other") and not read[key].is_colour]:
            read[key] = read[key].with_data(read[key].data, value_range=ranges["fused"])
    options = Options(
        modality_b=modality, value_range_a=ranges.get("mri"), value_range_b=ranges.get(modality)
    )
    made: dict[str, bytes] = {}
    for key in (key for key in read if key not in ("mri", "other")):
        found = triple.of_volumes(read["mri"], read["other"], read[key], None, options)
        if not made:
            table = None if found.palette is None else found.palette.tolist()
            made["mri"] = _file(found.a, found.limits_a, "A", None)
            made["other"] = _file(found.b, found.limits_b, "B", table)
        made[key] = _file(found.fused, found.fused.value_range or (0.0, 255.0), "fused", None)
    return made


def _file(image: Any, limits: tuple[float, float], label: str, palette: Any) -> bytes:
    facts = {**page.grid_of(image), "low": limits[0], "high": limits[1], "units": image.units or ""}
    return pack.to_file(pack.pack_of(image, LEVELS), {**facts, "label": label, "palette": palette})


def seen_of(form: dict[str, str]) -> dict[str, str]:
    """Which slices a reader saw, by plane, as "12-40 55", from 1; and the windows. Senseless values are
    left out."""
    found = {}
    for plane in PLANES:
        text = form.get(f"seen_{plane}", "")
        if text and len(text) <= MOST and SEEN.fullmatch(text):
            found[f"seen_{plane}"] = text
    for name in ("window_mri", "window_other"):
        text = form.get(name, "")
        if re.fullmatch(r"-?[\d.]{1,12} to -?[\d.]{1,12}", text):
            found[name] = text
    return found
