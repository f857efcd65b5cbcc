"""What a caller gives to fuse: its types, and arrays, paths and tensors as Images."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypedDict, TypeVar

import numpy as np

from mmif_trt.image import Image, as_array

ValueRange = tuple[float, float]
if TYPE_CHECKING:  # of fuse's overloads alone
    from mmif_trt.stages.geometry import Stated

    class OnCard(Protocol):  # an array of CuPy or others
        @property
        def __cuda_array_interface__(self) -> Any: ...

    class OfTorch(Protocol):  # a tensor; torch need not be there
        def detach(self) -> Any: ...

    Named: TypeAlias = str | os.PathLike[str] | Image
    Tensor = TypeVar("Tensor", bound=OfTorch)
    Pixels: TypeAlias = np.ndarray | OfTorch | OnCard

    class Given(TypedDict, total=False):
        value_range: ValueRange | None
        value_range_a: ValueRange | None
        value_range_b: ValueRange | None
        plane: str | None
        palette: str | None
        registration: str | os.PathLike[str] | np.ndarray | Stated
        assume_aligned: bool
        modality_b: str | None
        percentiles_a: ValueRange | None
        percentiles_b: ValueRange | None

    class GivenToFuse(Given, total=False):
        runtime: str
        precision: str
        network: str


def as_image(x: Any, name: str, value_range: ValueRange | None) -> Image:
    if isinstance(x, (str, os.PathLike)):
        from mmif_trt.io import read

        x = read(x)
    if isinstance(x, Image):
        return x if value_range is None else x.with_data(x.data, value_range=value_range)
    return Image(as_array(x, name), value_range, source=name)


def as_registration(x: Any, a: Image, b: Image) -> Any:
    from mmif_trt import io
    from mmif_trt.stages import geometry

    if isinstance(x, np.ndarray):
        return geometry.Stated(x)
    if isinstance(x, (str, os.PathLike)) and x not in geometry.REGISTRATIONS and os.path.isfile(x):
        return geometry.Stated(*io.read_registration(x, a, b))
    return x


def as_tensor(fused: Any, like: Any) -> Any:
    """A host array, or one on the GPU without a copy, as a tensor on `like`'s device."""
    import torch  # `like` is a tensor: torch is here

    return torch.as_tensor(fused, device=like.device)
