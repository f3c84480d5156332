"""Floor 7: fits and refits with a Lightning Trainer; base models, leave-one-out losses and other kinds of refit."""

from typing import TYPE_CHECKING

from ifloo.former_names import former_names
from ifloo.refit.checkpoint import BaseCheckpoint, fit_base, load_base, load_foreign, weights_sha256
from ifloo.refit.execution.job import RefitWork, TrainingLoader
from ifloo.refit.extra_refits import WEIGHTS, ExtraRefits, Groups, WeightSteps
from ifloo.refit.loo import LeaveOneOut
from ifloo.refit.newton_finish import NewtonFinish
from ifloo.refit.refitter import Refit, Refitter
from ifloo.refit.seeded_order import SeededOrder
from ifloo.refit.selection import RefitSettings, controls, groups, removals, stepped
from ifloo.refit.stage import RefitStage
from ifloo.refit.trainer_settings import TrainerSettings, quiet_lightning

__all__ = [
    "WEIGHTS",
    "BaseCheckpoint",
    "ExtraRefits",
    "Groups",
    "LeaveOneOut",
    "NewtonFinish",
    "Refit",
    "RefitSettings",
    "RefitStage",
    "RefitWork",
    "Refitter",
    "SeededOrder",
    "TrainerSettings",
    "TrainingLoader",
    "WeightSteps",
    "controls",
    "fit_base",
    "groups",
    "load_base",
    "load_foreign",
    "quiet_lightning",
    "removals",
    "stepped",
    "weights_sha256",
]

if not TYPE_CHECKING:  # else every misspelt name would pass mypy
    __getattr__ = former_names(
        __name__,
        {
            "Base": "ifloo.refit.BaseCheckpoint",
            "Minimum": "ifloo.minimize.FitEnd",
            "Recipe": "ifloo.refit.TrainerSettings",
            "Shelf": "ifloo.refit.ExtraRefits",
            "load_elsewhere": "ifloo.refit.load_foreign",
            "newton_cg": "ifloo.minimize.newton_cg",
        },
        __all__,
    )
