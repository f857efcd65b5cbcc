"""s3:// as source, plan and output, against moto's server: each file is whole or absent, and one writer
wins."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from phantoms import affine_of, grid, head, uptake, write_mr, write_nifti, write_pet, write_series

from mmif_trt import scratch, storage
from mmif_trt.cli import main
from mmif_trt.clinical import planning, progress, records, staging
from mmif_trt.clinical.cases import BEFORE, How, Runner
from mmif_trt.clinical.plan_folder import PlanFolder
from mmif_trt.fuser import Fuser
from mmif_trt.image import InputError
from mmif_trt.storage import Bucket, Folder, join, parent, store_of

SECRET = bytes(range(32))
SHAPE, AFFINE = (4, 40, 36), affine_of("SAL", (6, 4, 4), (4, 40, 36))
CASES = 6


@pytest.fixture(scope="module", autouse=True)
def endpoint() -> Iterator[None]:
    pytest.importorskip("s3fs", reason="needs s3fs: pip install 'mmif-trt[s3]'")
    server = pytest.importorskip("moto.server", reason="needs moto: pip install 'mmif-trt[dev]'")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    said = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "a"}
    said |= {"AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    before = {name: os.environ.get(name) for name in said}
    os.environ.update(said)
    storage._s3.cache_clear()
    Bucket("s3://site").files.mkdir("site")
    yield
    running.stop()
    storage._s3.cache_clear()
    for name, value in before.items():
        os.environ.pop(name)
        if value is not None:
            os.environ[name] = value


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, endpoint: None) -> dict[str, bytes]:
    """A manifest beside its volumes in the bucket; returns what a run on the local disk makes of it."""
    folder = tmp_path_factory.mktemp("local")
    write_nifti(folder / "mri.nii", head(grid(AFFINE, SHAPE)), AFFINE)
    write_nifti(folder / "pet.nii", uptake(grid(AFFINE, SHAPE)), AFFINE)
    rows = [f"case{i},mri.nii,pet.nii,pet,0,{900 + i},0,1000" for i in range(CASES)]
    rows += ["lost,gone.nii,pet.nii,pet,0,1,0,1", "bad,list.csv,pet.nii,pet,0,1,0,1"]
    (folder / "list.csv").write_text(
        "\n".join(["name,a,b,modality_b,low_a,high_a,low_b,high_b", *rows]) + "\n"
    )
    for path in folder.iterdir():
        Bucket("s3://site/in").put(path.name, str(path))
    assert main(["batch", str(folder / "list.csv"), "-o", str(folder / "out"), "--precision", "fp32"]) == 1
    return {path.name: path.read_bytes() for path in (folder / "out").glob("*.nii")}


def made(url: str) -> dict[str, bytes]:
    """What the done records name: its name without the hash -> bytes, compared with their SHA-256."""
    import hashlib

    store, found = Bucket(url), {}
    named = set()
    for record in records.all_records(store):
        for name, digest in record.get("sha256", {}).items():
            data = store.read(name)
            assert hashlib.sha256(data).hexdigest() == digest
            found[record["name"] + ("_luma.nii" if "_luma" in name else ".nii")] = data
            named.add(name)
    there = {name for name in store.names() if name.endswith(".nii")}
    assert there == named, "nothing lies there that no record names"
    return found


def scratch_folders() -> list[str]:
    mine = f"-{os.getpid()}-"
    return [n for n in os.listdir(tempfile.gettempdir()) if n.startswith(scratch.PREFIX) and mine in n]


def test_a_run_from_bucket_to_bucket_gives_what_one_on_a_disk_gives(
    local: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    plan, out = "s3://site/plan", "s3://site/out"
    assert main(["plan", "s3://site/in/list.csv", "-o", plan, "--precision", "fp32", "--quiet"]) == 0
    assert main(["batch", plan, "-o", out, "--quiet", "--part", "1/2"]) in (0, 1)
    assert main(["batch", plan, "-o", out, "--quiet", "--part", "2/2"]) in (0, 1)
    said = capsys.readouterr().err
    assert "failed: lost: s3://site/in/gone.nii: no such object" in said
    assert "failed: bad: s3://site/in/list.csv: " in said and tempfile.gettempdir() not in said
    assert made(out) == local and not scratch_folders()
    assert main(["status", out, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["cases"], told["done"], told["failed"], told["left"]) == (CASES + 2, CASES, 2, 0)
    before = Bucket(out).files.info(f"{out}/case0.json")["LastModified"]
    assert main(["batch", plan, "-o", out, "--quiet"]) == 1
    assert Bucket(out).files.info(f"{out}/case0.json")["LastModified"] == before


def test_a_tree_of_studies_in_a_bucket_is_planned_as_one_on_the_disk(tmp_path: Path) -> None:
    for number in range(2):
        who = {"PatientID": f"P{number}", "StudyInstanceUID": f"1.2.{number}"}
        write_mr(tmp_path / f"s{number}" / "mr", AFFINE, SHAPE, **who)
        write_pet(tmp_path / f"s{number}" / "pt", AFFINE, SHAPE, **who)
    (tmp_path / "notes.txt").write_text("no DICOM")
    Bucket("s3://site").files.put(str(tmp_path), "s3://site/studies", recursive=True)
    here, _ = planning.plan(str(tmp_path), SECRET)
    there, left = planning.plan("s3://site/studies", SECRET)
    assert len(here) == 2 and [case.name for case in here] == [case.name for case in there] and not left
    for one, other in zip(here, there, strict=True):
        assert [path.removeprefix(str(tmp_path)) for path in one.a] == [
            url.removeprefix("s3://site/studies") for url in other.a
        ]
    (tmp_path / "key").write_text(SECRET.hex())
    command = ["batch", "s3://site/studies", "-o", "s3://site/fused", "--quiet", "--format", "dcm"]
    assert main(command) == 2, "a key is not kept in a bucket"
    assert main([*command, "--pseudonym-key", str(tmp_path / "key")]) == 0
    assert len([name for name in Bucket("s3://site/fused").names() if name.endswith(".dcm")]) == 2


def test_a_dry_run_looks_into_a_bucket(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "HEADS_AT_ONCE", 3)
    write_mr(tmp_path / "s" / "mr", AFFINE, SHAPE)
    write_pet(tmp_path / "s" / "pt", AFFINE, SHAPE)
    (tmp_path / "s" / "bad.nii.gz").write_bytes(b"no")
    (tmp_path / "s" / "mr" / "empty").write_bytes(b"")
    slices = [pydicom.dcmread(path) for path in sorted((tmp_path / "s" / "pt").iterdir())]
    slices[2].PixelSpacing = None
    write_series(tmp_path / "t" / "odd", slices)
    packed = gzip.compress(bytes(128) + b"DICM" + np.random.default_rng(1).bytes(300_000))
    (tmp_path / "t" / "long.dcm.gz").write_bytes(packed)
    rows = ["good,s3://site/dry/s/mr,s3://site/dry/s/pt/", "two,s3://site/dry/s,s3://site/dry/s/pt"]
    rows += [
        "bad,s3://site/dry/s/mr,s3://site/dry/s/bad.nii.gz",
        "gone,s3://site/dry/gone,s3://site/dry/s/pt",
        "odd,s3://site/dry/s/mr,s3://site/dry/t/odd",
        "long,s3://site/dry/s/mr,s3://site/dry/t/long.dcm.gz",
    ]
    (tmp_path / "list.csv").write_text("\n".join(["name,a,b", *rows]) + "\n")
    for part in "st":
        Bucket("s3://site").files.put(str(tmp_path / part), f"s3://site/dry/{part}", recursive=True)
    assert main(["batch", str(tmp_path / "list.csv"), "-o", str(tmp_path / "out"), "--dry-run"]) == 0
    text = capsys.readouterr().out
    said = {line.split(":")[0]: line for line in text.splitlines()}
    assert said["good"].endswith("(to do)") and tempfile.gettempdir() + "/mmif-" not in text
    assert "a will be refused: " in said["two"] and "DICOM files of 2 modalities" in said["two"]
    assert "b will be refused: not a single-file NIfTI" in said["bad"]
    assert "a will be refused: no such object or prefix" in said["gone"] and not scratch_folders()
    assert "b will be refused: s3://site/dry/t/odd/PT0001: PixelSpacing" in said["odd"]
    assert said["long"].endswith("(to do)"), "only its beginning was fetched"


def test_of_two_writers_after_a_partition_one_counts(local: dict[str, bytes]) -> None:
    """The second takes over and finishes while the first is still working; their bytes differ."""

    case = next(c for c in planning.plan("s3://site/in/list.csv", SECRET)[0] if c.name == "case0")
    output = records.output_in(Bucket("s3://site/split"), ".nii", 1)
    run, fuser = records.Run(runtime="openvino", precision="fp32"), Fuser("openvino", "fp32")
    one, other = records.Owner.new(), records.Owner.new()

    class Slow:
        def fuse_volumes(self, a: Any, b: Any, options: Any = None) -> Any:
            with Runner(How(output, run, take_over=True), fuser, other) as second:
                assert second(case).status == records.DONE
            brighter = a.with_data(np.minimum(a.data * 1.2, a.data.max()))
            return fuser.fuse_volumes(brighter, b, options)

    with Runner(How(output, run), Slow(), one) as first:
        assert first(case).status == BEFORE
    record = output.read("case0")
    assert record is not None and record["run"] == other.token
    assert made("s3://site/split") == {n: d for n, d in local.items() if n.startswith("case0")}
    assert not output.store.holds("case0.state.json")


def test_kill_9_and_again(local: dict[str, bytes]) -> None:
    out = "s3://site/killed"
    command = [sys.executable, "-m", "mmif_trt", "batch", "s3://site/in/list.csv", "-o", out, "--quiet"]
    process = subprocess.Popen([*command, "--precision", "fp32"], stderr=subprocess.DEVNULL)
    while not progress.of(Bucket(out)).done and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = [n for n in os.listdir(tempfile.gettempdir()) if f"-{process.pid}-" in n]
    assert all(os.stat(Path(tempfile.gettempdir()) / n).st_mode & 0o077 == 0 for n in left)
    assert main([*command[3:], "--precision", "fp32"]) == 1
    found = made(out)
    assert {name: found[name] for name in local} == local
    assert not [n for n in os.listdir(tempfile.gettempdir()) if f"-{process.pid}-" in n], "swept at a start"


def test_names_and_creation() -> None:
    assert join("s3://b/list", "x/y.nii") == "s3://b/list/x/y.nii" and parent("s3://b/l.csv") == "s3://b"
    assert join("s3://b", "s3://c/y") == "s3://c/y" == join("/disk", "s3://c/y")
    assert join("s3://b", "/disk/y") == "/disk/y" and join("d", "y") == "d/y"
    with pytest.raises(InputError, match="ftp://; expected a path or s3://"):
        store_of("ftp://x")
    store = store_of("s3://site/new/")
    assert isinstance(store, Bucket) and isinstance(store_of("x"), Folder)
    assert store.create("a/b.json", b"1") and not store.create("a/b.json", b"2")
    assert store.read("a/b.json") == b"1" and list(store.names("a")) == ["a/b.json"]
    assert list(store.folders()) == ["a"] and not list(store.names("none"))
    with pytest.raises(FileNotFoundError):
        store.read("none")


def test_a_bucket_that_does_not_answer_gives_one_line_before_any_work(
    local: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For each command: no name, no such bucket, no credentials, nobody listening; one line, not one per
    case."""
    plan, new = "s3://site/of/six", str(tmp_path / "new")
    fp32 = ["--precision", "fp32", "--quiet"]
    assert main(["plan", "s3://site/in/list.csv", "-o", plan, *fp32]) == 0
    PlanFolder(store_of(plan))

    def refused(said: str, *words: str) -> None:
        assert main(list(words)) == 2
        told = capsys.readouterr().err
        assert said in told and "expected" in told and told.count("\n") == 1, told

    refused("s3://: no bucket; expected s3://BUCKET/PREFIX", "status", "s3://")
    refused("no such bucket or object", "batch", plan, "-o", "s3://none/out", "--quiet")
    refused("no such bucket or object", "plan", "s3://site/in/list.csv", "-o", "s3://none/plan", *fp32)
    refused("no such bucket or object", "plan", "s3://none/list.csv", "-o", new, *fp32)
    refused("no such bucket or object", "plan", "s3://none/root", "-o", new, *fp32)
    refused("no record of a batch", "status", "s3://none/out")
    Bucket("s3://site/bids").write("dataset_description.json", b"{}")
    refused(
        "a BIDS data set in a bucket; expected one in a folder", "plan", "s3://site/bids", "-o", new, *fp32
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    storage._s3.cache_clear()
    try:
        refused("no credentials", "status", "s3://site/out")
        refused("no credentials", "batch", plan, "-o", str(tmp_path / "out"))
        refused("no credentials", "plan", "s3://site/in/list.csv", "-o", new, *fp32)
    finally:
        monkeypatch.undo()
        storage._s3.cache_clear()
