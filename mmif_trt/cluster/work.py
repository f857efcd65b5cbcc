"""What a worker of a cluster does: cases of volumes, or pairs of pictures. Independent of the engine.

A worker raises nothing and prints nothing: an engine keeps tracebacks and output in logs, and they may name
paths and patients. Errors are reported in a record or a result, by `running.explain`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from mmif_trt.clinical.cases import How, Runner, Settled
from mmif_trt.clinical.records import Owner
from mmif_trt.folders.pairs import Pair
from mmif_trt.folders.run import Result, run_pairs
from mmif_trt.fuser import Fuser
from mmif_trt.image import InputError
from mmif_trt.running import Stop, explain

Do = Callable[[tuple[Any, ...]], tuple[Any, ...]]


class Work(Protocol):
    """Pickled to the workers. open: once in each, with its number of CPUs and why to stop, if ever; gives
    what makes results of items, several threads at once, and what closes it. Raises InputError."""

    def open(self, cpus: int, stop: Stop) -> tuple[Do, Callable[[], object]]: ...


@dataclass(frozen=True)
class Cases:
    """Items are Cases, results Settled. token: of the driver, for the claims."""

    how: How
    token: str

    def open(self, cpus: int, stop: Stop) -> tuple[Do, Callable[[], object]]:
        run = self.how.run
        fuser = Fuser(run.runtime, run.precision, threads=cpus, streams=cpus, network=run.network)
        runner = Runner(self.how, fuser, Owner.new(self.token), stop)
        return lambda items: tuple(map(runner, items)), runner.close


@dataclass(frozen=True)
class Pairs:
    """Items are Pairs of pictures, results Results."""

    runtime: str
    precision: str
    network: str
    ranges: tuple[tuple[float, float] | None, tuple[float, float] | None] = (None, None)

    def open(self, cpus: int, stop: Stop) -> tuple[Do, Callable[[], object]]:
        fuser = Fuser(self.runtime, self.precision, threads=cpus, streams=cpus, network=self.network)
        range_a, range_b = self.ranges

        def do(items: tuple[Pair, ...]) -> tuple[Result, ...]:
            made = run_pairs(
                list(items),
                fuser,
                workers=cpus + 1,
                range_a=range_a,
                range_b=range_b,
                stop=stop,
                network=self.network,
            )
            return tuple(made)

        return do, lambda: None


class Worker:
    """One worker, in the process that an engine gives it."""

    def __init__(self, work: Work, cpus: int) -> None:
        self._work, self._cpus, self._stop = work, cpus, Stop()
        self._do: Do | None = None
        self._close: Callable[[], object] = lambda: None

    def open(self) -> str:
        """Why it cannot work, in one line, or ""."""
        try:
            self._do, self._close = self._work.open(self._cpus, self._stop)
        except Exception as error:
            return explain(error)
        return ""

    def do(self, items: tuple[Any, ...]) -> tuple[tuple[Any, ...], str]:
        """(results, why the whole run should stop or ""). No exception escapes."""
        try:
            if self._do is None:
                raise InputError("a worker that was not opened; expected open() first")
            return self._do(items), self._stop.reason
        except Exception as error:
            return (), explain(error)

    def close(self) -> None:
        self._close()


def lost_case(work: Cases, case: Any) -> Settled:
    """The record of a case that ended its worker each time it was tried."""
    from mmif_trt.cluster.driver import ATTEMPTS

    message = f"ended its process {ATTEMPTS} times (memory?); expected a smaller or a valid file"
    output = work.how.output
    try:
        record = output.read(case.name) or {"name": case.name, "files": []}
        output.write({**record, "status": "failed", "message": message, "of": output.cases})
    except (OSError, InputError) as error:
        message = explain(error)
    return Settled(case.name, "failed", message)


def lost_pair(pair: Pair) -> Result:
    return Result(pair, message=f"{pair.a}: with its partner it crashed its process (memory?)")
