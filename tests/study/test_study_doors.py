"""What stands before the study's pages: other sites, other readers' links, forged addresses, silent peers."""

from __future__ import annotations

import contextlib
import re
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

from mmif_trt.image import InputError
from mmif_trt.study.create import links
from mmif_trt.study.gate import TRIES
from mmif_trt.study.server import Site
from mmif_trt.study.store import Store


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


@pytest.mark.parametrize(
    "text", [b"reader;link\n1;/enter/secret\n", b"\xff\xfe", b"reader,link\n1,secret\n", b""]
)
def test_links_edited_by_hand_are_refused_and_not_quoted(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "links.csv").write_bytes(text)
    with pytest.raises(InputError, match="expected lines of a number and a link") as caught:
        links(tmp_path, "http://127.0.0.1:1")
    assert "secret" not in str(caught.value)
    (tmp_path / "links.csv").write_bytes(b"reader,link\r\n1,/enter/a-b_c\r\n\r\n")
    assert links(tmp_path, "http://127.0.0.1:1") == ["http://127.0.0.1:1/enter/a-b_c"]


def test_another_readers_link_asks_first(served: tuple[Path, list[str]]) -> None:
    _, links = served
    reader = entered(links[0])
    mine, other = reader.cookie, links[1].split("/enter/")[1]
    status, headers, body = reader.request("GET", f"/enter/{other}")
    assert status == 200 and headers.get("Set-Cookie") is None and b"This link is mine" in body
    assert reader.request("GET", f"/enter/{mine.split('=')[1]}")[0] == 303, "its own is no switch"
    status, headers, _ = reader.request("POST", f"/enter/{other}", {})
    assert status == 303 and other in headers["Set-Cookie"]


def test_two_readers_of_one_browser_see_their_own_pictures(served: tuple[Path, list[str]]) -> None:
    """A browser keeps pictures by their address, for whoever comes next."""
    addresses = []
    readers = [entered(link) for link in served[1][:2]]
    for reader in readers:
        found = re.findall(r'src="(/picture/[^"]+)"', reader.request("GET", "/read")[2].decode())
        assert len(found) == 4
        for path in found:
            status, headers, _ = reader.request("GET", path)
            assert status == 200 and headers["Cache-Control"] == "private, max-age=3600"
        addresses.append(found)
    assert not set(addresses[0]) & set(addresses[1])
    status, headers, _ = readers[1].request("GET", addresses[0][0])  # a page of the first, still open
    assert status == 404 and headers["Cache-Control"] == "no-store"
    bare = readers[1].request("GET", addresses[1][0].split("?")[0])[1]
    assert bare["Cache-Control"] == "no-store"


def test_two_studies_of_one_host_have_cookies_of_their_own(
    served: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """A browser sends a host's cookies to all of its ports."""
    stores = [Store(served[0]), Store(make_study(tmp_path, readers=2, cases=1))]
    assert len({Site(store).cookie for store in stores}) == 2
    assert entered(served[1][0]).cookie.startswith(Site(stores[0]).cookie)
    assert Site(Store(served[0])).cookie == Site(stores[0]).cookie, "a restart is no other study"


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
    cookie = entered(link).cookie
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
    cookie = entered(link).cookie
    with contextlib.ExitStack() as stack:
        for _ in range(600):
            stack.enter_context(socket.create_connection((host, int(port))))
        assert [ask(link, Cookie=cookie) for _ in range(5)] == [200] * 5


def test_a_forged_address_is_not_believed(served: tuple[Path, list[str]]) -> None:
    """Last: it locks this address out for wrong links; who was in before stays in."""
    link = served[1][0]
    cookie = entered(link).cookie
    name = cookie.split("=")[0]
    codes = [ask(link, Cookie=f"{name}=guess{i}", X_Forwarded_For=f"192.0.2.{i}") for i in range(TRIES + 3)]
    assert codes == [401] * TRIES + [429] * 3 and ask(link, Cookie=cookie) == 200
