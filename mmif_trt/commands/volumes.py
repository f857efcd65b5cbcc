"""`mmif-trt fuse` on volumes: NIfTI, DICOM folders, files and zips in; NIfTI, DICOM or PNG slices out."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmif_trt import io, overwriting
from mmif_trt.commands import look
from mmif_trt.commands.arguments import (
    REGISTRATIONS,
    add_how,
    add_of_b,
    check_text_output,
    count_to,
    options_of,
    say,
)
from mmif_trt.files import prove_writable, write_atomic
from mmif_trt.image import InputError
from mmif_trt.io import FORMATS
from mmif_trt.io.dicom import begins_as_dicom
from mmif_trt.io.walk import walk
from mmif_trt.io.which import Which
from mmif_trt.stages import normalise

# Options of `fuse` that mean nothing for the other kind of source, each with the values that state nothing.
OF_VOLUMES: dict[str, tuple[Any, ...]] = {
    "plane": (None,),
    "palette": (None,),
    "percentiles_a": (None,),
    "percentiles_b": (None,),
    "registration": ("header", "none"),
    "series_a": (None,),
    "volume_a": (None,),
    "series_b": (None,),
    "volume_b": (None,),
    "preview": (None,),
    "burn_in": (False,),
    "deidentify": (False,),
}
OF_PICTURES: dict[str, tuple[Any, ...]] = {
    "format": (None,),
    "workers": (None,),
    "decode": ("auto",),
    "on": (None,),
    "address": (None,),
    "cpus_per_worker": (1,),
    "gpus_per_worker": (0,),
}
WARN_BELOW = 0.5  # share of A that B covers


def add_options(fuse: argparse.ArgumentParser) -> None:
    group = fuse.add_argument_group("volumes (A and B: NIfTI, or a DICOM folder, file or zip)")
    add_how(group)
    what = f"of B to A: {', '.join(REGISTRATIONS)}, or a DICOM Spatial Registration; default: header"
    group.add_argument("--registration", default="header", metavar="HOW|FILE", help=what)
    add_of_b(group)
    for side in "ab":
        what = f"of several series in {side.upper()}: its UID, number or description"
        group.add_argument(f"--series-{side}", metavar="SERIES", help=what)
        what = f"of several volumes in {side.upper()} (echoes, times, b-values, 4-D): which, from 1"
        group.add_argument(f"--volume-{side}", type=count_to(1_000_000), metavar="N", help=what)
    group.add_argument("--preview", metavar="SHEET.png", help="also draw a contact sheet")
    group.add_argument("--burn-in", action="store_true", help="write 'research use only' into DICOM pixels")
    group.add_argument("--deidentify", action="store_true", help="DICOM out by the Basic Profile of PS3.15")


def wanted(args: argparse.Namespace) -> bool:
    """Whether A or B is a volume: by its suffix, its first bytes, or the folder's content."""
    return any(_is_volume(path) for path in (args.a, args.b))


def _is_volume(path: str) -> bool:
    suffixes = tuple(suffix for suffix, form in FORMATS.items() if form.is_volume)
    if path.lower().endswith(suffixes) and not os.path.isdir(path):
        return True
    if os.path.isfile(path):
        return _begins_as_dicom(path)
    for name in walk(path).files if os.path.isdir(path) else []:
        # the first file that is DICOM or a picture decides what the folder is
        if name.lower().endswith(io.PICTURES):
            return False
        if _begins_as_dicom(name):
            return True
    return False


def _begins_as_dicom(path: str) -> bool:
    try:
        return begins_as_dicom(path)
    except (InputError, OSError):
        return False


def refuse_others(args: argparse.Namespace, are_volumes: bool) -> None:
    """An option that would be passed over changes the result that the user expects. Raises InputError."""
    others = OF_PICTURES if are_volumes else OF_VOLUMES
    stated = [name for name, unstated in others.items() if getattr(args, name) not in unstated]
    if stated:
        what = ", ".join(f"--{name.replace('_', '-')}" for name in stated)
        kinds = ("pictures", "volumes") if are_volumes else ("volumes", "pictures")
        raise InputError(f"{what}: expected with {kinds[0]} only; {args.a} and {args.b} hold {kinds[1]}")


def _check(args: argparse.Namespace, kind: str) -> tuple[list[str], list[str]]:
    """Raises InputError for what cannot be done, before any work; returns the inputs and the outputs."""
    from mmif_trt.clinical import outputs

    refuse_others(args, are_volumes=True)
    if (args.burn_in or args.deidentify) and kind != "dicom":
        raise InputError(f"--burn-in and --deidentify: expected only with -o NAME.dcm, not {args.output}")
    made = [*outputs.names(args.output), *filter(None, (args.preview, args.report, args.view))]
    inputs = [args.a, args.b, *([args.registration] if os.path.isfile(args.registration) else [])]
    overwriting.check(inputs, made)
    if kind == "dicom":
        _refuse_among_sources(args.output, (args.a, args.b))
    if args.preview and not args.preview.lower().endswith(".png"):
        raise InputError(f"--preview {args.preview}: expected a name ending in .png")
    if args.report:
        check_text_output("--report", args.report, ".json")
    for path in (args.output, args.preview, args.view):
        if path:
            prove_writable(Path(path).absolute().parent)
    return inputs, made


def run(args: argparse.Namespace, fuser: Any, range_a: Any, range_b: Any) -> int:
    """fuser: creates the Fuser, once the inputs are read. Returns exit code 0; errors raise InputError."""
    from mmif_trt.clinical import outputs
    from mmif_trt.clinical.case import Case, load
    from mmif_trt.clinical.decoder import Decoder

    kind = outputs.kind_of(args.output)
    inputs, made = _check(args, kind)
    if _is_there(args.output) and not args.overwrite:
        print(f"mmif-trt: {args.output}: exists, skipped; --overwrite fuses it again", file=sys.stderr)
        return 0
    overwriting.check(
        inputs,
        made,
        lambda path: (
            args.overwrite
            or os.path.isdir(path)
            or path in (args.report, args.view)
            and overwriting.is_ours(path)
        ),
    )
    run_options = options_of(args, value_range_a=range_a, value_range_b=range_b)
    tie = ""
    if args.registration not in REGISTRATIONS and os.path.isfile(args.registration):
        run_options, tie = replace(run_options, registration="header"), args.registration
    which_a, which_b = Which(args.series_a or "", args.volume_a), Which(args.series_b or "", args.volume_b)
    case = Case("", (args.a,), (args.b,), registration=tie, which_a=which_a, which_b=which_b)
    with Decoder() as decoder:  # in a child with limits: a file that needs too much is an error, not a kill
        loaded = load(case, decoder, run_options)
    if not (loaded.a.is_volume or loaded.b.is_volume):
        return _fuse_pictures(args, loaded, fuser)
    if kind == "picture" and loaded.a.is_volume and len(loaded.a.data) > 1:
        outputs.refuse_picture(args.output)
    if kind == "dicom" and not (loaded.a.headers or loaded.b.headers):
        raise InputError(
            f"{args.output}: no DICOM among {args.a} and {args.b}; expected at least one, for its patient "
            "and study, or -o NAME.nii.gz"
        )
    fused = _fuse(loaded, fuser(), args.quiet)
    files = outputs.save(
        args.output, fused, loaded.a, loaded.b, burn_in=args.burn_in, deidentify=args.deidentify
    )
    if args.preview:
        outputs.save_preview(args.preview, fused)
    record = outputs.report_of(fused, files)
    if args.report:
        write_atomic(args.report, record)
    if args.view:
        from mmif_trt.view import triple

        shown = triple.of_volumes(loaded.a, loaded.b, fused.image, json.loads(record), loaded.options)
        look.save(args.view, shown, (args.a, args.b, args.output))
    _summarise(args, fused)
    return 0


def _fuse(loaded: Any, fuser: Any, quiet: bool) -> Any:
    """With a bar over the slices, on a terminal."""
    from tqdm import tqdm

    with tqdm(unit="slice", disable=True if quiet else None, leave=False) as bar:

        def on_slice(done: int, slices: int) -> None:
            bar.total = slices
            bar.update(done - bar.n)

        return fuser.fuse_volumes(loaded.a, loaded.b, loaded.options, on_slice)


def _summarise(args: argparse.Namespace, fused: Any) -> None:
    from mmif_trt.stages import geometry

    done = fused.record["registration"]
    if done["inside"] < WARN_BELOW:
        say(f"warning: B covers {done['inside']:.0%} of A; the rest shows A alone")
    doubts = geometry.doubts(fused.record["b"]["notes"])
    for note in doubts:
        say(f"warning: {note}")
    if args.quiet:
        return
    moved = f", moved {done['shift_mm']} mm and {done['rotation_deg']} degrees" if done["shift_mm"] else ""
    how = f"registration {done['registration']}{moved}; B covers {done['inside']:.0%} of A"
    say(f"{fused.image!r} -> {args.output} ({how})")
    for side in "ab":
        for note in fused.record[side]["notes"]:
            if note not in doubts:
                say(f"{side.upper()}: {note}")


def _fuse_pictures(args: argparse.Namespace, loaded: Any, fuser: Any) -> int:
    """Two DICOM pictures without geometry (a secondary capture): pixel on pixel."""
    from mmif_trt.clinical import outputs

    if outputs.kind_of(args.output) != "picture":
        raise InputError(
            f"{args.a} and {args.b}: pictures without geometry (no Image Position (Patient)); expected "
            f"-o NAME with one of {' '.join(io.PICTURES)}, not {args.output}"
        )
    stated = set(loaded.options.changed()) - {"value_range_a", "value_range_b"}
    if stated or args.preview or args.report or args.view:
        what = ", ".join(sorted(stated)) or "--preview, --report, --view"
        raise InputError(f"{what}: expected only with volumes")
    a, b = (
        _as_picture(image, limits)
        for image, limits in (
            (loaded.a, loaded.options.value_range_a),
            (loaded.b, loaded.options.value_range_b),
        )
    )
    fused = fuser().fuse_images(a, b)
    io.write(args.output, fused)
    if not args.quiet:
        say(f"{fused!r} -> {args.output}")
    return 0


def _as_picture(image: Any, limits: Any) -> Any:
    """Grey as 16 bits from black to white, as on a screen: a picture file states no range."""
    import numpy as np

    image = image if limits is None else image.with_data(image.data, value_range=limits)
    if image.is_colour or (image.data.dtype == np.uint8 and image.value_range == (0, 255)):
        return image
    shown = normalise.from_unit(normalise.to_unit(image), np.dtype(np.uint16), (0, 65535))
    return image.with_data(shown, value_range=(0.0, 65535.0))


def _refuse_among_sources(output: str, sources: tuple[str, ...]) -> None:
    """A DICOM file in the folder of a source would be a second series of it."""
    place = Path(output).resolve().parent
    for source in sources:
        if os.path.isdir(source) and place.is_relative_to(Path(source).resolve()):
            raise InputError(f"{output}: in the source folder {source}; expected a place outside it")


def _is_there(path: str) -> bool:
    return bool(os.listdir(path)) if os.path.isdir(path) else os.path.exists(path)
