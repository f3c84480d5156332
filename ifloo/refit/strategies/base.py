"""The paths of a refit: one by one through a Trainer, or many replicas in one fit. All give the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.gradients import sample_gradients
from ifloo.models import SampleLossModule
from ifloo.objective import SampleWeights, scoring
from ifloo.params import ParamSpace
from ifloo.refit.recipe import Refit, Refitter
from ifloo.solvers import SolveError


@dataclass(frozen=True)
class RefitTask:
    """One refit: which samples count, and where it starts.

    Attributes:
        weights: w, by sample id.
        displacement: `[p]`, added to the start (a null refit that must really move); None: nothing.
    """

    weights: SampleWeights = field(default_factory=SampleWeights)
    displacement: Float[Tensor, " p"] | None = None


class RefitStrategy(ABC):
    """How refits are trained.

    `fit` is what a path must have. What refits share is made in `prepare`, once in each process that refits; a path
    with a factor of its own overrides `prepare` and `removal_steps`, and needs no preconditioner then.

    Attributes:
        refitter: whose refits they are.
        at_once: tasks that one call of `fit` trains together.
        name: of the path, for logs and manifests.
    """

    refitter: Refitter
    at_once: int
    name: ClassVar[str]

    @abstractmethod
    def fit(self, tasks: Sequence[RefitTask]) -> list[Refit]:
        """Trains the tasks, at most `at_once` of them; one refit each, in their order.

        Raises:
            WorkError: a refit that did not converge.
        """

    def prepare(self, base: SampleLossModule) -> None:
        """What all refits share, made at the base module: here the preconditioner of the Newton finish."""
        if self.refitter.finish.after != "never":
            # Where J is not convex there may be none, and a fit that ends without Newton steps needs none; one that
            # does take them asks again, and fails with the same words.
            with suppress(SolveError):
                self.refitter.finish.prepare(base, self.refitter.loader())

    def removal_steps(self, base: SampleLossModule, count: int, seed: int) -> Float[Tensor, "k p"]:
        """(1/n) H⁻¹∇ℓ_j of `count` random samples j, to three digits: only its size matters.

        Raises:
            SolveError: the Hessian at the base module is not positive definite.
        """
        finish = self.refitter.finish
        objective, theta = finish.objective(base, self.refitter.loader()), ParamSpace.of(base).values_of(base)
        generator = torch.Generator().manual_seed(seed)
        with scoring(base):
            drawn = objective.data.draw(count, generator)  # type: ignore[attr-defined]
            gradients = sample_gradients(objective.losses, theta, drawn.batch)
            return finish.solve(objective, gradients, rtol=1e-3) / objective.data.n


class OneByOne(RefitStrategy):
    """Each refit a Trainer fit of its own: the plain path, for every model and optimizer."""

    at_once = 1
    name: ClassVar[str] = "one by one"

    def __init__(self, refitter: Refitter) -> None:
        self.refitter = refitter

    def fit(self, tasks: Sequence[RefitTask]) -> list[Refit]:
        return [self.refitter.fit(task.weights, _displaced(task)) for task in tasks]


def _displaced(task: RefitTask) -> Callable[[SampleLossModule], None] | None:
    step = task.displacement
    if step is None:
        return None

    def move(module: SampleLossModule) -> None:
        space = ParamSpace.of(module)
        values = space.values_of(module)
        space.write_to(module, values + step.to(values))

    return move
