"""The study's server over real HTTP, as a careless or hostile client meets it, and killed in the middle."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO
from ports import free_port

pytest.importorskip("fastapi", reason="needs the study extra: pip install 'mmif-trt[study]'")
sys.path.insert(0, str(REPO / "benchmarks"))

from study_load import METHODS, Reader, make_study, serving

from mmif_trt.study.gate import MAX_BODY_BYTES, TRIES, Gate
from mmif_trt.study.server import Site
from mmif_trt.study.store import Store


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[str]]]:
    """A study and its links. Each test has readers of its own, and looks at their answers only."""
    study = make_study(tmp_path_factory.mktemp("served"), readers=6, cases=2)
    with serving(study, free_port()) as (_, links):
        yield study, links


def answers(study: Path, *readers: int) -> list[Any]:
    return [row for row in Store(study).answers() if row["reader"] in readers]


def entered(link: str) -> Reader:
    reader = Reader(link)
    reader.enter()
    return reader


def test_no_page_header_or_address_names_a_method(served: tuple[Path, list[str]]) -> None:
    reader = entered(served[1][0])
    seen = b""
    for _ in range(3):
        fields = reader.page()
        for path in (
            "/read",
            *(f"/picture/{fields['position']}/{s}" for s in ("mri", "other", "left", "right")),
        ):
            status, headers, body = reader.request("GET", path)
            assert status == 200 and "default-src 'none'" in headers["Content-Security-Policy"]
            assert headers["X-Content-Type-Options"] == "nosniff" and headers["Server"] is None
            seen += str(headers).encode() + body
        reader.answer(fields)
    cookie = reader.request("GET", reader.link)[1]["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie
    assert not [name for name in METHODS if f"{name}\n".encode() in seen or f'"{name}"'.encode() in seen]
    assert b"000" not in reader.request("GET", "/read")[2]  # the cases' file names


def test_a_replayed_answer_counts_once_and_order_holds(served: tuple[Path, list[str]]) -> None:
    study, links = served
    reader, other = entered(links[1]), entered(links[2])
    training = reader.page()
    assert other.answer(training) == 409  # the open item of both, but another reader's number
    assert reader.answer(training) == 303 and reader.answer(training) == 303  # the second: a double click
    first = reader.page()
    assert first["position"] == "1"
    assert reader.answer({**first, "position": "2"}) == 409  # ahead
    assert reader.answer({**first, "position": "999"}) == 404
    assert reader.answer({**first, "position": "../1"}) == 404
    assert reader.answer({**first, "nonce": "made up"}) == 409
    assert reader.answer(first, "both") == 422
    second_tab = reader.page()
    assert second_tab["nonce"] == first["nonce"], "a reload is no new showing"
    assert reader.answer(first) == 303 and reader.answer(second_tab) == 303
    said = reader.request("POST", "/answer", {**second_tab, "answer": "right"})
    assert said[0] == 409 and b"is kept: A. This one was not saved. To change it" in said[2]
    back = reader.page("/back")
    assert back["position"] == "1" and back["revise"] == "1"
    assert reader.answer(back, "equal") == 303
    second = reader.page()
    assert reader.answer(second) == 303
    said = reader.request("POST", "/answer", {**second_tab, "answer": "right"})
    assert said[0] == 409 and b"is kept: Equal." in said[2] and b"To change" not in said[2]
    rows = answers(study, 2, 3)
    assert [(r["position"], r["answer"], r["revision"], r["final"]) for r in rows] == [
        (0, "left", 0, 1),
        (1, "left", 0, 0),
        (1, "equal", 1, 1),
        (2, "left", 0, 1),
    ]


def test_a_second_tab_is_told_the_ratings_that_count(tmp_path: Path) -> None:
    store = Store(make_study(tmp_path, readers=1, cases=2, paired=False, scales=["detail", "colour"]))
    site, given = Site(store), '{"detail": 4, "colour": 2}'
    nonce = store.show(1, 0)
    assert store.answer(1, 0, nonce, given, visible_s=None, view="{}", revise=False) == "stored"
    assert site.repeated(1, 0, given).status_code == 303
    said = site.repeated(1, 0, given.replace("2", "3"))
    assert said.status_code == 409
    assert b"kept: Anatomical detail: 4; Colour, or the bone of a CT: 2. This one was not saved" in said.body


def test_eight_equal_requests_at_once_count_once(served: tuple[Path, list[str]]) -> None:
    study, links = served
    fields = entered(links[3]).page()
    clients = [entered(links[3]) for _ in range(8)]
    threads = [threading.Thread(target=client.answer, args=(fields,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers(study, 4)) == 1


def test_what_a_reader_may_not_see(served: tuple[Path, list[str]]) -> None:
    _, links = served
    reader = entered(links[4])
    reader.answer(reader.page())
    assert (
        reader.request("GET", "/picture/1/left")[0] == 200
        and reader.request("GET", "/picture/0/left")[0] == 200
    )
    paths = [
        "/picture/2/left",
        "/picture/1/method",
        "/picture/-1/mri",
        "/picture/nan/mri",
        "/picture/1e9/mri",
    ]
    paths += [
        "/picture/..%2f..%2fstudy.db/mri",
        "/picture/1/..%2f..%2flinks.csv",
        "/static/..%2fstudy.db",
        "/static/",
    ]
    paths += ["/study.db", "/links.csv", "/docs", "/openapi.json", "/../../etc/passwd", "/export", "/results"]
    for path in paths:
        status, _, body = reader.request("GET", path)
        assert status == 404, path
        assert b"Traceback" not in body and b"SQLite" not in body
    assert reader.request("DELETE", "/answer")[0] == 405
    stranger = Reader(links[4])
    for path in ("/read", "/back", "/picture/0/mri"):
        assert stranger.request("GET", path)[0] == 401
    assert stranger.request("POST", "/answer", {"position": "0", "answer": "left"})[0] == 401


def test_only_a_few_tokens_may_be_tried(tmp_path: Path) -> None:
    """With a server of its own: its door is closed to this address for a while."""
    with serving(make_study(tmp_path, readers=2, cases=2), free_port()) as (_, links):
        check_tokens(*links)


def check_tokens(one: str, another: str) -> None:
    reader, forger = entered(one), Reader(another)
    codes = [forger.request("GET", f"/enter/forged{i}")[0] for i in range(TRIES + 2)]
    assert codes == [404] * TRIES + [429] * 2
    assert forger.request("GET", forger.link)[0] == 429  # not even a right one is compared now
    forger.cookie = reader.cookie.split("=")[0] + "=guess"
    assert forger.request("GET", "/read")[0] == 429
    assert reader.request("GET", "/read")[0] == 200  # who was in before stays in


def test_the_gate_opens_again() -> None:
    now = [0.0]
    gate = Gate(clock=lambda: now[0])

    def reader_of(token: str) -> int | None:
        return 1 if token == "right" else None

    answers = [gate.admit("here", f"wrong{i}", reader_of) for i in range(TRIES + 1)]
    assert answers == ["unknown"] * TRIES + ["locked"]
    assert gate.admit("here", "right", reader_of) == "locked" and gate.admit("there", "right", reader_of) == 1
    now[0] = 301.0
    assert gate.admit("here", "wrong", reader_of) == "unknown"


def test_large_bodies(served: tuple[Path, list[str]]) -> None:
    reader = entered(served[1][5])
    for headers, chunks in (
        ({"Content-Length": str(100_000_000)}, 1),  # announced: refused before it comes
        ({"Transfer-Encoding": "chunked"}, 1600),  # 100 MB in pieces: refused on the way
    ):
        connection = http.client.HTTPConnection(reader.http.host, reader.http.port, timeout=20)
        connection.putrequest("POST", "/answer")
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        try:
            for _ in range(chunks):
                block = b"x" * 62_500
                connection.send(block if chunks == 1 else b"%x\r\n%s\r\n" % (len(block), block))
        except (BrokenPipeError, ConnectionResetError):
            pass
        with contextlib.suppress(ConnectionResetError):  # closed on us while we were still sending
            assert connection.getresponse().status == 413
        connection.close()
    fields = reader.page()
    assert reader.answer(fields, padding="x" * MAX_BODY_BYTES) == 413
    reader.http.close()
    assert reader.answer(fields) == 303


def test_kill_9_loses_nothing_answered(tmp_path: Path) -> None:
    study = make_study(tmp_path, readers=6, cases=8)
    port = free_port()
    accepted: list[tuple[int, int]] = []

    def read(number: int, link: str) -> None:
        reader = Reader(link)
        try:
            reader.enter()
            while True:
                fields = reader.page()
                if reader.answer(fields) != 303:
                    return
                accepted.append((number, int(fields["position"])))
        except (OSError, http.client.HTTPException, KeyError):
            return

    with serving(study, port) as (process, links):
        threads = [threading.Thread(target=read, args=pair) for pair in enumerate(links, 1)]
        for thread in threads:
            thread.start()
        while len(accepted) < 60:
            assert process.poll() is None
        process.kill()
        for thread in threads:
            thread.join()
    store = Store(study)
    kept = [(row["reader"], row["position"]) for row in store.answers()]
    assert set(accepted) <= set(kept) and len(kept) == len(set(kept)) <= len(accepted) + 6
    with serving(study, port) as (_, links):
        reader = entered(links[0])
        assert reader.page()["position"] == str(store.next_position(1))  # goes on where it was


def test_a_full_disk_is_reported_and_the_study_stays_whole(tmp_path: Path) -> None:
    study = make_study(tmp_path, readers=2, cases=8)
    port = free_port()

    def no_room() -> None:  # the write-ahead log may not grow beyond this
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))

    done = 0
    with serving(study, port, preexec_fn=no_room) as (_, links):
        reader = entered(links[0])
        status = 303
        while status == 303 and done < 48:
            status, _, body = reader.request("GET", "/read")
            if status == 200:
                nonce = re.findall(r'name="nonce" value="([^"]*)"', body.decode())[0]
                form = {"position": done, "nonce": nonce, "answer": "left"}
                status, _, body = reader.request("POST", "/answer", form)
            done += status == 303
        assert status == 507 and done > 1 and b"disk is full" in body
    store = Store(study)
    assert len(store.answers()) == done == store.next_position(1)
    with serving(study, port) as (_, links):
        reader = entered(links[0])
        assert reader.answer(reader.page()) == 303


def test_port_in_use_and_bad_addresses(served: tuple[Path, list[str]]) -> None:
    study, links = served
    port = links[0].split(":")[2].split("/")[0]

    asked = [
        ("--port", port),
        ("--port", "70000"),
        ("--host", "no.such.host.invalid"),
        ("--certificate", "x.pem"),
        ("--certificate", "x.pem", "--key", "y.pem", "--port", str(free_port())),
        ("--proxy", "proxy.hospital.invalid"),
    ]
    # In one process, since its imports take a second, and not in this one: a server that starts would stay.
    code = "import json, shell, sys\nfor words in json.loads(sys.argv[1]):\n    "
    code += "print(json.dumps(shell.mmif('study', 'serve', *words, code=2).stderr), flush=True)"
    command = [sys.executable, "-c", code, json.dumps([[str(study), *words] for words in asked])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO), str(REPO / "tests")])}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    for expected, line in zip(
        (port, "65535", "no.such.host", "--key", "x.pem: no such file", "not an IP"), said, strict=True
    ):
        assert expected in line


def test_profile_and_scales_are_checked(tmp_path: Path) -> None:
    study = make_study(
        tmp_path, readers=1, cases=1, paired=False, scales=["detail", "colour"], window="logged"
    )
    with serving(study, free_port()) as (_, links):
        reader = Reader(links[0])
        reader.enter(begin=False)
        for form in ({"role": "<script>"}, {"years": "many"}, {"years": "1e400"}, {"years": "-1"}):
            assert reader.request("POST", "/begin", form)[0] == 422
        assert reader.request("POST", "/begin", {})[0] == 303
        fields = reader.page()
        for wrong in ({}, {"detail": "3"}, {"detail": "3", "colour": "6"}, {"detail": "3", "colour": ""}):
            assert reader.answer(fields, **wrong) == 422
        more: dict[str, Any] = {
            "detail": "3",
            "colour": "5",
            "zoom": "2",
            "brightness": "nan",
            "contrast": "1.5",
        }
        assert reader.answer(fields, **more, visible_s="-5") == 303
    (row,) = Store(study).answers()
    assert json.loads(row["answer"]) == {"detail": 3, "colour": 5}
    assert json.loads(row["view"]) == {"zoom": 2, "contrast": 1.5} and row["visible_s"] is None
