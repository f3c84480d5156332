"""Floor 4: attribution, from queries to scores.

`InfluenceEngine` and `Scores` are the core. Each method (`GradientDot`, `TracIn`, `Unrolled`, ...) is one file;
`method.py` states their interface, `recorded.py` the training run that some of them replay.
"""

from typing import TYPE_CHECKING

from ifloo.attribution.analytic_loo import left_out_losses
from ifloo.attribution.definitions import weighted_definitions
from ifloo.attribution.engine import Directions, InfluenceEngine
from ifloo.attribution.gradient_cosine import GradientCosine
from ifloo.attribution.gradient_dot import GradientDot
from ifloo.attribution.head import HeadProducts
from ifloo.attribution.influence_function import InfluenceFunction
from ifloo.attribution.method import Method, MethodScores, TrainedModel
from ifloo.attribution.one_step import OneStep
from ifloo.attribution.products import ForwardProducts, Products
from ifloo.attribution.random_scores import RandomScores
from ifloo.attribution.scores import DEFINITIONS, Certificate, Scores, SelfInfluence, predicted_change
from ifloo.attribution.self_influence import (
    certified_self,
    last_layer_self,
    loss_ranking,
    tracin_self,
)
from ifloo.attribution.tracin import TracIn
from ifloo.attribution.unrolled import ReverseState, Unrolled
from ifloo.former_names import former_names

__all__ = [
    "DEFINITIONS",
    "Certificate",
    "Directions",
    "ForwardProducts",
    "GradientCosine",
    "GradientDot",
    "HeadProducts",
    "InfluenceEngine",
    "InfluenceFunction",
    "Method",
    "MethodScores",
    "OneStep",
    "Products",
    "RandomScores",
    "ReverseState",
    "Scores",
    "SelfInfluence",
    "TracIn",
    "TrainedModel",
    "Unrolled",
    "certified_self",
    "last_layer_self",
    "left_out_losses",
    "loss_ranking",
    "predicted_change",
    "tracin_self",
    "weighted_definitions",
]

if not TYPE_CHECKING:  # else every misspelt name would pass mypy
    __getattr__ = former_names(
        __name__,
        {
            "CurvatureRoute": "ifloo.attribution.InfluenceFunction",
            "Reverse": "ifloo.attribution.ReverseState",
            "Trained": "ifloo.attribution.TrainedModel",
        },
        __all__,
    )
