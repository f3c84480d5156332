"""Processes of one machine meet on its loopback interface: by default, torch listens where the network reaches it."""

from __future__ import annotations

import os
import socket

import lightning as L
import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout

from ifloo.errors import WorkError

_LOCAL = ("127.0.0.1", "localhost", "::1")


def meet_on_loopback(trainer: L.Trainer) -> None:
    """Starts the process group of a Trainer whose processes are all on this machine; does nothing for another one.

    The store that torch makes of `MASTER_ADDR = 127.0.0.1` listens on every address all the same: its address is only
    what the others connect to. An address or an interface that the environment names already is kept, and so is the
    store of torchrun, which is not ours.

    Raises:
        WorkError: the port is in use.
    """
    if trainer.num_nodes > 1 or os.name != "posix" or dist.is_initialized():
        return
    of_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not of_torchrun and os.environ.get("MASTER_ADDR", _LOCAL[0]) not in _LOCAL:
        return
    _talk_on_loopback()
    if of_torchrun:
        return
    device, rank = trainer.strategy.root_device, trainer.local_rank
    port: int = trainer.strategy.cluster_environment.main_port  # type: ignore[attr-defined]
    dist.init_process_group(
        dist.get_default_backend_for_device(device),
        store=_store(port, rank, trainer.world_size),
        rank=rank,
        world_size=trainer.world_size,
        device_id=None if device.type == "cpu" else device,
    )


def _talk_on_loopback() -> None:
    """Has gloo and NCCL listen on the loopback interface, where the environment names none."""
    names = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    for name in names[:1]:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # without "=" it means all that begin so


def _store(port: int, rank: int, world_size: int) -> dist.Store:
    """The store where the processes find each other, kept by the first one.

    Raises:
        WorkError: the port is in use.
    """
    listening = None
    if rank == 0:
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind((_LOCAL[0], port))
        except OSError as error:
            made.close()
            raise WorkError(
                f"The {world_size} processes cannot meet at {_LOCAL[0]}:{port}: {error.strerror}.\n"
                "  Run the same command again, or set MASTER_PORT to a port that is free."
            ) from error
        made.listen(world_size)
        listening = made.detach()  # the store closes it
    return dist.TCPStore(
        _LOCAL[0],
        port,
        world_size,
        is_master=rank == 0,
        timeout=default_pg_timeout,
        master_listen_fd=listening,
        use_libuv=False,  # which takes over no socket in older versions of torch
    )
