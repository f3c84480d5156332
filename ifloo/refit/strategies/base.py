"""Interface of refit strategies, and the plain one: one Trainer fit for each refit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.errors import InputError
from ifloo.gradients import sample_gradients
from ifloo.models import SampleLossModule
from ifloo.objective import SampleWeights, scoring
from ifloo.params import ParamSpace
from ifloo.refit.refitter import Refit, Refitter
from ifloo.solvers import SolveError


@dataclass(frozen=True)
class RefitTask:
    """One refit: its sample weights and its start.

    Attributes:
        weights: Sample weights w, by id.
        displacement: Step added to the start, `[p]`, so that a null refit moves; None adds nothing.
    """

    weights: SampleWeights = field(default_factory=SampleWeights)
    displacement: Float[Tensor, " p"] | None = None


class StrategyError(InputError):
    """A refit strategy does not suit this model, its training or its data; the text gives the reason as one clause."""


class RefitStrategy(ABC):
    """Way of training refits.

    A strategy implements `fit`. What its refits share is computed by `prepare`, once in each process that refits. A
    strategy that factorises the Hessian overrides `prepare` and `removal_steps` and then needs no preconditioner.

    Attributes:
        refitter: Refitter of the base fit.
        max_at_once: Largest number of tasks that one call of `fit` trains together.
        name: Name of the strategy in manifests.
        words: How it trains, in messages.
    """

    refitter: Refitter
    max_at_once: int
    name: ClassVar[str]
    words: ClassVar[str]

    @abstractmethod
    def fit(self, tasks: Sequence[RefitTask]) -> list[Refit]:
        """Trains at most `max_at_once` tasks.

        Returns:
            One refit for each task, in their order.

        Raises:
            WorkError: If a refit does not converge.
        """

    def prepare(self, base: SampleLossModule) -> None:
        """Computes what all refits share at the base module: by default the preconditioner of the Newton finish."""
        if self.refitter.finish.after != "never":
            # If J is not convex there may be no preconditioner, and a fit without Newton steps needs none; one with
            # Newton steps tries again and fails with the same message.
            with suppress(SolveError):
                self.refitter.finish.prepare(base, self.refitter.loader())

    def removal_steps(self, base: SampleLossModule, count: int, seed: int) -> Float[Tensor, "k p"]:
        """Computes (1/n) H⁻¹∇ℓ_j of `count` random samples j, to three digits, since only its size matters.

        Raises:
            SolveError: If the Hessian at the base module is not positive definite.
        """
        finish = self.refitter.finish
        objective, theta = finish.objective(base, self.refitter.loader()), ParamSpace.of(base).values_of(base)
        generator = torch.Generator().manual_seed(seed)
        with scoring(base):
            drawn = objective.data.draw(count, generator)  # type: ignore[attr-defined]
            gradients = sample_gradients(objective.losses, theta, drawn.batch)
            return finish.solve(objective, gradients, rtol=1e-3) / objective.data.n


class OneByOne(RefitStrategy):
    """Trains each refit in a separate Trainer fit; suits every model and optimizer."""

    max_at_once = 1
    name: ClassVar[str] = "one by one"
    words: ClassVar[str] = "one by one"

    def __init__(self, refitter: Refitter) -> None:
        self.refitter = refitter

    def fit(self, tasks: Sequence[RefitTask]) -> list[Refit]:
        return [self.refitter.fit(task.weights, _displaced(task)) for task in tasks]


def _displaced(task: RefitTask) -> Callable[[SampleLossModule], None] | None:
    """Returns a function that adds the displacement of a task to a module's weights; None without a displacement."""
    step = task.displacement
    if step is None:
        return None

    def move(module: SampleLossModule) -> None:
        space = ParamSpace.of(module)
        values = space.values_of(module)
        space.write_to(module, values + step.to(values))

    return move
