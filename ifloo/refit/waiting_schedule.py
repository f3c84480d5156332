"""Refusal of learning rates that wait for a metric of validation, which refits do not have."""

from __future__ import annotations

import re

import lightning as L

from ifloo.errors import InputError
from ifloo.models.run_state import attached

_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")  # where a word of a name begins, as in valLoss
_OF_VALIDATION = re.compile(r"(^|[^a-z])(val|valid|validation|dev|eval|evaluation)([^a-z]|$)|^val(?!ue)", re.IGNORECASE)
_OF_TRAINING = re.compile(r"(^|[^a-z])train(ing)?([^a-z]|$)", re.IGNORECASE)


def is_of_validation(metric: str) -> bool:
    """Tells by its name whether a metric is one of validation: val_loss, valLoss, loss/eval, not train_val."""
    words = _CAPITAL.sub("_", metric)
    return bool(_OF_VALIDATION.search(words)) and not _OF_TRAINING.search(words)


def refuse_waiting_schedule(module: L.LightningModule, trainer: L.Trainer) -> None:
    """Checks that refits can take the learning rates of the fit.

    Args:
        module: Module as its author wrote it.
        trainer: Idle Trainer that the module may read.

    Raises:
        InputError: If a scheduler waits for a metric of validation: refits do not validate.
    """
    with attached(module, trainer):
        schedules = trainer.lr_scheduler_configs
    name = type(module).__name__
    for one in schedules:
        if one.reduce_on_plateau and is_of_validation(one.monitor or ""):
            raise InputError(
                f"configure_optimizers of {name} lowers the learning rate by {type(one.scheduler).__name__} when "
                f"{one.monitor} stalls, and refits do not validate: they would take other learning rates than the "
                "fit.\n"
                "  Give a schedule by epochs or steps (such as StepLR) in the module that is refitted, or monitor a "
                "metric that training_step logs. Scores (`ifloo influence`) need no refit."
            )
