"""The optimizer of a model trained by small steps: its rule, and how the learning rate rises and falls."""

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
class Descent:
    """Warm-up, then a half cosine.

    Attributes:
        optimizer: `sgd`, `adam` or `adamw`.
        lr: highest learning rate.
        momentum: of sgd.
        betas: of adam and adamw.
        epsilon: of adam and adamw.
        weight_decay: of adamw, decoupled from the gradient.
        warmup: share of the steps in which the rate rises from 0 to `lr`.
        final_lr: share of `lr` that is left at the last step.
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
            InputError: one is out of range, or a decay that this optimizer does not decouple.
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
        """Optimizer and schedule of a fit of so many steps, as Lightning takes them.

        Raises:
            InputError: the fit has no end.
        """
        if math.isinf(steps):
            raise InputError(
                "The learning rate follows the number of steps of the fit, and this fit has no end.\n"
                "  Set max_epochs or max_steps of the Trainer."
            )
        optimizer = self._made(parameters)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _Rate(self.warmup, self.final_lr, int(steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _made(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum)
        if self.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=self.lr, betas=self.betas, eps=self.epsilon)
        return torch.optim.AdamW(
            parameters, lr=self.lr, betas=self.betas, eps=self.epsilon, weight_decay=self.weight_decay
        )


@dataclass(frozen=True)
class _Rate:
    """Learning rate of step k (from 0) as a share of the highest; an object, so that it travels between processes."""

    warmup: float
    final: float
    steps: int

    def __call__(self, k: int) -> float:
        rising = max(1, round(self.warmup * self.steps))
        if k < rising:
            return (k + 1) / rising
        fallen = min(1.0, (k - rising + 1) / max(1, self.steps - rising))
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * fallen))
