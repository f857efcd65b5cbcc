"""Arguments that several commands share, and their checks before any work."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmif_trt import overwriting, weights
from mmif_trt.cluster import ENGINES
from mmif_trt.files import prove_writable
from mmif_trt.image import MODALITIES, SHOWN, InputError
from mmif_trt.stages.palettes import DEFAULT, PALETTES

if TYPE_CHECKING:
    from mmif_trt.cluster.ray_engine import Size
    from mmif_trt.fuser import Fuser
    from mmif_trt.volume import Options


REGISTRATIONS = ("header", "rigid", "none")  # geometry.REGISTRATIONS, without its imports
PLANES = ("axial", "coronal", "sagittal")


def say(line: str, code: int = 0) -> int:
    """One line on stderr; returns `code`."""
    print(f"mmif-trt: {line}", file=sys.stderr)
    return code


def add_network(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    what = f"lagn-quality: finer and slower; default: {weights.DEFAULT}"
    parser.add_argument("--network", choices=weights.NAMES, default=weights.DEFAULT, help=what)


def add_runtime(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    add_network(parser)
    parser.add_argument("--runtime", default="auto", help="what runs the network (see info); default: auto")
    parser.add_argument("--precision", default="auto", help="auto, bf16, fp16 or fp32; default: auto")
    parser.add_argument("--threads", type=count_to(1024), help="threads of the network; default: all")


def add_of_b(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """What B's file may leave open."""
    aligned = "for --registration none: one grid already"
    parser.add_argument("--assume-aligned", action="store_true", help=aligned)
    modality = "where B's file does not say it (NIfTI)"
    parser.add_argument("--modality-b", type=str.lower, choices=MODALITIES[1:], help=modality)


def add_ranges(parser: argparse.ArgumentParser) -> None:
    """Black and white of each folder of pictures, for what reads folders of sources and results."""
    for name in (*MODALITIES, "fused"):
        what = f"black and white of the {name} pictures; default: the whole range of the file's type"
        parser.add_argument(f"--range-{name}", type=float, nargs=2, metavar=("LOW", "HIGH"), help=what)


def ranges_of(args: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """The options of add_ranges that were given, by folder. Raises InputError."""
    names = (*MODALITIES, "fused")
    found = {name: (x[0], x[1]) for name in names if (x := getattr(args, f"range_{name}"))}
    for name, (low, high) in found.items():
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise InputError(f"--range-{name} {low:g} {high:g}; expected two finite numbers, LOW < HIGH")
    return found


def count_to(most: int, least: int = 1) -> Any:
    def count(text: str) -> int:
        if not (text.isdecimal() and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"{text!r}; expected whole numbers from {least} to {most}")
        return int(text)

    return count


def load_fuser(args: argparse.Namespace, streams: int = 1) -> Fuser:
    from mmif_trt.fuser import Fuser

    return Fuser(args.runtime, args.precision, args.threads, streams, args.network)


def what_ran(runtime: dict[str, Any], network: str) -> str:
    """For a summary, of `runtimes.describe`: "openvino bf16 on CPU", after a network other than the
    default."""
    words = "{name} {precision} on {device}".format(**runtime)
    return words if network == weights.DEFAULT else f"{network}, {words}"


def check_text_output(option: str, path: str, *suffixes: str) -> None:
    """Early checks: the folder is writable, and the suffix (also of a link's target) is not that of a
    picture."""
    if os.path.splitext(os.path.realpath(path))[1].lower() not in suffixes:
        raise InputError(f"{option} {path}: expected a file name ending in {' or '.join(suffixes)}")
    prove_writable(Path(path).parent)


def refuse_overwriting(inputs: Any, outputs: Any, text: str | Path | None, header: bytes = b"") -> None:
    """overwriting.check, with the output `text` replaceable if this program wrote it. header: the first line
    of a table. Raises InputError."""

    named = None if text is None else os.fspath(text)
    overwriting.check(inputs, outputs, lambda path: path != named or overwriting.is_ours(path, header))


def add_how(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """How volumes are fused, for one pair or many: plane, palette, percentiles."""
    what = "of the slices that the network sees; default: that of A"
    parser.add_argument("--plane", choices=PLANES, help=what)
    shown = ", ".join(f"{name} for {SHOWN[kind]}" for kind, name in DEFAULT.items())
    what = f"of a scalar B: {', '.join(PALETTES)} or its UID; default: {shown}"
    parser.add_argument("--palette", help=what)
    for side in "ab":
        what = f"black and white of {side.upper()} by percentiles of the volume"
        parser.add_argument(f"--percentiles-{side}", type=float, nargs=2, metavar=("LOW", "HIGH"), help=what)


def add_dicomweb(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--dicomweb", metavar="URL", help=what)
    what = "a file with 'Bearer TOKEN' or 'Basic USER:PASSWORD', mode 0600"
    parser.add_argument("--dicomweb-auth", metavar="FILE", help=what)
    what = "PEM file of the signer of the service's certificate; default: the well-known authorities"
    parser.add_argument("--dicomweb-ca", metavar="FILE", help=what)


def dicomweb_of(args: argparse.Namespace) -> Any:
    """The stated dicomweb.Service, or None. Raises InputError."""
    if args.dicomweb is None:
        if args.dicomweb_auth or args.dicomweb_ca:
            raise InputError("--dicomweb-auth and --dicomweb-ca: expected only with --dicomweb URL")
        return None
    from mmif_trt import dicomweb

    return dicomweb.service(args.dicomweb, args.dicomweb_auth, args.dicomweb_ca)


def add_pairing(parser: argparse.ArgumentParser) -> None:
    """How the series of a study are paired and registered."""
    what = "of B to A; rigid also pairs series of a study across frames of reference; default: header"
    parser.add_argument("--registration", choices=REGISTRATIONS[:2], default="header", help=what)


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """Where the work is done, if not in this process."""
    group = parser.add_argument_group("many machines")
    what = "run on workers of this engine; -o is a folder that all machines share"
    group.add_argument("--on", choices=ENGINES, help=what)
    what = "of a running cluster; default: a new one on this machine, for this run"
    group.add_argument("--address", metavar="HOST:PORT", help=what)
    what = "CPUs that the engine reserves for a worker, and its threads"
    group.add_argument("--cpus-per-worker", type=count_to(1024), default=1, metavar="C", help=what)
    group.add_argument("--gpus-per-worker", type=float, default=0.0, metavar="G", help="0.5: two share one")


def cluster_of(args: argparse.Namespace) -> Size | None:
    """The options of `add_cluster`; None without --on. Raises InputError."""
    from mmif_trt.cluster.ray_engine import Size

    size = Size(args.workers or 1, args.cpus_per_worker, args.gpus_per_worker)
    if args.on is None:
        if args.address or (size.cpus, size.gpus) != (1, 0):
            raise InputError("--address, --cpus-per-worker, --gpus-per-worker: expected with --on only")
        return None
    if not 0 <= size.gpus <= 64:
        raise InputError(f"--gpus-per-worker {size.gpus:g}; expected 0 to 64")
    return size


def options_of(args: argparse.Namespace, **given: Any) -> Options:
    """The options that a command line states, under the names that it shares with `volume.Options`; given:
    those under other names. Raises InputError for a palette or percentiles that no volume can have: here, not
    at each of ten thousand cases."""
    from mmif_trt.stages import normalise, palettes
    from mmif_trt.volume import Options

    stated = {f.name: getattr(args, f.name) for f in fields(Options) if hasattr(args, f.name)}
    options = Options(**{**stated, **given})
    if options.palette is not None:
        palettes.uid(options.palette)
    for side, percentiles in (("a", options.percentiles_a), ("b", options.percentiles_b)):
        if percentiles is not None:
            normalise.checked_percentiles(percentiles, side)
    return options


def pacs_of(option: str, text: str) -> tuple[str, str, int]:
    """(AE title, host, port) of AET@HOST:PORT. Raises InputError."""
    to = re.fullmatch(r"([^@\\]{1,16})@(\[[0-9A-Fa-f:.]+\]|[^@:/\[\]\s]+):(\d{1,5})", text)
    if not to or not 0 < int(to[3]) < 65536:
        raise InputError(f"{option} {text}: expected AET@HOST:PORT, an IPv6 address in brackets")
    return to[1], to[2].strip("[]"), int(to[3])
