"""Optimizer and learning-rate schedule of models trained by many small steps: warm-up, then a half cosine."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn

from ifloo.errors import InputError

OptimizerName = Literal["sgd", "adam", "adamw"]


@dataclass(frozen=True)
class WarmupCosine:
    """Settings of an optimizer whose learning rate warms up linearly and then falls by a half cosine.

    Attributes:
        optimizer: Name of the optimizer: `sgd`, `adam` or `adamw`.
        lr: Highest learning rate.
        momentum: Momentum of sgd.
        betas: Decay rates of the moment estimates of adam and adamw.
        epsilon: Term added to the denominator of adam and adamw.
        weight_decay: Weight decay of adamw, decoupled from the gradient.
        warmup: Share of the steps in which the rate rises from 0 to `lr`.
        final_lr: Learning rate at the last step, as a share of `lr`.
    """

    optimizer: OptimizerName
    lr: float
    momentum: float
    betas: tuple[float, float]
    epsilon: float
    weight_decay: float
    warmup: float
    final_lr: float

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            InputError: If a number is out of range, or the optimizer does not decouple the weight decay.
        """
        if not 0 < self.lr < float("inf"):
            raise InputError(f"lr must be a finite number > 0, got {self.lr}.")
        for name, share in (("warmup", self.warmup), ("final_lr", self.final_lr)):
            if not 0 <= share <= 1:
                raise InputError(f"{name} must be a share from 0 to 1, got {share}.")
        if self.weight_decay and self.optimizer != "adamw":
            raise InputError(
                f"weight_decay = {self.weight_decay:g} with optimizer {self.optimizer} would be a penalty that J does "
                "not contain.\n  Give it as l2_reg, or use optimizer adamw, whose decay is a part of its step."
            )

    def over(self, parameters: Iterable[nn.Parameter], steps: int | float) -> OptimizerLRSchedulerConfig:
        """Returns optimizer and schedule of a fit of `steps` steps, in the form Lightning takes.

        Raises:
            InputError: If the number of steps is infinite.
        """
        if math.isinf(steps):
            raise InputError(
                "The learning rate follows the number of steps of the fit, and this fit has no end.\n"
                "  Set max_epochs or max_steps of the Trainer."
            )
        optimizer = self._build_optimizer(parameters)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _Rate(self.warmup, self.final_lr, int(steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _build_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum)
        if self.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=self.lr, betas=self.betas, eps=self.epsilon)
        return torch.optim.AdamW(
            parameters, lr=self.lr, betas=self.betas, eps=self.epsilon, weight_decay=self.weight_decay
        )


@dataclass(frozen=True)
class _Rate:
    """Learning rate of step k (from 0) as a share of the highest; an object, so that it can be pickled."""

    warmup: float
    final: float
    steps: int

    def __call__(self, k: int) -> float:
        warmup_steps = max(1, round(self.warmup * self.steps))
        if k < warmup_steps:
            return (k + 1) / warmup_steps
        progress = min(1.0, (k - warmup_steps + 1) / max(1, self.steps - warmup_steps))
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))
