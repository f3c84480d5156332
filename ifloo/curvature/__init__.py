"""Floor 2: curvature of the whole objective as linear operators on flat vectors."""

from ifloo.curvature.gauss_newton import GaussNewton
from ifloo.curvature.hessian import Hessian
from ifloo.curvature.operator import (
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
    "Damped",
    "Definite",
    "GaussNewton",
    "Hessian",
    "LinearOperator",
    "LockstepDraw",
    "SampleMeanOperator",
    "StochasticOperator",
    "can_be_sampled",
    "dense",
    "stochastic",
]
