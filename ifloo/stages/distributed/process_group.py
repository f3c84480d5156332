"""The processes that share one pass over the training data: this one, or those of a ddp strategy."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

import lightning as L
import torch
from lightning.fabric.plugins.environments import ClusterEnvironment
from torch import Tensor

from ifloo.errors import InputError, WorkError
from ifloo.objective.out_of_memory import is_out_of_memory
from ifloo.stages.distributed.watchdog import name_parent, watch_children, watch_parent

if TYPE_CHECKING:  # it is not in every build of torch
    from torch.distributed import ProcessGroup as TorchGroup

T = TypeVar("T")
_TRANSPORT = re.compile(r"gloo|nccl|connection (closed|reset)", re.IGNORECASE)  # what torch's own errors name
MOVED_AT_ONCE = 16 << 20  # bytes of scores on their way between two processes


@dataclass(frozen=True)
class ProcessGroup:
    """One process of `size`; the first one writes all files and says all there is to say.

    Attributes:
        rank: of this process.
        size: how many there are.
        group: what they talk over; None where there is one. On the host, whatever the scores are made on: objects and
            finished blocks end up there anyway.
    """

    rank: int = 0
    size: int = 1
    group: TorchGroup | None = None

    @classmethod
    def connect(cls, trainer: L.Trainer) -> ProcessGroup:
        """The processes of a Trainer, started if they are not there and waited for. One alone touches no network."""
        if trainer.world_size == 1:
            return cls()
        import torch.distributed as dist

        from ifloo.stages.distributed.loopback import meet_on_loopback

        strategy = trainer.strategy
        launcher: Any = strategy.launcher

        def meet() -> None:
            if trainer.local_rank > 0:
                watch_parent()
            else:
                watch_children(launcher.procs)  # none where another program has started the processes
            meet_on_loopback(trainer)
            strategy.setup_environment()

        if not ProcessGroup.waiting(trainer):
            name_parent()
        launcher.launch(meet, trainer=trainer)
        return cls(trainer.global_rank, trainer.world_size, dist.new_group(backend="gloo"))

    def close(self) -> None:
        """Ends the talk: a process that leaves with it open may abort on its way out."""
        if self.size > 1:
            import torch.distributed as dist

            with suppress(RuntimeError):  # another process may be gone
                dist.destroy_process_group(self.group)

    @staticmethod
    def close_leftover() -> None:
        """At the end of a program: whatever a Trainer still keeps open, whose threads may abort the process."""
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            with suppress(RuntimeError):
                dist.destroy_process_group()

    @staticmethod
    def waiting(trainer: L.Trainer) -> bool:
        """Whether the others are there already (torchrun, Slurm), and want to be told even that there is no work."""
        if trainer.world_size == 1:
            return False
        environment: ClusterEnvironment = trainer.strategy.cluster_environment  # type: ignore[attr-defined]  # of ddp
        return environment.creates_processes_externally

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, count: int, unit: int = 1, of: int | None = None) -> slice:
        """Which of `count` things in a row belong to a process (`of`; None: this one), in whole units; maybe none."""
        rank, units = self.rank if of is None else of, -(-count // unit)
        start, stop = units * rank // self.size, units * (rank + 1) // self.size
        return slice(min(count, start * unit), min(count, stop * unit))

    @contextmanager
    def raise_together(self) -> Generator[None, None, None]:
        """Work of each process by itself, after which all go on, or end with the error of the one that failed.

        Without it the others would wait for the failed one in their next exchange.

        Raises:
            InputError: as in the process that failed.
            WorkError: any other failure.
            MemoryError: in all processes, when one had too little: they can try again with less.
            SystemExit: in processes that are not the first; that one reports the error.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            if self.size == 1:
                raise
            failure = error
        if self.size > 1:
            self._agree(failure)

    @contextmanager
    def watch_peers(self) -> Generator[None, None, None]:
        """Work in which a Trainer exchanges something by itself, where it would find that another process is gone.

        Raises:
            WorkError: in the first process, when one was lost.
            RuntimeError: any other of the work.
            SystemExit: in the others, when one was lost.
        """
        try:
            yield
        except RuntimeError as error:
            if self.size > 1 and not isinstance(error, WorkError) and _TRANSPORT.search(str(error)):
                self._end(error)
            raise

    def broadcast(self, value: T) -> T:
        """What the first process has, for all of them."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        shared = [value]
        with self._or_lost():
            dist.broadcast_object_list(shared, src=0, group=self.group)
        return shared[0]

    def all_gathered(self, value: T) -> list[T]:
        """What each process has, by rank; small objects."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found = [value] * self.size
        with self._or_lost():
            dist.all_gather_object(found, value, group=self.group)
        return found

    def spread_rows(self, rows: Tensor, unit: int) -> Tensor:
        """`[m, ...]` of which each process has filled the rows of its share (see `share`): filled by all."""
        if self.size == 1:
            return rows
        import torch.distributed as dist

        host = rows.cpu()
        with self._or_lost():
            for rank in range(self.size):
                part = host[self.share(len(rows), unit, of=rank)]
                if len(part):
                    dist.broadcast(part, src=rank, group=self.group)
        return host.to(rows.device)

    def gather_columns(self, block: Tensor, n: int) -> None:
        """Columns of all shares of n into the block of the first process, `[m, n]`; the others give `[m, own]`."""
        if self.size == 1:
            return
        import torch.distributed as dist

        with self._or_lost():
            for rank in range(1, self.size):
                columns = self.share(n, of=rank)
                width = columns.stop - columns.start
                if not width or self.rank not in (0, rank):
                    continue
                step = max(1, MOVED_AT_ONCE // (width * block.element_size()))
                for start in range(0, len(block), step):
                    some = block[start : start + step]
                    if self.first:
                        incoming = torch.empty(len(some), width, dtype=block.dtype)
                        dist.recv(incoming, src=rank, group=self.group)
                        some[:, columns] = incoming
                    else:
                        dist.send(some.contiguous(), dst=0, group=self.group)

    def _agree(self, failure: Exception | None) -> None:
        told = self.all_gathered(None if failure is None else _Failure.of(failure, self.rank))
        failures = sorted((one for one in told if one is not None), key=lambda one: one.kind is MemoryError)
        if not failures:
            return
        worst = failures[0]
        if worst.kind is MemoryError:
            raise MemoryError(worst.text)
        if not self.first:
            raise SystemExit(0)  # what matters is the exit code of the first, which reports the failure
        if failure is not None and worst.rank == 0:
            raise failure
        raise worst.kind(f"process {worst.rank} of {self.size}: {worst.text}")

    @contextmanager
    def _or_lost(self) -> Generator[None, None, None]:
        try:
            yield
        except RuntimeError as error:
            self._end(error)

    def _end(self, error: RuntimeError) -> NoReturn:
        if not self.first:
            raise SystemExit(1) from error
        raise WorkError(
            f"One of the {self.size} processes was lost ({str(error).splitlines()[0]}).\n"
            "  Finished tests are kept. Look for its message above, and run the same command again."
        ) from error


class _Failure(NamedTuple):
    rank: int
    kind: type[Exception]
    text: str

    @classmethod
    def of(cls, error: Exception, rank: int) -> _Failure:
        if is_out_of_memory(error):
            return cls(rank, MemoryError, str(error))
        if isinstance(error, (InputError, WorkError)):
            return cls(rank, InputError if isinstance(error, InputError) else WorkError, str(error))
        return cls(rank, WorkError, f"{type(error).__name__}: {error}")
