"""One case of volumes: what belongs to it, and the only way from its files to a fused volume."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from mmif_trt.image import Image, InputError
from mmif_trt.io.which import ANY, Which
from mmif_trt.stages.geometry import Stated
from mmif_trt.volume import Fused, Options


class Reader(Protocol):
    """The part of `clinical.decoder.Decoder` that a case needs."""

    def read(self, paths: tuple[str, ...], which: Which = ANY) -> Image: ...

    def registration(self, path: str, a: Image, b: Image) -> Stated: ...


class VolumeFuser(Protocol):
    """The part of `mmif_trt.Fuser` that a case needs."""

    def fuse_volumes(self, a: Image, b: Image, options: Options | None = None) -> Fused: ...


@dataclass(frozen=True)
class Case:
    """One fusion to do. a, b: files (or one folder or file each). own: fields of Options that replace the
    run's for this case. registration: the file of a DICOM Spatial Registration, or "". which_a, which_b:
    which of several series or volumes. words: what it is made of, for the plan. series: the Series Instance
    UIDs of a and b when they were paired, or ""."""

    name: str
    a: tuple[str, ...]
    b: tuple[str, ...]
    own: dict[str, Any] = field(default_factory=dict)
    registration: str = ""
    which_a: Which = ANY
    which_b: Which = ANY
    words: str = ""
    series: tuple[str, str] = ("", "")

    def options(self, run: Options) -> Options:
        """The options of this case in a run with these."""
        return replace(run, **self.own)


def is_name(text: str) -> bool:
    """Whether a case may have this name: its outputs begin with it."""
    return bool(text) and text == os.path.basename(text) and not text.startswith(".")


@dataclass(frozen=True)
class Loaded:
    """A case whose files have been read."""

    a: Image
    b: Image
    options: Options


def load(case: Case, reader: Reader, run: Options) -> Loaded:
    """Both volumes, and the case's options with the transform that its Spatial Registration states.

    A `Decoder` reads in its child process, within its limits. Raises InputError and OutputError as it does.
    """
    a, b = reader.read(case.a, case.which_a), reader.read(case.b, case.which_b)
    for image, uid in zip((a, b), case.series, strict=True):
        now = str(image.headers[0].get("SeriesInstanceUID", "")) if image.headers else ""
        if uid and now and now != uid:
            raise InputError(f"{image.source}: another series since it was planned; expected a new plan")
    options = case.options(run)
    if case.registration:
        options = replace(options, registration=reader.registration(case.registration, a, b))
    return Loaded(a, b, options)


def fuse(loaded: Loaded, fuser: VolumeFuser) -> Fused:
    """Raises InputError."""
    return fuser.fuse_volumes(loaded.a, loaded.b, loaded.options)
