"""Scores by plain autograd in float64, computed apart from ifloo.

One loss at a time in evaluation mode, the Hessian of the whole objective by double backward, one dense solve:
−(1/n) ∇L_tᵀ (H + δI)⁻¹ ∇ℓ_i, for every test sample t and every training sample i.
"""

import fnmatch
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Loss = Callable[[Any, Any], Tensor]  # (module, batch of one) -> [] or [1], nats
Penalty = Callable[[Any], Tensor]  # module -> [], nats


def singles(loader: Any) -> list[Any]:
    """Returns the samples behind a loader as batches of one, made by its own dataset and collate function."""
    data, collate = loader.dataset, loader.collate_fn
    alone = loader.batch_sampler is None  # batch_size=None: a sample of the dataset is a batch already
    return [collate(data[i] if alone else [data[i]]) for i in range(len(data))]


def step_loss(model: Any, batch: Any) -> Tensor:
    """Computes the loss of a batch by the module's own training_step, after its own batch hooks."""
    if getattr(model, "_trainer", None) is not None:
        batch = model._apply_batch_transfer_handler(batch, device=torch.device("cpu"))
    answer = model.training_step(batch, 0)
    return answer["loss"] if isinstance(answer, Mapping) else answer


@contextmanager
def evaluated(model: nn.Module) -> Generator[None, None, None]:
    """Puts a module into evaluation mode without logging; on exit its modes and buffers are what they were."""
    modes = {module: module.training for module in model.modules()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    quiet = {name: model.__dict__.pop(name, None) for name in ("log", "log_dict")}
    model.eval()
    model.__dict__.update(log=lambda *a, **k: None, log_dict=lambda *a, **k: None)
    try:
        # The fused kernels of attention and compiled graphs have no second derivative.
        with sdpa_kernel(SDPBackend.MATH), torch.compiler.set_stance("force_eager"), torch.enable_grad():
            yield
    finally:
        for name, before in quiet.items():
            del model.__dict__[name]
            if before is not None:
                model.__dict__[name] = before
        for module, training in modes.items():
            module.training = training
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])


@dataclass(frozen=True)
class Dense:
    """Gradients of samples and the Hessian of J = (1/n) Σ_i f_i ℓ_i + R over some parameters of a module.

    Attributes:
        model: Module whose weights are θ̂.
        train: Training samples as batches of one.
        loss: Loss of a batch of one.
        penalty: R; None for no penalty.
        parameters: Shell-style patterns of the parameters attributed.
        factors: Weights f_i of the samples in the mean, `[n]`; None for 1.
    """

    model: Any
    train: Sequence[Any]
    loss: Loss = step_loss
    penalty: Penalty | None = None
    parameters: Sequence[str] = ("*",)
    factors: Tensor | None = None

    @property
    def theta(self) -> list[Tensor]:
        """The attributed parameters, each tensor once."""
        named = self.model.named_parameters()
        return [p for n, p in named if p.requires_grad and any(fnmatch.fnmatchcase(n, one) for one in self.parameters)]

    def gradients(self, samples: Sequence[Any]) -> Tensor:
        """Computes the gradient of each sample's loss, `[k, p]`, by one backward pass for each."""
        with evaluated(self.model):
            return torch.stack([self._gradient(self.loss(self.model, one).sum()) for one in samples])

    def weighted(self) -> Tensor:
        """Computes f_i ∇ℓ_i of the training samples, `[n, p]`."""
        gradients = self.gradients(self.train)
        return gradients if self.factors is None else gradients * self.factors.to(gradients)[:, None]

    def hessian(self) -> Tensor:
        """Computes ∇²J, `[p, p]`, by double backward through all samples."""
        with evaluated(self.model):
            gradient = self._gradient(self._objective(), create_graph=True)
            if not gradient.requires_grad:
                return gradient.new_zeros(len(gradient), len(gradient))
            return torch.stack([self._gradient(entry, retain_graph=True) for entry in gradient])

    def scores(self, tests: Sequence[Any], damping: float = 0.0) -> Tensor:
        """Computes the scores, `[m, n]`."""
        H = self.hessian()
        H = H + damping * torch.eye(len(H), dtype=H.dtype)
        solved = torch.linalg.solve(H, self.weighted().T)
        return -self.gradients(tests) @ solved / len(self.train)

    def dots(self, tests: Sequence[Any]) -> Tensor:
        """Computes −(1/n) ∇L_t·∇ℓ_i, `[m, n]`."""
        return -self.gradients(tests) @ self.weighted().T / len(self.train)

    def residual(self, value: Tensor, vectors: Tensor, damping: float) -> Tensor:
        """Computes ‖(H + δI)x − b‖/‖b‖ for rows x and b by Hessian-vector products, where H is too large to hold."""
        with evaluated(self.model):
            gradient = self._gradient(self._objective(), create_graph=True)
            products = [self._gradient(gradient @ x, retain_graph=True) + damping * x for x in value]
        return (torch.stack(products) - vectors).norm(dim=1) / vectors.norm(dim=1)

    def solve(self, vectors: Tensor, damping: float, rtol: float = 1e-13) -> Tensor:
        """Solves (H + δI)x = b for rows b by conjugate gradients, where H is too large to hold."""
        with evaluated(self.model):
            gradient = self._gradient(self._objective(), create_graph=True)

            def product(x: Tensor) -> Tensor:
                return self._gradient(gradient @ x, retain_graph=True) + damping * x

            return torch.stack([_conjugate_gradients(product, b, rtol) for b in vectors])

    def _objective(self) -> Tensor:
        losses = torch.stack([self.loss(self.model, one).sum() for one in self.train])
        weighted = losses if self.factors is None else losses * self.factors.to(losses)
        penalty = self.penalty(self.model) if self.penalty else 0.0
        return weighted.sum() / len(self.train) + penalty

    def _gradient(self, value: Tensor, **settings: Any) -> Tensor:
        if not value.requires_grad:
            return torch.cat([torch.zeros_like(p).flatten() for p in self.theta])
        parts = torch.autograd.grad(value, self.theta, materialize_grads=True, **settings)
        return torch.cat([part.flatten() for part in parts])


def _conjugate_gradients(product: Callable[[Tensor], Tensor], b: Tensor, rtol: float) -> Tensor:
    x, r = torch.zeros_like(b), b.clone()
    direction, square = r.clone(), r @ r
    for _ in range(10 * len(b)):
        if square.sqrt() <= rtol * b.norm():
            return x
        image = product(direction)
        step = square / (direction @ image)
        x, r = x + step * direction, r - step * image
        square, before = r @ r, square
        direction = r + square / before * direction
    raise AssertionError(f"conjugate gradients stopped at a residual of {float(square.sqrt() / b.norm()):.1e}")


def off(scores: Any, truth: Tensor) -> float:
    """Returns the largest error of scores, relative to the largest true score."""
    found = torch.as_tensor(scores, dtype=torch.float64)
    assert found.shape == truth.shape, f"scores {tuple(found.shape)}, expected {tuple(truth.shape)}"
    return float((found - truth).abs().max() / truth.abs().max())
