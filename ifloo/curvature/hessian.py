"""The Hessian of the whole objective, penalty included."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.func import vjp

from ifloo.curvature.operator import Definite
from ifloo.curvature.sample_mean import Product, SampleMeanOperator
from ifloo.objective.batches import Batch
from ifloo.objective.functional import Path
from ifloo.objective.plain import hessian_products, second_derivative


class Hessian(SampleMeanOperator):
    """H = ∇²J(θ; w); products by `vjp(grad)` (Pearlmutter 1994), since `grad(jvp)` is silently wrong with layer_norm.

    Where the losses are differentiated in a loop, products are double backward passes of plain autograd.

    Examples:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from ifloo.curvature import Hessian
        >>> from ifloo.models import LogisticRegression
        >>> from ifloo.objective import Objective
        >>> model = LogisticRegression(num_features=3, num_classes=2, l2_reg=0.1)
        >>> draw = torch.Generator().manual_seed(0)
        >>> data = TensorDataset(torch.randn(20, 3, generator=draw).double(), torch.arange(20) % 2)
        >>> objective, v = Objective.of(model, DataLoader(data)), torch.linspace(-1, 1, 6).double()
        >>> theta = objective.losses.theta()
        >>> step = 1e-4 * v
        >>> difference = (objective.gradient(theta + step) - objective.gradient(theta - step)) / 2e-4
        >>> torch.allclose(Hessian(objective, theta) @ v, difference, atol=1e-7)
        True
    """

    definite = Definite.UNKNOWN

    def matmat(self, V: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        objective = self.objective
        if objective.losses.path is not Path.LOOP:
            return super().matmat(V)
        total = hessian_products(objective.losses.penalty, self.theta, V)
        for ids, batch in objective.data.with_ids():
            for term in objective.terms(ids, batch):
                total = total + hessian_products(term, self.theta, V)
        return total

    def product(self, ids: Tensor, batch: Batch) -> Product:
        with second_derivative():
            pull = vjp(lambda theta: self.objective.part_gradient(theta, ids, batch), self.theta)[1]

        def product(v: Tensor) -> Tensor:
            with second_derivative():
                slope: Tensor = pull(v)[0]
            return slope

        return product
