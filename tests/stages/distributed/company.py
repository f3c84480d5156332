"""Program started twice by the tests: two processes, one or both of which fail in each case.

Arguments: rank, rendezvous file. Prints the outcome of each case.
"""

import sys

import torch
import torch.distributed as dist

from ifloo.errors import InputError, WorkError
from ifloo.solvers import SolveError
from ifloo.stages.distributed.process_group import ProcessGroup

CASES = {
    "input": {1: InputError("wrong")},
    "work": {1: SolveError("did not converge")},
    "fault": {1: KeyError("x")},
    "first": {0: WorkError("disk full"), 1: WorkError("another")},
    "memory": {1: RuntimeError("CUDA out of memory.")},
    "memory and more": {0: MemoryError("too little"), 1: InputError("wrong")},
    "nothing": {},
}


def main(rank: int, rendezvous: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    world = ProcessGroup(rank, 2, dist.group.WORLD)
    for name, failures in CASES.items():
        try:
            with world.raise_together():
                if rank in failures:
                    raise failures[rank]
        except BaseException as error:
            print(f"{name}: {type(error).__name__}: {error}")
        else:
            print(f"{name}: went on")
    print(world.broadcast(["plan"] if rank == 0 else None), world.all_gathered(rank))
    rows = torch.zeros(20, 2)
    rows[world.share(20, 16)] = rank + 1.0
    print(world.spread_rows(rows, 16)[:, 0].int().tolist())
    for n in (1, 5):
        share = world.share(n)
        block = torch.full((2, n if world.first else share.stop - share.start), float(rank))
        world.gather_columns(block, n)
        print(block.int().tolist())
    with world.watch_peers():
        if rank == 1:
            dist.destroy_process_group()
            return
        dist.barrier()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
