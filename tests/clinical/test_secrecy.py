"""No patient's value in any message, log, record or name, however malformed the header: 63 fields, each
planted, each wrong in a way of its own."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
import pytest
from conftest import REPO
from phantoms import affine_of, grid, head, slices, uptake
from planted import MARK, NEEDED, OPTIONAL, WRONG, plant, plant_all
from pydicom.datadict import tag_for_keyword

# pytest removes our warning filter for each test; one test below therefore runs in its own process. Such
# headers yield neither a window nor SUV.
BATCH = ("batch", "in", "-o", "out", "--format", "dcm")
PERCENTILES = ("--percentiles-a", "1", "99", "--percentiles-b", "1", "99")
pytestmark = pytest.mark.filterwarnings("ignore")
SHAPE = (3, 32, 32)


def series(modality: str, keywords: tuple[str, ...] | list[str]) -> list[bytes]:
    """One series with `keywords` planted in every slice, as files."""
    affine = affine_of(shape=SHAPE, spacing=(5.0, 4.5, 4.5))
    points = grid(affine, SHAPE)
    values = 20 * uptake(points) if modality == "PT" else head(points)
    out = []
    for dataset in slices(values, affine, modality, PatientName=f"{MARK}^JOHN", PatientID=f"{MARK}4711"):
        meta = dataset.file_meta
        meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        plant_all(dataset, keywords)
        stream = io.BytesIO()
        pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
        out.append(stream.getvalue())
    return out


def write(folder: Path, keywords: tuple[str, ...] | list[str], only: str = "MR PT") -> Path:
    for modality in ("MR", "PT"):
        where = folder / modality.lower()
        where.mkdir(parents=True)
        for index, data in enumerate(series(modality, keywords if modality in only else [])):
            (where / f"{index}.dcm").write_bytes(data)
    return folder


@contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    """What the process table and the temporary folder showed meanwhile."""
    seen: list[str] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            for entry in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    text = entry.read_text(errors="replace")
                except OSError:
                    continue
                if "mmif_trt" in text:
                    seen.append(text)
            seen.extend(str(path) for path in folder.rglob("*"))
            stop.wait(0.5)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def everything(root: Path) -> str:
    """Every text that was written below `root`, and every name; results and sources may hold values."""
    texts = [str(path.relative_to(root)) for path in root.rglob("*")]
    for path in root.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".log", ".txt", ".csv"):
            texts.append(path.read_text(errors="replace"))
    return "\n".join(texts)


def python(cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *words]
    env = {"PYTHONPATH": str(REPO), "PATH": "/usr/bin:/bin", "TMPDIR": str(cwd / "tmp"), "HOME": str(cwd)}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def test_sixty_fields_are_planted() -> None:
    assert len(set(OPTIONAL) | set(NEEDED)) >= 60 and all(tag_for_keyword(x) for x in (*OPTIONAL, *NEEDED))


def check(root: Path, seen: list[str], said: str) -> None:
    """Checks one case with all of OPTIONAL malformed: what it said, its report and its DICOM object in
    `root`."""
    assert MARK not in said and "Traceback" not in said
    assert MARK not in everything(root) and MARK not in "".join(seen) and seen
    (record,) = [*root.glob("out/*.json"), *root.glob("one.json")]
    notes = " ".join(json.loads(record.read_text())["a"]["notes"])
    assert "left out of the result" in notes and "PatientWeight" in notes and "PatientBirthDate" in notes
    (made,) = [*root.glob("out/*.dcm"), *root.glob("one.dcm")]
    fused = pydicom.dcmread(made)
    assert fused.PatientID == f"{MARK}4711" and "PatientWeight" not in fused and not fused.PatientBirthDate


def test_all_optional_fields_malformed_at_once_fail_nothing_and_are_quoted_nowhere(tmp_path: Path) -> None:
    """In one process with every logger and warning open: what the libraries say, and a batch."""
    write(tmp_path / "in", OPTIONAL)
    (tmp_path / "tmp").mkdir()
    code = (
        "import logging, threading, warnings, mmif_trt.io.dicom, pydicom, pynetdicom; "
        "logging.basicConfig(level=0); d = pydicom.Dataset(); "
        f"logging.getLogger('pynetdicom.association').error('{MARK}'); "
        f"logging.getLogger('pydicom.pixels').error('{MARK}'); d.PatientBirthDate = '{MARK}'; "
        f"t = threading.Thread(target=setattr, args=(d, 'PatientAge', '{MARK}')); t.start(); t.join(); "
        "logging.getLogger('other').warning('others still speak'); warnings.warn('they warn too'); "
        f"from mmif_trt import cli; raise SystemExit(cli.main({[*BATCH, *PERCENTILES]!r}))"
    )
    (tmp_path / "said.py").write_text(code.replace("; ", "\n"))  # the process table shows command lines
    with watched(tmp_path / "tmp") as seen:
        run = python(tmp_path, "-W", "default", "said.py")
    assert run.returncode == 0, run.stderr
    check(tmp_path, seen, run.stdout + run.stderr)
    assert "others still speak" in run.stderr and "they warn too" in run.stderr


@pytest.mark.nightly
def test_fuse_quotes_none_either(tmp_path: Path) -> None:
    write(tmp_path / "in", OPTIONAL)
    (tmp_path / "tmp").mkdir()
    words = ("fuse", "in/mr", "in/pt", "-o", "one.dcm", "--report", "one.json", *PERCENTILES)
    with watched(tmp_path / "tmp") as seen:
        run = python(tmp_path, "-m", "mmif_trt", *words)
    assert run.returncode == 0, run.stderr
    check(tmp_path, seen, run.stdout + run.stderr)


@pytest.fixture(scope="module")
def reader() -> Iterator[Any]:
    from mmif_trt.clinical.decoder import Decoder

    with Decoder() as decoder:
        yield decoder


# Every field wrong in one way, each way for four fields; nightly every field in every way.
FIRST = [(keyword, WRONG[index % len(WRONG)]) for index, keyword in enumerate(NEEDED)]
REST = [(keyword, wrong) for keyword in NEEDED for wrong in WRONG if (keyword, wrong) not in FIRST]


@pytest.mark.parametrize(
    "cases", [FIRST, pytest.param(REST, marks=pytest.mark.nightly)], ids=["one way", "every way"]
)
def test_a_needed_field_is_reported_by_name(
    cases: list[tuple[str, str]], tmp_path: Path, reader: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """Through the reading process and pairing, and in this process too, as `mmif_trt.read` does."""
    import mmif_trt
    from mmif_trt.clinical.pairing import collect, pair

    plain = series("PT", [])
    for number, (keyword, wrong) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        for index, data in enumerate(plain):
            dataset = pydicom.dcmread(io.BytesIO(data))
            plant(dataset, keyword, wrong.format(mark=MARK))
            stream = io.BytesIO()
            pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
            (folder / f"{index}.dcm").write_bytes(stream.getvalue())
        said = []
        for read in (reader.read, lambda paths: mmif_trt.read(paths[0])):
            try:
                said += [*read((str(folder),)).notes]
            except mmif_trt.InputError as error:
                said.append(str(error))
        paths = [str(path) for path in sorted(folder.iterdir())]
        found, left = pair(collect(reader.headers(paths), b"k" * 32))
        said += [case.name for case in found] + left
        assert MARK not in " ".join(said) and "Traceback" not in " ".join(said), (keyword, said)
    assert MARK not in "".join(capfd.readouterr())


def test_an_error_of_ours_does_not_quote_what_it_choked_on(tmp_path: Path) -> None:
    from mmif_trt.running import explain

    try:
        float(f"{MARK} 70,5")
    except ValueError as error:
        assert MARK not in explain(error) and "ValueError" in explain(error)
