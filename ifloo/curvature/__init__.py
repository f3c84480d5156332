"""Floor 2: the curvature of the whole objective as linear operators on flat vectors."""

from ifloo.curvature.damped import Damped, batch_sampler, can_be_sampled, stochastic
from ifloo.curvature.gauss_newton import GaussNewton
from ifloo.curvature.head_rows import HeadRows
from ifloo.curvature.hessian import Hessian
from ifloo.curvature.linear_head import LinearHead, as_head, head_or_hessian
from ifloo.curvature.operator import (
    BatchSampler,
    Definite,
    LinearOperator,
    LockstepDraw,
    Sampler,
    StochasticOperator,
    dense,
)
from ifloo.curvature.sample_mean import SampleMeanOperator
from ifloo.curvature.structure import Core, Cost, DenseForm, KroneckerFactors, Structure

__all__ = [
    "BatchSampler",
    "Core",
    "Cost",
    "Damped",
    "Definite",
    "DenseForm",
    "GaussNewton",
    "HeadRows",
    "Hessian",
    "KroneckerFactors",
    "LinearHead",
    "LinearOperator",
    "LockstepDraw",
    "SampleMeanOperator",
    "Sampler",
    "StochasticOperator",
    "Structure",
    "as_head",
    "batch_sampler",
    "can_be_sampled",
    "dense",
    "head_or_hessian",
    "stochastic",
]
