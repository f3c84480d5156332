"""Floor 4: from queries to scores."""

from ifloo.attribution.curvature_route import CurvatureRoute
from ifloo.attribution.engine import Directions, InfluenceEngine
from ifloo.attribution.gradient_cosine import GradientCosine
from ifloo.attribution.gradient_dot import GradientDot
from ifloo.attribution.head import HeadProducts
from ifloo.attribution.left_out import left_out_losses
from ifloo.attribution.method import Method, MethodScores, Trained
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
from ifloo.attribution.unrolled import Reverse, Unrolled

__all__ = [
    "DEFINITIONS",
    "Certificate",
    "CurvatureRoute",
    "Directions",
    "ForwardProducts",
    "GradientCosine",
    "GradientDot",
    "HeadProducts",
    "InfluenceEngine",
    "Method",
    "MethodScores",
    "OneStep",
    "Products",
    "RandomScores",
    "Reverse",
    "Scores",
    "SelfInfluence",
    "TracIn",
    "Trained",
    "Unrolled",
    "certified_self",
    "last_layer_self",
    "left_out_losses",
    "loss_ranking",
    "predicted_change",
    "tracin_self",
]
