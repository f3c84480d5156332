"""Units of refits on the workers of a `dask.distributed` cluster; imported only when one is asked for."""

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

from ifloo.errors import IflooError, InputError, WorkError
from ifloo.refit.execution.job import RefitRequest, RefitResult, RefitWork, Unit
from ifloo.refit.execution.local_cluster import local_workers, quiet_dask
from ifloo.refit.execution.runner import GivenUp, Runner, units
from ifloo.termination import sigterm_unwinds

Flight: TypeAlias = "Future[list[RefitResult] | Failure]"

log = logging.getLogger(__name__)
TRIES = 3
CONNECT = 4.0  # seconds for a scheduler to answer
FETCH = 5.0  # seconds for an outcome, a few numbers, to come from its worker
POLL_SECONDS = 0.5  # seconds between looks at which workers are there
NOTICE = 10.0  # seconds without any worker, before it is said
PATIENCE = 60.0  # seconds without any worker on this machine, before it is a failure
DIED = "the process of its worker died (killed by the system for its memory?)"


@dataclass(frozen=True)
class Failure:
    """What a unit failed of, in words: an exception may not survive the way from one process to another."""

    reason: str
    wrong_input: bool


@dataclass(frozen=True)
class OnCluster(Runner):
    """The workers of a cluster, each with one unit at a time; what fails is tried three times in all."""

    work: RefitWork

    def run(self, wanted: Sequence[RefitRequest]) -> Generator[list[RefitResult] | GivenUp, None, None]:
        payload = _packed(self.work)
        at_once = self.work.path.at_once
        with sigterm_unwinds(), quiet_dask(), _connected(self.work, len(wanted)) as client:
            scheduler = client.scheduler_info()["address"]
            size = min(at_once, math.ceil(len(wanted) / max(1, len(client.nthreads()))))
            patience = math.inf if self.work.settings.address else PATIENCE
            try:
                yield from _Dispatch(client, scheduler, payload, units(wanted, size), patience).results()
            except (OSError, CancelledError) as error:
                raise WorkError(
                    f"The connection to the scheduler {scheduler} was lost: {_words(error)}.\n"
                    "  What is finished is kept; the same command goes on from there."
                ) from error


class _Dispatch:
    """Gives each worker one unit at a time, and a unit of a worker that died to another."""

    def __init__(
        self, client: Client, scheduler: str, payload: bytes, waiting: Sequence[Unit], patience: float
    ) -> None:
        self.client, self.scheduler, self.patience = client, scheduler, patience
        self.token = uuid.uuid4().hex
        # A task like any other: the scheduler makes it again where the worker that held it has died.
        self.payload = client.submit(_held, payload, key=f"ifloo-{self.token}")
        self.waiting = deque(waiting)
        self.flying: dict[Flight, tuple[Unit, str]] = {}
        self.tries: Counter[Unit] = Counter()
        self.seen = time.monotonic()
        self.told = False

    def results(self) -> Iterator[list[RefitResult] | GivenUp]:
        while self.waiting or self.flying:
            alive = set(self.client.nthreads())
            self._mind_absence(alive)
            for future in [f for f, (_, worker) in self.flying.items() if worker not in alive and not f.done()]:
                yield from self._failed(self._landed(future), DIED)
            for worker in sorted(alive - {worker for _, worker in self.flying.values()}):
                if self.waiting:
                    self._send(self.waiting.popleft(), worker)
            for future in self._finished():
                yield from self._settled(future)

    def _send(self, unit: Unit, worker: str) -> None:
        future = self.client.submit(
            train, self.payload, self.token, unit, workers=[worker], allow_other_workers=False, pure=False
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

    def _settled(self, future: Flight) -> Iterator[list[RefitResult] | GivenUp]:
        try:
            result = future.result(timeout=FETCH)
        except TimeoutError:  # its worker died with the result
            result = Failure(DIED, wrong_input=False)
        except Exception as error:  # of dask, or of unpickling what a unit is made of
            result = Failure(_words(error), wrong_input=False)
        unit = self._landed(future)
        if not isinstance(result, Failure):
            yield result
        elif result.wrong_input:
            raise InputError(result.reason)
        else:
            yield from self._failed(unit, result.reason)

    def _landed(self, future: Flight) -> Unit:
        unit, _ = self.flying.pop(future)
        future.cancel()
        return unit

    def _failed(self, unit: Unit, reason: str) -> Iterator[GivenUp]:
        self.tries[unit] += 1
        if self.tries[unit] == TRIES:
            yield GivenUp(unit, reason)
            return
        log.warning("refits %s failed, try %d of %d: %s", [x.id for x in unit], self.tries[unit], TRIES, reason)
        self.waiting.append(unit)

    def _mind_absence(self, alive: set[str]) -> None:
        """Waits for workers that are still to come, and says so.

        Raises:
            WorkError: those of this machine do not come.
        """
        now = time.monotonic()
        if alive:
            self.seen, self.told = now, False
            return
        if now - self.seen > self.patience:
            raise WorkError(
                f"No worker process has been there for {self.patience:.0f} seconds; they end as soon as they start.\n"
                "  Look at what they say above, and run with --refit.devices=1 to see a failure where it happens."
            )
        if not self.told and now - self.seen > NOTICE:
            log.warning("waiting: the scheduler %s has no worker yet", self.scheduler)
            self.told = True


_KEPT: dict[str, RefitWork] = {}  # in a worker: the work it is at, with what has been prepared


def train(payload: bytes, token: str, unit: Unit) -> list[RefitResult] | Failure:
    """What a worker does with a unit."""
    try:
        work = _KEPT.get(token)
        if work is None:
            _KEPT.clear()
            work = _KEPT[token] = pickle.loads(payload)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")  # the process that sent the unit filters its own
            return work.run(unit)
    except Exception as error:
        return Failure(_words(error), isinstance(error, InputError))


def _held(payload: bytes) -> bytes:
    return payload


def _words(error: BaseException) -> str:
    if isinstance(error, IflooError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {str(error).rstrip('.')}{where}"


def _packed(work: RefitWork) -> bytes:
    """The work as it travels.

    Raises:
        InputError: model or data cannot be sent to another process.
    """
    try:
        packed: bytes = cloudpickle.dumps(work)
        return packed
    except Exception as error:  # whatever the pickling of a user's class meets
        raise InputError(
            f"This model or its data cannot be sent to worker processes: {_words(error)}.\n"
            "  What cannot travel (an open file, a lock, a database connection) must be opened where it is used; or "
            "leave refit.cluster and refit.devices out, to refit in this process."
        ) from error


@contextmanager
def _connected(work: RefitWork, refits: int) -> Generator[Client, None, None]:
    address = work.settings.address
    if address is not None:
        with _client_of(address) as client:
            yield client
        return
    devices = work.settings.devices
    with (
        local_workers(devices, min(devices, refits), work.refitter.recipe.accelerator) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _client_of(address: str) -> Client:
    """A client of a running cluster, with the certificate that dask's own settings name if it has TLS.

    Raises:
        InputError: no scheduler answers there, or none without a certificate.
    """
    if address.startswith("tls://") and not Security().get_tls_config_for_role("client")["cert"]:
        raise InputError(
            f"refit.cluster = {address} asks for TLS, and dask's settings name no certificate.\n"
            "  Set distributed.comm.tls.ca-file, distributed.comm.tls.client.cert and distributed.comm.tls.client.key "
            "in the configuration of dask to the files that the scheduler was started with."
        )
    try:
        asyncio.run(_answer(address))  # a client that got no answer would go on asking
    except OSError as error:
        raise InputError(_no_scheduler(address, f"no answer in {CONNECT:.0f} seconds")) from error
    except Exception as error:  # whatever dask meets in the words of another kind of server
        what = f"what answers there is another kind of server ({type(error).__name__})"
        raise InputError(_no_scheduler(address, what)) from error
    return Client(address, timeout=CONNECT, set_as_default=False)


async def _answer(address: str) -> None:
    how = Security().get_connection_args("client")
    async with rpc(address, timeout=CONNECT, connection_args=how) as scheduler:
        await asyncio.wait_for(scheduler.identity(), CONNECT)


def _no_scheduler(address: str, found: str) -> str:
    return (
        f"There is no dask scheduler at {address} (refit.cluster): {found}.\n"
        "  Start one (`dask scheduler`, and `dask worker ADDRESS` on each machine) and give the address it prints, or "
        "use refit.cluster: local."
    )
