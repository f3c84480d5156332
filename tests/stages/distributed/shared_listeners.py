"""Program started by the tests: two processes connect, and print as JSON the addresses that each listens on.

Arguments: none.
"""

import json
import os
import sys
import warnings

import lightning as L
import psutil
import torch.distributed as dist

from ifloo.stages.distributed.process_group import ProcessGroup

INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def main() -> None:
    warnings.simplefilter("ignore")
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    world = ProcessGroup.connect(
        L.Trainer(accelerator="cpu", devices=2, strategy="ddp", enable_progress_bar=False, **quiet)
    )
    dist.barrier()
    dist.barrier(world.group)
    sockets = [one for one in psutil.Process().net_connections("inet") if one.status == psutil.CONN_LISTEN]
    own = {
        "hosts": [one.laddr.ip for one in sockets],
        "ports": [one.laddr.port for one in sockets],
        "meeting": int(os.environ["MASTER_PORT"]),
        "interfaces": [os.environ.get(name) for name in INTERFACES],
    }
    every = world.all_gathered(own)
    if world.first:
        json.dump(every, sys.stdout)
    world.close()
    ProcessGroup.close_leftover()


if __name__ == "__main__":
    main()
