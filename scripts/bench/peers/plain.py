"""Base model and images in the form that any library takes."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bench.problem import Array, Outcome, Problem, numbers

BATCH = 1000  # samples per batch, whose gradients [b, p] are in memory together


def model(problem: Problem) -> nn.Sequential:
    """Returns a module that computes the logits of the base model; θ is its weights."""
    return nn.Sequential(copy.deepcopy(problem.module.linear)).to(problem.device).eval()


def train_set(problem: Problem) -> TensorDataset:
    return TensorDataset(problem.x, problem.labels)


def test_set(problem: Problem, tests: Sequence[int]) -> TensorDataset:
    rows = torch.as_tensor(list(tests))
    return TensorDataset(problem.test_x[rows], problem.test_labels[rows])


def loader(data: TensorDataset, size: int = BATCH) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(data, batch_size=min(size, len(data)), shuffle=False)


def found(problem: Problem, tests: list[int], products: Tensor, directions: Array | None = None) -> Outcome:
    """Converts ∇L_t · H⁻¹ ∇ℓ_i, `[m, n]`, to scores: −1/n times it is ∂L_t/∂w_i.

    Raises:
        ValueError: If the library returned another number of scores.
    """
    scores = np.asarray(numbers(products), dtype=np.float64) / -problem.n
    if scores.shape != (len(tests), problem.n):
        raise ValueError(f"the library gave scores {scores.shape}, expected {(len(tests), problem.n)}")
    return Outcome(scores, tests, directions=directions)
