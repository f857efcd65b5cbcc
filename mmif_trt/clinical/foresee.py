"""What a dry run can tell of a case before its files are read: by their names and first bytes."""

from __future__ import annotations

import os
import zlib

from mmif_trt.clinical.case import Case
from mmif_trt.files import open_regular
from mmif_trt.image import InputError
from mmif_trt.io import nifti
from mmif_trt.io.which import Which
from mmif_trt.storage import is_url

HEAD_BYTES = 65_536  # of a gzipped file, to hold a header


def fault(case: Case) -> str:
    """Which of two single files will be refused, and why; "" where that is not known yet. Of a DICOM series
    the plan tells it, see choice.fault."""
    for side, paths, which in (("a", case.a, case.which_a), ("b", case.b, case.which_b)):
        if len(paths) == 1 and not is_url(paths[0]) and (found := _fault(paths[0], which)):
            return f"{side} will be refused: {found}"
    return ""


def _fault(path: str, which: Which) -> str:
    if not os.path.exists(path):
        return "no such file or folder"
    if os.path.isdir(path) or not path.lower().endswith((".nii", ".nii.gz")):
        return ""
    try:
        with open_regular(path) as file:
            nifti.foresee(file.read(HEAD_BYTES), which)
    except InputError as error:
        return str(error)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except zlib.error:
        return "damaged gzip"
    return ""
