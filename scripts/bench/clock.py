"""Wall time, processor time and memory of this process, and of parts of a work that is scaled up."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass, field


def cpu_seconds() -> float:
    """User and system time of this process, its threads, and children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def peak_gib() -> float:
    """Largest resident size of this process so far, GiB (children that have ended are not added)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


@dataclass(frozen=True)
class Spent:
    """Seconds of a work."""

    wall: float
    cpu: float

    def scaled(self, units: Spent, done: int, of: int) -> Spent:
        """These seconds if `of` units had been done, of which `done` took `units`: all else counts once."""
        more = of / done - 1
        return Spent(self.wall + more * units.wall, self.cpu + more * units.cpu)


@dataclass(frozen=True)
class Clock:
    """Started when it is made."""

    wall: float = field(default_factory=time.perf_counter)
    cpu: float = field(default_factory=cpu_seconds)

    def read(self) -> Spent:
        return Spent(time.perf_counter() - self.wall, cpu_seconds() - self.cpu)
