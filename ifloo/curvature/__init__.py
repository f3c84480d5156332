"""Floor 2: curvature of the whole objective as linear operators on flat vectors."""

from ifloo.curvature.choice import head_or_hessian
from ifloo.curvature.gauss_newton import GaussNewton
from ifloo.curvature.head_rows import HeadRows
from ifloo.curvature.hessian import Hessian
from ifloo.curvature.linear_head import LinearHead, as_head
from ifloo.curvature.operator import (
    Core,
    Cost,
    Damped,
    Definite,
    LinearOperator,
    LockstepDraw,
    StochasticOperator,
    can_be_sampled,
    dense,
    stochastic,
)
from ifloo.curvature.sample_mean import SampleMeanOperator

__all__ = [
    "Core",
    "Cost",
    "Damped",
    "Definite",
    "GaussNewton",
    "HeadRows",
    "Hessian",
    "LinearHead",
    "LinearOperator",
    "LockstepDraw",
    "SampleMeanOperator",
    "StochasticOperator",
    "as_head",
    "can_be_sampled",
    "dense",
    "head_or_hessian",
    "stochastic",
]
