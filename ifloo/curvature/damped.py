"""Damping as an operator, A + δI, and access to the sampler of any operator."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.curvature.operator import BatchSampler, Definite, LinearOperator, LockstepDraw, Sampler
from ifloo.curvature.structure import Structure
from ifloo.errors import InputError


class Damped(LinearOperator):
    """The damped operator A + δI, which has the sampler and the structure of A, damped alike.

    Attributes:
        base: Undamped operator A.
        damping: Damping δ ≥ 0.

    Examples:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from ifloo.curvature import Damped, Hessian
        >>> from ifloo.models import LogisticRegression
        >>> from ifloo.objective import Objective
        >>> model = LogisticRegression(num_features=3, num_classes=2, l2_reg=0.1)
        >>> draw = torch.Generator().manual_seed(0)
        >>> data = TensorDataset(torch.randn(20, 3, generator=draw).double(), torch.arange(20) % 2)
        >>> objective, v = Objective.of(model, DataLoader(data)), torch.linspace(-1, 1, 6).double()
        >>> theta = objective.losses.theta()
        >>> H = Hessian(objective, theta)
        >>> torch.allclose(Damped(H, 0.5) @ v, H @ v + 0.5 * v)
        True
    """

    def __init__(self, base: LinearOperator, damping: float) -> None:
        """Adds damping to `base`; the dampings of nested operators add up.

        Raises:
            InputError: The damping is negative or not finite.
        """
        if not 0 <= damping < float("inf"):
            raise InputError(
                f"Damping must be a finite number >= 0, got {damping}.\n"
                "  It is added to the curvature (H + damping·I); 0 gives the influence of the objective as it is."
            )
        inner = base if isinstance(base, Damped) else None
        # Nested damping is merged, so that `base` is always the undamped operator.
        self.base: LinearOperator = inner.base if inner else base
        self.damping: float = damping + (inner.damping if inner else 0.0)
        self.size, self.dtype, self.device = base.size, base.dtype, base.device
        semi_and_damped = self.base.definite is Definite.SEMI and self.damping > 0
        self.definite = Definite.POSITIVE if semi_and_damped else self.base.definite

    def matmat(self, V: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        return self.base.matmat(V) + self.damping * V

    @property
    def sampler(self) -> Sampler | None:
        base = self.base.sampler
        if isinstance(base, BatchSampler):
            return _DampedBatchSampler(base, self.damping)
        return base and _DampedSampler(base, self.damping)

    @property
    def structure(self) -> Structure:
        return self.base.structure.damped(self.damping)


class _DampedSampler(Sampler):
    def __init__(self, base: Sampler, damping: float) -> None:
        self.base, self.damping = base, damping

    def subsampled(self, rows: int, generator: torch.Generator) -> LinearOperator:
        return Damped(self.base.subsampled(rows, generator), self.damping)


class _DampedBatchSampler(BatchSampler):
    def __init__(self, base: BatchSampler, damping: float) -> None:
        self.base, self.damping = base, damping

    def subsampled(self, rows: int, generator: torch.Generator) -> LinearOperator:
        return Damped(self.base.subsampled(rows, generator), self.damping)

    def draw(self, repeats: int, batch: int, generator: torch.Generator) -> LockstepDraw:
        return _DampedDraw(self.base.draw(repeats, batch, generator), self.damping)


class _DampedDraw(LockstepDraw):
    def __init__(self, base: LockstepDraw, damping: float) -> None:
        self.base, self.damping = base, damping

    def matmat(self, V: Float[Tensor, "r k p"]) -> Float[Tensor, "r k p"]:
        return self.base.matmat(V) + self.damping * V


def can_be_sampled(operator: LinearOperator) -> bool:
    """Tells whether the operator, apart from damping, is a mean over samples."""
    return operator.sampler is not None


def stochastic(operator: LinearOperator) -> Sampler:
    """Returns the sampler of an operator.

    Raises:
        InputError: The operator is not a mean over samples.
    """
    if (sampler := operator.sampler) is None:
        raise InputError(
            f"This solver draws samples of its operator; {_name(operator)} cannot be sampled.\n"
            "  Use Hessian or GaussNewton, or a solver that needs products only (CG, Cholesky)."
        )
    return sampler


def batch_sampler(operator: LinearOperator) -> BatchSampler:
    """Returns the sampler of an operator that can draw single batches.

    Raises:
        InputError: The operator is not a mean over samples, or its sampler cannot draw single batches.
    """
    sampler = stochastic(operator)
    if not isinstance(sampler, BatchSampler):
        raise InputError(
            f"LiSSA draws single batches of samples, which {_name(operator)} does not support: its whole curvature is "
            "known.\n  Use solver Auto, Cholesky or CG; or curvature Hessian with LiSSA."
        )
    return sampler


def _name(operator: LinearOperator) -> str:
    return _name(operator.base) if isinstance(operator, Damped) else type(operator).__name__
