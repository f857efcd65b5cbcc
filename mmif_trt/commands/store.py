"""`mmif-trt store OUT --dicomweb URL`: fused DICOM objects from `batch` or `fuse` to a PACS or service."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmif_trt.commands.arguments import add_dicomweb, dicomweb_of, pacs_of, say
from mmif_trt.files import open_regular
from mmif_trt.image import InputError
from mmif_trt.running import one_line, stop_on_signal, why

META_BYTES = 65_536  # the file meta information, and more


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "store",
        help="fused DICOM objects to a PACS or a DICOMweb service",
        description="Sends the fused objects of a folder (batch --format dcm) or single ones, by C-STORE or "
        "STOW-RS. The peer is asked first, and what it has is not sent again: an interrupted run can be "
        "repeated. Exit code 1: some were not stored.",
    )
    parser.add_argument(
        "source", nargs="+", metavar="FOLDER|FILE", help="anything but fused objects is ignored"
    )
    parser.add_argument("--to", dest="pacs", metavar="AET@HOST:PORT", help="the PACS")
    parser.add_argument("--aet", default="MMIF", help="our AE title; default: MMIF")
    what = "PEM files; TLS to the PACS, whose certificate CA signed"
    parser.add_argument("--tls", nargs=3, metavar=("CERT", "KEY", "CA"), help=what)
    add_dicomweb(parser, "store in this DICOMweb service instead of --to")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    service = dicomweb_of(args)
    if (service is None) == (args.pacs is None):
        raise InputError("--to, --dicomweb: expected exactly one of them")
    to = pacs_of("--to", args.pacs) if args.pacs else None
    from mmif_trt.node.send import send
    from mmif_trt.node.settings import Settings

    settings = Settings(
        args.aet,
        1,
        Path(),
        to,
        dicomweb=service,
        tls=tuple(args.tls) if args.tls else None,
    )
    count: Counter[str] = Counter()
    with stop_on_signal() as (stop, received):
        for path in _files(args.source):
            if stop.reason:
                break
            if not _is_fused(path):
                count["passed over"] += 1
                continue
            try:
                answer, _ = send(settings, path, True, lambda: None, stop)
            except InputError:  # the certificates, say
                raise
            except Exception as error:  # of this object alone: pydicom may raise anything on bad bytes
                answer = f"failed ({why(error)})"
            count[answer.partition(" ")[0]] += 1
            if answer not in ("sent", "there"):
                say(one_line(f"{path}: {answer}"))
    words = ", ".join(f"{number} {what}" for what, number in sorted(count.items())) or "nothing found"
    hint = ""
    if count["passed over"] == sum(count.values()):
        hint = "; expected fused DICOM objects, as batch --format dcm and fuse -o NAME.dcm write them"
    say(f"{words} -> {settings.pacs}{hint}")
    if received:
        return 128 + received[0]
    return 0 if count["sent"] + count["there"] == sum(count.values()) - count["passed over"] else 1


def _files(sources: list[str]) -> Iterator[Path]:
    for source in sources:
        if os.path.isdir(source):
            yield from sorted(Path(source).rglob("*.dcm"))
        elif os.path.isfile(source):
            yield Path(source)
        else:
            raise InputError(f"{source}: no such file or folder; expected fused DICOM objects")


def _is_fused(path: Path) -> bool:
    """Whether we made it: sources are never sent. Nothing is inflated: ours are not deflated."""
    import pydicom

    from mmif_trt.io.dicom import meta
    from mmif_trt.io.dicom.write import MARK

    try:
        with open_regular(path) as file:
            if meta.transfer_syntax(file.read(META_BYTES), "")[0] == meta.DEFLATED:
                return False
            file.seek(0)
            found = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["ImageComments"])
            return str(found.get("ImageComments", "")) == MARK
    except Exception:  # pydicom may raise anything on bad bytes
        return False
