"""Worker processes of this machine, one for each device; imported only when a cluster is asked for."""

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
LOOPBACK = "127.0.0.1"  # without a host given, a worker of dask listens on every address of the machine
LEAVE = 1.0  # seconds for a worker to leave by itself
CONFIG = {
    "distributed.worker.daemon": False,  # a daemon may have no processes that load data
    "distributed.deploy.lost-worker-timeout": "60s",  # a nanny needs a moment to start a worker again
    "distributed.comm.timeouts.connect": "8s",
    "distributed.admin.large-graph-warning-threshold": "1TiB",  # the training data travel once to each worker
}


class _NoPage:
    """Without the web page that each server of dask would open a port for."""

    def start_http_server(self, *_: Any, **__: Any) -> None: ...


class LocalScheduler(_NoPage, Scheduler):
    """In this process."""


class LocalWorker(_NoPage, Worker):
    """In a process of its own."""


class DeviceNanny(Nanny):
    """Starts a worker, again if it dies, with an environment of its own that is there before anything is imported."""

    def __init__(
        self, scheduler: str, *, environment: Mapping[str, str], spawning: asyncio.Lock, **options: Any
    ) -> None:
        """Settings.

        Args:
            scheduler: its address.
            environment: of the worker's process.
            spawning: shared by all nannies.
            options: of any nanny.
        """
        super().__init__(scheduler, worker_class=LocalWorker, env=dict(environment), **options)
        self.pre_spawn_env.update(environment)
        self._spawning = spawning

    async def instantiate(self) -> Status:
        """Dask hands the environment on by changing that of this process: one worker at a time, and changed back."""
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
        """A unit in work is not waited for: it has no row yet."""
        return await super().close(timeout=LEAVE, reason=reason)


def _ignore_ctrl_c() -> None:
    """Ctrl-C goes to all processes of a terminal; workers leave it to this one, as threads and processes inherit it."""
    if hasattr(signal, "pthread_sigmask") and threading.current_thread() is not threading.main_thread():
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


@contextmanager
def local_workers(devices: int, workers: int, accelerator: str) -> Generator[SpecCluster, None, None]:
    """A cluster of `workers` processes, each with one of the `devices`; no process and no file is left behind.

    A worker runs what it is sent. So all of them listen on loopback only, and talk by TLS with a certificate made for
    this cluster, which other users of the machine do not have.

    Raises:
        InputError: the machine has fewer GPUs than `devices`, or no certificate can be made.
        WorkError: the workers cannot be started.
    """
    environments = _environments(devices, accelerator)[:workers]
    security = _certificate()
    if os.name == "posix":
        resource_tracker.ensure_running()  # else it starts in a nanny's thread, and lets Ctrl-C through to the worker
    spawning = asyncio.Lock()
    with tempfile.TemporaryDirectory(prefix="ifloo-refits-", ignore_cleanup_errors=True) as folder:
        reached = {"host": LOOPBACK, "security": security}
        common = {"nthreads": 1, "memory_limit": 0, "local_directory": folder, "silence_logs": logging.CRITICAL}
        spec = {
            k: {"cls": DeviceNanny, "options": {**common, **reached, "environment": environment, "spawning": spawning}}
            for k, environment in enumerate(environments)
        }
        scheduler = {"cls": LocalScheduler, "options": {**reached, "port": 0, "dashboard": False}}
        with dask.config.set({"temporary-directory": folder}), _started(spec, scheduler, security) as cluster:
            yield cluster


def _certificate() -> Security:
    """A certificate and its key, in memory only.

    Raises:
        InputError: `cryptography`, which makes them, cannot be imported.
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
    """The cluster, its workers up.

    Raises:
        WorkError: it cannot be started.
    """
    try:
        return SpecCluster(workers=workers, scheduler=scheduler, security=security, silence_logs=logging.CRITICAL)
    except (RuntimeError, OSError) as error:
        cause = error.__cause__ or error
        raise WorkError(
            f"The {len(workers)} worker processes could not be started: {type(cause).__name__}: {cause}.\n"
            "  Look at what they say above, or leave refit.devices and refit.cluster out to refit in this process."
        ) from error


def _environments(devices: int, accelerator: str) -> list[dict[str, str]]:
    """What each worker process is started with: its share of the cores, its GPU, and silence.

    Raises:
        InputError: the machine has fewer GPUs than `devices`.
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
    """Dask's own words would stand between ours: a worker that dies and comes again is told by the unit it had."""
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
