"""Symmetric linear operators on flat parameter vectors, and sampling of those that are means over samples."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from enum import Enum

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.curvature.structure import Structure
from ifloo.errors import InputError
from ifloo.progress import OnProgress, no_progress

Tick = OnProgress  # former name


class Definite(Enum):
    """Sign of an operator's eigenvalues, as far as it is known without computing them."""

    POSITIVE = "positive definite"
    SEMI = "positive semi-definite"
    UNKNOWN = "of unknown sign"


_FORMER_HOOKS = frozenset({"core", "cost", "has_kronecker", "is_dense", "kronecker", "streamed"})


class LinearOperator(ABC):
    """A symmetric linear map A on vectors `[p]`.

    Subclasses define `matmat`, which multiplies each row of `[k, p]`; `A @ v` takes one vector or rows.

    The curvature of J is in nats per squared unit of the parameters.

    Attributes:
        size: Number of parameters p.
        dtype: Dtype of the vectors.
        device: Device of the vectors.
        definite: Known sign of the eigenvalues; solvers explain failures by it.

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

    def __init_subclass__(cls) -> None:
        """Checks that a class written for an earlier release states its structure where it is read now.

        Raises:
            InputError: If the class defines a former hook that the `structure` it inherits does not know of.
        """
        super().__init_subclass__()
        if found := _FORMER_HOOKS.intersection(dir(cls)).difference(dir(_owner_of_structure(cls))):
            raise InputError(
                f"{cls.__name__} defines {', '.join(sorted(found))}, which solvers no longer read, and states no "
                "`structure`, which they read in place of it.\n"
                "  Return a Structure (cost, dense, kronecker) from the property `structure`; see docs/renames.md."
            )

    @abstractmethod
    def matmat(self, V: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        """Multiplies each row of V by A."""

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Returns A v for a vector `[p]`, or for each row of `[k, p]`.

        Raises:
            InputError: The vectors have another shape.
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
        """Sampler of an operator that is a mean over samples; None for any other."""
        return None

    @property
    def structure(self) -> Structure:
        """Properties that solvers can use besides products; none by default."""
        return Structure()


def _owner_of_structure(operator: type[LinearOperator]) -> type:
    """Returns the class that defines `structure` for an operator class."""
    (owner,) = (one.defining_class for one in inspect.classify_class_attrs(operator) if one.name == "structure")
    return owner


class LockstepDraw(ABC):
    """Independent estimates A_1 … A_r of an operator, drawn together so that one call multiplies by all of them."""

    @abstractmethod
    def matmat(self, V: Float[Tensor, "r k p"]) -> Float[Tensor, "r k p"]:
        """Multiplies each row of V[j] by A_j."""


class Sampler(ABC):
    """Source of unbiased estimates of an operator that is a mean over samples."""

    @abstractmethod
    def subsampled(self, rows: int, generator: torch.Generator) -> LinearOperator:
        """Draws one estimate from `rows` samples, for many products."""


class BatchSampler(Sampler):
    """A sampler that also draws many independent batches of samples at once."""

    @abstractmethod
    def draw(self, repeats: int, batch: int, generator: torch.Generator) -> LockstepDraw:
        """Draws `repeats` independent estimates from `batch` samples each, for one product."""


class StochasticOperator(LinearOperator, BatchSampler):
    """An operator that is its own sampler, kept for user-defined operators without a separate `Sampler`.

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
    """Returns the matrix of an operator from products with blocks of unit vectors, made exactly symmetric."""
    p = operator.size
    matrix = torch.empty(p, p, dtype=operator.dtype, device=operator.device)
    for start in range(0, p, block):
        stop = min(start + block, p)
        unit = torch.zeros(stop - start, p, dtype=operator.dtype, device=operator.device)
        unit[:, start:stop].fill_diagonal_(1)
        matrix[start:stop] = operator.matmat(unit)
        tick(stop, p)
    return matrix.add_(matrix.T.clone()).mul_(0.5)
