"""batch pairs by rules; one bad file costs one case, and a kill neither loses nor repeats a case."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import phantoms
import pydicom
import pytest
from disks import disk, enlarge
from phantoms import affine_of, grid, head, slices, uptake, write_mr, write_nifti, write_pet, write_series

import mmif_trt
from mmif_trt.cli import main
from mmif_trt.clinical import decoder, outputs, planning
from mmif_trt.files import OutputError
from mmif_trt.image import Image, InputError
from mmif_trt.io import dicom
from mmif_trt.stages import geometry

SECRET = bytes(range(32))
SHAPE, AFFINE = (20, 40, 36), affine_of("SAL", (6, 4, 4), (20, 40, 36))


def manifest(folder: Path, count: int) -> Path:
    write_nifti(folder / "mri.nii", head(grid(AFFINE, SHAPE)), AFFINE)
    write_nifti(folder / "pet ü.nii.gz", uptake(grid(AFFINE, SHAPE)), AFFINE)
    rows = [f"case{i:03},mri.nii,pet ü.nii.gz,pet,0,1000,0,1000" for i in range(count)]
    path = folder / "list.csv"
    path.write_text("\n".join(["name,a,b,modality_b,low_a,high_a,low_b,high_b", *rows]) + "\n")
    return path


@pytest.mark.parametrize("stray", [{"PatientID": "PLANTED-2"}, {"StudyInstanceUID": "1.2.4"}], ids=list)
def test_a_series_with_a_slice_of_another_patient_is_not_fused(tmp_path: Path, stray: dict[str, str]) -> None:
    """Nothing says which slices are wrong, so the rest is not a series either, whatever the reading order."""
    root, shape = tmp_path / "root", (6, 30, 24)
    affine = affine_of(shape=shape)
    write_mr(root / "mr", affine, shape, SeriesInstanceUID="1.2.5")
    write_pet(root / "pt", affine, shape)
    assert len(planning.plan(str(root), SECRET)[0]) == 1
    path = sorted((root / "mr").iterdir())[2]
    dataset = pydicom.dcmread(path)
    for keyword, value in stray.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)
    found, left = planning.plan(str(root), SECRET)
    assert not found
    told = [
        line for line in left if "instances of several patients or studies bear its UID: not fused" in line
    ]
    assert len(told) == 2 and "PLANTED" not in " ".join(left)
    assert any("no MRI of its patient" in line for line in left), "the PET stays alone"


def test_series_are_paired_by_patient_study_and_frame(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = affine_of(spacing=(8, 3, 3), shape=(12, 60, 48))
    root = tmp_path / "root"
    write_mr(root / "mr", affine_of())
    write_mr(root / "mr short", small, (12, 60, 48))
    write_pet(root / "pt", affine_of())
    write_pet(root / "other patient", affine_of(), PatientID="PLANTED-2")
    write_pet(root / "other frame", affine_of(), FrameOfReferenceUID="1.2.3")
    write_pet(root / "other study", affine_of(), StudyInstanceUID="1.2.4")
    write_mr(root / "localizer", small, (12, 60, 48), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    map_of = slices(head(grid(small, (12, 60, 48))), small, SeriesNumber="0")
    for one in map_of:  # before the others by number, and fusing would refuse it
        one.PixelData, one.SamplesPerPixel = bytes(60 * 48 * 3), 3
        one.PhotometricInterpretation, one.PlanarConfiguration = "RGB", 0
        one.BitsAllocated, one.BitsStored, one.HighBit = 8, 8, 7
    write_series(root / "colour map", map_of)
    (root / "notes.txt").write_text("no DICOM")
    found, left = planning.plan(str(root), SECRET)
    assert "12 x MRI in colour" in left
    assert len(found) == 1 and len(found[0].a) == 24 and len(found[0].b) == 20
    assert {Path(path).parent.name for path in (*found[0].a, *found[0].b)} == {"mr", "pt"}
    assert sum("no MRI of its patient, study and frame" in line for line in left) == 3
    assert sum("another MRI of its group covers more" in line for line in left) == 1
    assert sum("localizer" in line for line in left) == 1 and len(left) == 6
    assert main(["batch", str(root), "-o", str(tmp_path / "out"), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("left out") == 6 and "24 slices of 60 x 48" in shown and "PLANTED" not in shown
    assert f"mri series 1 (24 slices of 60 x 48, {root / 'mr'})" in shown, "no hash: a path"
    assert not (tmp_path / "out").exists()
    (tmp_path / "key").write_text(SECRET.hex())
    named = ["--pseudonym-key", str(tmp_path / "key")]
    assert main(["batch", str(root), "-o", str(tmp_path / "out"), "--quiet", "--format", "dcm", *named]) == 0
    fused = mmif_trt.read(tmp_path / "out" / f"{found[0].name}.dcm")
    direct = mmif_trt.fuse(root / "mr", root / "pt")
    np.testing.assert_array_equal(fused.data, direct.data)


def test_parts_are_the_same_whatever_the_key(tmp_path: Path) -> None:
    """Machines with outputs of their own have keys of their own, and must still divide the same list."""
    for number in range(4):
        who = {"PatientID": f"P{number}", "StudyInstanceUID": f"1.2.{number}"}
        write_mr(tmp_path / "root" / f"mr{number}", AFFINE, (4, 40, 36), **who)
        write_pet(tmp_path / "root" / f"pt{number}", AFFINE, (4, 40, 36), **who)
    plans = [planning.plan(str(tmp_path / "root"), bytes([number]) * 32)[0] for number in range(5)]
    assert len(plans[0]) == 4 and len({case.name for plan in plans for case in plan}) == 20
    assert {tuple(case.a for case in plan) for plan in plans} == {tuple(case.a for case in plans[0])}


def test_a_bad_file_costs_its_case_and_a_second_run_does_the_rest(tmp_path: Path) -> None:
    path = manifest(tmp_path, 4)
    (tmp_path / "bad.nii").write_bytes((tmp_path / "mri.nii").read_bytes()[:-100])
    path.write_text(path.read_text().replace("case001,mri.nii", "case001,bad.nii"))
    out = tmp_path / "out"
    assert main(["batch", str(path), "-o", str(out), "--quiet"]) == 1
    reports = {p.stem: json.loads(p.read_text()) for p in out.glob("*.json")}
    assert [reports[f"case00{i}"]["status"] for i in range(4)] == ["done", "failed", "done", "done"]
    assert "expected a complete file" in reports["case001"]["message"]
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("case000*")}
    (tmp_path / "bad.nii").write_bytes((tmp_path / "mri.nii").read_bytes())
    assert main(["batch", str(path), "-o", str(out), "--quiet"]) == 0
    assert before == {p.name: p.stat().st_mtime_ns for p in out.glob("case000*")}
    assert json.loads((out / "case001.json").read_text())["status"] == "done"


def test_a_registration_in_doubt_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    apart_mm, out = iter((0.5, 7.0)), tmp_path / "out"

    def register(*_: Image) -> tuple[np.ndarray, geometry.Report]:
        return np.eye(4), geometry.Report("rigid", np.eye(4).tolist(), repeatability_mm=next(apart_mm))

    monkeypatch.setattr(geometry, "register_rigid", register)
    path = manifest(tmp_path, 2)
    assert main(["batch", str(path), "-o", str(out), "--registration", "rigid"]) == 0
    records = [json.loads(file.read_text()) for file in out.glob("*.json")]
    (name,) = (x["name"] for x in records if x["registration"]["repeatability_mm"] == 7)
    said = capsys.readouterr().err
    assert said.count(geometry.UNSURE) == 1 and f"mmif-trt: warning: {name}: {geometry.UNSURE}" in said
    assert "2 fused (1 with a registration in doubt), 0 skipped" in said
    (line,) = [x for x in next(out.glob("*.log")).read_text().splitlines() if geometry.UNSURE in x]
    assert f" {name} done; " in line
    assert main(["status", str(out)]) == 0
    said = capsys.readouterr().out
    assert "in doubt     1 of the done\n" in said and f"in doubt: {name}: {geometry.UNSURE}" in said
    assert main(["status", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["in_doubt"] == 1 and [x[0] for x in told["doubts"]] == [name]
    assert main(["batch", str(path), "-o", str(out), "--registration", "rigid"]) == 0
    assert "0 fused, 2 skipped (done before; 1 with a registration in doubt)" in capsys.readouterr().err


def test_a_dry_run_says_what_the_files_tell_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = manifest(tmp_path, 1)
    series = np.stack([uptake(grid(AFFINE, SHAPE)).T] * 3, -1).astype("f4")
    nibabel.Nifti1Image(series, np.eye(4)).to_filename(tmp_path / "dynamic.nii.gz")
    (tmp_path / "no.nii").write_bytes(b"no")
    rows = ["of4d,mri.nii,dynamic.nii.gz,", "of1,mri.nii,dynamic.nii.gz,2", "gone,gone.nii,mri.nii,"]
    rows += ["bad,mri.nii,no.nii,", "two,mri.nii,two,", "second,mri.nii,gap,2", "mr,two/mr,mri.nii,"]
    rows += ["gap,gap,mri.nii,", "none,mri.nii,out,", "text,text.dcm,mri.nii,", "rows,rows,mri.nii,"]
    (tmp_path / "text.dcm").write_bytes(b"no")
    write_mr(tmp_path / "two" / "mr", AFFINE, SHAPE)
    write_pet(tmp_path / "two" / "pt", AFFINE, SHAPE)
    shutil.copytree(tmp_path / "two" / "mr", tmp_path / "gap")
    for path_of_slice in sorted((tmp_path / "gap").iterdir())[3:5]:
        path_of_slice.unlink()
    (tmp_path / "out").mkdir()
    (tmp_path / "rows").mkdir()
    for number, path_of_slice in enumerate(sorted((tmp_path / "two" / "mr").iterdir())):
        one_byte = path_of_slice.read_bytes().replace(b"\x28\x00\x10\x00US\x02", b"\x28\x00\x10\x00US\x01")
        (tmp_path / "rows" / f"{number}.dcm").write_bytes(one_byte)
    path.write_text("\n".join(["name,a,b,volume_b", *rows]) + "\n")
    assert main(["batch", str(path), "-o", str(tmp_path / "out"), "--dry-run"]) == 0
    said = {line.split(":")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert said["of1"].endswith("(to do)")
    assert "(to do; b will be refused: 3 volumes" in said["of4d"]
    assert "a will be refused: no such file" in said["gone"]
    assert "b will be refused: not a single-file NIfTI" in said["bad"]
    assert said["mr"].endswith("(to do)")
    assert "choose by --series-a" in said["two"] and "missing" in said["gap"] and "volume 2" in said["second"]
    assert "a will be refused: damaged DICOM" in said["rows"]
    for name, folder in (("two", "two"), ("gap", "gap"), ("none", "out"), ("text", "text.dcm")):
        with pytest.raises(InputError) as refused:
            mmif_trt.read(tmp_path / folder)
        assert str(refused.value).removeprefix(f"{tmp_path / folder}: ") in said[name], "as the run will say"


def test_other_options_are_not_mixed_in_silently(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = manifest(tmp_path, 2), tmp_path / "out"
    command = ["batch", str(path), "-o", str(out), "--quiet"]
    assert main(command) == 0
    first = (out / "case000.nii").read_bytes()
    other = [*command, "--palette", "HOT_IRON"]
    assert main(other) == 2
    said = capsys.readouterr().err
    assert "2 cases have other options, such as case000 (palette None, now HOT_IRON)" in said
    assert (out / "case000.nii").read_bytes() == first, "nothing was touched"
    assert main([*other, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("(done with palette None, now HOT_IRON)") == 2
    report = json.loads((out / "case001.json").read_text())
    report["asked"]["weights"]["lagn.onnx"] = "of another release"
    (out / "case001.json").write_text(json.dumps(report))
    assert (
        main(command) == 2
        and "1 cases have other options, such as case001 (weights)" in capsys.readouterr().err
    )
    assert main([*other, "--overwrite"]) == 0 and main(other) == 0
    assert (out / "case000.nii").read_bytes() != first


def done(out: Path) -> dict[str, int]:
    """The records of finished cases, and when each was written; a running case has a record that says so."""
    records = {path: path.read_text() for path in out.glob("*.json")}
    return {p.name: p.stat().st_mtime_ns for p, text in records.items() if '"status": "done"' in text}


def test_kill_9_loses_and_repeats_nothing(tmp_path: Path) -> None:
    path, out = manifest(tmp_path, 12), tmp_path / "out"
    command = [sys.executable, "-m", "mmif_trt", "batch", str(path), "-o", str(out), "--quiet"]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 60
    while len(done(out)) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = done(out)
    assert 3 <= len(finished) < 12, "killed in the middle"
    for part in ("1/2", "2/2"):
        subprocess.run([*command, "--part", part], check=True)
    assert len(list(out.glob("case*.json"))) == 12 == len(list(out.glob("case???.nii")))
    assert finished == {name: done(out)[name] for name in finished}, "done cases stay untouched"
    first = (out / "case000.nii").read_bytes()
    assert all(p.read_bytes() == first for p in out.glob("case???.nii"))
    logs = "".join(p.read_text() for p in out.glob("*.log"))
    names = [line.split()[1] for line in logs.splitlines()]
    missing = {f"case{i:03}" for i in range(12)} - set(names)
    assert len(missing) <= 1 and len(names) <= 13, "its record is written before its line in the log"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,a\nx,mri.nii\n", "columns"),
        ("name;a;b\nx;mri.nii;b.nii\n", "columns .*, with commas between"),
        ("name,a,b\n../x,mri.nii,b.nii\n", "line 2: name '../x'"),
        ("name,a,b\nx,a,b\nx,a,b\n", "twice"),
        ("name,a,b,low_a,high_a\nx,a,b,1,\n", "two numbers"),
        ("name,a,b,volume_b\nx,a,b,0\n", "line 2: volume_b '0'; expected a number from 1"),
    ],
)
def test_a_wrong_manifest_gives_one_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        planning.plan(str(tmp_path / "m.csv"), SECRET)
    assert main(["batch", str(tmp_path / "m.csv"), "-o", str(tmp_path / "o"), "--part", "3/2"]) == 2
    with pytest.raises(InputError, match="none: no such file or folder; expected a manifest"):
        planning.plan(str(tmp_path / "none"), SECRET)


def test_a_manifest_chooses_one_of_several_volumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `fuse` says of several volumes leads somewhere in a batch too; another one is another result."""
    import nibabel

    manifest(tmp_path, 0)
    pet = uptake(grid(AFFINE, SHAPE)).T.astype(np.float32)
    nibabel.Nifti1Image(np.stack([pet, 0 * pet], -1), AFFINE[:, [2, 1, 0, 3]]).to_filename(tmp_path / "t.nii")
    head_of, row = "name,a,b,modality_b,low_a,high_a,low_b,high_b", "x,mri.nii,t.nii,pet,0,1000,0,1000"
    path, out = tmp_path / "list.csv", tmp_path / "out"

    def batch(volume: str, *options: str) -> tuple[int, str]:
        path.write_text(f"{head_of},volume_b\n{row},{volume}\n")
        code = main(["batch", str(path), "-o", str(out), "--quiet", *options])
        return code, capsys.readouterr().err

    assert "manifest: volume_a, volume_b" in batch("")[1]
    assert batch("1")[0] == 0
    assert np.ptp(mmif_trt.read(out / "x.nii").data, axis=-1).max() > 50
    assert "volume_b 1, now 2" in batch("2")[1]
    assert batch("2", "--overwrite")[0] == 0
    assert np.ptp(mmif_trt.read(out / "x.nii").data, axis=-1).max() == 0


def test_the_reader_is_killed_over_memory_and_time_and_starts_again(tmp_path: Path) -> None:
    manifest(tmp_path, 0)
    big = np.zeros((600, 600, 700), np.uint8)  # 252 MB as stored, 3 GB on the way to float32
    import nibabel

    image = nibabel.Nifti1Image(big, np.eye(4))
    image.header.set_slope_inter(2, 1)
    image.to_filename(tmp_path / "big.nii.gz")
    with decoder.Decoder(megabytes=2400) as reader:
        with pytest.raises(InputError, match="over the memory limit|died on it"):
            reader.read((str(tmp_path / "big.nii.gz"),))
        assert reader.read((str(tmp_path / "mri.nii"),)).data.shape == SHAPE
    with decoder.Decoder(seconds=0.05) as reader:
        with pytest.raises(InputError, match="not read within 0.05 s"):
            reader.read((str(tmp_path / "mri.nii"),))
        reader.seconds = 60
        assert reader.read((str(tmp_path / "mri.nii"),)).data.shape == SHAPE


def test_a_header_that_kills_its_reader_costs_only_its_file(tmp_path: Path) -> None:
    """Headers are parsed in the child: one takes all its memory, one nests without end, one is cut off."""
    import pydicom

    write_mr(tmp_path / "mr", AFFINE, SHAPE)
    good = sorted(str(path) for path in (tmp_path / "mr").iterdir())
    dataset = pydicom.dcmread(good[0])
    del dataset.PixelData
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    dataset.ImageComments = "x" * (200 << 20)  # deflated to a fifth of a megabyte
    dataset["ImageComments"].VR = "UT"  # the only text VR that may be this long
    (tmp_path / "bomb").write_bytes(phantoms.encoded(dataset))
    assert (tmp_path / "bomb").stat().st_size < 1 << 20
    head_end = Path(good[0]).read_bytes()[:400]
    (tmp_path / "cut").write_bytes(head_end)
    start = head_end[: head_end.index(b"\x08\x00")]
    nested = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 40_000
    (tmp_path / "nested").write_bytes(start + nested)
    bad = [str(tmp_path / name) for name in ("bomb", "cut", "nested")]
    with decoder.Decoder(megabytes=600) as reader:
        found = dict(reader.headers([*good[:3], *bad, *good[3:]]))
        assert set(good) <= set(found) and not {bad[0], bad[2]} & set(found)
        assert found[good[0]]["PatientID"] == phantoms.PLANTED["PatientID"]
        assert found[good[0]]["ImageType"] == ["ORIGINAL", "PRIMARY", "AXIAL"]


def test_the_parent_parses_no_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mr(tmp_path / "root" / "mr", AFFINE, SHAPE)
    write_pet(tmp_path / "root" / "pt", AFFINE, SHAPE)

    def parse(*_: object, **__: object) -> None:
        raise AssertionError("a header was parsed in the parent")

    monkeypatch.setattr(dicom, "parse", parse)
    out = tmp_path / "out"
    assert main(["batch", str(tmp_path / "root"), "-o", str(out), "--quiet", "--format", "dcm"]) == 0
    series = [str(tmp_path / "root" / name) for name in ("mr", "pt")]
    assert main(["fuse", *series, "-o", str(tmp_path / "one.dcm"), "--quiet"]) == 0
    assert len(list(out.glob("*.dcm"))) == 1 and (tmp_path / "one.dcm").stat().st_size


def test_a_full_disk_stops_a_batch_with_one_line_and_the_next_run_does_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = manifest(tmp_path, 4)
    with disk(tmp_path / "disk", "700k") as small:
        out = small / "out"
        assert main(["batch", str(path), "-o", str(out), "--quiet"]) == 1
        error = capsys.readouterr().err
        assert error.count("No space left on device") == 1 and error.count("is full") == 1, error
        assert error.count("\n") == 2
        done = {p.stem for p in out.glob("*.json") if json.loads(p.read_text())["status"] == "done"}
        assert 1 <= len(done) < 4 and not list(out.glob(".*"))
        pictures = {p.stem.removesuffix("_luma") for p in out.glob("*.nii")}
        assert pictures == done, "nothing of the case for which there was no room"
        enlarge(small, "8m")
        assert main(["batch", str(path), "-o", str(out), "--quiet"]) == 0
        first = (out / "case000.nii").read_bytes()
        assert [p.read_bytes() == first for p in sorted(out.glob("case???.nii"))] == [True] * 4


@pytest.fixture(scope="module")
def fused() -> tuple[Any, Image, Image]:
    a, b = (
        dicom.series([dicom.parse(phantoms.encoded(part), "x") for part in parts], "x")
        for parts in (
            phantoms.slices(head(grid(AFFINE, SHAPE)), AFFINE),
            phantoms.slices(20 * uptake(grid(AFFINE, SHAPE)), AFFINE, "PT"),
        )
    )
    return mmif_trt.Fuser().fuse_volumes(a, b), a, b


@pytest.mark.parametrize(
    ("name", "size"), [("x.nii", "160k"), ("x.nii.gz", "16k"), ("x.dcm", "16k"), ("slices", "16k")]
)
def test_a_full_disk_leaves_nothing_of_an_output(
    tmp_path: Path, name: str, size: str, fused: tuple[Any, Image, Image]
) -> None:
    """160k: the luma of 115 KB fits, the RGB after it does not."""
    with disk(tmp_path / "disk", size) as small:
        with pytest.raises(OutputError, match="No space left on device"):
            outputs.save(str(small / name), *fused)
        assert not list(small.iterdir())


def test_a_full_disk_gives_one_line_from_fuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    series = [str(write_mr(tmp_path / "mr", AFFINE, SHAPE)), str(write_pet(tmp_path / "pt", AFFINE, SHAPE))]
    with disk(tmp_path / "disk", "16k") as small:
        assert main(["fuse", *series, "-o", str(small / "x.dcm"), "--quiet"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "No space left on device" in error
        assert not list(small.iterdir())


def test_what_the_child_sends_is_what_it_read(tmp_path: Path) -> None:
    folder = write_mr(tmp_path / "mr", affine_of(turn_deg=(3, 4, 5)))
    direct = mmif_trt.read(folder)
    with decoder.Decoder() as reader:
        image = reader.read(tuple(str(path) for path in sorted(folder.iterdir())))
    np.testing.assert_array_equal(image.data, direct.data)
    np.testing.assert_array_equal(image.affine, direct.affine)
    assert (image.frame, image.modality, image.value_range) == (
        direct.frame,
        direct.modality,
        direct.value_range,
    )
    assert [h.SOPInstanceUID for h in image.headers] == [h.SOPInstanceUID for h in direct.headers]
    assert str(image.headers[0].PatientName) == phantoms.PLANTED["PatientName"]
