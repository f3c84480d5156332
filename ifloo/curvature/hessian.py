"""The Hessian of the whole objective, penalty included."""

from __future__ import annotations

from torch import Tensor
from torch.func import vjp

from ifloo.curvature.operator import Definite
from ifloo.curvature.sample_mean import Product, SampleMeanOperator
from ifloo.objective.batches import Batch


class Hessian(SampleMeanOperator):
    """H = ∇²J(θ; w), by `vjp(grad)` (Pearlmutter 1994): `grad(jvp)` is silently wrong with layer_norm."""

    definite = Definite.UNKNOWN

    def product(self, ids: Tensor, batch: Batch) -> Product:
        pull = vjp(lambda theta: self.objective.part_gradient(theta, ids, batch), self.theta)[1]
        return lambda v: pull(v)[0]
