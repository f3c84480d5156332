"""The generalised Gauss-Newton matrix of the whole objective, penalty included."""

from __future__ import annotations

from torch import Tensor
from torch.func import grad, jvp, vjp

from ifloo.curvature.operator import Definite
from ifloo.curvature.sample_mean import Product, SampleMeanOperator
from ifloo.errors import InputError
from ifloo.objective.batches import Batch, times_factors
from ifloo.objective.objective import Objective
from ifloo.objective.protocol import states_outputs


class GaussNewton(SampleMeanOperator):
    """G = (1/n) Σ_i w_i J_iᵀ ∇²ℓ(z_i) J_i + ∇²R(θ) with outputs z_i and J_i = ∂z_i/∂θ (Schraudolph 2002).

    G is positive semi-definite if the losses are convex in the outputs and the penalty is convex. G equals the Hessian
    if the outputs are linear in θ.

    Examples:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from ifloo.curvature import GaussNewton, Hessian
        >>> from ifloo.models import LogisticRegression
        >>> from ifloo.objective import Objective
        >>> model = LogisticRegression(num_features=3, num_classes=2, l2_reg=0.1)
        >>> draw = torch.Generator().manual_seed(0)
        >>> data = TensorDataset(torch.randn(20, 3, generator=draw).double(), torch.arange(20) % 2)
        >>> objective, v = Objective.of(model, DataLoader(data)), torch.linspace(-1, 1, 6).double()
        >>> theta = objective.losses.theta()
        >>> G, H = GaussNewton(objective, theta), Hessian(objective, theta)
        >>> torch.allclose(G @ v, H @ v)  # the outputs are linear in θ
        True
    """

    definite = Definite.SEMI

    def __init__(self, objective: Objective, theta: Tensor, keep_graph: bool = False) -> None:
        """Builds the operator; for the arguments see `SampleMeanOperator`.

        Raises:
            InputError: The model does not define `outputs` and `output_losses`.
        """
        module = objective.losses.module
        if not states_outputs(module):
            raise InputError(
                f"Gauss-Newton needs the model's outputs apart from its loss; {type(module).__name__} defines no "
                "`outputs(batch)` and `output_losses(outputs, batch)`.\n  Define both, or use curvature Hessian."
            )
        super().__init__(objective, theta, keep_graph)

    def product(self, ids: Tensor, batch: Batch) -> Product:
        losses, theta = self.objective.losses, self.theta

        def outputs(parameters: Tensor) -> Tensor:
            return losses.outputs(parameters, batch)

        def share(z: Tensor) -> Tensor:
            each = times_factors(losses.output_losses(z, batch), batch)
            return (self.objective.weights.of(ids, each.dtype) * each).sum() / self.objective.n

        z, pull = vjp(outputs, theta)[:2]
        curve = vjp(grad(share), z)[1]

        def multiply(v: Tensor) -> Tensor:
            product: Tensor = pull(curve(jvp(outputs, (theta,), (v,))[1])[0])[0]
            return product

        return multiply
