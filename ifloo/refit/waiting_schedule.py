"""Refusal of learning rates that wait for a metric of validation, which refits do not have."""

from __future__ import annotations

import re

import lightning as L

from ifloo.errors import InputError

_OF_VALIDATION = re.compile(r"(^|[^a-z])val(id|idation)?([^a-z]|$)", re.IGNORECASE)


def refuse_waiting_schedule(trainer: L.Trainer, model: str) -> None:
    """Checks that refits can take the learning rates of the fit.

    Args:
        trainer: Trainer whose schedulers are those of the model, such as a stand-in.
        model: Name of the model, for messages.

    Raises:
        InputError: If a scheduler waits for a metric of validation: refits do not validate.
    """
    for one in trainer.lr_scheduler_configs:
        if one.reduce_on_plateau and _OF_VALIDATION.search(one.monitor or ""):
            raise InputError(
                f"configure_optimizers of {model} lowers the learning rate by {type(one.scheduler).__name__} when "
                f"{one.monitor} stalls, and refits do not validate: they would take other learning rates than the "
                "fit.\n"
                "  Give a schedule by epochs or steps (such as StepLR) in the module that is refitted, or monitor a "
                "metric that training_step logs. Scores (`ifloo influence`) need no refit."
            )
