"""Floor 1: the objective J(θ; w) in functional form, and the contract of models and data that it needs."""

from typing import TYPE_CHECKING

from ifloo.former_names import former_names
from ifloo.objective.batches import Batch, Identified, Subsample, TrainingData, batch_size, sample_ids, to_device
from ifloo.objective.functional import FunctionalLosses, differentiable_kernels, scoring
from ifloo.objective.ids import query_ids
from ifloo.objective.loaders import sequential
from ifloo.objective.objective import Objective
from ifloo.objective.preflight import Stationarity, preflight
from ifloo.objective.protocol import ModelContract, OutputLosses, SampleLosses, Speaker, contract_of
from ifloo.objective.singles import Singles
from ifloo.objective.weights import Removal, SampleWeights

__all__ = [
    "Batch",
    "FunctionalLosses",
    "Identified",
    "ModelContract",
    "Objective",
    "OutputLosses",
    "Removal",
    "SampleLosses",
    "SampleWeights",
    "Singles",
    "Speaker",
    "Stationarity",
    "Subsample",
    "TrainingData",
    "batch_size",
    "contract_of",
    "differentiable_kernels",
    "preflight",
    "query_ids",
    "sample_ids",
    "scoring",
    "sequential",
    "to_device",
]

if not TYPE_CHECKING:  # with __getattr__ in sight, mypy would accept every misspelt name
    __getattr__ = former_names(
        __name__,
        {
            "Finding": "ifloo.doctor.Finding",
            "Weight": "ifloo.doctor.Severity",
            "diagnose": "ifloo.doctor.diagnose",
            "moved": "ifloo.objective.to_device",
        },
        __all__,
    )
