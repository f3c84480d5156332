"""Worker processes on this machine, one for each device; imported only if the settings select a cluster."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

import dask.config
import torch
from distributed import Nanny, Scheduler, SpecCluster, Status, Worker
from distributed.security import Security

from ifloo.errors import InputError, WorkError

LOGGERS = ("distributed", "distributed.client", "distributed.gc", "tornado", "tornado.application", "asyncio")
LOOPBACK = "127.0.0.1"  # without a given host, a worker of dask listens on every address of the machine
LEAVE = 1.0  # seconds for a worker to end by itself
CONFIG = {
    "distributed.worker.daemon": False,  # a daemonic process cannot start the processes of a DataLoader
    "distributed.deploy.lost-worker-timeout": "60s",  # a nanny needs some time to restart a worker
    "distributed.comm.timeouts.connect": "8s",
    "distributed.admin.large-graph-warning-threshold": "1TiB",  # the training data are sent once to each worker
}


class _WithoutWebPage:
    """Mixin that disables the web page of a dask server, and with it its open port."""

    def start_http_server(self, *_: Any, **__: Any) -> None: ...


class LocalScheduler(_WithoutWebPage, Scheduler):
    """Scheduler in this process."""


class LocalWorker(_WithoutWebPage, Worker):
    """Worker in a separate process."""


class DeviceNanny(Nanny):
    """Starts and restarts a worker process whose environment is set before anything is imported in it."""

    def __init__(
        self, scheduler: str, *, environment: Mapping[str, str], spawning: asyncio.Lock, **options: Any
    ) -> None:
        """Stores the settings.

        Args:
            scheduler: Address of the scheduler.
            environment: Environment variables of the worker process.
            spawning: Lock shared by all nannies, so that they start one worker at a time.
            **options: Options of `Nanny`.
        """
        super().__init__(scheduler, worker_class=LocalWorker, env=dict(environment), **options)
        self.pre_spawn_env.update(environment)
        self._spawning = spawning

    async def instantiate(self) -> Status:
        """Starts the worker process and restores the environment of this process.

        Dask passes the environment by changing that of this process, so only one worker may start at a time.
        """
        _ignore_ctrl_c()
        async with self._spawning:
            before = {name: os.environ.get(name) for name in self.pre_spawn_env}
            starting = asyncio.ensure_future(super().instantiate())
            try:
                while not (starting.done() or self.pid):
                    await asyncio.sleep(0.01)
            finally:
                for name, value in before.items():
                    os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        return await starting

    async def close(self, timeout: float | None = None, reason: str = "nanny-close") -> Any:
        """Ends the worker without waiting for its present unit, which has no row yet."""
        return await super().close(timeout=LEAVE, reason=reason)


def _ignore_ctrl_c() -> None:
    """Blocks SIGINT in this thread and the processes it starts.

    A terminal sends Ctrl-C to all its processes; workers must leave it to this one.
    """
    if hasattr(signal, "pthread_sigmask") and threading.current_thread() is not threading.main_thread():
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


@contextmanager
def local_workers(devices: int, workers: int, accelerator: str) -> Generator[SpecCluster, None, None]:
    """Starts a cluster of `workers` processes, each with one of the `devices`; removes all processes and files at exit.

    A worker runs any code sent to it. Therefore all listen on loopback only and use TLS with a certificate made for
    this cluster, which other users of the machine do not have.

    Args:
        devices: Number of devices among which the cores of the machine are divided.
        workers: Number of worker processes, at most `devices`.
        accelerator: Accelerator by Lightning's name.

    Raises:
        InputError: If the machine has fewer GPUs than `devices`, or a certificate cannot be made.
        WorkError: If the workers cannot be started.
    """
    environments = _environments(devices, accelerator)[:workers]
    security = _certificate()
    if os.name == "posix":
        resource_tracker.ensure_running()  # if it starts in a nanny's thread, it unblocks SIGINT for the worker
    spawning = asyncio.Lock()
    with tempfile.TemporaryDirectory(prefix="ifloo-refits-", ignore_cleanup_errors=True) as folder:
        address = {"host": LOOPBACK, "security": security}
        common = {"nthreads": 1, "memory_limit": 0, "local_directory": folder, "silence_logs": logging.CRITICAL}
        spec = {
            k: {"cls": DeviceNanny, "options": {**common, **address, "environment": environment, "spawning": spawning}}
            for k, environment in enumerate(environments)
        }
        scheduler = {"cls": LocalScheduler, "options": {**address, "port": 0, "dashboard": False}}
        with dask.config.set({"temporary-directory": folder}), _started(spec, scheduler, security) as cluster:
            yield cluster


def _certificate() -> Security:
    """Makes a certificate and its key, in memory only.

    Raises:
        InputError: If `cryptography`, which makes them, cannot be imported.
    """
    try:
        temporary: Security = Security.temporary()
    except ImportError as error:
        raise InputError(
            "Worker processes on this machine (refit.devices > 1, refit.cluster = local) are protected by TLS, whose "
            f"certificate needs cryptography, which cannot be imported: {error.__context__ or error}.\n"
            "  Install it: pip install 'ifloo[cluster]'"
        ) from error
    return temporary


def _started(workers: dict[int, Any], scheduler: dict[str, Any], security: Security) -> SpecCluster:
    """Starts a cluster and waits until its workers run.

    Raises:
        WorkError: If it cannot be started.
    """
    try:
        return SpecCluster(workers=workers, scheduler=scheduler, security=security, silence_logs=logging.CRITICAL)
    except (RuntimeError, OSError) as error:
        cause = error.__cause__ or error
        raise WorkError(
            f"The {len(workers)} worker processes could not be started: {type(cause).__name__}: {cause}.\n"
            "  See their output above, or leave refit.devices and refit.cluster out to refit in this process."
        ) from error


def _environments(devices: int, accelerator: str) -> list[dict[str, str]]:
    """Returns the environment of each worker process: number of threads, GPU, and log level of dask.

    Raises:
        InputError: If the machine has fewer GPUs than `devices`.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    threads = str(max(1, min(cores // devices, int(asked) if asked.isdigit() else cores)))
    common = {
        **{name: threads for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")},
        "DASK_LOGGING__DISTRIBUTED": "critical",
    }
    if accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        return [common] * devices
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = [str(k) for k in range(torch.cuda.device_count())] if given is None else given.split(",")
    if len(visible) < devices:
        raise InputError(
            f"refit.devices = {devices}, and this machine shows {len(visible)} GPUs.\n"
            f"  Give at most --refit.devices={len(visible)}, or --trainer.accelerator=cpu."
        )
    return [{**common, "CUDA_VISIBLE_DEVICES": device} for device in visible[:devices]]


@contextmanager
def quiet_dask() -> Generator[None, None, None]:
    """Silences dask's logs; a worker that dies is reported by the unit that it was training."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.CRITICAL)
    try:
        with dask.config.set(CONFIG):
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
