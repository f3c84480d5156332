"""Floor 6: fits and refits through a Trainer."""

from ifloo.refit.base import Base, fit_base, load_base, load_elsewhere, weights_sha256
from ifloo.refit.finish import NewtonFinish
from ifloo.refit.loo import LeaveOneOut
from ifloo.refit.newton import Minimum, newton_cg
from ifloo.refit.order import SeededOrder
from ifloo.refit.plan import RefitSettings, controls, groups, removals, stepped
from ifloo.refit.recipe import Recipe, Refit, Refitter, quiet_lightning
from ifloo.refit.shelves import WEIGHTS, Groups, Shelf, WeightSteps
from ifloo.refit.work import RefitWork, TrainingLoader

__all__ = [
    "WEIGHTS",
    "Base",
    "Groups",
    "LeaveOneOut",
    "Minimum",
    "NewtonFinish",
    "Recipe",
    "Refit",
    "RefitSettings",
    "RefitWork",
    "Refitter",
    "SeededOrder",
    "Shelf",
    "TrainingLoader",
    "WeightSteps",
    "controls",
    "fit_base",
    "groups",
    "load_base",
    "load_elsewhere",
    "newton_cg",
    "quiet_lightning",
    "removals",
    "stepped",
    "weights_sha256",
]
