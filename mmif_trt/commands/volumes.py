"""`mmif-trt fuse` on volumes: NIfTI, DICOM folders, files and zips in; NIfTI, DICOM or PNG slices out."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmif_trt import overwriting
from mmif_trt.commands.arguments import REGISTRATIONS, add_how, options_of
from mmif_trt.files import open_regular, write_atomic
from mmif_trt.image import MODALITIES, InputError

VOLUME_SUFFIXES = (".nii", ".nii.gz", ".dcm", ".ima", ".zip")


def add_options(fuse: argparse.ArgumentParser) -> None:
    group = fuse.add_argument_group("volumes (A and B: NIfTI, or a DICOM folder, file or zip)")
    add_how(group)
    what = f"of B to A: {', '.join(REGISTRATIONS)}, or a DICOM Spatial Registration; default: header"
    group.add_argument("--registration", default="header", metavar="HOW|FILE", help=what)
    group.add_argument(
        "--assume-aligned", action="store_true", help="for --registration none: one grid already"
    )
    group.add_argument(
        "--modality-b", type=str.lower, choices=MODALITIES[1:], help="where B's file does not say it (NIfTI)"
    )
    group.add_argument("--preview", metavar="SHEET.png", help="also draw a contact sheet")
    group.add_argument("--burn-in", action="store_true", help="write 'research use only' into DICOM pixels")
    group.add_argument("--deidentify", action="store_true", help="DICOM out by the Basic Profile of PS3.15")


def wanted(args: argparse.Namespace) -> bool:
    """Whether A or B is a volume: by its suffix, its first bytes, or what lies in the folder."""
    return any(_is_volume(path) for path in (args.a, args.b))


def _is_volume(path: str) -> bool:
    if path.lower().endswith(VOLUME_SUFFIXES) and not os.path.isdir(path):
        return True
    if os.path.isfile(path):
        return _begins_as_dicom(path)
    for folder, _, files in os.walk(path):
        for name in sorted(files):  # the first file that is a DICOM or a picture says which folder this is
            if name.lower().endswith((".png", ".tif", ".tiff", ".jpg", ".jpeg", ".jp2", ".j2k")):
                return False
            if _begins_as_dicom(os.path.join(folder, name)):
                return True
    return False


def _begins_as_dicom(path: str) -> bool:
    try:
        with open_regular(path) as file:
            return file.read(132)[128:] == b"DICM"
    except (InputError, OSError):
        return False


def run(args: argparse.Namespace, fuser: Any, range_a: Any, range_b: Any) -> int:
    """fuser: makes the Fuser, once the inputs are read. Exit code 0; what is wrong raises InputError."""
    from mmif_trt.clinical import outputs
    from mmif_trt.clinical.case import Case, fuse, load
    from mmif_trt.clinical.decoder import Decoder
    from mmif_trt.files import prove_writable

    kind = outputs.kind_of(args.output)
    if (args.burn_in or args.deidentify) and kind != "dicom":
        raise InputError(f"--burn-in and --deidentify: expected with -o NAME.dcm, not {args.output}")
    for path in (args.output, args.preview, args.report):
        if path:
            prove_writable(Path(path).absolute().parent)
    if _is_there(args.output) and not args.overwrite:
        print(f"mmif-trt: {args.output}: exists, skipped; --overwrite fuses it again", file=sys.stderr)
        return 0
    made = [*outputs.names(args.output), *filter(None, (args.preview, args.report))]
    inputs = [args.a, args.b, *([args.registration] if os.path.isfile(args.registration) else [])]
    overwriting.check(
        inputs,
        made,
        lambda path: (
            args.overwrite or os.path.isdir(path) or path == args.report and overwriting.is_ours(path)
        ),
    )
    run_options = options_of(args, value_range_a=range_a, value_range_b=range_b)
    tie = ""
    if args.registration not in REGISTRATIONS and os.path.isfile(args.registration):
        run_options, tie = replace(run_options, registration="header"), args.registration
    case = Case("", (args.a,), (args.b,), registration=tie)
    with Decoder() as decoder:  # in a child with limits: a file that asks for too much is an error, no kill
        loaded = load(case, decoder, run_options)
    fused = fuse(loaded, fuser())
    files = outputs.save(
        args.output, fused, loaded.a, loaded.b, burn_in=args.burn_in, deidentify=args.deidentify
    )
    if args.preview:
        outputs.save_preview(args.preview, fused)
    if args.report:
        write_atomic(args.report, outputs.report_of(fused, files))
    if not args.quiet:
        done = fused.record["registration"]
        moved = (
            f", moved {done['shift_mm']} mm and {done['rotation_deg']} degrees" if done["shift_mm"] else ""
        )
        print(
            f"mmif-trt: {fused.image!r} -> {args.output} (registration {done['registration']}{moved})",
            file=sys.stderr,
        )
        for side in "ab":
            for note in fused.record[side]["notes"]:
                print(f"mmif-trt: {side.upper()}: {note}", file=sys.stderr)
    return 0


def _is_there(path: str) -> bool:
    return bool(os.listdir(path)) if os.path.isdir(path) else os.path.exists(path)
