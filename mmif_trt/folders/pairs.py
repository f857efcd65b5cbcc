"""Which files make a pair, the name of its output, and what is refused before anything is written.

A pair is finished when its output exists and is not empty: `io.write` renames a complete file into place or
leaves nothing. A finished pair is never touched without `overwrite`, not even when an input is newer or a
setting differs: somebody may have edited it. (The message of a skipped pair says when an input is newer.)
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from mmif_trt import io, overwriting
from mmif_trt.files import is_regular, prove_writable, remove_leftovers
from mmif_trt.image import InputError

SHOWN_NAMES = 5  # of files without a partner


@dataclass(frozen=True, slots=True)
class Pair:
    """One job: paths as text (a Path costs several times the memory); is its output complete already?"""

    name: str
    a: str
    b: str
    out: str
    finished: bool = False


@dataclass(slots=True)
class Plan:
    """The pairs in order of name, and warnings about the rest."""

    pairs: list[Pair]
    out_folder: Path
    warnings: list[str] = field(default_factory=list)

    @property
    def unfinished(self) -> int:
        return sum(not pair.finished for pair in self.pairs)


def plan_pairs(
    a: str | Path, b: str | Path, out: str | Path, *, suffix: str | None = None, overwrite: bool = False
) -> Plan:
    """Match a with b and name the outputs; reads no picture and writes nothing.

    Two files: `out` is a file, or a folder (it exists, or ends in a slash) for a file of b's name.
    Two folders: files match by stem, the suffix may differ; hidden files, other file types and subfolders
    are ignored; a name on one side only gives a warning.
    Raises InputError for a missing input, a file beside a folder, an empty folder, two files with one stem in
    a folder, no common name, and an output that is an input or cannot hold the result.
    """
    for path in (a, b):
        if not (os.path.isfile(path) or os.path.isdir(path)):
            received = "not a regular file or folder" if os.path.lexists(path) else "no such file or folder"
            raise InputError(f"{path}: {received}; expected two image files or two folders")
    if os.path.isdir(a) != os.path.isdir(b):
        kinds = ("folder", "file") if os.path.isdir(a) else ("file", "folder")
        raise InputError(f"{a} is a {kinds[0]}, {b} a {kinds[1]}; expected two files or two folders")
    warnings: list[str] = []
    if os.path.isdir(a):
        if _split(Path(out).name)[1] and not os.path.isdir(out) and not str(out).endswith(("/", os.sep)):
            raise InputError(
                f"{out}: the name of a file; expected that of a folder, as {a} and {b} are folders"
            )
        folder, triples = Path(out), _match_folders(Path(a), Path(b), Path(out), suffix, warnings)
        if os.path.exists(out) and any(os.path.samefile(out, source) for source in (a, b)):
            raise InputError(f"{out}: is also an input folder; expected a different output folder")
    else:
        triples = [_match_files(Path(a), Path(b), out, suffix)]
        folder = triples[0][2].parent
    overwriting.check((path for t in triples for path in t[:2]), (t[2] for t in triples))
    pairs = [
        Pair(p.stem, str(p), str(q), str(o), finished=not overwrite and _is_whole(o)) for p, q, o in triples
    ]
    return Plan(pairs, folder, warnings)


def _match_files(a: Path, b: Path, out: str | Path, suffix: str | None) -> tuple[Path, Path, Path]:
    if os.path.isdir(out) or str(out).endswith(("/", os.sep)):
        stem, own = _split(b.name)
        return a, b, Path(out) / (stem + (suffix or own))
    path = Path(out)
    own = _split(path.name)[1]
    if suffix and own.lower() != suffix:
        raise InputError(f"{out}: suffix {own or 'none'}; expected {suffix}, by --format")
    if own.lower() not in io.PICTURES:
        received = own or os.path.splitext(path.name)[1] or "none"
        raise InputError(
            f"{out}: suffix {received}; expected one of {' '.join(io.PICTURES)}: {a} is a picture"
        )
    return a, b, path


def _match_folders(
    a: Path, b: Path, out: Path, suffix: str | None, warnings: list[str]
) -> list[tuple[Path, Path, Path]]:
    of_a, of_b = _by_stem(a), _by_stem(b)
    both = sorted(of_a.keys() & of_b.keys())
    if not both:
        first = f"{of_a[min(of_a)].name} and {of_b[min(of_b)].name}"
        received = (
            f"{a} ({len(of_a)} images) and {b} ({len(of_b)} images): no name in common ({first}, for example)"
        )
        raise InputError(f"{received}; expected files with equal names, apart from the suffix")
    for folder, alone in ((a, of_a.keys() - of_b.keys()), (b, of_b.keys() - of_a.keys())):
        if alone:
            more = ", ..." if len(alone) > SHOWN_NAMES else ""
            names = ", ".join(sorted(alone)[:SHOWN_NAMES]) + more
            warnings.append(f"{folder}: {len(alone)} of {len(both) + len(alone)} without a partner: {names}")
    return [(of_a[stem], of_b[stem], out / (stem + (suffix or _split(of_b[stem].name)[1]))) for stem in both]


def _split(name: str) -> tuple[str, str]:
    """(stem, suffix) by the table of formats, "" if it lacks the suffix."""
    suffix = next((suffix for suffix in io.FORMATS if name.lower().endswith(suffix)), "")
    cut = len(name) - len(suffix)
    return name[:cut], name[cut:]


def _by_stem(folder: Path) -> dict[str, Path]:
    """stem -> image file of one folder, not its subfolders."""
    found: dict[str, Path] = {}
    others = 0
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        stem, suffix = _split(entry.name)
        if entry.name.startswith(".") or not suffix or not is_regular(entry):
            others += 1
            continue
        if stem in found:
            received = f"{found[stem].name} and {entry.name} differ in the suffix only"
            raise InputError(f"{folder}: {received}; expected one file per name")
        found[stem] = folder / entry.name
    if not found:
        received = f"no image among {others} entries" if others else "an empty folder"
        raise InputError(
            f"{folder}: {received}; expected files named {' '.join('*' + s for s in io.FORMATS)}"
        )
    return found


def _is_whole(path: Path) -> bool:
    # After a crash of the machine, a rename that was not yet written out may leave an empty file.
    return path.is_file() and path.stat().st_size > 0


def prepare_output(plan: Plan) -> None:
    """Make the output folder, prove that it is writable (else InputError), remove what a killed run left."""
    if plan.unfinished:  # otherwise it may be read-only by now
        prove_writable(plan.out_folder)
    remove_leftovers(plan.out_folder)
