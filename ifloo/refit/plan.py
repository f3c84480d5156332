"""Which samples to remove: the top-k of each test, and controls drawn at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
        seed: of the controls and of the displacements; every refit has the seed of the base fit.
        replicas: refits trained together in one fit; 1: one by one; null: by model and optimizer, the fastest that
            gives the same.
    """

    removal: Removal = "drop"
    init: Init = "warm"
    top_k: int = 20
    random: int = 20
    null_refits: int = 5
    seed: int = 0
    replicas: int | None = None

    def __post_init__(self) -> None:
        """Checks the counts.

        Raises:
            InputError: a negative count, or no refit at once.
        """
        for name in ("top_k", "random", "null_refits"):
            if getattr(self, name) < 0:
                raise InputError(f"refit.{name} must be >= 0, got {getattr(self, name)}.")
        if self.replicas is not None and self.replicas < 1:
            raise InputError(f"refit.replicas must be >= 1, or null to have it chosen, got {self.replicas}.")


def controls(train_ids: NDArray[np.int64], count: int, seed: int) -> list[int]:
    """The first `count` of one seeded order of all ids, so that asking for more later keeps those already refitted."""
    order = np.random.default_rng(seed).permutation(len(train_ids))
    return [int(i) for i in train_ids[order[: min(count, len(order))]]]


def removals(top: Mapping[int, Sequence[int]], random: Sequence[int]) -> list[int]:
    """Each id once: the tests' top ids in turn, so that an interrupted run has some of each, then the controls."""
    longest = max((len(ids) for ids in top.values()), default=0)
    in_turn = [ids[rank] for rank in range(longest) for ids in top.values() if rank < len(ids)]
    return list(dict.fromkeys([*in_turn, *random]))
