"""No patient's value in any message, log, record or name, however malformed the header: 60 fields, each
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
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

# pytest takes our filter of warnings out for each test; one below has a process of its own.
# Neither a window nor SUV can be had from such headers.
PERCENTILES = ("--percentiles-a", "1", "99", "--percentiles-b", "1", "99")
pytestmark = pytest.mark.filterwarnings("ignore")
MARK = "ZZPHI"
SHAPE = (6, 32, 32)
# What the fusion can do without: all of them wrong at once must not fail a case.
# fmt: off
OPTIONAL = (
    "PatientName", "PatientBirthDate", "PatientSex", "PatientAge", "PatientSize", "PatientWeight",
    "PatientAddress", "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber",
    "ReferringPhysicianName", "PositionReferenceIndicator", "SeriesNumber", "SeriesDescription",
    "SeriesDate", "SeriesTime", "AcquisitionDate", "AcquisitionTime", "ContentDate", "ContentTime",
    "InstanceNumber", "BodyPartExamined", "PatientComments", "OtherPatientIDs", "EthnicGroup", "Occupation",
    "PatientBirthTime", "PatientTelephoneNumbers", "InstitutionName", "OperatorsName", "ProtocolName",
    "StationName", "RequestingPhysician", "AdditionalPatientHistory", "WindowCenter", "WindowWidth",
    "LossyImageCompression", "SmallestImagePixelValue", "EchoTime", "RepetitionTime", "Manufacturer",
)
# fmt: on
# Without these there is no fusion: each gets a message, and none may quote it.
# fmt: off
NEEDED = (
    "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID",
    "FrameOfReferenceUID", "Modality", "ImageType", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "RescaleSlope", "RescaleIntercept", "PhotometricInterpretation", "NumberOfFrames",
    "SpecificCharacterSet", "Units", "DecayCorrection", "CorrectedImage",
    "RadiopharmaceuticalInformationSequence",
)
# fmt: on
WRONG = (
    "{mark}^JOHN 70,5 kg",
    "24.12.1951 {mark}",
    "{mark}\\{mark}\\{mark}",
    "{mark}" + "x" * 300,
    "\x1b[31m{mark}\xff\xfe",
)


def plant(dataset: Any, keyword: str, text: str, vr: str | None = None) -> None:
    """The bytes of `text` as the value, unchecked, as a careless device writes it."""
    tag = Tag(tag_for_keyword(keyword))
    vr = vr or dictionary_VR(tag)
    vr = "LO" if " or " in vr or vr in ("SQ", "US", "SS") else vr
    if vr in ("PN", "LO", "SH", "ST", "LT", "UC", "UT"):  # pydicom writes no text of a broken encoding
        text = text.replace("\x1b", "")
    value = text.encode("ascii", "ignore")
    dataset._dict[tag] = RawDataElement(tag, vr, len(value), value + b" " * (len(value) % 2), 0, False, True)


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
        for index, keyword in enumerate(keywords):
            plant(dataset, keyword, WRONG[index % len(WRONG)].format(mark=MARK))
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
            stop.wait(0.2)

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


def mmif(cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mmif_trt", *words]
    env = {"PYTHONPATH": str(REPO), "PATH": "/usr/bin:/bin", "TMPDIR": str(cwd / "tmp"), "HOME": str(cwd)}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def test_sixty_fields_are_planted() -> None:
    assert len(set(OPTIONAL) | set(NEEDED)) >= 60 and all(tag_for_keyword(x) for x in (*OPTIONAL, *NEEDED))


def test_all_optional_fields_malformed_at_once_fail_nothing_and_are_quoted_nowhere(tmp_path: Path) -> None:
    write(tmp_path / "in", OPTIONAL)
    (tmp_path / "tmp").mkdir()
    with watched(tmp_path / "tmp") as seen:
        runs = [
            mmif(tmp_path, "batch", "in", "-o", "out", *PERCENTILES),
            mmif(tmp_path, "fuse", "in/mr", "in/pt", "-o", "one.dcm", "--report", "one.json", *PERCENTILES),
        ]
    for run in runs:
        assert run.returncode == 0, run.stderr
        assert MARK not in run.stdout + run.stderr and "Traceback" not in run.stderr
    assert MARK not in everything(tmp_path) and MARK not in "".join(seen) and seen
    record = json.loads((tmp_path / "one.json").read_text())
    notes = " ".join(record["a"]["notes"])
    assert "left out of the result" in notes and "PatientWeight" in notes and "PatientBirthDate" in notes
    fused = pydicom.dcmread(tmp_path / "one.dcm")
    assert fused.PatientID == f"{MARK}4711" and "PatientWeight" not in fused and not fused.PatientBirthDate


@pytest.fixture(scope="module")
def reader() -> Iterator[Any]:
    from mmif_trt.clinical.decoder import Decoder

    with Decoder() as decoder:
        yield decoder


@pytest.mark.parametrize("keyword", NEEDED)
def test_a_needed_field_is_told_by_its_name(
    keyword: str, tmp_path: Path, reader: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """Through the reading process and pairing, and in this process too, as `mmif_trt.read` does."""
    import mmif_trt
    from mmif_trt.clinical.series import collect, pair

    for wrong in WRONG:
        folder = tmp_path / str(WRONG.index(wrong))
        folder.mkdir()
        for index, data in enumerate(series("PT", [])):
            dataset = pydicom.dcmread(io.BytesIO(data))
            text = wrong.format(mark=MARK)
            plant(dataset, keyword, text)
            stream = io.BytesIO()
            meta = dataset.file_meta
            pydicom.dcmwrite(stream, dataset, enforce_file_format="ClassUID" not in keyword or bool(meta))
            (folder / f"{index}.dcm").write_bytes(stream.getvalue())
        said = []
        for read in (reader.read, lambda paths: mmif_trt.read(paths[0])):
            try:
                said += [*read((str(folder),)).notes]
            except mmif_trt.InputError as error:
                said.append(str(error))
        paths = [str(path) for path in sorted(folder.iterdir())]
        cases, left = pair(collect(reader.headers(paths), b"k" * 32))
        said += [case.name for case in cases] + left
        assert MARK not in " ".join(said) and "Traceback" not in " ".join(said), said
        assert MARK not in "".join(capfd.readouterr())


def test_an_error_of_ours_does_not_quote_what_it_choked_on(tmp_path: Path) -> None:
    from mmif_trt.running import explain

    try:
        float(f"{MARK} 70,5")
    except ValueError as error:
        assert MARK not in explain(error) and "ValueError" in explain(error)


def test_loggers_and_warnings_of_the_libraries_are_silent(capfd: pytest.CaptureFixture[str]) -> None:
    """In a process of its own: this one's filters are pytest's."""
    code = (
        "import io, logging, threading, warnings, mmif_trt.io.dicom, pydicom, pynetdicom; "
        "logging.basicConfig(level=0); d = pydicom.Dataset(); "
        f"logging.getLogger('pynetdicom.association').error('{MARK}'); "
        f"logging.getLogger('pydicom.pixels').error('{MARK}'); d.PatientBirthDate = '{MARK}'; "
        f"t = threading.Thread(target=setattr, args=(d, 'PatientAge', '{MARK}')); t.start(); t.join(); "
        "logging.getLogger('other').warning('others still speak'); warnings.warn('they warn too')"
    )
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, cwd=REPO, timeout=120
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0 and MARK not in said, said
    assert "others still speak" in said and "they warn too" in said
