"""Who works on the units of refits: this process, or the workers of a cluster."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from ifloo.refit.execution.job import RefitRequest, RefitResult, RefitWork, Unit
from ifloo.store import NULL_ID


@dataclass(frozen=True)
class GivenUp:
    """A unit that failed at every try.

    Attributes:
        unit: which.
        reason: of the last failure.
    """

    unit: Unit
    reason: str


class Runner(ABC):
    """Works through refits, in units of those trained together."""

    @abstractmethod
    def run(self, wanted: Sequence[RefitRequest]) -> Generator[list[RefitResult] | GivenUp, None, None]:
        """The outcomes of one unit after the other, as they come; ends what it started when it is closed.

        Raises:
            InputError: of a unit; it would be the same at every try.
            WorkError: no unit can be worked on.
        """


@dataclass(frozen=True)
class InProcess(Runner):
    """Here, one unit after the other; what fails ends the run, as nobody else could do better."""

    work: RefitWork

    def run(self, wanted: Sequence[RefitRequest]) -> Generator[list[RefitResult] | GivenUp, None, None]:
        for unit in units(wanted, self.work.path.at_once):
            yield self.work.run(unit)


def units(wanted: Sequence[RefitRequest], size: int) -> list[Unit]:
    """Units of at most `size` refits; the null refit, which every row is held against, has the first one alone."""
    null = [one for one in wanted if one == RefitRequest(NULL_ID)]
    others = [one for one in wanted if one != RefitRequest(NULL_ID)]
    return [(one,) for one in null] + [tuple(others[k : k + size]) for k in range(0, len(others), size)]
