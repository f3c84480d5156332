"""Hooks that complete a module, in the order in which a Trainer calls them before it loads weights."""

from __future__ import annotations

import lightning as L

from ifloo.models.adapted import Adapted
from ifloo.models.run_state import attached


def set_up(module: L.LightningModule, trainer: L.Trainer) -> None:
    """Makes the layers that a module makes in `setup` and `configure_model`, with a Trainer attached meanwhile."""
    if isinstance(module, Adapted):
        module.set_up(trainer)
        return
    with attached(module, trainer):
        module.setup("fit")
        module.configure_model()
