"""The operator: a symmetric linear map of flat parameter vectors, and samples of it where it is a mean over samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.curvature.structure import Structure
from ifloo.errors import InputError
from ifloo.progress import OnProgress, no_progress

Tick = OnProgress  # its name before it moved to ifloo.progress


class Definite(Enum):
    """What is known of an operator's eigenvalues before any work."""

    POSITIVE = "positive definite"
    SEMI = "positive semi-definite"
    UNKNOWN = "of unknown sign"


class LinearOperator(ABC):
    """A symmetric map A on `[p]`; its one primitive is `matmat`, row by row, and `A @ v` takes one vector or rows.

    Curvatures of J are in nats per squared parameter.

    Attributes:
        size: p.
        dtype: Type of the vectors it takes and gives.
        device: Device of those vectors.
        definite: What is known of the eigenvalues before any work; solvers judge a failure by it.

    Examples:
        >>> import torch
        >>> from ifloo.curvature import Definite, LinearOperator
        >>> class Diagonal(LinearOperator):
        ...     definite = Definite.POSITIVE
        ...
        ...     def __init__(self, entries):
        ...         self.entries, self.size = entries, len(entries)
        ...         self.dtype, self.device = entries.dtype, entries.device
        ...
        ...     def matmat(self, V):
        ...         return V * self.entries
        >>> A = Diagonal(torch.tensor([1.0, 2.0, 3.0]))
        >>> torch.equal(A @ torch.ones(3), A.entries)
        True
    """

    size: int
    dtype: torch.dtype
    device: torch.device
    definite: Definite

    @abstractmethod
    def matmat(self, V: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        """Each row of V multiplied by A."""

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """A v for a vector `[p]`, or for each row of `[k, p]`.

        Raises:
            InputError: another shape.
        """
        if vectors.ndim not in (1, 2) or vectors.shape[-1] != self.size:
            raise InputError(
                f"{type(self).__name__} @ v takes v of shape [{self.size}] or [k, {self.size}], got "
                f"{list(vectors.shape)}.\n"
                "  Give one vector of all parameters, or one vector a row; `ParamSpace.flatten` makes them of tensors "
                "by name."
            )
        return self.matmat(vectors) if vectors.ndim == 2 else self.matmat(vectors.unsqueeze(0)).squeeze(0)

    @property
    def sampler(self) -> Sampler | None:
        """Samples of an operator that is a mean over samples; None: it cannot be sampled."""
        return None

    @property
    def structure(self) -> Structure:
        """What solvers may use besides products; nothing unless the operator says so."""
        return Structure()


class LockstepDraw(ABC):
    """Independent estimates A_1 … A_r of an operator, drawn together so that one call advances all of them."""

    @abstractmethod
    def matmat(self, V: Float[Tensor, "r k p"]) -> Float[Tensor, "r k p"]:
        """V[j] multiplied, row by row, by A_j."""


class Sampler(ABC):
    """Estimates of an operator that is a mean over samples: a few of them give an unbiased one."""

    @abstractmethod
    def subsampled(self, rows: int, generator: torch.Generator) -> LinearOperator:
        """One estimate from `rows` samples, to be used many times."""


class BatchSampler(Sampler):
    """A sampler that also draws single batches of samples, many of them side by side."""

    @abstractmethod
    def draw(self, repeats: int, batch: int, generator: torch.Generator) -> LockstepDraw:
        """`repeats` independent estimates from `batch` samples each, to be used once."""


class StochasticOperator(LinearOperator, BatchSampler):
    """An operator that is its own sampler: the form operators of one's own had before `LinearOperator.sampler`.

    Examples:
        >>> import torch
        >>> from ifloo.curvature import Damped, Definite, LockstepDraw, StochasticOperator
        >>> class Draw(LockstepDraw):
        ...     def matmat(self, V):
        ...         return 2 * V
        >>> class Twice(StochasticOperator):
        ...     definite, size = Definite.POSITIVE, 3
        ...     dtype, device = torch.float32, torch.device("cpu")
        ...
        ...     def matmat(self, V):
        ...         return 2 * V
        ...
        ...     def subsampled(self, rows, generator):
        ...         return self
        ...
        ...     def draw(self, repeats, batch, generator):
        ...         return Draw()
        >>> sampler = Damped(Twice(), 1.0).sampler
        >>> torch.equal(sampler.subsampled(5, torch.Generator()) @ torch.ones(3), 3 * torch.ones(3))
        True
    """

    @property
    def sampler(self) -> Sampler:
        return self


def dense(operator: LinearOperator, block: int = 64, tick: OnProgress = no_progress) -> Float[Tensor, "p p"]:
    """The matrix of an operator, from products with blocks of unit vectors, made exactly symmetric."""
    p = operator.size
    matrix = torch.empty(p, p, dtype=operator.dtype, device=operator.device)
    for start in range(0, p, block):
        stop = min(start + block, p)
        unit = torch.zeros(stop - start, p, dtype=operator.dtype, device=operator.device)
        unit[:, start:stop].fill_diagonal_(1)
        matrix[start:stop] = operator.matmat(unit)
        tick(stop, p)
    return matrix.add_(matrix.T.clone()).mul_(0.5)
