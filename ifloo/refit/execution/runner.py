"""Runners of refits, which work through units one after the other or in parallel; the one of this process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from ifloo.refit.execution.job import RefitRequest, RefitResult, RefitWork, Unit
from ifloo.store import NULL_ID


@dataclass(frozen=True)
class FailedUnit:
    """Unit that failed at every try.

    Attributes:
        unit: Refits of the unit.
        reason: Message of the last failure.
    """

    unit: Unit
    reason: str


class Runner(ABC):
    """Works through refits in units of those trained together."""

    @abstractmethod
    def run(self, requests: Sequence[RefitRequest]) -> Generator[list[RefitResult] | FailedUnit, None, None]:
        """Yields the results of each unit as it finishes; closing the generator ends all processes it started.

        Raises:
            InputError: If a unit fails on its input, which another try would not change.
            WorkError: If no unit can be worked on.
        """


@dataclass(frozen=True)
class InProcess(Runner):
    """Trains in this process, one unit after the other; a failure ends the run, since a second try would fail too.

    Attributes:
        work: Work on each unit.
    """

    work: RefitWork

    def run(self, requests: Sequence[RefitRequest]) -> Generator[list[RefitResult] | FailedUnit, None, None]:
        for unit in units(requests, self.work.strategy.max_at_once):
            yield self.work.run(unit)


def units(requests: Sequence[RefitRequest], size: int) -> list[Unit]:
    """Splits refits into units of at most `size`; the first is the null refit alone, needed for every other row."""
    null = [one for one in requests if one == RefitRequest(NULL_ID)]
    others = [one for one in requests if one != RefitRequest(NULL_ID)]
    return [(one,) for one in null] + [tuple(others[k : k + size]) for k in range(0, len(others), size)]
