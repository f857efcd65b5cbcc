"""What the pages do not say by hand: option tables from the parser, the picture and table of the rooms.

    python docs/tables.py [--check]

Writes between "<!-- NAME:begin -->" and "<!-- NAME:end -->" in the pages, and rooms.svg. --check changes
nothing and exits 1 where something is out of date.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).resolve().parent
REPO = DOCS.parent
sys.path[:0] = [str(REPO), str(REPO / "tests"), str(REPO / "benchmarks")]

import cluster_tables  # noqa: E402  of benchmarks/results
import test_house  # noqa: E402  the floors and the imports that it tests

from mmif_trt import cli  # noqa: E402
from mmif_trt.io.dicom import syntaxes  # noqa: E402

BOX_PX, GAP_PX, FLOOR_PX, LEFT_PX = (96, 34), 10, 52, 86


def parsers(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """(words after mmif-trt, parser) of every command that does something."""
    inner = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not inner:
        yield name.strip(), parser
    for action in inner:
        for word, child in action.choices.items():
            yield from parsers(child, f"{name} {word}")


def option_table(parser: argparse.ArgumentParser) -> str:
    lines = ["| option | what it is |", "|---|---|"]
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        names = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        values = "" if action.nargs == 0 or not action.option_strings else f" {_value(action)}"
        parts = [action.help or ""]
        if action.required and action.option_strings:
            parts.append("required")
        elif action.default not in (None, False, []) and "default" not in parts[0]:
            parts.append(f"default: {action.default}")
        cells = (f"`{names}{values}`", "; ".join(filter(None, parts)))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _value(action: argparse.Action) -> str:
    if action.choices:
        return "{" + ",".join(map(str, action.choices)) + "}"
    if isinstance(action.metavar, tuple):
        return " ".join(action.metavar)
    return action.metavar or action.dest.upper()


def all_commands() -> str:
    parts = []
    for name, parser in parsers(cli._parser()):
        about = (parser.description or "").strip()
        parts += [f"## mmif-trt {name}", "", *([about, ""] if about else []), option_table(parser), ""]
        if parser.epilog:
            code = "{" in parser.epilog
            parts += ["```text", parser.epilog, "```", ""] if code else [parser.epilog, ""]
    return "\n".join(parts).rstrip()


def rooms() -> list[list[str]]:
    """Rooms of each floor, ground floor first; those that are there."""
    there = {module.removeprefix("mmif_trt.") for module in test_house.known()} - {"__main__"}
    floors = [[room for room in floor if room in there] for floor in test_house.FLOORS]
    return [floor for floor in floors if floor]


def about(room: str) -> str:
    """The first sentence of the room's docstring."""
    path = REPO / "mmif_trt" / room.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split())
    return re.split(r"(?<=\.)\s", text)[0].replace("|", "\\|")


def room_table() -> str:
    lines = ["| room | what it holds |", "|---|---|"]
    lines += [f"| `{room}` | {about(room)} |" for floor in reversed(rooms()) for room in floor]
    return "\n".join(lines)


def picture() -> str:
    """The floors as SVG, the ground floor at the bottom."""
    floors = list(reversed(rooms()))
    width = LEFT_PX + max(map(len, floors)) * (BOX_PX[0] + GAP_PX) + 70
    height = len(floors) * FLOOR_PX + 40
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        'font-family="sans-serif" font-size="13">',
        "<title>The rooms of mmif_trt: a room imports rooms of lower floors only</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="4" refY="4" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#3f5873"/></marker></defs>',
    ]
    for row, floor in enumerate(floors):
        y = 14 + row * FLOOR_PX
        out.append(f'<text x="14" y="{y + 22}" fill="#5b6673">floor {len(floors) - 1 - row}</text>')
        for column, room in enumerate(floor):
            x = LEFT_PX + column * (BOX_PX[0] + GAP_PX)
            out.append(
                f'<rect x="{x}" y="{y}" width="{BOX_PX[0]}" height="{BOX_PX[1]}" rx="5" fill="#eaf0f6" '
                f'stroke="#3f5873"/><text x="{x + BOX_PX[0] / 2:g}" y="{y + 22}" text-anchor="middle" '
                f'fill="#1c2733">{room}</text>'
            )
    x = width - 40
    out.append(
        f'<line x1="{x}" y1="20" x2="{x}" y2="{height - 40}" stroke="#3f5873" stroke-width="2" '
        f'marker-end="url(#tip)"/><text x="{x + 6}" y="{height / 2:g}" fill="#5b6673" '
        f'transform="rotate(90 {x + 6} {height / 2:g})" text-anchor="middle">imports</text></svg>'
    )
    return "\n".join(out) + "\n"


def pages() -> dict[Path, str]:
    """Every file that is made here, as it should be."""
    blocks = {"commands": all_commands(), "rooms": room_table(), "syntaxes": syntaxes.table().rstrip()}
    blocks["million"] = cluster_tables.million_table()
    blocks["cluster cost"] = cluster_tables.cost_sentences()
    blocks |= {f"options {name}": option_table(parser) for name, parser in parsers(cli._parser())}
    made = {DOCS / "rooms.svg": picture()}
    for path in sorted(DOCS.rglob("*.md")):
        text = path.read_text()
        for name, block in blocks.items():
            begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
            if begin in text:
                head, rest = text.split(begin)
                text = f"{head}{begin}\n{block}\n{end}{rest.split(end)[1]}"
        made[path] = text
    return made


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = [p for p, text in pages().items() if not p.exists() or p.read_text() != text]
    for path in stale:
        print(f"{path.relative_to(REPO)}: {'out of date' if check else 'written'}")
        if not check:
            path.write_text(pages()[path])
    return 1 if check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
