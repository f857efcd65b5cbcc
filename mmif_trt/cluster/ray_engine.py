"""Workers as actors of Ray: started where there is room, restarted elsewhere when they or their machine die.

Only Ray's core is used: no data sets, client or dashboard, and no object store for pixels: an item names
files, a result is a line. Token authentication is on, and a cluster without it is refused.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmif_trt import running
from mmif_trt.cluster.driver import DIED, DONE, READY, USELESS, Event
from mmif_trt.cluster.work import Work, Worker
from mmif_trt.image import InputError
from mmif_trt.scratch import folder as scratch_folder

LOOPBACK = "127.0.0.1"
OBJECT_STORE_BYTES = 80 << 20  # the least that Ray accepts; we store nothing in it
CALLS_AT_ONCE = 8  # more than the driver assigns
ANSWER_S = 10.0
OF_A_CLUSTER = "expected the HOST:PORT of a running cluster, with its token"
# What Ray's errors mean, where `ray.init` joins a cluster.
WHY = {"AuthenticationError": "it refuses our token", "ConnectionError": "no cluster of Ray answers"}
TOKEN_FILE = Path("~/.ray/auth_token")
# Read by Ray's processes when they start. Events and metrics of tasks grow the memory of its control store
# with every case, and would keep names of what runs.
QUIET = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_enable_timeline": "0",
    "RAY_worker_niceness": "0",  # 15 by default: on a busy machine the work would stall
}


@dataclass(frozen=True)
class Size:
    """workers: actors; cpus, gpus: of each."""

    workers: int = 1
    cpus: int = 1
    gpus: float = 0.0


@contextmanager
def connected(address: str | None, size: Size) -> Iterator[Any]:
    """Ray, connected to the cluster at HOST:PORT, or with one of its own on this machine, on loopback, which
    ends with it. Raises InputError.

    Our handler of SIGTERM stays: `ray.init` puts its own in its place.
    """
    ray = _import()
    _prepare_token(ray, address)
    is_main = threading.current_thread() is threading.main_thread()  # signals are its own
    numbers = (signal.SIGTERM, signal.SIGINT) if is_main else ()
    handlers = {number: signal.getsignal(number) for number in numbers}
    with scratch_folder("r", _short_root()) if address is None else _nothing() as folder:
        try:
            _connect(ray, address, size, folder)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            yield ray
        finally:
            ray.shutdown()


def _short_root() -> Path | None:
    """The names of Ray's sockets begin with this, and have 107 characters at most."""
    return None if len(tempfile.gettempdir()) <= 8 else Path("/tmp")


@contextmanager
def _nothing() -> Iterator[None]:
    yield None


def _import() -> Any:
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        raise InputError(
            f"RAY_AUTH_MODE={os.environ['RAY_AUTH_MODE']}: without a token whoever reaches the cluster runs "
            "code on it; expected token"
        )
    os.environ.update(QUIET)
    try:
        import ray
    except ImportError:
        raise InputError("--on ray: not installed: pip install 'mmif-trt[ray]'") from None
    if not _asks_for_token():
        raise InputError("ray was imported without RAY_AUTH_MODE=token; expected that before `import ray`")
    return ray


def _asks_for_token() -> bool:
    from ray import _raylet

    raylet: Any = _raylet
    return bool(raylet.get_authentication_mode() == raylet.AuthenticationMode.TOKEN)


def _connect(ray: Any, address: str | None, size: Size, folder: Path | None) -> None:
    logging.getLogger("ray").setLevel(logging.ERROR)
    quiet = {"log_to_driver": False, "logging_level": "error", "configure_logging": False}
    if address is None:
        own = {
            "address": "local",  # whatever RAY_ADDRESS says, or runs here already
            "num_cpus": size.workers * size.cpus,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            "_node_ip_address": LOOPBACK,
            "_temp_dir": f"{folder}/r",  # which Ray opens to everybody: `folder` stays private
        }
        if size.gpus == 0:
            own["num_gpus"] = 0
        with _loopback_stays():
            ray.init(**own, **quiet)
        listening = ray.nodes()[0]["NodeManagerAddress"]
        if listening != LOOPBACK:
            raise InputError(
                f"Ray listens on {listening}; expected loopback; pass your own cluster by --address"
            )
        return
    where = {"_node_ip_address": LOOPBACK} if address.startswith(f"{LOOPBACK}:") else {}
    try:
        with _loopback_stays():
            ray.init(address=address, **where, **quiet)
    except Exception as error:  # Ray has many
        why = WHY.get(type(error).__name__) or running.why(error)
        raise InputError(f"--address {address}: no connection ({why}); {OF_A_CLUSTER}") from None


def _refuse_silent(address: str) -> None:
    """Ray itself tries for minutes, and warns in lines of its own. Raises InputError."""
    host, _, port = address.rpartition(":")
    why = "not HOST:PORT"
    if host and port.isdecimal() and 0 < int(port) < 65536:
        try:
            socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
            return
        except OSError as error:
            why = running.why(error)
    raise InputError(f"--address {address}: no connection ({why}); {OF_A_CLUSTER}")


@contextmanager
def _loopback_stays() -> Iterator[None]:
    """`ray.init` replaces loopback by the machine's outer address, and Ray then listens on all."""
    from ray._private import services

    before = services.resolve_ip_for_localhost
    services.resolve_ip_for_localhost = lambda host: host
    try:
        yield
    finally:
        services.resolve_ip_for_localhost = before


def _prepare_token(ray: Any, address: str | None) -> None:
    """Raises InputError where there is none for a cluster at `address`, where nobody answers there, and while
    one is connected."""
    if address is not None and not _has_token():
        raise InputError(
            f"--address {address}: no token; expected RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or {TOKEN_FILE}, "
            "the same on every machine"
        )
    if address is not None:
        _refuse_silent(address)
    if ray.is_initialized():
        raise InputError("ray is connected already in this process; expected ray.shutdown() first")
    if not _has_token():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    from ray import _raylet

    raylet: Any = _raylet
    raylet.AuthenticationTokenLoader.instance().reset_cache()  # it may hold that of an earlier cluster


def _has_token() -> bool:
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else TOKEN_FILE.expanduser()
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or path.is_file() and path.stat().st_size > 0


class _Actor(Worker):
    """In an actor's process."""

    def open(self) -> str:
        if not _asks_for_token():
            return "the cluster runs without token authentication; expected RAY_AUTH_MODE=token on every node"
        return super().open()

    def where(self) -> tuple[str, int]:
        """Node and process, for tests and for monitoring."""
        import ray

        return ray.get_runtime_context().get_node_id(), os.getpid()


class RayEngine:
    """See driver.Engine. Close it, or use `with`: the workers end with it."""

    def __init__(self, ray: Any, work: Work, size: Size) -> None:
        self._ray, self._work, self._size = ray, work, size
        resources = {"num_cpus": size.cpus, "num_gpus": size.gpus}
        self._kind = ray.remote(
            max_restarts=0,  # the driver starts another and gives it the case
            max_task_retries=0,  # would bind a case to a dead actor
            max_concurrency=CALLS_AT_ONCE,
            scheduling_strategy="SPREAD",
            **resources,
        )(_Actor)
        self.actors: dict[int, Any] = {}
        self._waiting: dict[Any, tuple[int, int]] = {}  # reference -> (worker, ticket; 0: its start)

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in list(self.actors):
            self._end(worker)

    def start(self, worker: int) -> None:
        self.actors[worker] = self._kind.remote(self._work, self._size.cpus)
        self._waiting[self.actors[worker].open.remote()] = (worker, 0)

    def give(self, worker: int, ticket: int, items: tuple[Any, ...]) -> None:
        self._waiting[self.actors[worker].do.remote(items)] = (worker, ticket)

    def wait(self, seconds: float) -> list[Event]:
        if not self._waiting:
            return []
        ready, _ = self._ray.wait(list(self._waiting), num_returns=1, timeout=seconds)
        return [event for reference in ready if (event := self._event(reference)) is not None]

    def _event(self, reference: Any) -> Event | None:
        if reference not in self._waiting:  # of a worker whose death another reference reported
            return None
        worker, ticket = self._waiting.pop(reference)
        try:
            answer = self._ray.get(reference)
        except Exception:  # the actor died or is unreachable: then make sure that it ends
            self._end(worker)
            return Event(DIED, worker)
        if ticket:
            return Event(DONE, worker, ticket, *answer)
        if answer:
            self._end(worker)
            return Event(USELESS, worker, why=answer)
        return Event(READY, worker)

    def _end(self, worker: int) -> None:
        for reference in [r for r, (of, _) in self._waiting.items() if of == worker]:
            del self._waiting[reference]
        actor = self.actors.pop(worker, None)
        if actor is not None:
            self._ray.kill(actor)
