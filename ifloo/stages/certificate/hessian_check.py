"""Check on drawn samples that products with the Hessian are the derivative of the gradient that training followed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import lightning as L
import torch
from torch import Tensor

from ifloo.objective.batches import Batch, to_device
from ifloo.objective.functional import FunctionalLosses, Path, scoring
from ifloo.objective.gradient_field import compare_with_field
from ifloo.objective.own_backward import own_backward
from ifloo.objective.plain import hessian_products, recording
from ifloo.objective.randomness import undisturbed
from ifloo.params import ParamSpace
from ifloo.stages.certificate.coarsest_float import CoarsestFloat

ROUNDINGS = 1e4  # mean loss, in roundings of its arithmetic, from which its second derivatives are resolved


@dataclass(frozen=True)
class HessianCheck:
    """Mean loss of some samples, each a batch of one, with the penalty of the module.

    Attributes:
        losses: Losses, differentiated by plain autograd.
        singles: Batches of one.
    """

    losses: FunctionalLosses
    singles: Sequence[Batch]

    @classmethod
    def of(cls, module: L.LightningModule, parameters: Sequence[str], singles: Sequence[Batch]) -> HessianCheck:
        """Moves the samples to the device and the precision of a module."""
        space = ParamSpace.of(module, parameters)
        moved = [to_device(one, space.device, space.dtype) for one in singles]
        return cls(FunctionalLosses(module, space, Path.LOOP), moved)

    def note(self) -> str:
        """Returns the sentence on products that differ from the derivative of the training gradient, or ''."""
        theta = self.losses.theta()
        if self._rounded_away(theta):
            return ""
        found = compare_with_field(self._gradient, lambda V: self._products(theta, V), theta)
        if found is None or found.equal:
            return ""
        with recording():
            at = theta.clone().requires_grad_()
            return found.text(own_backward(lambda: self._mean(at)))

    def _rounded_away(self, theta: Tensor) -> bool:
        """Tells whether the losses are so small that the rounding of their arithmetic decides the second derivatives.

        A sample that is fitted to the last digits has a curvature p (1 - p) whose p is rounded to 1; a loss may be
        taken in fewer bits than the parameters have.
        """
        with CoarsestFloat() as arithmetic:
            values = torch.stack([self.losses.single_loss(theta, one) for one in self.singles])
        smallest: float = ROUNDINGS * arithmetic.eps
        return float(values.detach().abs().mean()) <= smallest

    def _terms(self) -> list[Callable[[Tensor], Tensor]]:
        losses, share = self.losses, 1 / len(self.singles)
        terms = [lambda at, one=one: losses.single_loss(at, one) * share for one in self.singles]
        return [*terms, losses.penalty]

    def _mean(self, theta: Tensor) -> Tensor:
        return torch.stack([term(theta) for term in self._terms()]).sum()

    def _gradient(self, theta: Tensor) -> Tensor:
        return torch.stack([self.losses.gradient_and_value(term, theta)[0] for term in self._terms()]).sum(0)

    def _products(self, theta: Tensor, V: Tensor) -> Tensor:
        return torch.stack([hessian_products(term, theta, V) for term in self._terms()]).sum(0)


def hessian_note(module: L.LightningModule, parameters: Sequence[str], singles: Sequence[Batch]) -> str:
    """Returns the sentence on products with the Hessian that are not the derivative of the training gradient, or ''.

    Args:
        module: Module under the contract, in the precision of the comparison; its weights are not changed.
        parameters: Patterns of the names of the attributed parameters.
        singles: Batches of one.
    """
    with undisturbed(), scoring(module):
        return HessianCheck.of(module, parameters, singles).note()
