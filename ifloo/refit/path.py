"""The paths of a refit: one by one through a Trainer, or many replicas in one fit. All give the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from ifloo.objective import SampleWeights
from ifloo.params import ParamSpace
from ifloo.refit.recipe import Refit, Refitter


@dataclass(frozen=True)
class RefitTask:
    """One refit: which samples count, and where it starts.

    Attributes:
        weights: w, by sample id.
        displacement: `[p]`, added to the start (a null refit that must really move); None: nothing.
    """

    weights: SampleWeights = field(default_factory=SampleWeights)
    displacement: Float[Tensor, " p"] | None = None


class RefitPath(ABC):
    """How refits are trained.

    Attributes:
        at_once: tasks that one call of `fit` trains together.
        name: of the path, for logs and manifests.
    """

    at_once: int
    name: ClassVar[str]

    @abstractmethod
    def fit(self, tasks: Sequence[RefitTask]) -> list[Refit]:
        """Trains the tasks, at most `at_once` of them; one refit each, in their order.

        Raises:
            WorkError: a refit that did not converge.
        """


class OneByOne(RefitPath):
    """Each refit a Trainer fit of its own: the plain path, for every model and optimizer."""

    at_once = 1
    name: ClassVar[str] = "one by one"

    def __init__(self, refitter: Refitter) -> None:
        self.refitter = refitter

    def fit(self, tasks: Sequence[RefitTask]) -> list[Refit]:
        return [self.refitter.fit(task.weights, _displaced(task)) for task in tasks]


def _displaced(task: RefitTask) -> Callable[[Any], None] | None:
    step = task.displacement
    if step is None:
        return None

    def move(module: Any) -> None:
        space = ParamSpace.of(module)
        space.write_to(module, space.values_of(module) + step)

    return move
