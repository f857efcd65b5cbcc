"""Mutated real files: one clear line or the volume, never a crash, a hang, or silently another volume.

500 inputs, and 10,000 others in `make nightly` (set MMIF_FUZZ_SEED for yet others).
"""

from __future__ import annotations

import gzip
import io
import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import phantoms
import pydicom
import pytest
from phantoms import affine_of, encoded, grid, head, slices
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from mmif_trt.image import Image, InputError
from mmif_trt.io import dicom, nifti
from mmif_trt.io.dicom import meta

SEED = int(os.environ.get("MMIF_FUZZ_SEED", "1"))
SHAPE = (3, 40, 36)
SLOWEST_S = 20.0


def seeds() -> dict[str, tuple[bytes, Callable[[bytes, str], Image]]]:
    affine = affine_of(shape=SHAPE, turn_deg=(3, 0, 0))
    values = head(grid(affine, SHAPE))
    parts = slices(values, affine)
    out = {"plain": (encoded(parts[0]), dicom.decode)}
    for name, syntax in (("rle", RLELossless), ("jpeg-ls", JPEGLSLossless), ("jpeg 2000", JPEG2000Lossless)):
        dataset = pydicom.dcmread(io.BytesIO(encoded(parts[1])))
        dataset.compress(syntax)
        out[name] = (encoded(dataset), dicom.decode)
    deflated = parts[2]
    deflated.file_meta.TransferSyntaxUID = meta.DEFLATED
    out["deflated"] = (encoded(deflated), dicom.decode)
    pet = slices(values, affine, "PT")[0]
    out["pet"] = (encoded(pet), dicom.decode)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for i, part in enumerate(slices(values, affine)):
            archive.writestr(f"{i}", encoded(part))
    out["zip"] = (packed.getvalue(), dicom.decode_zip)
    volume = Image(values.astype(np.float32), affine=affine)
    out["nifti"] = (nifti.encode(volume), nifti.decode)
    out["nifti gz"] = (gzip.compress(nifti.encode(volume)), nifti.decode)
    return out


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Flipped bytes (mostly in the header), cuts, repeats, extreme numbers, and swapped pieces."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        span = len(out) if rng.random() < 0.3 else min(len(out), 1600)
        at, kind = int(rng.integers(0, span)), int(rng.integers(0, 6))
        if kind == 0:
            out[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            out[at : at + 4] = [b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\0\0\x80\x7f"][
                int(rng.integers(0, 4))
            ]
        elif kind == 2:
            del out[at : at + int(rng.integers(1, 64))]
        elif kind == 3:
            out[at:at] = out[at : at + int(rng.integers(1, 64))]
        elif kind == 4 and rng.random() < 0.3:
            del out[at:]
        else:
            out[at] = int(rng.integers(0, 256))
        if not out:
            return b""
    return bytes(out)


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_mutated_files_are_refused_or_read(count: int, tmp_path: Path) -> None:
    rng, files = np.random.default_rng([SEED, count]), seeds()
    for data, decode in files.values():
        decode(data, "good")  # each seed itself is a volume
    names, refused = list(files), 0
    for number in range(count):
        name = names[number % len(names)]
        data, decode = files[name]
        bad = mutated(data, rng)
        start = time.monotonic()
        try:
            image = decode(bad, "bad")
        except InputError as error:
            refused += 1
            message = str(error)
            assert "\n" not in message and "expected" in message, (name, message)
            assert not any(value in message for value in phantoms.PLANTED.values()), (name, message)
        except BaseException as error:
            (tmp_path / f"{name}.bin").write_bytes(bad)
            pytest.fail(f"input {number} ({name}, seed {SEED}): {type(error).__name__}: {error}")
        else:
            assert np.isfinite(image.data.astype(np.float32)).all()
            if image.is_volume:
                assert image.affine is not None and np.isfinite(image.affine).all()
        took = time.monotonic() - start
        assert took < SLOWEST_S, f"input {number} ({name}) took {took:.0f} s"
    assert count / 4 < refused < count, "mutations that all pass, or all fail, test nothing"
