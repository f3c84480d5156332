"""Multinomial logistic regression: a convex objective, for which every result can be checked against theory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from ifloo.errors import InputError
from ifloo.models.module import SampleLossModule
from ifloo.params import DTYPES

OptimizerName = Literal["lbfgs", "sgd", "adamw"]
STEP_SIZE: dict[str, float] = {"lbfgs": 1.0, "sgd": 0.1, "adamw": 1e-3}


Labelled: TypeAlias = Mapping[str, Tensor] | Sequence[Tensor]


class LogisticRegression(SampleLossModule[Labelled]):
    """ℓ_i = cross-entropy of softmax(W x_i + b), R = ½ λ (‖W‖² + ‖b‖²), as in Koh & Liang 2017, section 4.

    Batches are dicts `{"x", "labels"}` or tuples `(x, y, ...)`.
    """

    def __init__(
        self,
        num_features: int = 784,
        num_classes: int = 10,
        bias: bool = False,
        l2_reg: float = 0.01,
        optimizer: OptimizerName = "lbfgs",
        lr: float | None = None,
        momentum: float = 0.0,
        max_iter: int = 1000,
        tolerance_grad: float = 1e-5,
        dtype: Literal["float64", "float32"] = "float64",
    ) -> None:
        """Initialises all weights to zero; J is convex, so the minimum does not depend on the start.

        Args:
            num_features: Number of features d; inputs of any shape are flattened to d numbers.
            num_classes: Number of classes C.
            bias: Whether the model has an intercept (penalised like the weights).
            l2_reg: λ of the penalty ½λ‖θ‖², per nat of mean loss.
            optimizer: `lbfgs` (full batch, strong Wolfe), `sgd`, or `adamw` with weight_decay 0: the penalty is in J.
            lr: Step size; None for 1 with lbfgs (its line search adapts it), 0.1 with sgd, 0.001 with adamw.
            momentum: Momentum of sgd.
            max_iter: Number of L-BFGS iterations in one outer step.
            tolerance_grad: Largest entry of |∇J| at which L-BFGS stops. Its line search compares values of J and stalls
                near ‖∇J‖ = 1e-8; from about 1e-5 on, Newton-CG is faster and gets closer to the minimum.
            dtype: Data type of the weights.

        Raises:
            InputError: If λ is negative or not finite.
        """
        super().__init__()
        if not 0 <= l2_reg < float("inf"):
            raise InputError(f"l2_reg must be a finite number >= 0, got {l2_reg}.")
        self.save_hyperparameters()
        self.linear = nn.Linear(num_features, num_classes, bias=bias, dtype=DTYPES[dtype])
        for parameter in self.linear.parameters():
            nn.init.zeros_(parameter)
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")

    def outputs(self, batch: Labelled) -> Float[Tensor, "b c"]:
        """Computes the logits."""
        x, _ = _inputs_and_labels(batch)
        logits: Tensor = self.linear(x.flatten(1).to(self.linear.weight.dtype))
        return logits

    def output_losses(self, outputs: Float[Tensor, "b c"], batch: Labelled) -> Float[Tensor, " b"]:
        """Computes the cross-entropy of each row, nats."""
        _, labels = _inputs_and_labels(batch)
        return nn.functional.cross_entropy(outputs, labels.long(), reduction="none")

    def sample_losses(self, batch: Labelled) -> Float[Tensor, " b"]:
        return self.output_losses(self.outputs(batch), batch)

    def penalty(self) -> Float[Tensor, ""]:
        squares = [p.square().sum() for p in self.linear.parameters()]
        strength: float = self.hparams["l2_reg"]
        return 0.5 * strength * torch.stack(squares).sum()

    def strong_convexity(self) -> float | None:
        return self.hparams["l2_reg"] or None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        own = self.hparams
        lr = STEP_SIZE[own["optimizer"]] if own["lr"] is None else own["lr"]
        if own["optimizer"] == "lbfgs":
            return torch.optim.LBFGS(
                self.parameters(),
                lr=lr,
                max_iter=own["max_iter"],
                max_eval=own["max_iter"] * 2,
                tolerance_grad=own["tolerance_grad"],
                tolerance_change=0.0,
                history_size=30,
                line_search_fn="strong_wolfe",
            )
        if own["optimizer"] == "sgd":
            return torch.optim.SGD(self.parameters(), lr=lr, momentum=own["momentum"], weight_decay=0.0)
        return torch.optim.AdamW(self.parameters(), lr=lr, weight_decay=0.0)

    def validation_step(self, batch: Labelled, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Labelled, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Labelled, stage: str) -> None:
        logits, labels = self.outputs(batch), _inputs_and_labels(batch)[1]
        self.accuracy(logits, labels)
        self.log(f"{stage}/accuracy", self.accuracy, on_epoch=True, batch_size=len(labels))
        self.log(f"{stage}/loss", self.output_losses(logits, batch).mean(), on_epoch=True, batch_size=len(labels))


def _inputs_and_labels(batch: Labelled) -> tuple[Tensor, Tensor]:
    if isinstance(batch, Mapping):
        return batch["x"], batch["labels"]
    x, labels, *_ = batch
    return x, labels
