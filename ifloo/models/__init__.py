"""The wing of models: LightningModules that meet the contract, and what makes any other meet it."""

from ifloo.models.adapted import Adapted, as_written
from ifloo.models.logistic import LogisticRegression
from ifloo.models.module import SampleLossModule
from ifloo.models.multimodal import MultimodalLM

__all__ = ["Adapted", "LogisticRegression", "MultimodalLM", "SampleLossModule", "as_written"]
