"""Settings of refits, and the samples they remove: the top-k of each test, and controls drawn at random."""

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
    """Settings of refits: which samples are removed, and how the model is trained again.

    Attributes:
        removal: Kind of removal: `drop` (the mean runs over n − 1 samples, what deleting a row does) or `zero_weight`
            (n stays).
        init: Start of each refit: `warm`, the base weights; `cold`, the fit repeated from scratch.
        top_k: Number of samples with the largest |score| to remove, for each test.
        random: Number of control samples, drawn at random from all n; top-k alone flatters a correlation.
        null_refits: Number of refits with nothing removed that start from displaced weights; their spread is the noise
            floor.
        weight_steps: Number of samples (half of them top ids, half controls) also refitted at w = 0.9 and 1.1; these
            show whether training is smooth enough for a derivative in w to predict the effect of w = 0.
        groups: Shares of the training samples removed together, the top ones of each test and as many random ones.
        seeds: Number of refits with nothing removed from other seeds; they show how much a test loss depends on the
            seed.
        seed: Random seed of the controls and of the displacements; every refit has the seed of the base fit.
        replicas: Number of refits trained together in one fit; 1 trains one by one; null selects the fastest strategy
            with the same results, by model and optimizer.
        devices: Number of devices of this machine to refit on, one worker process each; more than 1 needs
            ifloo[cluster].
        cluster: Workers of the refits: `local`, worker processes of this machine even for one device;
            `tcp://host:port`, those of a running dask cluster; null, as `devices` implies. Worker processes of this
            machine listen on loopback and use TLS. Over `tcp://`, model, data and code travel as unencrypted pickles,
            and a dask worker runs anything sent to its port: use it on a trusted network only, or use a cluster with
            TLS (`tls://host:port`, with the certificate in dask's configuration).
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
        """Address of the scheduler of a running cluster; None without one."""
        return None if self.cluster == "local" else self.cluster

    @property
    def in_process(self) -> bool:
        """Whether all refits run in this process."""
        return self.cluster is None and self.devices == 1

    def __post_init__(self) -> None:
        """Checks counts, shares and the address of the cluster.

        Raises:
            InputError: If a count is negative, a share is not between 0 and 1, `replicas` or `devices` is below 1, or
                `cluster` is not an address.
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
    """Draws `count` ids, the first of one seeded order of all: a larger count keeps the ids already refitted."""
    order = np.random.default_rng(seed).permutation(len(train_ids))
    return [int(i) for i in train_ids[order[: min(count, len(order))]]]


def removals(top: Mapping[int, Sequence[int]], random: Sequence[int]) -> list[int]:
    """Lists each id once: top ids of the tests in turn, so that an interrupted run has some of each, then controls."""
    longest = max((len(ids) for ids in top.values()), default=0)
    in_turn = [ids[rank] for rank in range(longest) for ids in top.values() if rank < len(ids)]
    return list(dict.fromkeys([*in_turn, *random]))


def stepped(top: Mapping[int, Sequence[int]], random: Sequence[int], count: int) -> list[int]:
    """Selects the ids to refit at small weight steps: half are top ids of the tests in turn, half are controls."""
    leading = removals(top, [])[: count - count // 2]
    others = [i for i in random if i not in leading]
    return [*leading, *others[: count - len(leading)]]


def groups(
    ranked: Mapping[int, NDArray[np.int64]], shares: Sequence[float], seed: int
) -> dict[int, dict[str, tuple[int, ...]]]:
    """Forms the groups of each test: the top share of its ids, and as many random ids, the same for all tests.

    Args:
        ranked: All training ids of each test, largest |score| first.
        shares: Shares of the ids; 0.01 stands for 1 %.
        seed: Random seed of the random groups.

    Returns:
        The ids of each group, by test and name (`top_1pct`, `random_1pct`).
    """
    groups_of: dict[int, dict[str, tuple[int, ...]]] = {}
    for t, ids in ranked.items():
        drawn = np.random.default_rng(seed).permutation(np.sort(ids))
        groups_of[t] = {}
        for share in shares:
            size = max(1, round(share * len(ids)))
            for kind, source in (("top", ids), ("random", drawn)):
                groups_of[t][f"{kind}_{100 * share:g}pct"] = tuple(sorted(int(i) for i in source[:size]))
    return groups_of
