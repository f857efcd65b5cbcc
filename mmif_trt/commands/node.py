"""`mmif-trt node --aet MMIF --port 11112 --send-to PACS@host:port`."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

from mmif_trt.commands.arguments import (
    add_dicomweb,
    add_how,
    add_network,
    add_pairing,
    dicomweb_of,
    options_of,
    pacs_of,
)
from mmif_trt.files import prove_writable
from mmif_trt.image import InputError
from mmif_trt.running import one_line, refuse_without_posix, stop_on_signal

MB = 1 << 20


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "node",
        help="a DICOM node: series in, fused series out",
        description="Receives series by C-STORE, pairs them by patient, study and frame of reference when a "
        "study has been quiet, fuses, and sends the derived series on. The spool survives a crash.",
    )
    parser.add_argument("--aet", required=True, help="our AE title; another Called AE title is rejected")
    parser.add_argument("--port", type=int, required=True, help="to listen on, for DICOM")
    what = "address to listen on; default: 127.0.0.1, this machine only"
    parser.add_argument("--host", default="127.0.0.1", help=what)
    parser.add_argument("--send-to", metavar="AET@HOST:PORT", help="the PACS; or --dicomweb")
    add_dicomweb(parser, "results go to this DICOMweb service, by STOW-RS, instead of --send-to")
    parser.add_argument("--spool", type=Path, default=Path("mmif-spool"), help="folder; default: mmif-spool")
    what = "who may store, from which address, and its port for storage commitments; once per peer"
    parser.add_argument("--peer", action="append", default=[], metavar="AET[@HOST[:PORT]]", help=what)
    parser.add_argument("--any-peer", action="store_true", help="every AE title may store")
    parser.add_argument(
        "--quiet-s", type=_seconds, default=10.0, help="quiet time that ends a study; default: 10"
    )
    what = "longest wait for an open association; default: 600"
    parser.add_argument("--hold-s", type=_positive, default=600.0, help=what)
    parser.add_argument("--http-port", type=int, help="of /health and /metrics; default: not served")
    what = "address of --http-port; default: 127.0.0.1; another needs --http-token or --http-tls"
    parser.add_argument("--http-host", default="127.0.0.1", help=what)
    what = "a file with a token, which requests must send as 'Authorization: Bearer TOKEN'"
    parser.add_argument("--http-token", metavar="FILE", help=what)
    parser.add_argument("--http-tls", action="store_true", help="serve --http-port with the TLS of --tls")
    what = "one JSON line per event (PS3.15 A.5), to a file or to syslog; default: none"
    parser.add_argument("--audit", metavar="FILE|syslog", help=what)
    parser.add_argument(
        "--max-per-s", type=_positive, default=500.0, help="instances per second; default: 500"
    )
    for option, default, what in (
        ("--max-mb", 512, "largest instance"),
        ("--max-association-mb", 16_384, "of one association"),
        ("--max-memory-mb", 2_048, "of instances arriving at the same time"),
        ("--max-spool-mb", 102_400, "of the spool folder"),
        ("--min-free-mb", 1_024, "to leave free on the spool's disk"),
    ):
        what = f"{what}, in MB; over it C-STORE answers A700, out of resources; default: {default}"
        parser.add_argument(option, type=_positive, default=default, metavar="MB", help=what)
    what = "address space of the process that fuses; a case that needs more fails; default: 16384"
    parser.add_argument("--max-fusion-mb", type=_positive, default=16_384, metavar="MB", help=what)
    what = "time limit for fusing a case; default: 1800"
    parser.add_argument("--study-s", type=_positive, default=1800.0, metavar="S", help=what)
    parser.add_argument("--max-associations", type=_positive, default=16, help="at one time; default: 16")
    parser.add_argument("--keep-s", type=_seconds, default=86_400.0, help="sources are kept; default: a day")
    parser.add_argument("--retry-s", type=_positive, default=5.0, help="first pause when the PACS is down")
    what = "PEM files; TLS for peers (who must show a certificate of CA) and to the PACS"
    parser.add_argument("--tls", nargs=3, metavar=("CERT", "KEY", "CA"), help=what)
    parser.add_argument("--tls-any-peer", action="store_true", help="peers need no certificate")
    parser.add_argument("--tls-plain-pacs", action="store_true", help="no TLS to the PACS")
    parser.add_argument(
        "--pseudonym-key", metavar="FILE", help="of names; default: one in the spool, created if missing"
    )
    add_network(parser)
    add_how(parser)
    add_pairing(parser)
    parser.set_defaults(run=run)


def _positive(text: str) -> float:
    number = _number(text)
    if not 0 < number < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r}; expected numbers above 0")
    return number


def _seconds(text: str) -> float:
    """0 too. Not nan, which no time reaches: no study would ever be quiet."""
    number = _number(text)
    if not 0 <= number < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r}; expected seconds, 0 or more")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")  # which is in no range


def _peer(text: str) -> Any:
    from mmif_trt.node.admission import Peer

    found = re.fullmatch(r"([^@]*)(?:@(\[[^\]]+\]|[^@:\[\]]+)(?::(\d{1,5}))?)?", text)
    if not found or not 0 <= int(found[3] or 0) < 65536:
        raise InputError(
            f"--peer {text}: expected AET, AET@HOST or AET@HOST:PORT, an IPv6 address in brackets"
        )
    return Peer(found[1], (found[2] or "").strip("[]"), int(found[3] or 0))


def settings_of(args: argparse.Namespace) -> Any:
    from mmif_trt.node.settings import Settings

    service = dicomweb_of(args)
    if (service is None) == (args.send_to is None):
        raise InputError("--send-to, --dicomweb: expected exactly one of them")
    to = pacs_of("--send-to", args.send_to) if args.send_to else None
    if args.any_peer and args.peer:
        raise InputError("--any-peer with --peer: expected one of them")
    peers = tuple(map(_peer, args.peer))
    for title in (args.aet, *(peer.aet for peer in peers)):
        if not re.fullmatch(r"[ -\[\]-~]{1,16}", title) or not title.strip():
            raise InputError(f"AE title {title!r}: expected 1 to 16 characters, no backslash")
    for name in ("port", "http_port"):
        port = getattr(args, name)
        if port is not None and not 0 < port < 65536:
            raise InputError(f"--{name.replace('_', '-')} {port}: expected 1 to 65535")
    if not args.tls and (args.tls_any_peer or args.tls_plain_pacs):
        raise InputError("--tls-any-peer and --tls-plain-pacs: expected with --tls CERT KEY CA")
    if args.http_tls and not args.tls:
        raise InputError("--http-tls: without --tls; expected --tls CERT KEY CA")
    return Settings(
        aet=args.aet,
        port=args.port,
        host=args.host,
        spool=args.spool,
        send_to=to,
        dicomweb=service,
        peers=None if args.any_peer else peers,
        quiet_s=args.quiet_s,
        hold_s=args.hold_s,
        http_port=args.http_port,
        http_host=args.http_host,
        http_token=args.http_token,
        http_tls=args.http_tls,
        audit=args.audit,
        max_instance_bytes=int(args.max_mb * MB),
        max_association_bytes=int(args.max_association_mb * MB),
        max_memory_bytes=int(args.max_memory_mb * MB),
        max_spool_bytes=int(args.max_spool_mb * MB),
        min_free_bytes=int(args.min_free_mb * MB),
        max_fusion_bytes=int(args.max_fusion_mb * MB),
        study_s=args.study_s,
        max_associations=int(args.max_associations),
        max_per_s=args.max_per_s,
        keep_s=args.keep_s,
        retry_s=args.retry_s,
        tls=tuple(args.tls) if args.tls else None,
        tls_any_peer=args.tls_any_peer,
        tls_plain_pacs=args.tls_plain_pacs,
        pseudonym_key=args.pseudonym_key,
        options=options_of(args),
        network=args.network,
    )


def run(args: argparse.Namespace) -> int:
    import logging
    import threading

    refuse_without_posix("node", "Its locks and limits are POSIX's")
    from mmif_trt.node.run import serve

    settings = settings_of(args)
    os.umask(0o077)  # spool, scratch files and audit trail are private
    prove_writable(settings.spool)

    class Printable(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return one_line(super().format(record))  # a peer chooses its AE title, terminal codes and all

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Printable("%(asctime)s %(levelname)s %(message)s"))
    log = logging.getLogger("mmif_trt.node")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    # A traceback may quote what a peer sent: the log gets only the type of the error.
    hook = threading.excepthook
    threading.excepthook = lambda args: log.error("a thread ended: %s", args.exc_type.__name__)
    try:
        with stop_on_signal() as (stop, _):
            return 0 if serve(settings, stop) else 1
    finally:
        threading.excepthook = hook
        log.removeHandler(handler)
