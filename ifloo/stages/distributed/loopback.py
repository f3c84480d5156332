"""Process group on the loopback interface for processes of one machine; by default torch listens on all addresses."""

from __future__ import annotations

import os
import socket

import lightning as L
import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout

from ifloo.errors import WorkError

_LOCAL = ("127.0.0.1", "localhost", "::1")


def meet_on_loopback(trainer: L.Trainer) -> None:
    """Starts the process group of a Trainer whose processes are all on this machine; does nothing for any other.

    The store that torch creates for `MASTER_ADDR = 127.0.0.1` listens on every address: `MASTER_ADDR` is only the
    address to which other processes connect. An address or interface that the environment already names is kept, and
    so is the store of torchrun, which ifloo does not create.

    Raises:
        WorkError: The port is in use.
    """
    if trainer.num_nodes > 1 or os.name != "posix" or dist.is_initialized():
        return
    under_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not under_torchrun and os.environ.get("MASTER_ADDR", _LOCAL[0]) not in _LOCAL:
        return
    _select_loopback()
    if under_torchrun:
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


def _select_loopback() -> None:
    """Sets the loopback interface for gloo and NCCL, unless the environment names an interface."""
    names = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    for name in names[:1]:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # without "=" it means all names that begin so


def _store(port: int, rank: int, world_size: int) -> dist.Store:
    """Returns the store through which the processes connect; the first process hosts it.

    Raises:
        WorkError: The port is in use.
    """
    listening = None
    if rank == 0:
        server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((_LOCAL[0], port))
        except OSError as error:
            server.close()
            raise WorkError(
                f"The {world_size} processes cannot meet at {_LOCAL[0]}:{port}: {error.strerror}.\n"
                "  Run the same command again, or set MASTER_PORT to a port that is free."
            ) from error
        server.listen(world_size)
        listening = server.detach()  # the store closes it
    return dist.TCPStore(
        _LOCAL[0],
        port,
        world_size,
        is_master=rank == 0,
        timeout=default_pg_timeout,
        master_listen_fd=listening,
        use_libuv=False,  # libuv does not accept an open socket in older versions of torch
    )
