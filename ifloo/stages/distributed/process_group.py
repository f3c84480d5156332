"""Group of the processes that share one pass over the training data: one process, or those of a ddp strategy."""

from __future__ import annotations

import re
import time
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
from ifloo.stages.distributed.watchdog import GRACE, name_parent, watch_children, watch_parent

if TYPE_CHECKING:  # not in every build of torch
    from torch.distributed import ProcessGroup as TorchGroup

T = TypeVar("T")
_TRANSPORT = re.compile(r"gloo|nccl|connection (closed|reset)", re.IGNORECASE)  # words in torch's transport errors
MOVED_AT_ONCE = 16 << 20  # bytes of scores in one message between two processes


@dataclass(frozen=True)
class ProcessGroup:
    """One process of a group of `size`; the first one writes all files and all messages.

    Attributes:
        rank: Rank of this process.
        size: Number of processes.
        group: Communication group of torch; None for a single process. It is always on the host, since objects and
            finished blocks end up there, whatever device computes the scores.
    """

    rank: int = 0
    size: int = 1
    group: TorchGroup | None = None

    @classmethod
    def connect(cls, trainer: L.Trainer) -> ProcessGroup:
        """Starts the processes of a Trainer unless they run already, and connects them; one process uses no network.

        Raises:
            RuntimeError: If torch cannot connect them.
        """
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
                watch_children(launcher.procs)  # empty if another program has started the processes
            meet_on_loopback(trainer)
            strategy.setup_environment()

        if not ProcessGroup.waiting(trainer):
            name_parent()
        try:
            launcher.launch(meet, trainer=trainer)
            group = dist.new_group(backend="gloo")
        except RuntimeError:  # also torch's DistNetworkError
            if trainer.local_rank > 0:
                time.sleep(GRACE)  # if the first process is gone, the watchdog ends this one without a message
            raise
        return cls(trainer.global_rank, trainer.world_size, group)

    def close(self) -> None:
        """Destroys the group; a process that ends with an open group may abort."""
        if self.size > 1:
            import torch.distributed as dist

            with suppress(RuntimeError):  # another process may have ended
                dist.destroy_process_group(self.group)

    @staticmethod
    def close_leftover() -> None:
        """Destroys the group that a Trainer left open at the end of a program; its threads may abort the process."""
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            with suppress(RuntimeError):
                dist.destroy_process_group()

    @staticmethod
    def waiting(trainer: L.Trainer) -> bool:
        """Returns whether other processes run already (torchrun, Slurm); they must be notified even without work."""
        if trainer.world_size == 1:
            return False
        environment: ClusterEnvironment = trainer.strategy.cluster_environment  # type: ignore[attr-defined]  # of ddp
        return environment.creates_processes_externally

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, count: int, unit: int = 1, of: int | None = None) -> slice:
        """Returns the part of `count` items of process `of` (None: this one), in whole units; it may be empty."""
        rank, units = self.rank if of is None else of, -(-count // unit)
        start, stop = units * rank // self.size, units * (rank + 1) // self.size
        return slice(min(count, start * unit), min(count, stop * unit))

    @contextmanager
    def raise_together(self) -> Generator[None, None, None]:
        """Context for work without communication: if it fails in one process, it fails in all.

        Otherwise the other processes would wait for the failed one in their next exchange.

        Raises:
            InputError: A process raised an InputError.
            WorkError: A process failed in another way.
            MemoryError: A process ran out of memory; raised in all processes, which can try again with smaller blocks.
            SystemExit: Raised in all processes but the first, which reports the error.
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
        """Context for work in which a Trainer communicates, and may find that another process has ended.

        Raises:
            WorkError: A process was lost; raised in the first process.
            RuntimeError: Any other RuntimeError of the work.
            SystemExit: A process was lost; raised in all processes but the first.
        """
        try:
            yield
        except RuntimeError as error:
            if self.size > 1 and not isinstance(error, WorkError) and _TRANSPORT.search(str(error)):
                self._exit_after_loss(error)
            raise

    def broadcast(self, value: T) -> T:
        """Returns the value of the first process, in all processes."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        shared = [value]
        with self._detect_loss():
            dist.broadcast_object_list(shared, src=0, group=self.group)
        return shared[0]

    def all_gathered(self, value: T) -> list[T]:
        """Returns the values of all processes, by rank; for small objects."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values = [value] * self.size
        with self._detect_loss():
            dist.all_gather_object(values, value, group=self.group)
        return values

    def spread_rows(self, rows: Tensor, unit: int) -> Tensor:
        """Returns rows `[m, ...]` with the rows of all processes, each of which has filled its share (see `share`)."""
        if self.size == 1:
            return rows
        import torch.distributed as dist

        host = rows.cpu()
        with self._detect_loss():
            for rank in range(self.size):
                part = host[self.share(len(rows), unit, of=rank)]
                if len(part):
                    dist.broadcast(part, src=rank, group=self.group)
        return host.to(rows.device)

    def gather_columns(self, block: Tensor, n: int) -> None:
        """Copies the columns of all processes, `[m, own]`, into the block of the first process, `[m, n]`."""
        if self.size == 1:
            return
        import torch.distributed as dist

        with self._detect_loss():
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
        reports = self.all_gathered(None if failure is None else _Failure.of(failure, self.rank))
        failures = sorted((one for one in reports if one is not None), key=lambda one: one.kind is MemoryError)
        if not failures:
            return
        worst = failures[0]
        if worst.kind is MemoryError:
            raise MemoryError(worst.text)
        if not self.first:
            raise SystemExit(0)  # the first process reports the failure, and its exit code counts
        if failure is not None and worst.rank == 0:
            raise failure
        raise worst.kind(f"process {worst.rank} of {self.size}: {worst.text}")

    @contextmanager
    def _detect_loss(self) -> Generator[None, None, None]:
        try:
            yield
        except RuntimeError as error:
            self._exit_after_loss(error)

    def _exit_after_loss(self, error: RuntimeError) -> NoReturn:
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
