"""50 simulated readers at once answer a study over HTTP: time of an answer, and whether any was lost or
doubled.

python benchmarks/study_load.py --json benchmarks/results/study_load.json

A real server process on this machine, its study on this disk, readers as threads of this process with one
connection each. An answer's time runs from sending the POST to reading its redirect, including the commit to
disk (fsync); the next page and its pictures are also fetched, and timed separately. One answer in ten is sent
twice.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import numpy as np

from mmif_trt import __version__, io
from mmif_trt.image import Image
from mmif_trt.machine import conditions
from mmif_trt.study.config import read_config
from mmif_trt.study.create import create
from mmif_trt.study.store import Store

METHODS = ("one", "two", "three", "four")


class Reader:
    """A reader without a browser: one connection, one cookie."""

    def __init__(self, link: str) -> None:
        parts = urlsplit(link)
        self.http = http.client.HTTPConnection(parts.netloc, timeout=60)
        self.link = parts.path
        self.cookie = ""

    def request(
        self, method: str, path: str, form: dict[str, Any] | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Status, headers and body; keeps the cookie."""
        headers = {"Cookie": self.cookie} if self.cookie else {}
        body = None
        if form is not None:
            body = urlencode(form)
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        self.http.request(method, path, body, headers)
        response = self.http.getresponse()
        data = response.read()
        if cookie := response.headers.get("Set-Cookie"):
            self.cookie = cookie.split(";")[0]
        return response.status, response.headers, data

    def enter(self, begin: bool = True) -> None:
        status, *_ = self.request("GET", self.link)
        assert status == 303, status
        if begin:
            assert self.request("POST", "/begin", {"role": "student", "years": "1.5"})[0] == 303

    def page(self, path: str = "/read") -> dict[str, str]:
        """The hidden fields of the item's form; {} if the page has none."""
        text = self.request("GET", path)[2].decode()
        return dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', text))

    def answer(self, fields: dict[str, str], answer: str = "left", **more: str) -> int:
        return self.request("POST", "/answer", {**fields, "answer": answer, **more})[0]


def make_study(folder: Path, readers: int, cases: int, repeats: float = 0.1, **more: Any) -> Path:
    """A study of noise pictures; 6 comparisons per case. Returns its folder."""
    rng = np.random.default_rng(0)
    for where in ("sources/mri", "sources/pet", *METHODS):
        (folder / where).mkdir(parents=True)
        for case in range(cases):
            picture = rng.integers(0, 255, (128, 128, 3), dtype=np.uint8)
            io.write(folder / where / f"{case:03d}.png", Image(picture), durable=False)
    one = {"modality": "pet", "sources": "sources", "methods": {name: name for name in METHODS}}
    config = {"title": "Load", "readers": readers, "repeats": repeats, "sets": [one], **more}
    (folder / "study.json").write_text(json.dumps(config))
    create(read_config(folder / "study.json"), folder / "study")
    return folder / "study"


@contextmanager
def serving(study: Path, port: int, **options: Any) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A server process and its readers' links; ends it afterwards."""
    command = [sys.executable, "-m", "mmif_trt", "study", "serve", str(study), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("serving"):
                break
        rows = (study / "addresses.csv").read_text().splitlines()[1:]
        yield process, [row.split(",", 1)[1] for row in rows]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def run(links: list[str], answers: int) -> tuple[list[float], list[float], float]:
    """Every reader answers `answers` items, including the training item. Returns ms of answers and of pages,
    and seconds.
    """
    times: list[float] = []
    pages: list[float] = []
    barrier = threading.Barrier(len(links))

    def read(number: int, link: str) -> None:
        draw = random.Random(number)
        reader = Reader(link)
        reader.enter()
        barrier.wait()
        for _ in range(answers):
            start = time.perf_counter()
            fields = reader.page()
            for slot in ("mri", "other", "left", "right"):
                assert reader.request("GET", f"/picture/{fields['position']}/{slot}")[0] == 200
            sent = time.perf_counter()
            choice = draw.choice(("left", "right", "equal"))
            assert reader.answer(fields, choice) == 303
            times.append((time.perf_counter() - sent) * 1e3)
            pages.append((sent - start) * 1e3)
            if draw.random() < 0.1:
                assert reader.answer(fields, choice) == 303

    threads = [threading.Thread(target=read, args=pair) for pair in enumerate(links)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times, pages, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readers", type=int, default=50)
    parser.add_argument("--answers", type=int, default=40, help="of each reader")
    parser.add_argument("--port", type=int, default=8699)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        study = make_study(Path(folder), args.readers, cases=-(-args.answers // 6))
        with serving(study, args.port) as (_, links):
            times, pages, seconds = run(links, args.answers)
        stored = Store(study).answers()
    kept = {(row["reader"], row["position"]) for row in stored}
    wanted = args.readers * args.answers

    def quantiles(values: list[float]) -> dict[str, float]:
        return {f"p{q}": round(float(np.percentile(values, q)), 2) for q in (50, 95, 99)}

    row = {
        "readers": args.readers,
        "answers": wanted,
        "stored": len(stored),
        "lost": wanted - len(kept),
        "doubled": len(stored) - len(kept),
        "answer_ms": quantiles(times),
        "page_with_4_pictures_ms": quantiles(pages),
        "seconds": round(seconds, 1),
    }
    print(json.dumps(row, indent=1))
    if args.json:
        when = datetime.now(timezone.utc).isoformat(timespec="seconds")
        load = [round(x, 2) for x in os.getloadavg()]
        whole = {"date": when, "mmif_trt": __version__, "conditions": {**conditions(), "load_average": load}}
        whole["result"] = row
        args.json.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
