"""Logistic regression by dense Newton in float64, in plain torch; only the pixels come from ifloo.

Under an L2 penalty the minimiser lies in the span of the samples, so n samples of 784 pixels have as many features as
their rank, and the Hessian is small enough to factor.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ifloo.data import MNISTDataModule

CLASSES = 10


@dataclass(frozen=True)
class Dense:
    """Training samples in a basis of their span, and test samples projected on it (the rest has zero weight)."""

    x: Tensor
    labels: Tensor
    test_x: Tensor
    test_labels: Tensor
    l2: float

    @classmethod
    def of_digits(cls, train_limit: int, test_limit: int, l2: float) -> "Dense":
        data = MNISTDataModule(source="embedded", train_limit=train_limit, test_limit=test_limit)
        data.setup()
        train, test = data.train_set, data.test_set
        _, spread, basis = torch.linalg.svd(train.x, full_matrices=False)
        basis = basis[spread > 1e-10 * spread[0]]
        return cls(train.x @ basis.T, train.labels, test.x @ basis.T, test.labels, l2)

    def weights(self, without: int | None, removal: str) -> Tensor:
        """Returns the sample weights of a removal: n stays, or ("drop") the mean runs over n − 1 samples."""
        n = len(self.x)
        w = torch.ones(n, dtype=torch.float64)
        if without is not None:
            w *= n / (n - 1) if removal == "drop" else 1.0
            w[without] = 0.0
        return w

    def fit(self, without: int | None = None, removal: str = "drop", start: Tensor | None = None) -> Tensor:
        """Computes the minimiser, `[c, d]`, to ‖∇J‖ <= 1e-14."""
        w = self.weights(without, removal) / len(self.x)
        W = torch.zeros(CLASSES, self.x.shape[1], dtype=torch.float64) if start is None else start
        one_hot = torch.nn.functional.one_hot(self.labels, CLASSES).double()
        for _ in range(40):
            probability = (self.x @ W.T).softmax(1)
            gradient = ((probability - one_hot) * w[:, None]).T @ self.x + self.l2 * W
            if gradient.norm() <= 1e-14:
                return W
            step = torch.linalg.solve(self._hessian(probability, w), gradient.flatten())
            W = W - min(1.0, 2.0 / float(step.norm())) * step.reshape(W.shape)  # short steps far from the minimum
        raise AssertionError(f"Newton stopped at a gradient of {float(gradient.norm()):.1e}")

    def test_loss(self, W: Tensor, t: int) -> float:
        logits = W @ self.test_x[t]
        return float(logits.logsumexp(0) - logits[self.test_labels[t]])

    def _hessian(self, probability: Tensor, w: Tensor) -> Tensor:
        S = torch.diag_embed(probability) - probability[:, :, None] * probability[:, None, :]
        blocks = torch.einsum("ni,ncd,nj->cidj", self.x, S * w[:, None, None], self.x)
        p = CLASSES * self.x.shape[1]
        return blocks.reshape(p, p) + self.l2 * torch.eye(p, dtype=torch.float64)
