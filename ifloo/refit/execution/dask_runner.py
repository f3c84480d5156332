"""Runner of refits on the workers of a `dask.distributed` cluster; imported only if the settings select one."""

from __future__ import annotations

import asyncio
import logging
import math
import pickle
import time
import traceback
import uuid
import warnings
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import cloudpickle
from distributed import Client, Future, TimeoutError, rpc, wait
from distributed.security import Security

from ifloo.errors import IflooError, InputError, WorkError, command_line, within_command
from ifloo.refit.execution.job import RefitRequest, RefitResult, RefitWork, Unit
from ifloo.refit.execution.local_cluster import local_workers, quiet_dask
from ifloo.refit.execution.runner import FailedUnit, Runner, units
from ifloo.termination import sigterm_unwinds

Flight: TypeAlias = "Future[list[RefitResult] | Failure]"

log = logging.getLogger(__name__)
TRIES = 3
CONNECT = 4.0  # seconds for a scheduler to answer
FETCH = 5.0  # seconds for a result, a few numbers, to arrive from its worker
POLL_SECONDS = 0.5  # seconds between two checks of which workers are alive
NOTICE = 10.0  # seconds without any worker before a warning
PATIENCE = 60.0  # seconds without any worker on this machine before an error
DIED = "the process of its worker died (killed by the system for its memory?)"


@dataclass(frozen=True)
class Failure:
    """Failure of a unit as text: an exception may not be picklable.

    Attributes:
        reason: Message of the exception.
        wrong_input: Whether it was an `InputError`, which another try would not change.
    """

    reason: str
    wrong_input: bool


@dataclass(frozen=True)
class OnCluster(Runner):
    """Trains on the workers of a cluster, one unit at a time on each; a unit that fails is tried three times in all.

    Attributes:
        work: Work on each unit, sent to each worker once.
    """

    work: RefitWork

    def run(self, requests: Sequence[RefitRequest]) -> Generator[list[RefitResult] | FailedUnit, None, None]:
        payload = _pickled(self.work)
        max_at_once = self.work.strategy.max_at_once
        with sigterm_unwinds(), quiet_dask(), _connected(self.work, len(requests)) as client:
            scheduler = client.scheduler_info()["address"]
            size = min(max_at_once, math.ceil(len(requests) / max(1, len(client.nthreads()))))
            patience = math.inf if self.work.settings.address else PATIENCE
            try:
                yield from _Dispatch(client, scheduler, payload, units(requests, size), patience).results()
            except (OSError, CancelledError) as error:
                raise WorkError(
                    f"The connection to the scheduler {scheduler} was lost: {_describe(error)}.\n"
                    "  What is finished is kept; the same command goes on from there."
                ) from error


class _Dispatch:
    """Gives each worker one unit at a time; a unit whose worker died goes to another worker.

    Attributes:
        client: Client of the cluster.
        scheduler: Address of the scheduler.
        patience: Longest time without any worker, seconds.
        token: Name of this run, by which workers keep its work.
        payload: Pickled work, held by the cluster.
        waiting: Units not given to a worker yet.
        flying: Unit and worker of each future.
        tries: Number of failed tries of each unit.
        last_alive: Time at which a worker was last alive, seconds.
        warned: Whether the present lack of workers has been logged.
    """

    def __init__(
        self, client: Client, scheduler: str, payload: bytes, waiting: Sequence[Unit], patience: float
    ) -> None:
        self.client, self.scheduler, self.patience = client, scheduler, patience
        self.token = uuid.uuid4().hex
        # The payload is the result of a task, which the scheduler runs again if the worker that holds it dies.
        self.payload = client.submit(_identity, payload, key=f"ifloo-{self.token}")
        self.waiting = deque(waiting)
        self.flying: dict[Flight, tuple[Unit, str]] = {}
        self.tries: Counter[Unit] = Counter()
        self.last_alive = time.monotonic()
        self.warned = False

    def results(self) -> Iterator[list[RefitResult] | FailedUnit]:
        while self.waiting or self.flying:
            alive = set(self.client.nthreads())
            self._check_workers(alive)
            for future in [f for f, (_, worker) in self.flying.items() if worker not in alive and not f.done()]:
                yield from self._retry(self._take(future), DIED)
            for worker in sorted(alive - {worker for _, worker in self.flying.values()}):
                if self.waiting:
                    self._send(self.waiting.popleft(), worker)
            for future in self._finished():
                yield from self._collect(future)

    def _send(self, unit: Unit, worker: str) -> None:
        future = self.client.submit(
            train,
            self.payload,
            self.token,
            unit,
            within_command(),
            workers=[worker],
            allow_other_workers=False,
            pure=False,
        )
        self.flying[future] = (unit, worker)

    def _finished(self) -> list[Flight]:
        if not self.flying:
            time.sleep(POLL_SECONDS)
            return []
        try:
            with self.client.as_current():
                return list(wait(list(self.flying), timeout=POLL_SECONDS, return_when="FIRST_COMPLETED").done)
        except TimeoutError:
            return []

    def _collect(self, future: Flight) -> Iterator[list[RefitResult] | FailedUnit]:
        """Yields the results of a finished unit; a failed one is tried again.

        Raises:
            InputError: If it failed on its input, which another try would not change.
        """
        try:
            result = future.result(timeout=FETCH)
        except TimeoutError:  # its worker died with the result
            result = Failure(DIED, wrong_input=False)
        except Exception as error:  # raised by dask, or by unpickling the unit or its result
            result = Failure(_describe(error), wrong_input=False)
        unit = self._take(future)
        if not isinstance(result, Failure):
            yield result
        elif result.wrong_input:
            raise InputError(result.reason)
        else:
            yield from self._retry(unit, result.reason)

    def _take(self, future: Flight) -> Unit:
        """Removes a future and returns its unit."""
        unit, _ = self.flying.pop(future)
        future.cancel()
        return unit

    def _retry(self, unit: Unit, reason: str) -> Iterator[FailedUnit]:
        """Queues a failed unit again, or yields it if it failed at every try."""
        self.tries[unit] += 1
        if self.tries[unit] == TRIES:
            yield FailedUnit(unit, reason)
            return
        log.warning("refits %s failed, try %d of %d: %s", [x.id for x in unit], self.tries[unit], TRIES, reason)
        self.waiting.append(unit)

    def _check_workers(self, alive: set[str]) -> None:
        """Logs a warning if there has been no worker for a while.

        Raises:
            WorkError: If there has been none for `patience`.
        """
        now = time.monotonic()
        if alive:
            self.last_alive, self.warned = now, False
            return
        if now - self.last_alive > self.patience:
            raise WorkError(
                f"No worker process has been alive for {self.patience:.0f} seconds; they end as soon as they start.\n"
                "  See their output above, and run with --refit.devices=1 to see a failure where it happens."
            )
        if not self.warned and now - self.last_alive > NOTICE:
            log.warning("waiting: the scheduler %s has no worker yet", self.scheduler)
            self.warned = True


_WORK: dict[str, RefitWork] = {}  # in a worker process: its present work by token, with all that it has prepared


def train(payload: bytes, token: str, unit: Unit, by_command: bool = False) -> list[RefitResult] | Failure:
    """Trains a unit in a worker process.

    Args:
        payload: Pickled `RefitWork`.
        token: Name of the run, by which the worker keeps the work between units.
        unit: Refits to train.
        by_command: Whether a command asks for them, so that a failure names its flags.

    Returns:
        The results of the unit, or its failure.
    """
    with command_line(by_command):
        try:
            work = _WORK.get(token)
            if work is None:
                _WORK.clear()
                work = _WORK[token] = pickle.loads(payload)
            with warnings.catch_warnings():
                warnings.filterwarnings(
                    "ignore", module="lightning"
                )  # filters of the sending process do not apply here
                return work.run(unit)
        except Exception as error:
            return Failure(_describe(error), isinstance(error, InputError))


def _identity(payload: bytes) -> bytes:
    return payload


def _describe(error: BaseException) -> str:
    """Returns the message of an error, with type and line if it is not one of ifloo's."""
    if isinstance(error, IflooError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {str(error).rstrip('.')}{where}"


def _pickled(work: RefitWork) -> bytes:
    """Pickles the work.

    Raises:
        InputError: If model or data cannot be pickled.
    """
    try:
        pickled: bytes = cloudpickle.dumps(work)
        return pickled
    except Exception as error:  # pickling a user's class may raise any exception
        raise InputError(
            f"This model or its data cannot be sent to worker processes: {_describe(error)}.\n"
            "  What cannot travel (an open file, a lock, a database connection) must be opened where it is used; or "
            "leave refit.cluster and refit.devices out, to refit in this process."
        ) from error


@contextmanager
def _connected(work: RefitWork, refits: int) -> Generator[Client, None, None]:
    """Opens a client of the running cluster in the settings, or of worker processes started for so many refits."""
    address = work.settings.address
    if address is not None:
        with _client_of(address) as client:
            yield client
        return
    devices = work.settings.devices
    with (
        local_workers(devices, min(devices, refits), work.refitter.trainer_settings.accelerator) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _client_of(address: str) -> Client:
    """Opens a client of a running cluster; for TLS, with the certificate in dask's configuration.

    Raises:
        InputError: If no scheduler answers at the address, or the address needs a certificate and none is configured.
    """
    if address.startswith("tls://") and not Security().get_tls_config_for_role("client")["cert"]:
        raise InputError(
            f"refit.cluster = {address} asks for TLS, and dask's settings name no certificate.\n"
            "  Set distributed.comm.tls.ca-file, distributed.comm.tls.client.cert and distributed.comm.tls.client.key "
            "in the configuration of dask to the files that the scheduler was started with."
        )
    try:
        asyncio.run(_ask_identity(address))  # a Client without an answer would go on trying
    except OSError as error:
        raise InputError(_no_scheduler(address, f"no answer in {CONNECT:.0f} seconds")) from error
    except Exception as error:  # dask may raise any exception on the answer of another kind of server
        what = f"what answers there is another kind of server ({type(error).__name__})"
        raise InputError(_no_scheduler(address, what)) from error
    return Client(address, timeout=CONNECT, set_as_default=False)


async def _ask_identity(address: str) -> None:
    """Asks the scheduler at an address for its identity and waits for the answer."""
    arguments = Security().get_connection_args("client")
    async with rpc(address, timeout=CONNECT, connection_args=arguments) as scheduler:
        await asyncio.wait_for(scheduler.identity(), CONNECT)


def _no_scheduler(address: str, found: str) -> str:
    """Describes an address without a scheduler and what was found there."""
    return (
        f"There is no dask scheduler at {address} (refit.cluster): {found}.\n"
        "  Start one (`dask scheduler`, and `dask worker ADDRESS` on each machine) and give the address it prints, or "
        "use refit.cluster: local."
    )
