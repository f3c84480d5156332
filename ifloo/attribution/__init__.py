"""Floor 4: from queries to scores."""

from ifloo.attribution.engine import Directions, InfluenceEngine
from ifloo.attribution.head import HeadProducts
from ifloo.attribution.products import ForwardProducts, Products
from ifloo.attribution.scores import DEFINITIONS, Certificate, Scores, predicted_change

__all__ = [
    "DEFINITIONS",
    "Certificate",
    "Directions",
    "ForwardProducts",
    "HeadProducts",
    "InfluenceEngine",
    "Products",
    "Scores",
    "predicted_change",
]
