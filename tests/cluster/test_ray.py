"""Ray itself, on one small cluster of this machine: the bytes of the local run, whatever was killed."""

from __future__ import annotations

import importlib.util
import inspect
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sites
from conftest import REPO
from sites import Site, done, fused, until

from mmif_trt import cluster, io
from mmif_trt.cli import main
from mmif_trt.clinical import plan_folder, records
from mmif_trt.clinical.cases import How
from mmif_trt.cluster.driver import Driver
from mmif_trt.cluster.ray_engine import RayEngine, Size, connected
from mmif_trt.cluster.work import Cases, Do, lost_case
from mmif_trt.folders.pairs import plan_pairs
from mmif_trt.image import Image
from mmif_trt.running import Stop
from mmif_trt.storage import Folder

if importlib.util.find_spec("ray") is None:  # not imported here: that would read the environment
    pytest.skip("needs Ray: pip install 'mmif-trt[ray]'", allow_module_level=True)
MARK = "PLANTED^NAME"  # in paths and in names of cases, and in none of the engine's logs
CASES = 24
IN_FLIGHT = inspect.signature(Driver).parameters["in_flight"].default  # cases that a worker has in hand


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return sites.make(tmp_path_factory.mktemp("site") / MARK, CASES, MARK)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Loopback, a token of its own; a start that fails is tried once more."""
    before = os.environ.get("PYTHONPATH")
    folders = (str(REPO), str(REPO / "tests"), str(Path(__file__).parent))  # `Deadly` is known by its name
    os.environ["PYTHONPATH"] = os.pathsep.join(folders)
    os.environ["RAY_ADDRESS"] = "127.0.0.1:1"  # of somebody else's cluster: ours starts all the same
    context = connected(None, Size(workers=3))
    try:
        ray = context.__enter__()
    except Exception:
        context = connected(None, Size(workers=3))
        ray = context.__enter__()
    os.environ.pop("RAY_ADDRESS")
    yield ray
    context.__exit__(None, None, None)
    os.environ.pop("PYTHONPATH")
    if before is not None:
        os.environ["PYTHONPATH"] = before


def how_of(site: Site, out: Path) -> How:
    plan = plan_folder.PlanFolder(Folder(site.plan))
    return How(records.output_in(Folder(out), ".nii", len(plan)), plan.run)


@dataclass(frozen=True)
class Deadly(Cases):
    """The case of this name kills its worker."""

    poison: str = ""

    def open(self, cpus: int, stop: Stop) -> tuple[Do, Callable[[], object]]:
        do, close = super().open(cpus, stop)

        def deadly(items: tuple[Any, ...]) -> tuple[Any, ...]:
            if items[0].name == self.poison:
                os.kill(os.getpid(), signal.SIGKILL)
            return do(items)

        return deadly, close


def test_a_lost_worker_and_a_poisonous_case_change_nothing_else(ray: Any, site: Site) -> None:
    out, poison = site.root / "three", f"{MARK}03"
    work, settled, stop = Deadly(how_of(site, out), "token", poison), list[Any](), Stop()
    with RayEngine(ray, work, Size(3)) as engine:

        def on_result(result: Any) -> None:
            settled.append(result)
            if len(settled) == 4:
                worker = next(iter(engine.actors))
                os.kill(ray.get(engine.actors[worker].where.remote())[1], signal.SIGKILL)

        driver = Driver(engine, 3, on_result, lambda case: lost_case(work, case), stop)
        driver.run(plan_folder.PlanFolder(Folder(site.plan)).cases())
    assert not stop.reason and sorted(x.name for x in settled) == sorted({x.name for x in settled})
    failed = {x.name: x.message for x in settled if x.status == records.FAILED}
    assert len(settled) == CASES + 1 and set(failed) == {poison, f"{MARK}bad"}
    assert "ended its process 3 times" in failed[poison] and "bad.nii" in failed[f"{MARK}bad"]
    made = fused(out)
    assert made == {name: data for name, data in site.made.items() if not name.startswith(poison)}
    assert how_of(site, out).output.read(poison)["status"] == records.FAILED  # type: ignore[index]
    Folder(out).sweep()  # as `cluster.cases` does: the killed worker may have been writing
    assert not list(out.rglob(".*"))


def test_drivers_killed_and_stopped_and_two_at_once(ray: Any, site: Site) -> None:
    """kill -9, then SIGTERM; then two at once do the rest, one of them from Python."""
    out = site.root / "killed"
    command = [sys.executable, "-m", "mmif_trt", "batch", str(site.plan), "-o", str(out), "--quiet", "--on"]
    command += ["ray", "--address", ray.get_runtime_context().gcs_address, "--workers", "1"]
    env = {**os.environ, "PYTHONPATH": str(REPO)}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)

    first = start()
    until(lambda: done(out) >= 1, first)
    first.kill()
    first.communicate()
    before, second = done(out), start()
    # The worker of the first may finish what it had in hand while the second only starts.
    until(lambda: done(out) > before + IN_FLIGHT, second)
    second.send_signal(signal.SIGTERM)
    told = second.communicate()[1]
    assert second.returncode == 143 and "stopped: interrupted (SIGTERM)" in told, told
    assert done(out) < CASES
    how, settled, third = how_of(site, out), list[Any](), start()
    plan = plan_folder.PlanFolder(Folder(site.plan))
    count = cluster.cases(ray, plan.cases(), how, Size(1), Stop(), settled.append)
    third.communicate()
    assert len(settled) == CASES + 1 == sum(count.values())
    assert set(count) <= {"done", "before", "failed", "elsewhere"} and third.returncode == 1
    assert fused(out) == site.made and done(out) == CASES


def test_pairs_of_folders(ray: Any, site: Site, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(9):
            io.write(tmp_path / name / f"{number}.png", Image(rng.integers(0, 255, (40, 48), dtype=np.uint8)))
    (tmp_path / "b" / "4.png").write_bytes(b"no picture")
    words = ["fuse", str(tmp_path / "a"), str(tmp_path / "b"), "--precision", "fp32", "--quiet", "-o"]
    words[1:1] = ["--network", "lagn-quality"]
    assert main([*words, str(tmp_path / "here")]) == 1
    pairs = plan_pairs(tmp_path / "a", tmp_path / "b", tmp_path / "there").pairs
    (tmp_path / "there").mkdir()
    seen = list[Any]()
    results = cluster.pairs(
        ray,
        pairs,
        ("openvino", "fp32", "lagn-quality"),
        (None, None),
        Size(1),
        Stop(),
        seen.append,
        per_job=4,
    )
    assert [r.status for r in results] == ["done"] * 4 + ["failed"] + ["done"] * 4 and len(seen) == 9
    assert [r.pair.name for r in results] == [str(i) for i in range(9)]
    made = {path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()}
    assert made == {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}


def test_no_log_of_the_engine_names_a_patient_or_a_path(ray: Any, site: Site) -> None:
    """Even after all the failures and deaths above."""
    from ray._private.worker import _global_node

    session = Path(_global_node.get_session_dir_path())
    logs = [path for path in (session / "logs").rglob("*") if path.is_file()]
    assert len(logs) > 5 and session.parent.parent.stat().st_mode & 0o077 == 0
    for path in logs:
        text = path.read_bytes()
        assert MARK.encode() not in text and str(site.root.parent).encode() not in text, path


def test_a_cluster_without_a_token_is_refused(
    ray: Any, site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["batch", str(site.plan), "-o", str(site.root / "no"), "--quiet", "--on", "ray"]
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert main(words) == 2 and "without a token whoever reaches" in capsys.readouterr().err
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(site.root / "none"))
    assert main([*words, "--address", "127.0.0.1:6379"]) == 2
    assert "no token; expected RAY_AUTH_TOKEN" in capsys.readouterr().err
    assert main([*words[:-2], "--workers", "2"]) == 2 and "with --on only" in capsys.readouterr().err
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    assert main([*words[:-2], "--on", "ray", "--address", "nobody"]) == 2
    assert "no connection (not HOST:PORT); expected" in capsys.readouterr().err
    assert main(words) == 2 and "connected already" in capsys.readouterr().err
    assert ray.is_initialized(), "and is still"
