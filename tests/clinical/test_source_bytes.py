"""A fusion keeps the patient's identity byte for byte, whatever character set the bytes are in."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from peers import needs
from phantoms import affine_of, grid, head, slices, uptake, write_series
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

import mmif_trt
from mmif_trt import cli
from mmif_trt.clinical.header import header, parsed
from mmif_trt.io.dicom import write as dicom_write
from mmif_trt.stages import geometry

pytestmark = pytest.mark.filterwarnings("ignore")  # of pydicom, on the bytes planted here
SHAPE = (4, 32, 32)
LATIN, UTF8 = "Mühlfeld^Jörg".encode("latin-1"), "Mühlfeld^Jörg".encode()
JAPANESE = b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B"
FIRST = "latin-1, none declared"
# (declared character set, name, other text)
KINDS = {
    FIRST: ("", LATIN, LATIN),
    "utf-8 declared as latin-1": ("ISO_IR 100", UTF8, UTF8),
    "latin-1 declared as utf-8": ("ISO_IR 192", LATIN, LATIN),
    "escape sequences": ("\\ISO 2022 IR 87", JAPANESE, b"plain"),
    "escape sequences, none declared": ("", JAPANESE, b"plain"),
    "an unknown set": ("ISO_IR 999", LATIN, LATIN),
    "every byte": ("ISO_IR 100", bytes(range(0x20, 0x5C)) + bytes(range(0x5D, 0x100)), LATIN),
}


def stored(path: Path, keyword: str) -> bytes:
    value = pydicom.dcmread(path).get_item(keyword).value
    assert isinstance(value, bytes)
    return value


@pytest.mark.parametrize(
    ("kind", "syntax"), [*((kind, "") for kind in KINDS), (FIRST, "+ti"), (FIRST, "+tb")]
)
def test_a_fused_object_has_the_bytes_of_its_source(kind: str, syntax: str, tmp_path: Path) -> None:
    """syntax: an option of dcmtk's dcmconv, implicit or big endian."""
    declared, name, text = KINDS[kind]
    planted = {"PatientName": name, "PatientID": text, "StudyDescription": text, "AccessionNumber": text[:14]}
    planted["ReferringPhysicianName"] = name
    # pydicom writes a text of the same length; its bytes are then exchanged in the file.
    stand_in = {
        key: "qrstuvwxyz"[i] * (len(value) + len(value) % 2) for i, (key, value) in enumerate(planted.items())
    }
    affine = affine_of(shape=SHAPE, spacing=(5.0, 4.5, 4.5))
    points = grid(affine, SHAPE)
    for modality, values in (("MR", head(points)), ("PT", 20 * uptake(points))):
        charset = {"SpecificCharacterSet": declared.split("\\") if declared else None}
        write_series(tmp_path / modality, slices(values, affine, modality, **charset, **stand_in))
        for path in (tmp_path / modality).iterdir():
            if syntax:
                needs("dcmconv")
                subprocess.run(["dcmconv", syntax, str(path), str(path)], check=True)
            data = path.read_bytes()
            for key, value in planted.items():
                old = stand_in[key].encode()
                assert data.count(old) == 1
                data = data.replace(old, value.ljust(len(old)))
            path.write_bytes(data)
    out = tmp_path / "out.dcm"
    if kind == FIRST and not syntax:  # once as a user does it
        where = [str(tmp_path / modality) for modality in ("MR", "PT")]
        assert cli.main(["fuse", *where, "-o", str(out), "--quiet"]) == 0
    else:
        out.write_bytes(_fused(tmp_path))
    source = next((tmp_path / "MR").iterdir())
    for key, value in planted.items():
        assert stored(source, key).rstrip(b" ") == value.rstrip(b" "), "the source has them"
        assert stored(out, key) == stored(source, key), key
    assert "RESEARCH USE ONLY" in pydicom.dcmread(out).SeriesDescription
    if declared:
        assert pydicom.dcmread(out).SpecificCharacterSet == pydicom.dcmread(source).SpecificCharacterSet


def _fused(folder: Path) -> bytes:
    """What `fuse` makes of the headers, without its processes and the network."""
    a, b = (mmif_trt.read(folder / modality) for modality in ("MR", "PT"))
    headers = [parsed(header(dataset)[0]) for dataset in (*a.headers, *b.headers)]
    image = replace(a, data=a.data.astype(np.uint16), headers=())
    geometry._same_patient(*(replace(x, headers=(h,)) for x, h in ((a, headers[0]), (b, headers[-1]))))
    words = {"description": "FUSED", "derivation": "", "version": "0", "weights_sha256": ""}
    return dicom_write.encode(dicom_write.derived(image, headers, **words))


def plant(dataset: Any, keyword: str, value: bytes) -> None:
    tag = Tag(tag_for_keyword(keyword))
    value += b" " * (len(value) % 2)
    dataset._dict[tag] = RawDataElement(tag, dictionary_VR(tag), len(value), value, 0, False, True)


def test_what_is_not_text_is_left_out_and_the_rest_stays() -> None:
    dataset = pydicom.Dataset()
    plant(dataset, "PatientName", LATIN)
    plant(dataset, "StudyDescription", b"x" * 70_000)
    plant(dataset, "PatientWeight", b"70,5 kg")
    tag = Tag(tag_for_keyword("PatientSize"))
    dataset._dict[tag] = RawDataElement(tag, "FD", 8, b"\0" * 8, 0, False, True)
    text, left_out = header(dataset)
    assert sorted(left_out) == ["PatientSize", "PatientWeight", "StudyDescription"]
    kept = parsed(text)
    assert [x.keyword for x in kept] == ["PatientName"] and parsed(text).get_item("PatientName").value[
        :-1
    ] == LATIN
