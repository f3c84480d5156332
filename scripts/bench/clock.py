"""Wall time, processor time and memory of this process, and the scaling of partly timed works."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass, field


def cpu_seconds() -> float:
    """Returns user and system time of this process, its threads, and children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def peak_gib() -> float:
    """Returns the largest resident size of this process so far, GiB (children that have ended are not added)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


@dataclass(frozen=True)
class Spent:
    """Time of a work.

    Attributes:
        wall: Wall time, seconds.
        cpu: Processor time, seconds.
    """

    wall: float
    cpu: float

    def scaled(self, units: Spent, done: int, of: int) -> Spent:
        """Extrapolates to `of` units from `done` units that took `units`; time outside the units counts once."""
        more = of / done - 1
        return Spent(self.wall + more * units.wall, self.cpu + more * units.cpu)


@dataclass(frozen=True)
class Clock:
    """Clock that starts when it is created."""

    wall: float = field(default_factory=time.perf_counter)
    cpu: float = field(default_factory=cpu_seconds)

    def read(self) -> Spent:
        return Spent(time.perf_counter() - self.wall, cpu_seconds() - self.cpu)
