"""The study's database: the only module that speaks SQL. Answers are appended, never changed.

Every answer is one transaction that is on disk (WAL, synchronous=FULL) before the call returns, so a killed
server loses nothing that a reader saw accepted. Pictures are in the database too (picture.png; for a volume,
the output of view/pack.py), so that there is no path to guess.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmif_trt.image import InputError
from mmif_trt.study.plan import Item

FILE = "study.db"
APPLICATION_ID, VERSION = 0x4D4D5354, 1  # "MMST"; the version of the tables below
BUSY_S = 10.0  # how long a write waits for another process that uses the file

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE method (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE picture (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, png BLOB NOT NULL,
  source_sha256 TEXT NOT NULL);
CREATE TABLE cases (id INTEGER PRIMARY KEY, name TEXT NOT NULL, modality TEXT NOT NULL,
  mri INTEGER NOT NULL REFERENCES picture, other INTEGER NOT NULL REFERENCES picture);
CREATE TABLE fused (case_id INTEGER NOT NULL REFERENCES cases, method INTEGER NOT NULL REFERENCES method,
  picture INTEGER NOT NULL REFERENCES picture, PRIMARY KEY (case_id, method));
CREATE TABLE reader (id INTEGER PRIMARY KEY, token_sha256 TEXT NOT NULL UNIQUE);
CREATE TABLE profile (id INTEGER PRIMARY KEY, reader INTEGER NOT NULL UNIQUE REFERENCES reader,
  role TEXT NOT NULL, years REAL, at REAL NOT NULL);
CREATE TABLE item (id INTEGER PRIMARY KEY, reader INTEGER NOT NULL REFERENCES reader,
  position INTEGER NOT NULL, kind TEXT NOT NULL, case_id INTEGER NOT NULL REFERENCES cases,
  method_left INTEGER NOT NULL REFERENCES method, method_right INTEGER REFERENCES method,
  repeat_of INTEGER, UNIQUE (reader, position));
CREATE TABLE shown (nonce TEXT PRIMARY KEY, item INTEGER NOT NULL REFERENCES item, at REAL NOT NULL);
CREATE TABLE answer (id INTEGER PRIMARY KEY AUTOINCREMENT, item INTEGER NOT NULL REFERENCES item,
  revision INTEGER NOT NULL, nonce TEXT NOT NULL UNIQUE REFERENCES shown, answer TEXT NOT NULL,
  shown_at REAL NOT NULL, answered_at REAL NOT NULL, visible_s REAL, view TEXT NOT NULL,
  UNIQUE (item, revision));
CREATE INDEX answer_item ON answer (item);
"""
FINAL_TABLES = ("meta", "method", "picture", "cases", "fused", "reader", "profile", "item", "shown", "answer")


class StoreFull(OSError):
    """The disk of the study is full or failing; the transaction was rolled back."""


@dataclass(frozen=True)
class Page:
    """What a reader may see of one item. sources, slots: picture ids by slot; no method is named."""

    position: int
    total: int
    kind: str
    modality: str
    pictures: dict[str, int]
    answered: str = ""  # the current answer, if there is one


def token_hash(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def initialise(path: Path) -> sqlite3.Connection:
    """A new database with empty tables that refuse UPDATE and DELETE from the first row on."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(
        f"PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={VERSION};{SCHEMA}"
    )
    for table in FINAL_TABLES:
        for verb in ("UPDATE", "DELETE"):
            connection.execute(
                f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )
    return connection


class Store:
    """An opened study; safe to call from many threads.

    Raises InputError if `folder` has no study, or one of another version; StoreFull if a write fails.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / FILE
        if not self.path.is_file():
            raise InputError(f"{folder}: no {FILE} in it; expected a folder written by mmif-trt study create")
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(
                self.path, isolation_level=None, check_same_thread=False, timeout=BUSY_S
            )
            self._db.row_factory = sqlite3.Row
            marks = [
                self._db.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("application_id", "user_version")
            ]
            if marks[0] != APPLICATION_ID:
                raise InputError(f"{self.path}: a database, but not of a study; expected a study's {FILE}")
            if marks[1] != VERSION:
                raise InputError(f"{self.path}: study version {marks[1]}; expected version {VERSION}")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA foreign_keys=ON")
        except sqlite3.DatabaseError as error:
            raise InputError(f"{self.path}: {error}; expected a writable study database") from error
        self.meta: dict[str, Any] = {
            row["key"]: json.loads(row["value"]) for row in self._all("SELECT * FROM meta")
        }
        self._readers = [tuple(row) for row in self._all("SELECT id, token_sha256 FROM reader ORDER BY id")]

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _all(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    def _one(self, sql: str, *values: Any) -> sqlite3.Row | None:
        with self._lock:
            row: sqlite3.Row | None = self._db.execute(sql, values).fetchone()
            return row

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            except sqlite3.OperationalError as error:  # full, read-only, busy, I/O error
                self._roll_back()
                raise StoreFull(f"{self.path}: {error}") from error
            except BaseException:
                self._roll_back()
                raise

    def _roll_back(self) -> None:
        if self._db.in_transaction:  # SQLite has already rolled back if the disk was full
            self._db.execute("ROLLBACK")

    def reader_of(self, token: str) -> int | None:
        """The reader whose link has this token. Every reader's hash is compared, each in constant time."""
        digest = token_hash(token)
        found = None
        for reader, expected in self._readers:
            if hmac.compare_digest(digest, expected):
                found = reader
        return found

    def mark(self, reader: int | None = None) -> str:
        """Tells readers (None: studies) apart in addresses and cookies; no token can be made of it."""
        return token_hash(f"mark {[one for one in self._readers if reader in (None, one[0])]}")[:16]

    def readers(self) -> list[int]:
        return [reader for reader, _ in self._readers]

    def has_begun(self, reader: int) -> bool:
        return self._one("SELECT 1 FROM profile WHERE reader=?", reader) is not None

    def begin(self, reader: int, role: str, years: float | None) -> None:
        """Once per reader; later ones are left out."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO profile VALUES (NULL,?,?,?,?)", (reader, role, years, time.time())
            )

    def next_position(self, reader: int) -> int:
        """The first item without an answer; one after the last position if all are answered."""
        row = self._one(
            "SELECT count(DISTINCT item.id) n FROM item JOIN answer ON answer.item=item.id WHERE reader=?",
            reader,
        )
        assert row is not None
        return int(row["n"])

    def total(self, reader: int) -> int:
        """Items that count: the training item is left out."""
        row = self._one("SELECT max(position) n FROM item WHERE reader=?", reader)
        assert row is not None
        return int(row["n"])

    def items(self, reader: int) -> list[Item]:
        """The reader's whole plan, methods and cases numbered from 0."""
        rows = self._all("SELECT * FROM item WHERE reader=? ORDER BY position", reader)
        return [
            Item(
                row["position"],
                row["kind"],
                row["case_id"] - 1,
                row["method_left"] - 1,
                None if row["method_right"] is None else row["method_right"] - 1,
                row["repeat_of"],
            )
            for row in rows
        ]

    def page(self, reader: int, position: int) -> Page | None:
        """One item without marking it as shown; None if the reader has no such item."""
        item = self._one("SELECT * FROM item WHERE reader=? AND position=?", reader, position)
        if item is None:
            return None
        case = self._one("SELECT * FROM cases WHERE id=?", item["case_id"])
        assert case is not None
        pictures = {"mri": case["mri"], "other": case["other"]}
        for slot in ("left", "right"):
            if item[f"method_{slot}"] is not None:
                fused = self._one(
                    "SELECT picture FROM fused WHERE case_id=? AND method=?",
                    case["id"],
                    item[f"method_{slot}"],
                )
                assert fused is not None
                pictures[slot] = fused["picture"]
        answered = self._one("SELECT answer FROM answer WHERE item=? ORDER BY revision DESC", item["id"])
        said = "" if answered is None else answered["answer"]
        return Page(position, self.total(reader), item["kind"], case["modality"], pictures, answered=said)

    def show(self, reader: int, position: int) -> str:
        """Records that the item is shown; returns the one-time number that its answer must carry. A page
        reloaded before its answer keeps its number: a reload appends nothing."""
        open_one = self._one(
            "SELECT nonce FROM shown JOIN item ON item.id=shown.item WHERE reader=? AND position=? "
            "AND nonce NOT IN (SELECT nonce FROM answer) ORDER BY shown.rowid DESC LIMIT 1",
            *(reader, position),
        )
        if open_one is not None:
            return str(open_one["nonce"])
        nonce = secrets.token_urlsafe(16)
        with self._transaction() as db:
            db.execute(
                "INSERT INTO shown SELECT ?, id, ? FROM item WHERE reader=? AND position=?",
                (nonce, time.time(), reader, position),
            )
        return nonce

    def picture(self, picture: int) -> bytes:
        row = self._one("SELECT png FROM picture WHERE id=?", picture)
        assert row is not None
        return bytes(row["png"])

    def answer(
        self,
        reader: int,
        position: int,
        nonce: str,
        answer: str,
        *,
        visible_s: float | None,
        view: str,
        revise: bool,
    ) -> str:
        """Stores one answer, durably. Returns the outcome:

        "stored"; "repeated" (this nonce was used before: nothing stored); "unknown" (no such item, or the
        nonce was not issued for it); "out of order" (not the next item nor, with `revise`, the one before).
        """
        with self._transaction() as db:
            shown = db.execute(
                "SELECT item.id, shown.at FROM shown JOIN item ON item.id=shown.item "
                "WHERE nonce=? AND reader=? AND position=?",
                (nonce, reader, position),
            ).fetchone()
            if shown is None:
                return "unknown"
            if db.execute("SELECT 1 FROM answer WHERE nonce=?", (nonce,)).fetchone():
                return "repeated"
            following, revision = db.execute(
                "SELECT count(DISTINCT item), count(*) FILTER (WHERE item=?) FROM answer "
                "WHERE item IN (SELECT id FROM item WHERE reader=?)",
                (shown["id"], reader),
            ).fetchone()
            if position != (following - 1 if revise else following):
                return "out of order"
            db.execute(
                "INSERT INTO answer VALUES (NULL,?,?,?,?,?,?,?,?)",
                (shown["id"], revision, nonce, answer, shown["at"], time.time(), visible_s, view),
            )
        return "stored"

    def answers(self) -> list[dict[str, Any]]:
        """Every answer, superseded ones too, in order of arrival, with what was shown. See
        export.DICTIONARY.
        """
        rows = self._all(
            "SELECT answer.id answer_id, reader, position, kind, repeat_of, cases.name case_name, modality, "
            "ml.name method_left, mr.name method_right, answer, revision, shown_at, answered_at, visible_s, "
            "view, revision=(SELECT max(revision) FROM answer b WHERE b.item=answer.item) AS final "
            "FROM answer JOIN item ON item.id=answer.item JOIN cases ON cases.id=case_id "
            "JOIN method ml ON ml.id=method_left LEFT JOIN method mr ON mr.id=method_right ORDER BY answer.id"
        )
        return [dict(row) for row in rows]

    def profiles(self) -> dict[int, dict[str, Any]]:
        return {row["reader"]: dict(row) for row in self._all("SELECT reader, role, years, at FROM profile")}

    def methods(self) -> list[str]:
        return [row["name"] for row in self._all("SELECT name FROM method ORDER BY id")]

    def cases(self) -> list[str]:
        return [row["name"] for row in self._all("SELECT name FROM cases ORDER BY id")]


def insert_items(db: sqlite3.Connection, reader: int, items: list[Item]) -> None:
    """Methods and cases are numbered from 0 in the plan, from 1 in the database."""
    rows = []
    for i in items:
        right = None if i.right is None else 1 + i.right
        rows.append((reader, i.position, i.kind, 1 + i.case, 1 + i.left, right, i.repeat_of))
    db.executemany("INSERT INTO item VALUES (NULL,?,?,?,?,?,?,?)", rows)
