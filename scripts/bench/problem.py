"""The task that every method gets: the same images and the same base model, loaded before any clock starts."""

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
from ifloo.refit import Base, load_base

QUERY = 8  # the test image of T1 and of the refits
Array = NDArray[Any]


@dataclass(frozen=True)
class Problem:
    """Data and base model in the precision of a method.

    Attributes:
        data: set up.
        base: the checkpoint; its precision is float64.
        module: with its weights, in the precision of the method.
        device: of the reference loops and peers.
    """

    data: MNISTDataModule
    base: Base
    module: LogisticRegression
    device: str

    @classmethod
    def load(cls, task: Task) -> Problem:
        """Reads what the task names.

        Raises:
            InputError: data or base model are not there.
        """
        data, base = data_of(task), load_base(base_file(task))
        module = LogisticRegression(**{**base.model, "dtype": task.dtype})
        base.restore(module)
        problem = cls(data, base, module, task.device)
        _ = problem.x, problem.labels, problem.test_x, problem.test_labels
        return problem

    @cached_property
    def x(self) -> Tensor:
        """`[n, d]`, in the precision of the method."""
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
        """W of the base model, `[C, d]`."""
        return self.module.linear.weight.detach()

    @property
    def l2(self) -> float:
        return float(self.module.hparams["l2_reg"])

    def tests(self, work: str) -> list[int]:
        """The test images of a work."""
        if work in ("T1", "R500"):
            return [QUERY]
        there = len(self.data.test_set)
        return list(range(min(100, there) if work == "T100" else there))


def data_of(task: Task) -> MNISTDataModule:
    """The images, in memory."""
    made = MNISTDataModule(
        root=task.root or "./mnist",
        source="full" if task.root else "embedded",
        train_limit=task.n,
        test_limit=task.tests,
        dtype=task.dtype,
    )
    made.prepare_data()
    made.setup("fit")
    made.fingerprint()
    return made


def base_file(task: Task) -> Path:
    return Path(task.folder) / "base.pth"


def exact_file(task: Task) -> Path:
    return Path(task.folder) / "exact.npz"


@dataclass(frozen=True)
class Part:
    """Some of many equal units of work, timed.

    Attributes:
        spent: on these units; the rest of the work's time counts once.
        done: how many.
        of: how many the work has.
        unit: their name.
    """

    spent: Spent
    done: int
    of: int
    unit: str


@dataclass(frozen=True)
class Refits:
    """Changes of the loss of the query by refits.

    Attributes:
        ids: removed, one a refit.
        change: loss without the sample minus that of the null refit, nats.
        grad_norm: ‖∇J‖ at the end of each refit, in float64.
    """

    ids: Array
    change: Array
    grad_norm: Array


@dataclass(frozen=True)
class Outcome:
    """What a method found.

    Attributes:
        scores: `[m, n]`, for as many of the tests as were done, in our sign and scale where the method has it.
        tests: their ids.
        refits: in place of scores.
        directions: H⁻¹∇L_t as the method has it, `[m, p]`: the true residual is worked out afterwards, untimed.
        residual: the method's own certificate: the largest over the tests.
        part: where only some units were done.
        extra: further keys of the row.
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
    """The first tests of a work, for methods too slow for all of them; `None`: all."""
    return tests[:count]
