"""Operators of the form (1/n) Σ_i w_i A_i(θ) + ∇²R(θ), such as the Hessian and Gauss-Newton."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, vjp, vmap

from ifloo.curvature.operator import BatchSampler, LinearOperator, LockstepDraw
from ifloo.curvature.structure import Cost, Structure
from ifloo.errors import InputError
from ifloo.objective.batches import Batch, Subsample, TrainingData, slice_batch
from ifloo.objective.forms import map_tensors
from ifloo.objective.functional import Path
from ifloo.objective.objective import Objective
from ifloo.objective.plain import hessian_products

Product = Callable[[Tensor], Tensor]  # [p] -> [p]


class SampleMeanOperator(LinearOperator):
    """(1/n) Σ_i w_i A_i(θ) + ∇²R(θ) at a fixed θ; subclasses define `product`, the share of one batch.

    Examples:
        >>> import torch
        >>> from torch.func import jvp, vjp
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from ifloo.curvature import Definite, SampleMeanOperator, dense
        >>> from ifloo.models import LogisticRegression
        >>> from ifloo.objective import Objective
        >>> model = LogisticRegression(num_features=3, num_classes=2, l2_reg=0.1)
        >>> draw = torch.Generator().manual_seed(0)
        >>> data = TensorDataset(torch.randn(20, 3, generator=draw).double(), torch.arange(20) % 2)
        >>> objective, v = Objective.of(model, DataLoader(data)), torch.linspace(-1, 1, 6).double()
        >>> theta = objective.losses.theta()
        >>> class EmpiricalFisher(SampleMeanOperator):
        ...     definite = Definite.SEMI
        ...
        ...     def product(self, ids, batch):
        ...         losses = lambda theta: self.objective.losses.sample_losses(theta, batch)
        ...         values, pull = vjp(losses, self.theta)[:2]
        ...         return lambda v: pull(jvp(losses, (self.theta,), (v,))[1] / self.objective.n)[0]
        >>> F = EmpiricalFisher(objective, theta)
        >>> torch.allclose(dense(F) @ v, F @ v)
        True
    """

    def __init__(self, objective: Objective, theta: Float[Tensor, " p"], keep_graph: bool = False) -> None:
        """Builds the operator of an objective at θ.

        Args:
            objective: Objective J(θ; w) over all data.
            theta: Parameters at which the curvature is taken.
            keep_graph: Whether to keep the linearisation of the first pass for all later products, which are about
                twice as fast but need memory for the activations of all n samples.
        """
        self.objective, self.theta, self.keep_graph = objective, theta.detach(), keep_graph
        self.size, self.dtype, self.device = theta.numel(), theta.dtype, theta.device
        self._kept: list[Product] | None = None

    @abstractmethod
    def product(self, ids: Tensor, batch: Batch) -> Product:
        """Returns the function v -> (1/n) Σ_{i in batch} w_i A_i(θ) v, linearised once."""

    def matmat(self, V: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        total = self._penalty_products(V)
        for product in self._products():
            total = total + self._rows(product, V)
        return total

    def _penalty_products(self, V: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        losses = self.objective.losses
        if losses.path is Path.LOOP:
            return hessian_products(losses.penalty, self.theta, V)
        return _row_by_row(_hvp_of(losses.penalty, self.theta), V)

    def _rows(self, product: Product, V: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        if self.objective.losses.path is Path.LOOP:  # what vmap cannot run
            return torch.stack([product(v) for v in V])
        return _row_by_row(product, V)

    def _products(self) -> Iterator[Product]:
        if self._kept is not None:
            yield from self._kept
            return
        kept = []
        for ids, batch in self.objective.data.with_ids():
            product = self.product(ids, batch)
            if self.keep_graph:
                kept.append(product)
            yield product
        if self.keep_graph:
            self._kept = kept

    @property
    def sampler(self) -> BatchSampler:
        return _SampleMeanSampler(self)

    @property
    def structure(self) -> Structure:
        """Cost that counts each parameter once per sample: a lower bound if weights are shared along a sequence."""
        product = 8.0 * self.objective.n * self.size
        return Structure(Cost(product, core=self.size * product, size=self.size))


class _SampleMeanSampler(BatchSampler):
    def __init__(self, operator: SampleMeanOperator) -> None:
        self._operator = operator

    def subsampled(self, rows: int, generator: torch.Generator) -> LinearOperator:
        operator = self._operator
        if operator.objective.losses.path is Path.LOOP and rows >= operator.objective.n:
            return operator  # all samples cost less, one by one, than as many draws with repetitions
        objective = replace(operator.objective, data=whole_data(operator.objective).draw(rows, generator))
        return type(operator)(objective, operator.theta, keep_graph=True)

    def draw(self, repeats: int, batch: int, generator: torch.Generator) -> LockstepDraw:
        drawn = whole_data(self._operator.objective).draw(repeats * batch, generator)
        if self._operator.objective.losses.path is Path.LOOP:
            return _LoopDraw(self._operator, drawn, repeats)
        stacked = map_tensors(lambda x: x.reshape(repeats, batch, *x.shape[1:]) if x.ndim else x, drawn.batch)
        return _SampleMeanDraw(self._operator, drawn.ids.reshape(repeats, batch), stacked)


def whole_data(objective: Objective) -> TrainingData:
    """Returns the training data of an objective, from which samples can be drawn.

    Raises:
        InputError: The objective is restricted to a subsample of the data.
    """
    if not isinstance(objective.data, TrainingData):
        raise InputError("Samples can be drawn from the whole training data only, not from a sample of them.")
    return objective.data


class _SampleMeanDraw(LockstepDraw):
    def __init__(self, operator: SampleMeanOperator, ids: Tensor, batches: Batch) -> None:
        objective = operator.objective
        # The share of b samples is divided by n; an estimate of the mean over all samples is divided by b.
        self._rescale = objective.n / ids.shape[1]
        self._operator, self._ids, self._batches = operator, ids, batches

    def matmat(self, V: Float[Tensor, "r k p"]) -> Float[Tensor, "r k p"]:
        operator = self._operator

        def product_of_repeat(ids: Tensor, batch: Batch, rows: Tensor) -> Tensor:
            return _row_by_row(operator.product(ids, batch), rows)

        in_dims = (0, map_tensors(lambda x: 0 if x.ndim else None, self._batches), 0)
        shares = vmap(product_of_repeat, in_dims=in_dims)(self._ids, self._batches, V)
        penalty = _row_by_row(_hvp_of(operator.objective.losses.penalty, operator.theta), V.flatten(0, 1))
        return self._rescale * shares + penalty.reshape(V.shape)


class _LoopDraw(LockstepDraw):
    """Samples drawn for each repeat, whose products are formed one repeat after the other."""

    def __init__(self, operator: SampleMeanOperator, drawn: Subsample, repeats: int) -> None:
        size = drawn.n // repeats
        parts = (slice(start, start + size) for start in range(0, drawn.n, size))
        self._operators = [
            type(operator)(replace(operator.objective, data=subsample), operator.theta)
            for subsample in (Subsample(drawn.ids[rows], slice_batch(drawn.batch, rows)) for rows in parts)
        ]

    def matmat(self, V: Float[Tensor, "r k p"]) -> Float[Tensor, "r k p"]:
        return torch.stack([operator.matmat(rows) for operator, rows in zip(self._operators, V, strict=True)])


def _hvp_of(function: Callable[[Tensor], Tensor], theta: Tensor) -> Product:
    pull = vjp(grad(function), theta)[1]
    return lambda v: pull(v)[0]


def _row_by_row(product: Product, V: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
    return product(V[0]).unsqueeze(0) if len(V) == 1 else vmap(product)(V)
