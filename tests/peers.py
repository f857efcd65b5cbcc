"""Real DICOM peers for the node's tests: dcmtk's tools and an Orthanc server, on loopback."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ports import free_port


def _is_script(path: Path) -> bool:
    return path.is_file() and path.read_bytes()[:2] == b"#!"


# In an activated environment pynetdicom's own storescu and echoscu, scripts, would be found before dcmtk's.
os.environ["PATH"] = os.pathsep.join(
    folder for folder in os.environ["PATH"].split(os.pathsep) if not _is_script(Path(folder) / "storescu")
)


def needs(*tools: str) -> None:
    for tool in tools:
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed (apt-get install dcmtk orthanc openssl)")


def until(what: Callable[[], Any], seconds: float = 240.0) -> Any:
    """The first true value of `what`; fails when it takes too long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            found = what()
        except OSError:
            found = None
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError("it did not happen in time")


class Certificates:
    """A certificate authority with what it signed, and a stranger's certificate, made by openssl for
    127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        needs("openssl")
        folder.mkdir()
        self.folder = folder
        for authority, names in (("ca", ("node", "scanner", "pacs")), ("stranger-ca", ("stranger",))):
            self._openssl("req", "-x509", *self._new(authority), "-subj", f"/CN={authority}")
            for name in names:
                (folder / "san").write_text("subjectAltName=IP:127.0.0.1\n")
                self._openssl("req", *self._new(name, ".csr"), "-subj", f"/CN={name}")
                signed = ["-in", f"{name}.csr", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key"]
                end = ["-CAcreateserial", "-days", "2", "-extfile", "san", "-out", f"{name}.pem"]
                self._openssl("x509", "-req", *signed, *end)

    @staticmethod
    def _new(name: str, end: str = ".pem") -> list[str]:
        return ["-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}{end}"]

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self.folder, check=True, capture_output=True)

    def ours(self, name: str) -> list[str]:
        """For --tls."""
        return [str(self.folder / f"{part}") for part in (f"{name}.pem", f"{name}.key", "ca.pem")]

    def dcmtk(self, name: str) -> list[str]:
        """For dcmtk's tools."""
        certificate, key, authority = self.ours(name)
        return ["+tls", key, certificate, "+cf", authority]


class Orthanc:
    """more: settings of orthanc.json; with RegisteredUsers the tests' own requests log in as the first."""

    def __init__(self, folder: Path, **more: Any) -> None:
        needs("Orthanc")
        folder.mkdir(parents=True, exist_ok=True)
        self.dicom, self.http, self.folder = free_port(), free_port(), folder
        settings = {
            "Name": "test",
            "DicomAet": "PACS",
            "DicomPort": self.dicom,
            "HttpPort": self.http,
            "StorageDirectory": str(folder / "db"),
            "IndexDirectory": str(folder / "db"),
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomAlwaysAllowStore": True,
            "DicomAlwaysAllowFind": True,
            **more,
        }
        user = next(iter(more.get("RegisteredUsers", {}).items()), None)
        self.headers = {}
        if user:
            settings["AuthenticationEnabled"] = True
            self.headers = {"Authorization": "Basic " + base64.b64encode(":".join(user).encode()).decode()}
        (folder / "orthanc.json").write_text(json.dumps(settings))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            command = ["Orthanc", str(self.folder / "orthanc.json")]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        until(lambda: self.get("/system"))

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None

    def raw(self, path: str) -> bytes:
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", headers=self.headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return bytes(answer.read())

    def get(self, path: str) -> Any:
        return json.loads(self.raw(path))


class Node:
    """`mmif-trt node` in a process of its own; its log in a file."""

    def __init__(self, folder: Path, pacs_port: int, *options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port, self.http, self.folder, self.options = free_port(), free_port(), folder, options
        self.pacs_port = pacs_port
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def start(self, healthy: bool = True) -> None:
        command = [sys.executable, "-m", "mmif_trt", "node", "--aet", "MMIF", "--host", "127.0.0.1"]
        command += [
            "--port",
            str(self.port),
            "--quiet-s",
            "2",
        ]
        command += ["--spool", str(self.folder / "spool"), "--http-port", str(self.http), "--retry-s", "1"]
        if "--dicomweb" not in self.options:
            command += ["--send-to", f"PACS@127.0.0.1:{self.pacs_port}"]
        if not {"--peer", "--any-peer"} & set(self.options):
            command.append("--any-peer")
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([*command, *self.options], stdout=log, stderr=log)
        if healthy:
            until(lambda: b'"ok"' in self.web("/health"))

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout=30)

    def web(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=10) as answer:
            return bytes(answer.read())

    def memory_mb(self, what: str = "VmRSS") -> float:
        """VmRSS: resident now; VmHWM: the most there ever was."""
        assert self.process is not None
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))

    def metric(self, name: str) -> float:
        lines = [line.split() for line in self.web("/metrics").decode().splitlines()]
        return next((float(line[1]) for line in lines if line[0] == f"mmif_{name}"), 0.0)


def storescu(port: int, folder: Path, called: str = "MMIF", calling: str = "SCANNER", *more: str) -> int:
    return run_storescu(port, folder, *more, called=called, calling=calling).returncode


def run_storescu(
    port: int, folder: Path, *more: str, called: str = "MMIF", calling: str = "SCANNER"
) -> subprocess.CompletedProcess[str]:
    command = ["storescu", "-v", "-aec", called, "-aet", calling, "+sd", "+r", *more, "127.0.0.1", str(port)]
    return subprocess.run(
        [*command, str(folder)], capture_output=True, text=True, errors="replace", check=False
    )


def echoscu(port: int, called: str = "MMIF", calling: str = "SCANNER") -> int:
    command = ["echoscu", "-aec", called, "-aet", calling, "127.0.0.1", str(port)]
    return subprocess.run(command, capture_output=True, check=False).returncode
