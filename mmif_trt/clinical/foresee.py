"""What a dry run can tell of a case before its pixels are read: by names, first bytes and DICOM headers."""

from __future__ import annotations

import os

from mmif_trt import scratch
from mmif_trt.clinical import staging
from mmif_trt.clinical.case import Case
from mmif_trt.clinical.decoder import Decoder
from mmif_trt.image import InputError
from mmif_trt.io.which import Which
from mmif_trt.storage import is_url

CUT = ("damaged DICOM", "truncated gzipped file")


def fault(case: Case, decoder: Decoder) -> str:
    """Which side will be refused, and why; "" where that is not known yet. Of the files of a series the plan
    tells it, see choice.fault."""
    for side, paths, which in (("a", case.a, case.which_a), ("b", case.b, case.which_b)):
        if len(paths) == 1 and (found := _fault(paths[0], which, decoder)):
            return f"{side} will be refused: {found}"
    return ""


def _fault(path: str, which: Which, decoder: Decoder) -> str:
    if not is_url(path):
        if not os.path.exists(path):
            return "no such file or folder"
        return decoder.foresee(path, which).removeprefix(f"{path}: ")
    with scratch.folder("heads") as folder:
        try:
            local, names = staging.beginnings(path, folder)
        except InputError as error:
            return str(error).removeprefix(f"{path}: ")
        found = decoder.foresee(local, which)
        if any(words in found for words in CUT):  # by us: its header is longer than what was fetched
            return ""
        return staging.named(found.removeprefix(f"{local}: "), names)
