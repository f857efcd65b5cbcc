"""`mmif-trt study ...`: create, serve, status, export, analyse, simulate, demo."""

from __future__ import annotations

import argparse
import ipaddress
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmif_trt import privacy, weights
from mmif_trt.commands.arguments import add_network, refuse_overwriting, say
from mmif_trt.image import InputError
from mmif_trt.machine import address

if TYPE_CHECKING:
    from mmif_trt.study.store import Store

PORT = 8642
ADDRESSES = "addresses.csv"  # beside the study, mode 0600: the readers' links as currently served
CONFIG_HELP = """CONFIG is a JSON file; folders are relative to it:
{"title": "...", "readers": 16, "repeats": 0.1, "seed": 0,
 "sets": [{"modality": "pet", "sources": "SOURCES", "methods": {"LAGN": "fused/lagn", "max": "fused/max"}}],
 "question": "...", "paired": true, "scales": ["detail", "colour", "lesion", "artefacts", "confidence"],
 "items": 60, "window": "fixed", "too_fast_s": 1.0, "value_range": {"ct": [0, 4095]}}
Required are title, sets and readers. SOURCES holds mri/ and the modality's folder, of one modality."""


def add(commands: Any) -> None:
    """Registers `study` and its own commands."""
    study = commands.add_parser("study", help="a blinded reader study in the browser, and its statistics")
    own = study.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Any, what: str, **more: Any) -> Any:
        parser = own.add_parser(
            name, help=what, description=what, formatter_class=argparse.RawDescriptionHelpFormatter, **more
        )
        parser.set_defaults(run=run)
        if name not in ("create", "demo"):
            parser.add_argument("study", type=Path, metavar="STUDY", help="a folder written by study create")
        return parser

    create = command("create", _create, "check the pictures and create a study folder", epilog=CONFIG_HELP)
    create.add_argument("config", type=Path, metavar="CONFIG", help="a JSON file, see below")
    create.add_argument("study", type=Path, metavar="STUDY", help="the folder to create")
    serve = command("serve", _serve, "serve the study until interrupted; writes the readers' links to a file")
    _add_address(serve)
    command("status", _status, "who has answered how much")
    export = command("export", _export, "every answer as a table, with a data dictionary")
    export.add_argument("-o", "--output", required=True, type=Path, metavar="TABLE", help=".csv or .json")
    analyse = command("analyse", _analyse, "statistics as one page; prints a summary")
    analyse.add_argument("-o", "--output", required=True, type=Path, metavar="PAGE", help=".html")
    analyse.add_argument("--seed", type=int, default=0, help="of bootstrap and randomisation; default: 0")
    simulate = command(
        "simulate", _simulate, "answer a fresh study by simulated readers with known preferences"
    )
    what = "preference for a method; once per method"
    simulate.add_argument("--strength", action="append", default=[], metavar="METHOD=LOG_ODDS", help=what)
    for name, what in (
        ("side-bias", "log-odds for the left"),
        ("equal", "difference under which they say equal"),
        ("reader-sd", "standard deviation of strengths over readers"),
        ("case-sd", "standard deviation of strengths over cases"),
    ):
        simulate.add_argument(f"--{name}", type=float, default=0.0, metavar="X", help=f"{what}; default: 0")
    simulate.add_argument("--seed", type=int, default=0, help="of the answers; default: 0")
    demo = command("demo", _demo, "create a study of the bundled samples, serve it and open it")
    demo.add_argument("out", type=Path, metavar="OUT_DIR", help="the folder to create")
    demo.add_argument("--no-serve", action="store_true", help="only create it")
    demo.add_argument("--no-browser", action="store_true", help="do not open a browser")
    add_network(demo)
    _add_address(demo)


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; default: this machine only"
    )
    parser.add_argument("--port", type=int, default=PORT, help=f"default: {PORT}")
    parser.add_argument("--certificate", metavar="PEM", help="serve over TLS with this certificate")
    parser.add_argument("--key", metavar="PEM", help="the certificate's key")
    what = "a name by which readers reach this machine, also used in their links; may be repeated"
    parser.add_argument("--name", action="append", default=[], metavar="HOST", help=what)
    what = "IP address of a proxy whose X-Forwarded-For is trusted; default: none"
    parser.add_argument("--proxy", metavar="ADDRESS", help=what)


def _open(folder: Path) -> Store:
    from mmif_trt.study.store import Store

    return Store(folder)


def _needs_extra() -> None:
    """One line if the extra is not installed, before anything is written."""
    privacy.font_list_off()
    try:
        import fastapi  # noqa: F401
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
        import statsmodels  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise InputError(f"study: {error.name} is not installed; try pip install 'mmif-trt[study]'") from None


def _create(args: argparse.Namespace) -> int:
    from mmif_trt.study.config import read_config
    from mmif_trt.study.create import LINKS, create

    config = read_config(args.config)
    create(config, args.study, warn=lambda text: say(f"warning: {text}"))
    store = _open(args.study)
    items = [store.total(reader) for reader in store.readers()]
    each = f"{min(items)} to {max(items)}" if min(items) < max(items) else f"{items[0]}"
    print(
        f"{args.study}: {len(store.cases())} cases, {len(store.methods())} methods, {len(items)} readers, "
        f"{each} items each"
    )
    print(f"the readers' secrets: {args.study / LINKS}; keep it private: study serve makes their links of it")
    return 0


def _serve(args: argparse.Namespace) -> int:
    _needs_extra()
    from mmif_trt.files import refuse_irregular, write_atomic
    from mmif_trt.study.create import links
    from mmif_trt.study.server import serve

    if not 1 <= args.port <= 65535:
        raise InputError(f"--port {args.port}; expected 1 to 65535")
    if bool(args.certificate) != bool(args.key):
        raise InputError("--certificate, --key: one without the other; expected both or neither")
    for option, path in (("--certificate", args.certificate), ("--key", args.key)):
        if path:
            refuse_irregular(path, option, "a PEM file")
    if args.proxy is not None:
        try:
            ipaddress.ip_address(args.proxy)
        except ValueError:  # uvicorn compares texts: a name would never match
            raise InputError(
                f"--proxy {args.proxy}: not an IP address; expected that from which the proxy connects"
            ) from None
    store = _open(args.study)
    scheme = "https" if args.certificate else "http"
    found = links(args.study, f"{scheme}://{address(args.name[0] if args.name else args.host, args.port)}")
    os.umask(0o077)  # also for what SQLite creates beside the database
    made = args.study / ADDRESSES
    text = "reader,link\n" + "".join(f"{reader},{link}\n" for reader, link in enumerate(found, 1))

    def ready() -> None:
        write_atomic(made, text.encode())  # not on a terminal or in a log: whoever has a link is its reader
        print(f"the readers' links: {made} (give each reader one)", flush=True)
        if not _is_loopback(args.host) and not args.certificate:
            print(
                "mmif-trt: warning: open to the network without TLS: anyone on the route can read links and "
                "answers; pass --certificate and --key, or put a TLS proxy in front of 127.0.0.1",
                file=sys.stderr,
            )
        print("serving; Ctrl-C ends it, and no answer is lost", flush=True)
        if getattr(args, "browser", False):
            import webbrowser

            webbrowser.open(found[0])

    serve(
        store,
        args.host,
        args.port,
        certificate=args.certificate,
        key=args.key,
        ready=ready,
        names=args.name,
        proxy=args.proxy,
    )
    return 0


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _status(args: argparse.Namespace) -> int:
    from mmif_trt.study.export import rows

    store = _open(args.study)
    answered = rows(store)
    print(f"{store.meta['title']}: {len(store.cases())} cases, {len(store.methods())} methods")
    for reader in store.readers():
        own = [row for row in answered if row["reader"] == reader and not row["training"]]
        done, total = len({row["position"] for row in own}), store.total(reader)
        last = f", last {max(row['answered_at'] for row in own)}" if own else ""
        state = "finished" if done == total else "under way" if store.has_begun(reader) else "not begun"
        print(f"reader {reader}: {state}, {done} of {total} items{last}")
    return 0


def _export(args: argparse.Namespace) -> int:
    from mmif_trt.study.export import write

    made = [args.output]
    if args.output.suffix == ".csv":
        made.append(args.output.with_suffix(".dictionary.csv"))
    for path, header in zip(made, (b"answer_id,", b"column,meaning"), strict=False):
        refuse_overwriting([args.study], [path], path, header)
    print(f"{write(_open(args.study), args.output)} answers -> {args.output}")
    return 0


def _analyse(args: argparse.Namespace) -> int:
    _needs_extra()
    if args.output.suffix != ".html":
        raise InputError(f"--output {args.output}: suffix {args.output.suffix or 'none'}; expected .html")
    from mmif_trt.study import analysis

    refuse_overwriting([args.study], [args.output], args.output)
    store = _open(args.study)
    found = analysis.write(store, args.output, args.seed)
    for line in [*analysis.sentences(found, store.methods()), *analysis.cautions(found)]:
        print(line)
    print(f"-> {args.output}")
    return 0


def _simulate(args: argparse.Namespace) -> int:
    from mmif_trt.study.simulate import Planted, simulate

    strengths = {}
    for text in args.strength:
        name, _, value = text.rpartition("=")
        try:
            strengths[name] = float(value)
        except ValueError:
            raise InputError(f"--strength {text}; expected METHOD=LOG_ODDS, such as LAGN=0.8") from None
    planted = Planted(strengths, args.side_bias, args.equal, args.reader_sd, args.case_sd)
    count = simulate(_open(args.study), planted, args.seed)
    print(f"{count} answers by simulated readers, training included; every page will say so")
    return 0


def _demo(args: argparse.Namespace) -> int:
    _needs_extra()
    from mmif_trt.files import prove_writable
    from mmif_trt.fuser import Fuser
    from mmif_trt.study.config import read_config
    from mmif_trt.study.create import create
    from mmif_trt.study.sample import prepare

    args.study = args.out / "study"
    if not args.study.exists():
        prove_writable(args.out)
        create(read_config(prepare(args.out, Fuser(network=args.network))), args.study)
        what = f"{weights.title(args.network)}, average and maximum on three bundled pairs"
        print(f"{args.study}: {what}; CT, PET and SPECT are simulated")
    else:
        print(f"{args.study}: exists; used as it is")
    if args.no_serve:
        return 0
    args.browser = not args.no_browser
    return _serve(args)
