"""Which samples to remove: the top-k of each test, and controls drawn at random."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ifloo.errors import InputError
from ifloo.objective import Removal

Init = Literal["warm", "cold"]


@dataclass(frozen=True)
class RefitSettings:
    """What is removed and how the model is trained again.

    Attributes:
        removal: `drop` (the mean runs over n − 1, what deleting a row does) or `zero_weight` (n stays).
        init: `warm` starts at the base weights, `cold` repeats the fit from scratch.
        top_k: refits of the samples with the largest |score|, for each test.
        random: refits of samples drawn at random from all n: top-k alone flatters a correlation.
        null_refits: refits with nothing removed from displaced weights; their spread is the noise floor.
        weight_steps: samples (half of them top ids, half controls) also refitted at w = 0.9 and 1.1: is training smooth
            enough for a derivative in w to say anything about w = 0?
        groups: shares of the training samples removed together, the top ones of each test and random ones.
        seeds: refits with nothing removed from other seeds: how much a test loss depends on what nobody chose.
        seed: of the controls and of the displacements; every refit has the seed of the base fit.
        replicas: refits trained together in one fit; 1: one by one; null: by model and optimizer, the fastest that
            gives the same.
        devices: of this machine to refit on, each with a worker process of its own; more than 1 needs ifloo[cluster].
        cluster: `local`: worker processes even for one device; `tcp://host:port`: the workers of a running dask
            cluster; null: as `devices` says. Worker processes of this machine listen on loopback and talk by TLS.
            Over `tcp://`, model, data and code travel as pickles in the clear, and a dask worker runs whatever reaches
            its port: use it on a trusted network only, or a cluster with TLS (`tls://host:port`, certificate in the
            configuration of dask).
    """

    removal: Removal = "drop"
    init: Init = "warm"
    top_k: int = 20
    random: int = 20
    null_refits: int = 5
    weight_steps: int = 0
    groups: list[float] = field(default_factory=list)
    seeds: int = 0
    seed: int = 0
    replicas: int | None = None
    devices: int = 1
    cluster: str | None = None

    @property
    def address(self) -> str | None:
        """Of the scheduler of a running cluster."""
        return None if self.cluster == "local" else self.cluster

    @property
    def in_process(self) -> bool:
        return self.cluster is None and self.devices == 1

    def __post_init__(self) -> None:
        """Checks the counts and who is to work.

        Raises:
            InputError: a negative count, a share that is none, no refit at once, no device, or no address of a cluster.
        """
        counts = {"top_k": self.top_k, "random": self.random, "null_refits": self.null_refits}
        for name, count in {**counts, "weight_steps": self.weight_steps, "seeds": self.seeds}.items():
            if count < 0:
                raise InputError(f"refit.{name} must be >= 0, got {count}.")
        if wrong := [share for share in self.groups if not 0 < share < 1]:
            raise InputError(f"refit.groups are shares of the training samples, between 0 and 1, got {wrong[0]}.")
        if self.replicas is not None and self.replicas < 1:
            raise InputError(f"refit.replicas must be >= 1, or null to have it chosen, got {self.replicas}.")
        if self.devices < 1:
            raise InputError(f"refit.devices must be >= 1, got {self.devices}.")
        if self.address is not None:
            self._check_address(self.address)

    def _check_address(self, address: str) -> None:
        if not re.fullmatch(r"\w+://\S+:\d+", address):
            raise InputError(
                f"refit.cluster must be local, tcp://host:port or null, got {address!r}.\n"
                "  The address is the one that `dask scheduler` prints."
            )
        if self.devices > 1:
            raise InputError(
                f"refit.devices = {self.devices} starts workers on this machine, and refit.cluster = {address} has its "
                "own.\n  Leave one of them out."
            )


def controls(train_ids: NDArray[np.int64], count: int, seed: int) -> list[int]:
    """The first `count` of one seeded order of all ids, so that asking for more later keeps those already refitted."""
    order = np.random.default_rng(seed).permutation(len(train_ids))
    return [int(i) for i in train_ids[order[: min(count, len(order))]]]


def removals(top: Mapping[int, Sequence[int]], random: Sequence[int]) -> list[int]:
    """Each id once: the tests' top ids in turn, so that an interrupted run has some of each, then the controls."""
    longest = max((len(ids) for ids in top.values()), default=0)
    in_turn = [ids[rank] for rank in range(longest) for ids in top.values() if rank < len(ids)]
    return list(dict.fromkeys([*in_turn, *random]))


def stepped(top: Mapping[int, Sequence[int]], random: Sequence[int], count: int) -> list[int]:
    """The ids to refit at small weight steps: top ids of the tests in turn for one half, controls for the other."""
    leading = removals(top, [])[: count - count // 2]
    others = [i for i in random if i not in leading]
    return [*leading, *others[: count - len(leading)]]


def groups(
    ranked: Mapping[int, NDArray[np.int64]], shares: Sequence[float], seed: int
) -> dict[int, dict[str, tuple[int, ...]]]:
    """The groups of each test, by name: the top share of its ids, and the same number at random for all tests alike.

    Args:
        ranked: all training ids of each test, largest |score| first.
        shares: of the ids, 0.01 for 1 %.
        seed: of the random ones.
    """
    made: dict[int, dict[str, tuple[int, ...]]] = {}
    for t, ids in ranked.items():
        drawn = np.random.default_rng(seed).permutation(np.sort(ids))
        made[t] = {}
        for share in shares:
            size = max(1, round(share * len(ids)))
            for kind, source in (("top", ids), ("random", drawn)):
                made[t][f"{kind}_{100 * share:g}pct"] = tuple(sorted(int(i) for i in source[:size]))
    return made
