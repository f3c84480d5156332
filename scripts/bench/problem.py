"""The problem given to every method: the same images and base model, loaded before any clock starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bench.clock import Spent
from bench.task import Task
from ifloo.data import MNISTDataModule
from ifloo.models import LogisticRegression
from ifloo.refit import BaseCheckpoint, load_base

QUERY = 8  # id of the test image of T1 and of the refits
Array = NDArray[Any]


@dataclass(frozen=True)
class Problem:
    """Data and base model in the precision of a method.

    Attributes:
        data: Data module after `setup`.
        base: Checkpoint of the base model, float64.
        module: Model with the weights of the base model, in the precision of the method.
        device: Device of the reference loops and peers.
    """

    data: MNISTDataModule
    base: BaseCheckpoint
    module: LogisticRegression
    device: str

    @classmethod
    def load(cls, task: Task) -> Problem:
        """Loads data and base model of a task.

        Raises:
            InputError: If the data or the base model do not exist.
        """
        data, base = data_of(task), load_base(base_file(task))
        module = LogisticRegression(**{**base.model, "dtype": task.dtype})
        base.restore(module)
        problem = cls(data, base, module, task.device)
        _ = problem.x, problem.labels, problem.test_x, problem.test_labels
        return problem

    @cached_property
    def x(self) -> Tensor:
        """Inputs, `[n, d]`, in the precision of the method."""
        return self.data.train_set.x.to(self.device)

    @cached_property
    def labels(self) -> Tensor:
        return self.data.train_set.labels.to(self.device)

    @cached_property
    def test_x(self) -> Tensor:
        return self.data.test_set.x.to(self.device)

    @cached_property
    def test_labels(self) -> Tensor:
        return self.data.test_set.labels.to(self.device)

    @property
    def n(self) -> int:
        return len(self.data.train_set)

    @property
    def p(self) -> int:
        return self.weights.numel()

    @property
    def weights(self) -> Tensor:
        """Weights W of the base model, `[C, d]`."""
        return self.module.linear.weight.detach()

    @property
    def l2(self) -> float:
        return float(self.module.hparams["l2_reg"])

    def tests(self, work: str) -> list[int]:
        """Lists the test images of a work."""
        if work in ("T1", "R500"):
            return [QUERY]
        available = len(self.data.test_set)
        return list(range(min(100, available) if work == "T100" else available))


def data_of(task: Task) -> MNISTDataModule:
    """Loads the images into memory."""
    data = MNISTDataModule(
        root=task.root or "./mnist",
        source="full" if task.root else "embedded",
        train_limit=task.n,
        test_limit=task.tests,
        dtype=task.dtype,
    )
    data.prepare_data()
    data.setup("fit")
    data.fingerprint()
    return data


def base_file(task: Task) -> Path:
    return Path(task.folder) / "base.pth"


def exact_file(task: Task) -> Path:
    return Path(task.folder) / "exact.npz"


@dataclass(frozen=True)
class Part:
    """Timed part of a work that consists of many equal units.

    Attributes:
        spent: Time of the timed units; the rest of the work's time counts once.
        done: Number of timed units.
        of: Number of all units of the work.
        unit: Name of the units.
    """

    spent: Spent
    done: int
    of: int
    unit: str


@dataclass(frozen=True)
class Refits:
    """Changes of the query's loss by refits.

    Attributes:
        ids: Id of the sample removed in each refit.
        change: Loss without the sample minus the loss of the null refit, nats.
        grad_norm: ‖∇J‖ at the end of each refit, in float64.
    """

    ids: Array
    change: Array
    grad_norm: Array


@dataclass(frozen=True)
class Outcome:
    """Result of a method.

    Attributes:
        scores: Scores of the completed tests, `[m, n]`, in ifloo's sign and, if the method allows, its scale.
        tests: Ids of these tests.
        refits: Result of refits, instead of scores.
        directions: The method's H⁻¹∇L_t, `[m, p]`; the true residual is computed from it afterwards, untimed.
        residual: The method's own certificate, the largest over the tests.
        part: Timed part, if only some units were done.
        extra: Further keys of the row.
    """

    scores: Array | None = None
    tests: list[int] = field(default_factory=list)
    refits: Refits | None = None
    directions: Array | None = None
    residual: float | None = None
    part: Part | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def numbers(tensor: Tensor) -> Array:
    return np.asarray(tensor.detach().cpu())


def some(tests: list[int], count: int | None) -> list[int]:
    """Returns the first `count` tests of a work, for methods too slow for all; all tests if `count` is None."""
    return tests[:count]
