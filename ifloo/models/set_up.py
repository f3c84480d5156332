"""Hooks that complete a module, in the order in which a Trainer calls them before it loads weights."""

from __future__ import annotations

import lightning as L

from ifloo.models.adapted import Adapted
from ifloo.models.run_state import attached
from ifloo.objective.user_code import user_code


def set_up(module: L.LightningModule, trainer: L.Trainer) -> None:
    """Makes the layers that a module makes in `setup` and `configure_model`, with a Trainer attached meanwhile."""
    if isinstance(module, Adapted):
        module.set_up(trainer)
        return
    name = type(module).__name__
    with attached(module, trainer, changing=True):
        with user_code(f"setup of {name}"):
            module.setup("fit")
        with user_code(f"configure_model of {name}"):
            module.configure_model()
