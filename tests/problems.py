"""Problems with known solutions in float64, computed by formulas that share no code with the engine.

`Ridge` has a closed form for any sample weights; `Logistic` is solved by dense Newton to rounding; `Attention` is
small, curved and untrained: it tests operations that torch.func gets wrong.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ifloo.attribution import InfluenceEngine
from ifloo.curvature import Hessian
from ifloo.models import LogisticRegression
from ifloo.objective import FunctionalLosses, Objective, SampleWeights, TrainingData, differentiable_kernels
from ifloo.params import ParamSpace
from ifloo.solvers import Cholesky

Form = Callable[[dict[str, Tensor]], Any]  # converts a sample to the form of its batches: dict or tuple


def as_dict(sample: dict[str, Tensor]) -> dict[str, Tensor]:
    return sample


def as_tuple(sample: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return sample["x"], sample["labels"], sample["idx"]


class Samples(Dataset):
    """Rows of x and labels in a given order; the id of a row is its position in x."""

    def __init__(self, x: Tensor, labels: Tensor, order: Tensor | None = None, form: Form = as_dict) -> None:
        self.ids = torch.arange(len(x)) if order is None else order
        self.x, self.labels, self.form = x[self.ids], labels[self.ids], form

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        return self.form({"x": self.x[i], "labels": self.labels[i], "idx": self.ids[i]})


@dataclass(frozen=True)
class Problem:
    """A model with training samples and queries.

    Attributes:
        module: Model, at its parameters θ.
        x: Inputs of the n training samples.
        labels: Labels of the training samples.
        queries: Batch of m test samples.
        penalty: λ of the penalty ½λ‖θ‖².
    """

    module: nn.Module
    x: Tensor
    labels: Tensor
    queries: dict[str, Tensor]
    penalty: float

    @property
    def n(self) -> int:
        return len(self.x)

    @property
    def space(self) -> ParamSpace:
        return ParamSpace.of(self.module)

    @cached_property
    def theta(self) -> Tensor:
        return self.space.values_of(self.module)

    def loader(self, batch_size: int = 7, order: Tensor | None = None, form: Form = as_dict) -> DataLoader:
        return DataLoader(Samples(self.x, self.labels, order, form), batch_size=batch_size)

    def data(self, batch_size: int = 7, cache_bytes: int = 1 << 30, **settings: Any) -> TrainingData:
        return TrainingData(self.loader(batch_size, **settings), torch.device("cpu"), self.space.dtype, cache_bytes)

    def objective(self, batch_size: int = 7, **settings: Any) -> Objective:
        return Objective(FunctionalLosses(self.module, self.space), self.data(batch_size, **settings))

    def engine(self, solver: Any = None, batch_size: int = 7, **settings: Any) -> InfluenceEngine:
        objective = self.objective(batch_size, **settings)
        hessian = Hessian(objective, self.theta)
        return InfluenceEngine(objective, self.theta, hessian, solver or Cholesky(), self.penalty)

    # Reference values by plain autograd or by formula, without torch.func and ifloo.

    def losses_at(self, theta: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        """Computes ℓ of each sample."""
        raise NotImplementedError

    def value(self, theta: Tensor, weights: Tensor | None = None) -> Tensor:
        """Computes J(θ; w) of all training samples."""
        losses = self.losses_at(theta, self.x, self.labels)
        return ((weights if weights is not None else 1.0) * losses).sum() / self.n + self.penalty / 2 * theta @ theta

    def query_losses(self, theta: Tensor) -> Tensor:
        return self.losses_at(theta, self.queries["x"], self.queries["labels"])

    def dense_hessian(self, theta: Tensor | None = None, ids: Tensor | None = None) -> Tensor:
        """Computes ∇²J; with `ids` (repeats count) the mean runs over these samples only."""
        ids = torch.arange(self.n) if ids is None else ids

        def mean(t: Tensor) -> Tensor:
            return self.losses_at(t, self.x[ids], self.labels[ids]).mean() + self.penalty / 2 * t @ t

        with differentiable_kernels():
            return torch.autograd.functional.hessian(mean, self.theta if theta is None else theta)

    def dense_gauss_newton(self) -> Tensor:
        """Computes (1/n) Σ J_iᵀ S_i J_i + λI with the loss's second derivative S_i derived by hand."""
        raise NotImplementedError

    def gradients(self, theta: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        """Computes ∇ℓ of each sample, one backward pass each."""
        return torch.autograd.functional.jacobian(lambda t: self.losses_at(t, x, labels), theta)

    def scores(self) -> Tensor:
        """Computes the scores −(1/n) ∇L_t H⁻¹ ∇ℓ_i with a dense H."""
        training = self.gradients(self.theta, self.x, self.labels)
        queries = self.gradients(self.theta, self.queries["x"], self.queries["labels"])
        return -queries @ torch.linalg.solve(self.dense_hessian(), training.T) / self.n


class LeastSquares(nn.Module):
    """ℓ_i = ½ (x_iᵀθ − y_i)², R = ½λ‖θ‖²."""

    def __init__(self, p: int, penalty: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(p, dtype=torch.float64))
        self.strength = penalty

    def outputs(self, batch: Any) -> Tensor:
        return (batch["x"] if isinstance(batch, dict) else batch[0]) @ self.weight

    def output_losses(self, outputs: Tensor, batch: Any) -> Tensor:
        return 0.5 * (outputs - (batch["labels"] if isinstance(batch, dict) else batch[1])).square()

    def sample_losses(self, batch: Any) -> Tensor:
        return self.output_losses(self.outputs(batch), batch)

    def penalty(self) -> Tensor:
        return 0.5 * self.strength * self.weight.square().sum()


class Ridge(Problem):
    """Least squares with penalty: minimiser, refits with any weights and leverages in closed form."""

    @classmethod
    def make(cls, n: int = 40, p: int = 5, m: int = 3, penalty: float = 0.1) -> "Ridge":
        draw = torch.Generator().manual_seed(1)
        x, z = (torch.randn(k, p, generator=draw, dtype=torch.float64) for k in (n, m))
        y, t = (a @ torch.arange(1.0, p + 1, dtype=a.dtype) + torch.randn(len(a), generator=draw) for a in (x, z))
        problem = cls(LeastSquares(p, penalty), x, y, {"x": z, "labels": t, "idx": torch.arange(100, 100 + m)}, penalty)
        problem.space.write_to(problem.module, problem.fit())
        return problem

    def fit(self, weights: Tensor | None = None) -> Tensor:
        """Computes the minimiser of J(θ; w)."""
        w = torch.ones(self.n, dtype=self.x.dtype) if weights is None else weights
        H = (self.x.T * w) @ self.x / self.n + self.penalty * torch.eye(self.x.shape[1], dtype=self.x.dtype)
        return torch.linalg.solve(H, self.x.T @ (w * self.labels) / self.n)

    def losses_at(self, theta: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        return 0.5 * (x @ theta - labels).square()

    def dense_gauss_newton(self) -> Tensor:
        return self.x.T @ self.x / self.n + self.penalty * torch.eye(self.x.shape[1], dtype=self.x.dtype)

    def leverages(self) -> Tensor:
        """Computes h_i = x_iᵀ H⁻¹ x_i / n."""
        return (self.x * torch.linalg.solve(self.dense_gauss_newton(), self.x.T).T).sum(1) / self.n


class Classification(Problem):
    """Problem with the cross-entropy of `logits_at` as loss."""

    def logits_at(self, theta: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError

    def losses_at(self, theta: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        logits = self.logits_at(theta, x)
        return torch.logsumexp(logits, 1) - logits.gather(1, labels[:, None]).squeeze(1)

    def dense_gauss_newton(self) -> Tensor:
        with differentiable_kernels():
            J = torch.autograd.functional.jacobian(lambda t: self.logits_at(t, self.x), self.theta)
        probability = self.logits_at(self.theta, self.x).softmax(1)
        S = torch.diag_embed(probability) - probability[:, :, None] * probability[:, None, :]
        identity = torch.eye(len(self.theta), dtype=self.theta.dtype)
        return torch.einsum("ncp,ncd,ndq->pq", J, S, J) / self.n + self.penalty * identity


class Logistic(Classification):
    """`LogisticRegression` of three classes at its minimum, found by Newton with dense Hessians."""

    @classmethod
    def make(cls, n: int = 50, d: int = 4, m: int = 3, penalty: float = 0.02) -> "Logistic":
        draw = torch.Generator().manual_seed(2)
        x, z = (torch.randn(k, d, generator=draw, dtype=torch.float64) for k in (n, m))
        truth = torch.randn(3, d, generator=draw, dtype=torch.float64)
        y, t = ((a @ truth.T + torch.randn(len(a), 3, generator=draw, dtype=torch.float64)).argmax(1) for a in (x, z))
        module = LogisticRegression(num_features=d, num_classes=3, l2_reg=penalty)
        problem = cls(module, x, y, {"x": z, "labels": t, "idx": torch.arange(100, 100 + m)}, penalty)
        problem.space.write_to(module, problem.fit())
        return problem

    def logits_at(self, theta: Tensor, x: Tensor) -> Tensor:
        return x @ theta.reshape(3, -1).T

    def fit(self, weights: Tensor | None = None, start: Tensor | None = None) -> Tensor:
        """Computes the minimiser of J(θ; w), to ‖∇J‖ <= 1e-14."""
        theta = torch.zeros(3 * self.x.shape[1], dtype=self.x.dtype) if start is None else start
        for _ in range(30):
            gradient = torch.autograd.functional.jacobian(lambda t: self.value(t, weights), theta)
            if gradient.norm() <= 1e-14:
                return theta
            H = torch.autograd.functional.hessian(lambda t: self.value(t, weights), theta)
            theta = theta - torch.linalg.solve(H, gradient)
        raise AssertionError(f"Newton stopped at a gradient of {float(gradient.norm()):.1e}")


class AttentionModel(nn.Module):
    """Three tokens through layer_norm and one head of attention, at which forward-over-reverse AD fails."""

    def __init__(self, penalty: float) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 4, dtype=torch.float64), nn.Linear(4, 3, dtype=torch.float64)
        self.norm, self.strength = nn.LayerNorm(4, dtype=torch.float64), penalty

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.embed(x)).unsqueeze(1)  # [b, heads, tokens, channels]
        return self.head(F.scaled_dot_product_attention(h, h, h).mean((1, 2)))

    def outputs(self, batch: Any) -> Tensor:
        return self(batch["x"] if isinstance(batch, dict) else batch[0])

    def output_losses(self, outputs: Tensor, batch: Any) -> Tensor:
        labels = batch["labels"] if isinstance(batch, dict) else batch[1]
        return F.cross_entropy(outputs, labels, reduction="none")

    def sample_losses(self, batch: Any) -> Tensor:
        return self.output_losses(self.outputs(batch), batch)

    def penalty(self) -> Tensor:
        return 0.5 * self.strength * torch.stack([p.square().sum() for p in self.parameters()]).sum()


class Attention(Classification):
    """A random, untrained `AttentionModel`: its Hessian is indefinite, its Gauss-Newton is not."""

    @classmethod
    def make(cls, n: int = 12, m: int = 2, penalty: float = 0.05) -> "Attention":
        draw = torch.Generator().manual_seed(3)
        x, z = (torch.randn(k, 3, 3, generator=draw, dtype=torch.float64) for k in (n, m))
        y, t = (torch.randint(3, (k,), generator=draw) for k in (n, m))
        module = AttentionModel(penalty)
        problem = cls(module, x, y, {"x": z, "labels": t, "idx": torch.arange(100, 100 + m)}, penalty)
        p = problem.space.size
        problem.space.write_to(module, torch.randn(p, generator=draw, dtype=torch.float64))
        return problem

    def logits_at(self, theta: Tensor, x: Tensor) -> Tensor:
        return torch.func.functional_call(self.module, self.space.unflatten(theta), (x,))


def weights_with(ids: list[int], values: list[float], default: float = 1.0) -> SampleWeights:
    return SampleWeights(default, torch.tensor(ids), torch.tensor(values, dtype=torch.float64))
