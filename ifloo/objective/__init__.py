"""Floor 1: the objective J(θ; w) in functional form, and what it asks of a model and of data."""

from ifloo.objective.batches import Batch, Identified, Subsample, TrainingData, batch_size, moved, sample_ids
from ifloo.objective.diagnosis import diagnose
from ifloo.objective.findings import Finding, Weight
from ifloo.objective.functional import FunctionalLosses, differentiable_kernels, scoring
from ifloo.objective.ids import query_ids
from ifloo.objective.loaders import sequential
from ifloo.objective.objective import Objective
from ifloo.objective.preflight import Stationarity, preflight
from ifloo.objective.protocol import ModelContract, OutputLosses, SampleLosses, Speaker, contract_of
from ifloo.objective.weights import Removal, SampleWeights

__all__ = [
    "Batch",
    "Finding",
    "FunctionalLosses",
    "Identified",
    "ModelContract",
    "Objective",
    "OutputLosses",
    "Removal",
    "SampleLosses",
    "SampleWeights",
    "Speaker",
    "Stationarity",
    "Subsample",
    "TrainingData",
    "Weight",
    "batch_size",
    "contract_of",
    "diagnose",
    "differentiable_kernels",
    "moved",
    "preflight",
    "query_ids",
    "sample_ids",
    "scoring",
    "sequential",
]
