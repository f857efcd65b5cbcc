"""`mmif-trt fetch --study UID --from PACS@HOST:PORT -o DIR`: a study to files, by DIMSE or DICOMweb."""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import re
import threading
from pathlib import Path
from typing import Any

from mmif_trt.commands.arguments import add_dicomweb, count_to, dicomweb_of, pacs_of, say
from mmif_trt.files import prove_writable, write_atomic
from mmif_trt.image import InputError
from mmif_trt.running import stop_on_signal


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "fetch",
        help="a study from a PACS or a DICOMweb service to files",
        description="Asks by C-FIND and fetches by C-GET or C-MOVE, or by QIDO-RS and WADO-RS. The files are "
        "the stored bytes, under names that reveal nothing. Exit code 1: some instances were not received.",
    )
    parser.add_argument("--study", required=True, metavar="UID", help="Study Instance UID")
    parser.add_argument(
        "--series",
        action="append",
        default=[],
        metavar="UID",
        help="fetch only this series of it; repeatable",
    )
    parser.add_argument("--from", dest="pacs", metavar="AET@HOST:PORT", help="the PACS")
    parser.add_argument("--aet", default="MMIF", help="our AE title; default: MMIF")
    what = "C-MOVE to this port, open to --from's AE title meanwhile; default: C-GET"
    parser.add_argument("--move-port", type=count_to(65535), metavar="PORT", help=what)
    what = "our address for --move-port, which the PACS knows by --aet; default: 127.0.0.1, this machine only"
    parser.add_argument("--move-host", metavar="ADDRESS", help=what)
    what = "PEM files; TLS to the PACS, and from it on --move-port; its certificate is signed by CA"
    parser.add_argument("--tls", nargs=3, metavar=("CERT", "KEY", "CA"), help=what)
    add_dicomweb(parser, "fetch from this DICOMweb service instead of --from")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    for option, uid in (("--study", args.study), *(("--series", uid) for uid in args.series)):
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)*", uid) or len(uid) > 64:
            raise InputError(
                f"{option}: not a UID; expected numbers separated by dots, at most 64 characters"
            )
    service = dicomweb_of(args)
    if (service is None) == (args.pacs is None):
        raise InputError("--from, --dicomweb: expected exactly one of them")
    if args.move_port is None and args.move_host is not None:
        raise InputError("--move-host: expected only with --move-port")
    if args.pacs is None and (args.move_port is not None or args.tls):
        raise InputError("--move-port, --tls: expected only with --from")

    os.umask(0o077)  # these files contain patient data
    prove_writable(args.output)
    with stop_on_signal() as (stop, received):
        if service is not None:
            count, missing = _by_web(service, args, stop)
        else:
            count, missing = _by_dimse(args, stop)
    lost = f"; {missing} were not received" if missing else ""
    if lost and service is None:
        lost += (
            ": the PACS says that it cannot send them, perhaps as its options allow no such compression; try "
            "the other of C-GET and C-MOVE (--move-port), or its DICOMweb service"
        )
    say(f"{count} instances -> {args.output}{lost}")
    if received:
        return 128 + received[0]
    return 1 if missing else 0


def _by_dimse(args: argparse.Namespace, stop: Any) -> tuple[int, int]:
    from mmif_trt.node import retrieve, tls

    title, host, port = pacs_of("--from", args.pacs)
    secured = (tls.to_pacs(tuple(args.tls)), host) if args.tls else None
    back = tls.from_pacs(tuple(args.tls)) if args.tls and args.move_port else None
    pacs = retrieve.Pacs(title, host, port, args.aet, secured, back)
    move_to = (args.move_host or "127.0.0.1", args.move_port) if args.move_port else None
    hook, threading.excepthook = threading.excepthook, lambda args: None  # pynetdicom's: we say what failed
    try:
        there = retrieve.series_of(pacs, args.study, stop)
        if absent := sorted(set(args.series) - set(there)):
            raise InputError(
                f"--series: {len(absent)} are not in the study; expected some of its {len(there)} series"
            )
        arrived = retrieve.fetch(
            pacs, args.study, args.series, lambda uid, data: _keep(args.output, uid, data), stop, move_to
        )
    finally:
        threading.excepthook = hook
    return arrived.count, arrived.failed


def _by_web(service: Any, args: argparse.Namespace, stop: Any) -> tuple[int, int]:
    import pydicom

    from mmif_trt import dicomweb

    expected = dicomweb.announced(service, args.study)
    count = 0
    for dataset in dicomweb.instances(service, args.study, args.series):
        if stop.reason:
            break
        stream = io.BytesIO()
        pydicom.dcmwrite(stream, dataset)  # elements that were not decoded are written as received
        _keep(args.output, str(dataset.SOPInstanceUID), stream.getvalue())
        count += 1
    return count, 0 if args.series or expected is None else max(0, expected - count)


def _keep(folder: Path, uid: str, data: bytes) -> None:
    write_atomic(folder / f"{hashlib.sha256(uid.encode()).hexdigest()[:24]}.dcm", data)
