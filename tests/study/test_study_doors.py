"""What stands before the study's pages: other sites, other readers' links, forged addresses, silent peers."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPO
from ports import free_port

pytest.importorskip("fastapi", reason="needs the study extra")

sys.path.insert(0, str(REPO / "benchmarks"))

from study_load import Reader, make_study, serving

from mmif_trt.study.gate import TRIES


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[str]]]:
    study = make_study(tmp_path_factory.mktemp("study"), readers=3, cases=2)
    with serving(study, free_port()) as (_, links):
        yield study, links


def entered(link: str) -> Reader:
    reader = Reader(link)
    reader.enter()
    return reader


def test_links_and_answers_are_the_organisers_alone(served: tuple[Path, list[str]]) -> None:
    study, links = served
    assert len(links) == 3 and stat.S_IMODE(study.stat().st_mode) == 0o700
    files = [path for path in study.iterdir() if path.is_file()]
    assert {path.name for path in files} >= {"study.db", "links.csv", "addresses.csv"}
    assert not [path for path in files if stat.S_IMODE(path.stat().st_mode) & 0o077]


def test_another_readers_link_asks_first(served: tuple[Path, list[str]]) -> None:
    _, links = served
    reader = entered(links[0])
    mine, other = reader.cookie, links[1].split("/enter/")[1]
    status, headers, body = reader.request("GET", f"/enter/{other}")
    assert status == 200 and headers.get("Set-Cookie") is None and b"This link is mine" in body
    assert reader.request("GET", f"/enter/{mine.split('=')[1]}")[0] == 303, "its own is no switch"
    status, headers, _ = reader.request("POST", f"/enter/{other}", {})
    assert status == 303 and other in headers["Set-Cookie"]


def ask(link: str, method: str = "GET", **headers: str) -> int:
    """The status of /read, or of a form without anything in it, with headers of our own."""
    import http.client

    host, port = link.split("/")[2].split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    path = "/read" if method == "GET" else "/begin"
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.putheader("Content-Length", "0")
    connection.endheaders()
    status = connection.getresponse().status
    connection.close()
    return status


def test_other_sites_and_names_are_refused(served: tuple[Path, list[str]]) -> None:
    link = served[1][0]
    here = link.split("/")[2]
    cookie = f"reader={link.split('/enter/')[1]}"
    assert ask(link, Cookie=cookie) == 200 and ask(link, Host="evil.example") == 421
    assert ask(link, Host="localhost") == 401 == ask(link, Host=f"[::1]:{here.split(':')[1]}")
    assert ask(link, "POST", Cookie=cookie, Origin="http://evil.example") == 403
    assert ask(link, "POST", Cookie=cookie, Origin="null") == 403
    assert ask(link, Host="[::1") == 421 and ask(link, "POST", Cookie=cookie, Origin="http://[") == 403
    assert ask(link, "POST", Cookie=cookie, Origin=f"http://{here}") == 303


def test_a_reload_appends_nothing(served: tuple[Path, list[str]]) -> None:
    study, links = served
    reader = entered(links[2])
    first = reader.page()

    def rows() -> int:
        with contextlib.closing(sqlite3.connect(study / "study.db")) as db:
            return int(db.execute("select count(*) from shown").fetchone()[0])

    before = rows()
    assert [reader.page()["nonce"] for _ in range(5)] == [first["nonce"]] * 5 and rows() == before
    assert reader.answer(first) == 303 and reader.page()["nonce"] != first["nonce"]


def test_silent_connections_lock_no_reader_out(served: tuple[Path, list[str]]) -> None:
    link = served[1][0]
    host, port = link.split("/")[2].split(":")
    cookie = f"reader={link.split('/enter/')[1]}"
    with contextlib.ExitStack() as stack:
        for _ in range(600):
            stack.enter_context(socket.create_connection((host, int(port))))
        assert [ask(link, Cookie=cookie) for _ in range(5)] == [200] * 5


def test_a_forged_address_is_not_believed(served: tuple[Path, list[str]]) -> None:
    """Last: it locks this address out for wrong links; who was in before stays in."""
    link = served[1][0]
    cookie = f"reader={link.split('/enter/')[1]}"
    codes = [ask(link, Cookie=f"reader=guess{i}", X_Forwarded_For=f"192.0.2.{i}") for i in range(TRIES + 3)]
    assert codes == [401] * TRIES + [429] * 3 and ask(link, Cookie=cookie) == 200
