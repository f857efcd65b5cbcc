"""`mmif-trt view A B FUSED -o PAGE.html`: show two sources and their fusion in a browser, offline."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mmif_trt import io, overwriting
from mmif_trt.commands import look, volumes
from mmif_trt.commands.arguments import (
    REGISTRATIONS,
    add_of_b,
    check_text_output,
    count_to,
    options_of,
    say,
)
from mmif_trt.image import InputError
from mmif_trt.io.which import Which

if TYPE_CHECKING:
    from mmif_trt.view.triple import Triple


def add(commands: Any) -> None:
    """Registers `view`."""
    view = commands.add_parser(
        "view",
        help="one page that shows A, B and their fusion, in three planes",
        description="Writes one HTML file with A, B and the fused volume or picture on A's grid. It opens "
        "from disk in any browser with WebGL 2 and needs no server.",
    )
    view.add_argument("a", metavar="A", help="the MRI that was fused: a volume or a picture")
    view.add_argument("b", metavar="B", help="the CT, PET or SPECT that was fused")
    view.add_argument("fused", metavar="FUSED", help="what fuse or batch wrote")
    view.add_argument("-o", "--output", required=True, metavar="PAGE", help=".html")
    what = "the fusion's record, of fuse --report or batch; default: beside FUSED, else none"
    view.add_argument("--report", metavar="REPORT.json", help=what)
    what = f"of B to A where there is no record: {', '.join(REGISTRATIONS)}, or a DICOM Spatial Registration"
    view.add_argument("--registration", default="header", metavar="HOW|FILE", help=what)
    add_of_b(view)
    view.add_argument("--palette", help="of B where there is no record; default: as when fusing")
    for side in "ab":
        what = f"where the window of {side.upper()} opens; default: as fused"
        view.add_argument(f"--value-range-{side}", type=float, nargs=2, metavar=("LOW", "HIGH"), help=what)
        what = f"of several series in {side.upper()}: its UID, number or description"
        view.add_argument(f"--series-{side}", metavar="SERIES", help=what)
        what = f"of several volumes in {side.upper()}: which, from 1"
        view.add_argument(f"--volume-{side}", type=count_to(1_000_000), metavar="N", help=what)
    view.add_argument("--title", help="heading of the page; default: the name of FUSED")
    view.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Returns exit code 0; errors raise InputError."""

    check_text_output("-o", args.output, ".html", ".htm")
    overwriting.check(
        [args.a, args.b, args.fused, *filter(None, [args.report])],
        [args.output],
        lambda path: overwriting.is_ours(path),
    )
    with look.steps(2) as step:
        step("reading and placing")
        triple = _triple(args)
        step("writing")
        size = look.save(args.output, triple, (args.a, args.b, args.fused), args.title)
    if triple.b.modality is None:
        say(
            f"{args.b}: its modality is not stated, as the page says; --modality-b ct, pet or spect states it"
        )
    print(f"{args.output} ({size / 1e6:.1f} MB)")
    return 0


def _triple(args: argparse.Namespace) -> Triple:
    if volumes.wanted(args):
        return _of_volumes(args)
    a, b, fused = (io.read(path) for path in (args.a, args.b, args.fused))
    return look.of_pictures(a, b, fused, _pair(args, "a"), _pair(args, "b"), args.modality_b)


def _of_volumes(args: argparse.Namespace) -> Triple:
    from mmif_trt.clinical.case import Case, load
    from mmif_trt.clinical.decoder import Decoder
    from mmif_trt.view import triple

    record = look.read_record(args.report or look.beside(args.fused), bool(args.report))
    ranges = {f"value_range_{side}": _pair(args, side) for side in "ab"}
    options, tie = options_of(args, **ranges), ""
    if args.registration not in REGISTRATIONS and os.path.isfile(args.registration):
        options, tie = replace(options, registration="header"), args.registration
    which = [Which(getattr(args, f"series_{side}") or "", getattr(args, f"volume_{side}")) for side in "ab"]
    case = Case("", (args.a,), (args.b,), registration=tie, which_a=which[0], which_b=which[1])
    with Decoder() as decoder:
        loaded = load(case, decoder, options)
        fused = decoder.read((args.fused,))
    for image in (loaded.a, loaded.b):
        if not image.is_volume:
            raise InputError(
                f"{image.source}: a picture without geometry; expected a volume, like the other source"
            )
    return triple.of_volumes(loaded.a, loaded.b, fused, record, loaded.options)


def _pair(args: argparse.Namespace, side: str) -> tuple[float, float] | None:
    limits = getattr(args, f"value_range_{side}")
    if limits and not limits[0] < limits[1]:
        raise InputError(f"--value-range-{side} {limits[0]:g} {limits[1]:g}; expected LOW < HIGH")
    return tuple(limits) if limits else None
