"""Random scores: the control that every method must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from ifloo.attribution.method import Method, TrainedModel
from ifloo.attribution.scores import Scores
from ifloo.objective.batches import Batch
from ifloo.objective.ids import query_ids
from ifloo.progress import OnProgress, no_progress


@dataclass(frozen=True)
class RandomScores(Method):
    """Standard normal numbers, dimensionless, each a function of (seed, training id, test id) only.

    The order of the data and the batching of the queries do not change them if the queries have ids. Otherwise the
    position of a query in the batch is its id.

    Attributes:
        seed: Random seed.
    """

    seed: int = 0

    name: ClassVar[str] = "random"
    uses_curvature: ClassVar[bool] = False

    def scores(self, trained: TrainedModel, queries: Batch, tick: OnProgress = no_progress) -> Scores:
        ids, tests = trained.objective.data.ids, query_ids(trained.objective.losses.in_form(queries))
        bits = _mixed(
            _mixed(_mixed(np.array([self.seed])) ^ _mixed(tests.numpy())[:, None]) ^ ids.cpu().numpy().astype("u8")
        )
        uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53  # in the open interval (0, 1)
        value = torch.special.ndtri(torch.from_numpy(uniform))
        tick(len(ids), len(ids))
        return Scores(value.to(trained.theta), ids, tests, factors=trained.objective.factors)


def _mixed(numbers: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Maps 64-bit integers one to one to scattered ones (SplitMix64: Steele, Lea & Flood 2014)."""
    x = numbers.astype("u8") + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
