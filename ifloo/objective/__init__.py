"""Floor 1: the objective J(θ; w) in functional form, and what it asks of a model and of data."""

from ifloo.objective.batches import Batch, Identified, Subsample, TrainingData, batch_size, sample_ids
from ifloo.objective.functional import FunctionalLosses, differentiable_kernels, scoring
from ifloo.objective.loaders import sequential
from ifloo.objective.objective import Objective
from ifloo.objective.preflight import Stationarity, preflight
from ifloo.objective.protocol import OutputLosses, SampleLosses
from ifloo.objective.weights import Removal, SampleWeights

__all__ = [
    "Batch",
    "FunctionalLosses",
    "Identified",
    "Objective",
    "OutputLosses",
    "Removal",
    "SampleLosses",
    "SampleWeights",
    "Stationarity",
    "Subsample",
    "TrainingData",
    "batch_size",
    "differentiable_kernels",
    "preflight",
    "sample_ids",
    "scoring",
    "sequential",
]
