"""Multi-modality medical image fusion. Research use only: not a medical device.

fuse(a, b) fuses an MRI with a registered CT, PET or SPECT image; Fuser keeps the network loaded between
calls. Names are imported when first used, so that `import mmif_trt` stays quick and needs neither torch nor
OpenVINO.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mmif_trt import privacy
from mmif_trt.about import VERSION as __version__

if TYPE_CHECKING:
    from mmif_trt.fuser import Fuser as Fuser
    from mmif_trt.fuser import fuse as fuse
    from mmif_trt.image import Image as Image
    from mmif_trt.image import InputError as InputError
    from mmif_trt.io import read as read
    from mmif_trt.io import write as write
    from mmif_trt.models import load_model as load_model
    from mmif_trt.samples import sample as sample

privacy.usage_data_off()
_HOME = {
    "fuse": "mmif_trt.fuser",
    "Fuser": "mmif_trt.fuser",
    "Image": "mmif_trt.image",
    "InputError": "mmif_trt.image",
    "read": "mmif_trt.io",
    "write": "mmif_trt.io",
    "sample": "mmif_trt.samples",
    "load_model": "mmif_trt.models",
}
__all__ = ["Fuser", "Image", "InputError", "__version__", "fuse", "load_model", "read", "sample", "write"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mmif_trt' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
