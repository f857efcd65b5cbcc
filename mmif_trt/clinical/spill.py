"""Headers and cases of a plan on disk, in an unnamed file: memory holds one study."""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from mmif_trt.clinical.case import Case
from mmif_trt.image import InputError
from mmif_trt.io.which import Which

CACHE_KB = 16_384
HEADERS_AT_ONCE = 128  # of one study in a row: they share nearly all their text
TABLES = """
CREATE TABLE seen(device TEXT, inode TEXT, PRIMARY KEY(device, inode)) WITHOUT ROWID;
CREATE TABLE header(study BLOB, number INTEGER, body BLOB, PRIMARY KEY(study, number));
CREATE TABLE owner(series TEXT, study BLOB, PRIMARY KEY(series, study)) WITHOUT ROWID;
CREATE TABLE planned(number INTEGER PRIMARY KEY, name TEXT UNIQUE, body BLOB);
CREATE TABLE outside(number INTEGER PRIMARY KEY, line TEXT);
"""


class Spill:
    """Close it, or use `with`. SQLite keeps an unnamed database in an unnamed file, private to its
    owner, in SQLITE_TMPDIR or TMPDIR; so a kill leaves no patient data in a folder."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._db.execute(f"PRAGMA cache_size = -{CACHE_KB}")
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.executescript(TABLES)
        self._waiting: dict[str, list[tuple[str, Any]]] = {}
        self._rows = self._held = 0
        self.bids = ""  # the BIDS data set of the cases, if they are of one

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def __contains__(self, key: tuple[int, int]) -> bool:
        """With `add`, the set of visited files and folders, see io/walk.py. As text: an inode is an unsigned
        64-bit number, SQLite's are signed."""
        sought = "SELECT 1 FROM seen WHERE device = ? AND inode = ?"
        return self._db.execute(sought, (str(key[0]), str(key[1]))).fetchone() is not None

    def add(self, key: tuple[int, int]) -> None:
        self._db.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (str(key[0]), str(key[1])))

    def put_header(self, study: str, path: str, header: Any) -> None:
        self._waiting.setdefault(study, []).append((path, header))
        self._held += 1
        if self._held == HEADERS_AT_ONCE:
            self._write_headers()

    def _write_headers(self) -> None:
        for study, found in self._waiting.items():
            self._rows += 1
            row = (study.encode(errors="surrogatepass"), self._rows, _packed(found))
            self._db.execute("INSERT INTO header VALUES (?, ?, ?)", row)
            series = {str(header.get("SeriesInstanceUID", "")) for _, header in found}
            owners = [(_text(uid), row[0]) for uid in series if uid]
            self._db.executemany("INSERT OR IGNORE INTO owner VALUES (?, ?)", owners)
        self._waiting.clear()
        self._held = 0

    def studies(self) -> Iterator[list[tuple[str, Any]]]:
        """(path, header) of each study, in the order of patient and study."""
        self._write_headers()
        for (study,) in self._db.execute("SELECT DISTINCT study FROM header ORDER BY study"):
            rows = self._db.execute("SELECT body FROM header WHERE study = ? ORDER BY number", (study,))
            yield [(path, header) for (body,) in rows for path, header in _unpacked(body)]

    def shared(self) -> set[str]:
        """The Series Instance UIDs shared by instances of several patients or studies."""
        self._write_headers()
        sought = "SELECT series FROM owner GROUP BY series HAVING count(*) > 1"
        return {uid for (uid,) in self._db.execute(sought)}

    def put(self, case: Case) -> None:
        """Raises InputError for a name that exists."""
        try:
            row = (case.name, _packed(entry_of(case)))
            self._db.execute("INSERT INTO planned(name, body) VALUES (?, ?)", row)
        except sqlite3.IntegrityError:
            raise InputError(f"the name {case.name!r} occurs twice; expected one case per name") from None

    def leave_out(self, line: str) -> None:
        self._db.execute("INSERT INTO outside(line) VALUES (?)", (line,))

    def sort(self, index: int = 1, count: int = 1) -> None:
        """Sorts by name, for cases that were not added in order; then keeps only every count-th from the
        index-th on."""
        self._db.execute("CREATE TABLE sorted AS SELECT name, body FROM planned ORDER BY name")
        self._db.execute("DELETE FROM sorted WHERE (rowid - ?) % ? != 0", (index, count))
        self._db.execute("DELETE FROM planned")
        self._db.execute("INSERT INTO planned(name, body) SELECT name, body FROM sorted ORDER BY rowid")
        self._db.execute("DROP TABLE sorted")

    def twins(self, end: str) -> tuple[str, str] | None:
        """Two cases, one named like the other with `end` appended."""
        sought = (
            "SELECT one.name, other.name FROM planned one JOIN planned other ON other.name = one.name || ?"
        )
        found: tuple[str, str] | None = self._db.execute(sought, (end,)).fetchone()
        return found

    def __len__(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM planned").fetchone()[0])

    def cases(self, index: int = 1, count: int = 1) -> Iterator[Case]:
        """Every count-th from the index-th on."""
        last, step = index - count, "SELECT number, body FROM planned WHERE number = ?"
        while row := self._db.execute(step, (last + count,)).fetchone():
            last = row[0]
            yield case_of(_unpacked(row[1]))

    def left(self) -> Iterator[str]:
        for (line,) in self._db.execute("SELECT line FROM outside ORDER BY number"):
            yield line


def _text(uid: str) -> str:
    """As SQLite accepts it: a malformed UID may not be valid Unicode."""
    return uid.encode(errors="backslashreplace").decode()


def _packed(value: Any) -> bytes:
    return zlib.compress(json.dumps(value).encode(), 1)


def _unpacked(body: bytes) -> Any:
    return json.loads(zlib.decompress(body))


def entry_of(case: Case) -> dict[str, Any]:
    """As JSON; the files of a series as [folder, names]."""
    return {**asdict(case), "a": _split(case.a), "b": _split(case.b)}


def case_of(entry: Any) -> Case:
    """Raises KeyError, TypeError or ValueError for anything not made by `entry_of`."""
    own = {key: tuple(value) if isinstance(value, list) else value for key, value in entry["own"].items()}
    name, registration, words = (str(entry[key]) for key in ("name", "registration", "words"))
    which_a, which_b = (Which(**entry[key]) for key in ("which_a", "which_b"))
    series_a, series_b = map(str, entry["series"])
    a, b = _joined(entry["a"]), _joined(entry["b"])
    return Case(name, a, b, own, registration, which_a, which_b, words, (series_a, series_b))


def _split(paths: tuple[str, ...]) -> list[Any]:
    folders = {path.rpartition("/")[0] for path in paths}
    if len(paths) < 2 or len(folders) > 1:
        return ["", list(paths)]
    return [folders.pop() + "/", [path.rpartition("/")[2] for path in paths]]


def _joined(entry: Any) -> tuple[str, ...]:
    folder, names = entry
    return tuple(folder + name for name in names)
