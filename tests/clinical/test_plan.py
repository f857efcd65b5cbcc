"""plan and status: a plan streams like a list, is written once and divides without loss; claims name machine
and process."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from phantoms import affine_of, grid, head, uptake, write_mr, write_nifti, write_pet

from mmif_trt import processes
from mmif_trt.cli import main
from mmif_trt.clinical import plan_folder, planning, progress, records
from mmif_trt.clinical.case import Case
from mmif_trt.clinical.cases import BEFORE, ELSEWHERE, How, Runner
from mmif_trt.clinical.spill import Spill
from mmif_trt.fuser import Fuser
from mmif_trt.image import InputError
from mmif_trt.io.which import Which
from mmif_trt.storage import Folder

SECRET = bytes(range(32))
SHAPE, AFFINE = (4, 40, 36), affine_of("SAL", (6, 4, 4), (4, 40, 36))
RUN = records.Run(runtime="openvino", precision="fp32")


@pytest.fixture(scope="module")
def fuser() -> Fuser:
    return Fuser("openvino", "fp32")


def manifest(folder: Path, count: int) -> Path:
    write_nifti(folder / "mri.nii", head(grid(AFFINE, SHAPE)), AFFINE)
    write_nifti(folder / "pet.nii", uptake(grid(AFFINE, SHAPE)), AFFINE)
    rows = [f"case{i:05},mri.nii,pet.nii,pet,0,1000,0,1000" for i in range(count)]
    path = folder / "list.csv"
    path.write_text("\n".join(["name,a,b,modality_b,low_a,high_a,low_b,high_b", *rows]) + "\n")
    return path


def names(cases: Any) -> list[str]:
    return [case.name for case in cases]


def test_a_case_in_the_spill_and_in_a_plan_is_the_case(tmp_path: Path) -> None:
    files = tuple(f"/archive/ü/{i}.dcm" for i in range(3))
    case = Case(
        "n",
        files,
        ("/x/1", "/y/2"),
        {"value_range_a": (0.0, 1.5)},
        "r.dcm",
        Which("s", 2),
        words="w",
        series=("1.2", ""),
    )
    store = Folder(tmp_path)
    with Spill() as spill:
        spill.put(case)
        with pytest.raises(InputError, match="'n' occurs twice"):
            spill.put(case)
        plan_folder.write(store, spill, RUN, (1, 1))
        assert list(spill.cases()) == [case] == list(plan_folder.PlanFolder(store).cases())


def test_a_plan_of_parts_holds_what_one_run_finds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Five studies, one per folder; loose files beside them belong to the first part."""
    for number in range(5):
        who = {"PatientID": f"PLANTED-{number}", "StudyInstanceUID": f"1.2.{number}"}
        write_mr(tmp_path / "root" / f"s{number}" / "mr", AFFINE, SHAPE, **who)
        write_pet(tmp_path / "root" / f"s{number}" / "pt", AFFINE, SHAPE, **who)
    (tmp_path / "root" / "note.txt").write_text("no DICOM")
    (tmp_path / "key").write_text(SECRET.hex())
    command = ["plan", str(tmp_path / "root"), "-o", str(tmp_path / "plan"), "--precision", "fp32"]
    command += ["--pseudonym-key", str(tmp_path / "key"), "--palette", "HOT_IRON"]
    assert main([*command, "--part", "2/2"]) == 0
    with pytest.raises(InputError, match="part 1 is missing"):
        plan_folder.PlanFolder(Folder(tmp_path / "plan"))
    assert main([*command, "--part", "1/2"]) == 0
    assert (
        main([*command, "--part", "1/2"]) == 2 and "exists; expected a new folder" in capsys.readouterr().err
    )
    plan = plan_folder.PlanFolder(Folder(tmp_path / "plan"))
    whole, _ = planning.plan(str(tmp_path / "root"), SECRET)
    assert len(plan) == 5 and sorted(names(plan.cases())) == sorted(names(whole))
    assert {case.name: (case.a, case.b) for case in plan.cases()} == {c.name: (c.a, c.b) for c in whole}
    assert plan.run == records.Run(records.Options(palette="HOT_IRON"), "openvino", "fp32"), "resolved"
    shares = [names(plan.cases(index, 3)) for index in (1, 2, 3)]
    assert sum(shares, []) == names(plan.cases()) and {len(share) for share in shares} == {1, 2}
    batch = ["batch", str(tmp_path / "plan"), "-o", str(tmp_path / "out")]
    assert main([*batch, "--plane", "axial"]) == 2
    assert "a plan says how its cases are fused" in capsys.readouterr().err
    assert main([*batch, "--part", "2/3", "--dry-run"]) == 0
    assert capsys.readouterr().out.count("(to do)") == len(shares[1])
    assert b"PLANTED" not in b"".join(p.read_bytes() for p in (tmp_path / "plan").iterdir())


def test_a_share_reads_its_own_files_of_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_folder, "CHUNK", 10)
    read = list[str]()
    with Spill() as spill:
        planning.fill(spill, str(manifest(tmp_path, 95)), SECRET)
        plan_folder.write(Folder(tmp_path / "p"), spill, RUN, (1, 1))

    class Watched(Folder):
        def read(self, name: str) -> bytes:
            read.append(name)
            return super().read(name)

    plan = plan_folder.PlanFolder(Watched(tmp_path / "p"))
    read.clear()
    assert names(plan.cases(2, 5)) == [f"case{i:05}" for i in range(19, 38)]
    assert read == [f"cases-1-of-1-{i:06}.jsonl.gz" for i in (1, 2, 3)]
    (tmp_path / "p" / read[0]).write_bytes(b"damaged")
    with pytest.raises(InputError, match="damaged"):
        list(plan.cases())


def test_a_plan_that_was_damaged_or_edited_loses_no_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fewer cases in a file or in the head, or another case: each gives one line, and nothing is fused."""
    monkeypatch.setattr(plan_folder, "CHUNK", 2)
    plan, out = tmp_path / "plan", tmp_path / "out"
    words = ["plan", str(manifest(tmp_path, 5)), "-o", str(plan), "--precision", "fp32", "--quiet"]
    assert main(words) == 0
    head, last = plan / "plan-1-of-1.json", plan / "cases-1-of-1-000001.jsonl.gz"
    told, lines = json.loads(head.read_text()), gzip.decompress(last.read_bytes()).decode().splitlines()

    def packed(lines: list[str]) -> bytes:
        return gzip.compress("".join(f"{line}\n" for line in lines).encode())

    def head_of(**changed: Any) -> bytes:
        return json.dumps({**told, **changed}).encode()

    def with_hash(data: bytes) -> dict[Path, bytes]:
        hashes = [told["sha256"][0], hashlib.sha256(data).hexdigest(), told["sha256"][2]]
        return {last: data, head: head_of(sha256=hashes)}

    outside = lines[0].replace("case00002", "../case")
    for changed, said in (
        ({last: packed(lines[:1])}, "another SHA-256"),
        ({last: last.read_bytes()[:-9]}, "another SHA-256"),
        (with_hash(packed(lines[:1])), "1 cases of 2"),
        (with_hash(packed([lines[0], "{}"])), "(an entry is missing)"),
        (with_hash(packed([outside, lines[1]])), "the name of a case"),
        (with_hash(b"no gzip"), "(not a whole gzip file)"),
        ({head: head_of(cases=4)}, "(3 files for 4 cases)"),
        ({head: head_of(chunk=0)}, "(a malformed value)"),
        ({head: head_of(run={})}, "(an entry is missing)"),
        ({head: b"[]"}, "(a malformed value)"),
        ({head: head_of(format=99)}, "format 99; expected 2"),
        ({last: None}, "(No such file or directory)"),
    ):
        before = {path: path.read_bytes() for path in changed}
        for path, data in changed.items():
            path.unlink() if data is None else path.write_bytes(data)
        assert main(["batch", str(plan), "-o", str(out), "--quiet"]) == 2
        told_user = capsys.readouterr().err
        assert said in told_user and "expected" in told_user and told_user.count("\n") == 1, told_user
        assert not list(out.glob("case*"))
        for path, data in before.items():
            path.write_bytes(data)
    assert main(["batch", str(plan), "-o", str(out), "--dry-run"]) == 0
    for part in ("1/1", "1/2"):
        assert main([*words, "--part", part]) == 2
        assert "plan-1-of-1.json: exists; expected a new folder" in capsys.readouterr().err
    head.unlink()
    assert main(["batch", str(plan), "-o", str(tmp_path / "new")]) == 2
    assert "an unfinished plan; expected" in capsys.readouterr().err and not (tmp_path / "new").exists()
    assert main(words) == 0 and main(["batch", str(plan), "-o", str(out), "--dry-run"]) == 0


def test_a_study_that_replaced_the_planned_one_is_not_fused_under_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name is a patient's pseudonym: another patient's study in the same folder is not that patient's."""
    for number in (1, 2):
        who = {"PatientID": f"PLANTED-{number}", "StudyInstanceUID": f"1.2.{number}"}
        write_mr(tmp_path / f"s{number}" / "mr", AFFINE, SHAPE, SeriesInstanceUID=f"1.2.{number}.1", **who)
        write_pet(tmp_path / f"s{number}" / "pt", AFFINE, SHAPE, SeriesInstanceUID=f"1.2.{number}.2", **who)
    words = ["plan", str(tmp_path / "s1"), "-o", str(tmp_path / "plan"), "--precision", "fp32", "--quiet"]
    assert main(words) == 0
    (tmp_path / "s1").rename(tmp_path / "s0")
    (tmp_path / "s2").rename(tmp_path / "s1")
    batch = ["batch", str(tmp_path / "plan"), "-o", str(tmp_path / "out"), "--quiet"]
    assert main(batch) == 1
    said = capsys.readouterr().err
    assert "another series since it was planned; expected a new plan" in said and "PLANTED" not in said
    (tmp_path / "s1").rename(tmp_path / "s2")
    (tmp_path / "s0").rename(tmp_path / "s1")
    assert main(batch) == 0


def test_parts_of_a_manifest_hold_each_case_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = manifest(tmp_path, 7)
    words = ["plan", str(path), "-o", str(tmp_path / "plan"), "--precision", "fp32", "--quiet", "--part"]
    assert [main([*words, f"{part}/3"]) for part in (1, 2, 3)] == [0, 0, 0]
    plan = plan_folder.PlanFolder(Folder(tmp_path / "plan"))
    assert len(plan) == 7 and sorted(names(plan.cases())) == [f"case{i:05}" for i in range(7)]
    assert names(plan.cases())[:3] == ["case00000", "case00003", "case00006"]
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")
    assert main([*words[:3], str(tmp_path / "twice"), *words[4:], "1/3"]) == 2
    assert "'case00006' occurs twice" in capsys.readouterr().err


def test_memory_does_not_grow_with_the_plan(tmp_path: Path) -> None:
    """20,000 cases of 40 KB, 800 MB as objects: the process stays far below."""
    code = """
import resource, sys
from mmif_trt.clinical.case import Case
from mmif_trt.clinical.spill import Spill
files = [f"/archive/of/a/site/{'x' * 100}/{i:05}.dcm" for i in range(300)]
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with Spill() as spill:
    for number in range(int(sys.argv[1])):
        spill.put(Case(f"c{number}", tuple(f"{number}{x}" for x in files), ("b",)))
    assert sum(1 for _ in spill.cases()) == int(sys.argv[1])
print(peak())
"""
    peaks = [
        int(subprocess.run([sys.executable, "-c", code, str(count)], capture_output=True, check=True).stdout)
        for count in (300, 3000)
    ]
    assert peaks[1] - peaks[0] < 30_000, peaks  # KB; 2,700 more cases hold 108 MB


def test_outputs_of_many_cases_lie_in_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(records, "SHARD_ABOVE", 2)
    path, out = manifest(tmp_path, 4), tmp_path / "out"
    assert main(["plan", str(path), "-o", str(tmp_path / "plan"), "--precision", "fp32", "--quiet"]) == 0
    batch = ["batch", str(tmp_path / "plan"), "-o", str(out), "--quiet"]
    assert main([*batch, "--part", "1/2"]) == 0
    assert main(["status", str(out), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["cases"], told["done"], told["left"], told["failed"]) == (4, 2, 2, 0) and told["rate"] > 0
    monkeypatch.setattr(records, "SHARD_ABOVE", 4096)  # a later run keeps the layout of the first
    assert main([*batch, "--part", "2/2"]) == 0 and main(["status", str(out)]) == 0
    made = sorted(out.glob("*/case*.nii"))
    assert len(made) == 8 and all(len(p.parent.name) == 2 for p in made) and not list(out.glob("*.nii"))
    record = json.loads(next(out.glob("*/case00000.json")).read_text())
    assert record["asked"]["precision"] == "fp32" and set(record["sha256"]) == {
        "case00000.nii",
        "case00000_luma.nii",
    }
    before = {p: p.stat().st_mtime_ns for p in out.rglob("case*")}
    assert main(batch) == 0
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("case*")}


def test_a_claim_counts_while_its_process_runs(tmp_path: Path, fuser: Fuser) -> None:
    path = manifest(tmp_path, 1)
    (case,), _ = planning.plan(str(path), SECRET)
    output = records.output_in(Folder(tmp_path / "out"), ".nii", 1)
    one, other = records.Owner.new(), records.Owner.new()
    assert records.claim(output, case, one) is not None
    assert records.claim(output, case, other) is None, "both at work, in this process"
    assert progress.of(output.store).running == 1
    with Runner(How(output, RUN), fuser, other) as runner:
        assert runner(case).status == ELSEWHERE
        one.ends()
        assert progress.of(output.store).interrupted == 1
        assert runner(case).status == records.DONE and runner(case).status == BEFORE
    other.ends()

    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    here = processes.here()
    began = processes._began(child.pid)
    at_work = processes.Process(here, child.pid, began)
    again = processes.Process(here, child.pid, "1")  # the process number was reused
    elsewhere = processes.Process(processes.Place("other", "b", "s"), child.pid, began)
    restarted = processes.Process(processes.Place(here.host, "before", here.space), child.pid, began)
    now, old = time.time(), time.time() - 2 * processes.LEASE_S
    assert processes.runs(at_work, old) and not processes.runs(again, now) and processes.runs(elsewhere, now)
    assert not processes.runs(elsewhere, old) and not processes.runs(restarted, now)
    child.communicate(b"\n")
    assert not processes.runs(at_work, now)
    assert processes.of(json.loads(json.dumps(at_work.entry()))) == at_work and processes.of({}) is None


def test_a_claim_of_the_same_run_is_its_own(tmp_path: Path) -> None:
    """A driver gives the case of a lost worker to another; a requeued Slurm job keeps its number."""
    output, case = records.Output(Folder(tmp_path), ".nii"), Case("c", (), ())
    lost = records.Owner("job", processes.Process(processes.Place("gone", "b", "s"), 1, "1"))
    assert records.claim(output, case, lost) is not None
    assert records.claim(output, case, records.Owner("other", processes.this())) is None
    assert records.claim(output, case, records.Owner("job", processes.this())) is not None
    assert records.claim(output, case, records.Owner("more", processes.this()), take_over=True) is not None


def test_two_runs_into_one_output_share_the_cases_out(tmp_path: Path) -> None:
    path, out = manifest(tmp_path, 12), tmp_path / "out"
    command = [sys.executable, "-m", "mmif_trt", "batch", str(path), "-o", str(out), "--precision", "fp32"]
    runs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [run.communicate()[1] for run in runs]
    fused = [int(text.rpartition("mmif-trt: ")[2].split()[0]) for text in told]
    assert sum(fused) == 12, told
    assert main(["status", str(out)]) == 0
    logs = [line.split() for log in out.glob("*.log") for line in log.read_text().splitlines()]
    assert sorted(line[1] for line in logs if line[2] == "done") == [f"case{i:05}" for i in range(12)]


def test_status_of_nothing_gives_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path / "none")]) == 2 and "no such folder" in capsys.readouterr().err
    os.makedirs(tmp_path / "out")
    for text in (
        '{"somebody": "else"}',
        '{"name": "x", "status": "done", "finished": "yesterday"}',
        '{"name": 5, "status": "done"}',
        '{"name": "x", "status": ["running"], "process": 7}',
        "[]",
    ):
        (tmp_path / "out" / "x.json").write_text(text)
        assert progress.of(Folder(tmp_path / "out")) == progress.Progress()
    assert main(["status", str(tmp_path / "out")]) == 2
    assert "no record of a batch; expected" in capsys.readouterr().err
