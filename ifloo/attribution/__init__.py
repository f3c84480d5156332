"""Floor 4: from queries to scores."""

from ifloo.attribution.engine import Directions, InfluenceEngine
from ifloo.attribution.scores import DEFINITIONS, Certificate, Scores, predicted_change

__all__ = ["DEFINITIONS", "Certificate", "Directions", "InfluenceEngine", "Scores", "predicted_change"]
