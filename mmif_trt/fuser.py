"""fuse(a, b) and Fuser: the only place that knows the order of the stages (volume.py: that of volumes)."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from mmif_trt import label, runtimes
from mmif_trt.given import ValueRange, as_image, as_registration, as_tensor
from mmif_trt.image import DTYPE_RANGE, CardImage, Image, InputError, Picture, as_array, is_tensor
from mmif_trt.stages import colour, normalise, tiling

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from mmif_trt.given import Given, GivenToFuse, Named, OnCard, Pixels, Tensor
    from mmif_trt.stages.geometry import Stated
    from mmif_trt.volume import Fused, Options

_WIDTH = list(DTYPE_RANGE)  # uint8 < uint16 < float32: the result has the wider type
_loading: dict[int, threading.Lock] = {}  # per process: a fork may copy one that another thread holds


class Fuser:
    """The network, loaded once. May be called from several threads at once; same input, same output.

    runtime: "auto", "tensorrt" (NVIDIA card), "openvino" (CPU) or "torch" (CPU or CUDA). precision: "auto",
    "fp32", "bf16" or (TensorRT) "fp16".
    threads: CPU threads of the network; None: all. streams: pictures at a time, which share the threads (more
    pictures per second for several callers, longer latency for each; the same results). `fuser.runtime` says
    what was chosen. A Fuser can be pickled: the other process loads its own network. A forked
    child has to make its own; `fuse` does.
    network: "lagn", or "lagn-quality", a finer and slower one.
    Raises InputError for a runtime or precision that is unknown or unavailable here, and says why; and for an
    unknown network.
    """

    def __init__(
        self,
        runtime: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        streams: int = 1,
        network: str = "lagn",
    ) -> None:
        self._asked = (runtime, precision, threads, streams, network)
        self._load()

    def _load(self) -> None:
        self._runtime, self._process = runtimes.load(*self._asked), os.getpid()
        self.network = self._asked[-1]

    @property
    def runtime(self) -> runtimes.Runtime:
        """What runs the network. Raises InputError in a forked process: the threads exist only in the parent,
        and the child would wait for them for ever."""
        if self._process != os.getpid():
            raise InputError(
                f"a Fuser (runtime {self._runtime.name!r}) made before a fork; expected one made in each "
                "process, or multiprocessing's start method 'spawn', for which a Fuser pickles"
            )
        return self._runtime

    @runtime.setter
    def runtime(self, runtime: runtimes.Runtime) -> None:
        self._runtime, self._process = runtime, os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"asked": self._asked}  # the other process loads its own network

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._asked = state["asked"]
        self._load()

    def takes_on_card(self, a: tuple[int, ...], b: tuple[int, ...]) -> bool:
        """Does `fuse_images` take `CardImage`s of these shapes?"""
        takes = getattr(self.runtime, "takes_on_card", None)  # only TensorRT has one
        return takes is not None and takes(a, b)

    def fuse_images(self, a: Picture, b: Picture) -> Image:
        """a: the MRI, grey. b: CT, PET or SPECT of the same size, grey or RGB -> fused, RGB where b is RGB.

        The result has the wider dtype of the two (uint8, uint16, float32) and that source's value range (a's
        where both have it). Luma (BT.601) is fused, chroma is b's, inside the RGB gamut. Where both sources
        are black the result is exactly black. Two `CardImage`s are fused on the GPU, where all of this holds.
        Raises InputError for unequal sizes, for an `a` in colour, and for anything but pictures.
        """
        for name, image in (("a", a), ("b", b)):
            if not isinstance(image, Image | CardImage):
                kind = type(image).__name__
                raise InputError(f"{name}: {kind}; expected an mmif_trt.Image; for arrays: Fuser()(a, b)")
            if isinstance(image, Image) and image.is_volume:
                raise InputError(f"{image.source}: a volume; expected a picture, or fuse_volumes(a, b)")
        if a.size != b.size:
            raise InputError(
                f"{a.source} is {a.size[0]} x {a.size[1]} px and {b.source} is {b.size[0]} x {b.size[1]} px; "
                "expected registered images of equal size"
            )
        if isinstance(a, CardImage) and isinstance(b, CardImage):
            on_card: Any = self.runtime
            pixels = on_card.fuse_on_card(a.pixels, b.pixels, a.value_range, b.value_range, to_host=True)
            value_range = a.value_range
        else:
            assert isinstance(a, Image) and isinstance(b, Image), "a decoder leaves both on the card, or none"
            pixels, value_range = self._pixels(a, b)
        source, how = f"{a.source} + {b.source}", label.of(a, b, self.network)
        return a.with_data(
            pixels, value_range=value_range, modality=None, source=source, sha256="", label=how
        )

    def _pixels(self, a: Image, b: Image) -> tuple[np.ndarray, ValueRange]:
        """The fused pixels, and their black and white."""
        unit_a, unit_b = _grey_unit(a), normalise.to_unit(b)
        y = tiling.run(self.runtime.infer, unit_a, colour.planes(unit_b))
        fused = colour.recombine(y, unit_b) if b.is_colour else y
        like = max((a, b), key=lambda image: _WIDTH.index(image.data.dtype.name))  # the first if equal
        assert like.value_range is not None
        native = np.dtype(like.data.dtype.name)  # in byte order
        return normalise.from_unit(fused, native, like.value_range), like.value_range

    def fuse_volumes(
        self,
        a: Image,
        b: Image,
        options: Options | None = None,
        on_slice: Callable[[int, int], object] = lambda done, slices: None,
    ) -> Fused:
        """a: the MRI volume, b: CT, PET or SPECT in its own grid. options: `mmif_trt.volume.Options`; its
        registration may also be a [4, 4] array or the path of a DICOM Spatial Registration. on_slice: told
        how many of how many slices are done.

        Raises InputError, see volume.fuse.
        """
        from mmif_trt import volume

        options = volume.Options() if options is None else options
        if not isinstance(options, volume.Options):
            kind = type(options).__name__
            raise InputError(f"options: {kind}; expected mmif_trt.volume.Options(plane=..., ...)")
        for name, image in (("a", a), ("b", b)):
            if not isinstance(image, Image):
                kind = type(image).__name__
                raise InputError(f"{name}: {kind}; expected an mmif_trt.Image, such as mmif_trt.read(path)")
        options = replace(options, registration=as_registration(options.registration, a, b))
        return volume.fuse(self.runtime.infer, a, b, options, self.runtime.streams, on_slice, self.network)

    @overload
    def __call__(self, a: Named, b: Any, **options: Unpack[Given]) -> Image: ...
    @overload
    def __call__(self, a: Any, b: Named, **options: Unpack[Given]) -> Image: ...
    @overload
    def __call__(self, a: np.ndarray, b: Pixels, **options: Unpack[Given]) -> np.ndarray: ...
    @overload
    def __call__(self, a: Tensor, b: Pixels, **options: Unpack[Given]) -> Tensor: ...
    @overload
    def __call__(self, a: OnCard, b: Pixels, **options: Unpack[Given]) -> Any: ...
    def __call__(
        self,
        a: Any,
        b: Any,
        *,
        value_range: ValueRange | None = None,
        value_range_a: ValueRange | None = None,
        value_range_b: ValueRange | None = None,
        plane: str | None = None,
        palette: str | None = None,
        registration: str | os.PathLike[str] | np.ndarray | Stated = "header",
        assume_aligned: bool = False,
        modality_b: str | None = None,
        percentiles_a: ValueRange | None = None,
        percentiles_b: ValueRange | None = None,
    ) -> Any:
        """Fuse; see `fuse`."""
        range_a = value_range if value_range_a is None else value_range_a
        range_b = value_range if value_range_b is None else value_range_b
        options = {
            "plane": plane,
            "palette": palette,
            "registration": registration,
            "assume_aligned": assume_aligned,
            "modality_b": modality_b,
            "percentiles_a": percentiles_a,
            "percentiles_b": percentiles_b,
        }
        if any(isinstance(x, (str, os.PathLike, Image)) for x in (a, b)):
            image_a, image_b = as_image(a, "a", range_a), as_image(b, "b", range_b)
            if image_a.is_volume or image_b.is_volume:
                ranges = {"value_range_a": range_a, "value_range_b": range_b}
                return self.fuse_volumes(image_a, image_b, _options(**options, **ranges)).image
            _refuse_for_pictures(options)
            return self.fuse_images(image_a, image_b)
        _refuse_for_pictures(options)
        # Only TensorRT takes arrays in place: what lies on its GPU does not pass through the host.
        on_card = getattr(self.runtime, "fuse_on_card", None)
        fused = on_card(a, b, range_a, range_b) if on_card else None
        if fused is not None:
            return as_tensor(fused, a) if is_tensor(a) else fused
        array_a, array_b = as_array(a, "a"), as_array(b, "b")
        fused = self._fuse_arrays(array_a, array_b, range_a, range_b)
        return fused if isinstance(a, np.ndarray) else as_tensor(fused, a)

    def _fuse_arrays(
        self, a: np.ndarray, b: np.ndarray, range_a: ValueRange | None, range_b: ValueRange | None
    ) -> np.ndarray:
        batch_a, batch_b = _is_batch(a), _is_batch(b)
        if batch_a != batch_b or (batch_a and len(a) != len(b)):
            raise InputError(
                f"a has shape {a.shape} and b {b.shape}; expected two images, or two batches of one length: "
                "[H, W] or [H, W, 3] each, colour last, or [N, H, W] or [N, H, W, 3]"
            )
        if not batch_a:
            return self.fuse_images(Image(a, range_a, source="a"), Image(b, range_b, source="b")).data
        if not len(a):
            raise InputError(f"a has shape {a.shape}; expected batches of one image or more")
        images = [
            self.fuse_images(Image(x, range_a, source=f"a[{i}]"), Image(y, range_b, source=f"b[{i}]"))
            for i, (x, y) in enumerate(zip(a, b, strict=True))
        ]
        return np.stack([image.data for image in images])


@overload
def fuse(a: Named, b: Any, **options: Unpack[GivenToFuse]) -> Image: ...
@overload
def fuse(a: Any, b: Named, **options: Unpack[GivenToFuse]) -> Image: ...
@overload
def fuse(a: np.ndarray, b: Pixels, **options: Unpack[GivenToFuse]) -> np.ndarray: ...
@overload
def fuse(a: Tensor, b: Pixels, **options: Unpack[GivenToFuse]) -> Tensor: ...
@overload
def fuse(a: OnCard, b: Pixels, **options: Unpack[GivenToFuse]) -> Any: ...
def fuse(
    a: Any,
    b: Any,
    *,
    value_range: ValueRange | None = None,
    value_range_a: ValueRange | None = None,
    value_range_b: ValueRange | None = None,
    plane: str | None = None,
    palette: str | None = None,
    registration: str | os.PathLike[str] | np.ndarray | Stated = "header",
    assume_aligned: bool = False,
    modality_b: str | None = None,
    percentiles_a: ValueRange | None = None,
    percentiles_b: ValueRange | None = None,
    runtime: str = "auto",
    precision: str = "auto",
    network: str = "lagn",
) -> Any:
    """Fuse an MRI with a registered CT, PET or SPECT image of the same size, or with a volume in any grid.

    a: the MRI, grey. b: the other modality, grey or RGB. Each a NumPy array or torch tensor [H, W] or
        [H, W, 3], or a batch [N, H, W] or [N, H, W, 3] (uint8, uint16 or float32; 16 to 4096 px per side), a
        path, or an `Image`; a path of a volume may be NIfTI, a DICOM folder, file or zip (see io.read).
    value_range: the values of black and white, for both; value_range_a, value_range_b: for one. Default: the
        whole range of the dtype (float32: 0 to 1); for volumes, the header's window, or fixed limits by
        modality and unit (normalise.LIMITS). Values outside saturate; float pictures without a range that lie
        beyond -1 or 2, such as 0 to 255, are refused.
    plane, palette, registration, assume_aligned, modality_b, percentiles_a, percentiles_b: for volumes, see
        volume.Options. b is resampled onto a's grid by their geometry; registration: "header", "rigid",
        "none", the path of a DICOM Spatial Registration, or a [4, 4] array that takes a's RAS+ mm to b's.
    runtime, precision, network: see `Fuser`.
    Arrays on the GPU: with runtime "tensorrt" also those of CuPy, DALI and others that offer DLPack or
        `__cuda_array_interface__`, both uint8 or both float32; their pixels never pass through the host, and
        the result, which has `__cuda_array_interface__`, is on the GPU too.
    Returns the container that `a` has (an `Image` if either is a path or an `Image`; a tensor stays on its
        device), in the wider dtype of the two; RGB where b is RGB.
    Raises InputError, naming the argument or file, what was found and what is expected.
    """
    with _loading.setdefault(os.getpid(), threading.Lock()):
        fuser = _default_fuser(os.getpid(), runtime, precision, network)
    return fuser(
        a,
        b,
        value_range=value_range,
        value_range_a=value_range_a,
        value_range_b=value_range_b,
        plane=plane,
        palette=palette,
        registration=registration,
        assume_aligned=assume_aligned,
        modality_b=modality_b,
        percentiles_a=percentiles_a,
        percentiles_b=percentiles_b,
    )


def _options(**given: Any) -> Options:
    from mmif_trt.volume import Options

    return Options(**given)


def _refuse_for_pictures(options: dict[str, Any]) -> None:
    if given := _options(**options).changed():
        raise InputError(f"{', '.join(given)}: expected only with volumes that have geometry")


@lru_cache(maxsize=4)
def _default_fuser(process: int, runtime: str, precision: str, network: str) -> Fuser:
    """process: whose; a Fuser is of no use after a fork."""
    return Fuser(runtime, precision, network=network)


def _grey_unit(a: Image) -> np.ndarray:
    """[H, W] in [0, 1]. Grey stored as RGB is accepted as grey; real colour is refused."""
    if a.is_colour:
        if not ((a.data[..., 0] == a.data[..., 1]) & (a.data[..., 1] == a.data[..., 2])).all():
            raise InputError(
                f"{a.source}: a colour image; expected a grey MRI as the first source (did a and b swap?)"
            )
        a = a.with_data(a.data[..., 0])
    return normalise.to_unit(a)


def _is_batch(x: np.ndarray) -> bool:
    """[N, H, W] and [N, H, W, 3] are batches; a last axis of 3 is colour, since no side may be under 16."""
    return x.ndim == 4 or (x.ndim == 3 and x.shape[2] != 3)
