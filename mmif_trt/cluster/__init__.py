"""Many machines: a driver independent of the engine, what a worker does, and the engine Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from os.path import abspath
from typing import TYPE_CHECKING, Any

from mmif_trt.image import InputError
from mmif_trt.running import Stop

if TYPE_CHECKING:
    from mmif_trt.clinical.case import Case
    from mmif_trt.clinical.cases import How, Settled
    from mmif_trt.cluster.ray_engine import Size
    from mmif_trt.folders.pairs import Pair
    from mmif_trt.folders.run import Result

ENGINES = ("ray",)
PAIRS_PER_JOB = 32
PAIR_JOBS = 2  # per worker: the next is there when one ends


def run(
    plan: str,
    output: str,
    *,
    suffix: str = ".nii",
    address: str | None = None,
    workers: int = 1,
    cpus_per_worker: int = 1,
    gpus_per_worker: float = 0.0,
    overwrite: bool = False,
    on_case: Callable[[Settled], object] = lambda settled: None,
    stop: Stop | None = None,
) -> Counter[str]:
    """Fuses the cases of a plan (`mmif-trt plan`) on a Ray cluster; counts of "done", "before" (they were),
    "failed" and "elsewhere" (another run is at work on them).

    plan, output: folders that every machine sees, or s3://. suffix: .nii, .nii.gz or .dcm. address: HOST:PORT
    of a running cluster; None: one on this machine alone. on_case: called with what became of each case, in
    order of completion. stop: give its `reason` a text from elsewhere, and the run ends. Raises
    InputError.
    """
    from mmif_trt.clinical.cases import How
    from mmif_trt.clinical.plan_folder import PlanFolder
    from mmif_trt.clinical.records import output_in
    from mmif_trt.cluster.ray_engine import Size, connected
    from mmif_trt.storage import store_of

    if suffix not in (".nii", ".nii.gz", ".dcm"):
        raise InputError(f"suffix {suffix!r}; expected .nii, .nii.gz or .dcm")
    whole = PlanFolder(store_of(plan))
    size = Size(workers, cpus_per_worker, gpus_per_worker)
    out = output_in(store_of(output), suffix, len(whole), data_set=whole.bids)
    with connected(address, size) as ray:
        how = How(out, whole.run, overwrite)
        out.begin()
        return cases(ray, whole.cases(), how, size, stop or Stop(), on_case)


def cases(
    ray: Any,
    todo: Iterable[Case],
    how: How,
    size: Size,
    stop: Stop,
    on_case: Callable[[Settled], object],
) -> Counter[str]:
    """Every case through the workers of a connected Ray; counts of each status."""
    import secrets

    from mmif_trt.clinical.cases import LEFT, STAGES
    from mmif_trt.cluster.driver import Driver
    from mmif_trt.cluster.ray_engine import RayEngine
    from mmif_trt.cluster.work import Cases, lost_case
    from mmif_trt.storage import Folder

    work, count = Cases(how, secrets.token_hex(8)), Counter[str]()

    def on_result(settled: Settled) -> None:
        count[settled.status] += 1
        if settled.status != LEFT:
            on_case(settled)

    with RayEngine(ray, work, size) as engine:
        lost = lambda case: lost_case(work, case)  # noqa: E731
        Driver(engine, size.workers, on_result, lost, stop, in_flight=STAGES).run(todo)
    if isinstance(how.output.store, Folder):
        how.output.store.sweep()  # what a worker that was killed had half written
    return count


def pairs(
    ray: Any,
    todo: list[Pair],
    runtime: tuple[str, str, str],
    ranges: tuple[Any, Any],
    size: Size,
    stop: Stop,
    on_result: Callable[[Result], object],
    per_job: int = PAIRS_PER_JOB,
) -> list[Result]:
    """Pairs of pictures through the workers, per_job at a time; see folders.run.run_pairs. runtime: name and
    precision, resolved, and the network."""
    from mmif_trt.cluster.driver import Driver
    from mmif_trt.cluster.ray_engine import RayEngine
    from mmif_trt.cluster.work import Pairs, lost_pair

    found: dict[str, Result] = {}
    todo = [replace(x, a=abspath(x.a), b=abspath(x.b), out=abspath(x.out)) for x in todo]

    def keep(result: Result) -> None:
        found[result.pair.out] = result
        on_result(result)

    with RayEngine(ray, Pairs(*runtime, ranges), size) as engine:
        driver = Driver(engine, size.workers, keep, lost_pair, stop, per_job, PAIR_JOBS)
        driver.run(todo)
    return [found[pair.out] for pair in todo if pair.out in found]
