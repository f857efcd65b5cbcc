"""`mmif-trt report`: one self-contained page from sources and any number of methods' fused folders."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmif_trt import overwriting, privacy
from mmif_trt.commands.arguments import add_ranges, count_to, ranges_of, say
from mmif_trt.image import InputError

if TYPE_CHECKING:
    from mmif_trt.report.commands import Judged


def add(commands: Any) -> None:
    """Registers `report`."""
    report = commands.add_parser(
        "report",
        help="one page of figures and pictures over methods",
        description="Scores methods and shows their pictures in one HTML file that opens from disk.",
    )
    report.add_argument(
        "sources", type=Path, metavar="SOURCES", help="folder with mri/ and ct/, pet/ or spect/"
    )
    report.add_argument(
        "--method",
        action="append",
        default=[],
        metavar="NAME=FOLDER|COMMAND",
        help="a method's fused pictures, named like the sources; or the command that makes them, with {mri}, "
        "{other} and {out} for its folders, which also runs on planted lesions; once per method",
    )
    report.add_argument(
        "--lesions",
        action="append",
        default=[],
        metavar="NAME=TABLE.json",
        help="a method's table of planted lesions, from mmif-trt eval --lesions -o; once per method",
    )
    what = "lesions of each kind to plant for commands; default: 20"
    report.add_argument("--per-kind", type=count_to(10_000), default=20, metavar="N", help=what)
    report.add_argument("--seed", type=count_to(2**31, 0), metavar="N", help="of the lesions; default: 0")
    report.add_argument(
        "--no-baselines", action="store_true", help="leave out pixel-wise average and maximum"
    )
    report.add_argument("--title", default="Fusion report", help="heading of the page")
    add_ranges(report)
    report.add_argument("-o", "--output", required=True, type=Path, metavar="PAGE", help=".html")
    report.set_defaults(run=_report)


def _report(args: argparse.Namespace) -> int:
    given = dict(map(_method, args.method))
    if len(given) != len(args.method):
        raise InputError(f"--method: {', '.join(args.method)}; expected each name once")
    if args.output.suffix != ".html":
        raise InputError(f"--output {args.output}: suffix {args.output.suffix or 'none'}; expected .html")
    privacy.font_list_off()
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"report: {error.name} is not installed; try pip install 'mmif-trt[study]'"
        ) from None
    from tqdm import tqdm

    from mmif_trt.files import prove_writable
    from mmif_trt.measure.metrics import all_metrics
    from mmif_trt.report import page, pictures
    from mmif_trt.report.figures import gather
    from mmif_trt.report.reader import read_lesions

    lesion_tables = dict(_lesions(text, given) for text in args.lesions)
    lesions = read_lesions(lesion_tables)
    prove_writable(args.output.parent)
    folder = pictures.folder_of(args.output)
    overwriting.check(
        [args.sources, *(Path(x) for x in given.values() if not _is_command(x)), *lesion_tables.values()],
        [args.output, folder],
        lambda path: overwriting.is_ours(str(args.output)),
    )
    ranges = ranges_of(args)
    with tempfile.TemporaryDirectory() as scratch, tqdm(unit="picture", disable=None) as bar:
        judged = _judged(args, given, Path(scratch), ranges)
        methods = {name: judged.folders.get(name, Path(text)) for name, text in given.items()}

        def measure(*pictures: Any) -> dict[str, float]:
            bar.update()
            return all_metrics(*pictures)

        baselines = not args.no_baselines
        figures = gather(args.sources, methods, baselines=baselines, measure=measure, ranges=ranges)
        size = page.write(
            figures,
            args.output,
            title=args.title,
            sources=args.sources,
            ranges=ranges,
            lesions={**judged.lesions, **lesions},
            gallery=judged.gallery,
            places={name: text for name, text in given.items() if _is_command(text)},
        )
    for warning in figures.warnings:
        say(f"warning: {warning}")
    print(
        f"{len(figures.cases)} cases, {len(figures.methods)} methods -> {args.output} ({size / 1e6:.1f} MB)"
    )
    return 0


def _is_command(text: str) -> bool:
    from mmif_trt.report import commands

    return commands.is_command(text)


def _judged(args: argparse.Namespace, given: dict[str, str], scratch: Path, ranges: Any) -> Judged:
    """The commands among the methods, run; a bar over their steps."""
    from tqdm import tqdm

    from mmif_trt.measure.baselines import PICTURES
    from mmif_trt.report import commands

    found = {name: text for name, text in given.items() if commands.is_command(text)}
    if not found:
        return commands.Judged({}, {}, [])
    baselines = not args.no_baselines
    with tqdm(
        total=1 + 2 * len(found) + len(PICTURES) * baselines, unit="step", disable=None, leave=False
    ) as bar:

        def done(what: str) -> None:
            bar.set_postfix_str(what)
            bar.update()

        how: dict[str, Any] = {"per_kind": args.per_kind, "seed": args.seed or 0, "baselines": baselines}
        how["ranges"] = ranges
        return commands.judge_all(args.sources, found, scratch, done=done, **how)


def _method(text: str) -> tuple[str, str]:
    from mmif_trt.measure.scores import BASELINES

    name, equals, folder = text.partition("=")
    if not (name and equals and folder) or name in (*BASELINES, "mri", "other"):
        taken = ", ".join((*BASELINES, "mri", "other"))
        raise InputError(
            f"--method {text}; expected NAME=FOLDER or NAME=COMMAND, with a name other than {taken}"
        )
    return name, folder


def _lesions(text: str, methods: dict[str, str]) -> tuple[str, Path]:
    name, equals, table = text.partition("=")
    if not (equals and table) or name not in methods:
        raise InputError(f"--lesions {text}; expected NAME=TABLE.json with a NAME of --method")
    return name, Path(table)
