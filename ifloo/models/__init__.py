"""The wing of models: LightningModules that meet the contract."""

from ifloo.models.logistic import LogisticRegression
from ifloo.models.module import SampleLossModule
from ifloo.models.multimodal import MultimodalLM

__all__ = ["LogisticRegression", "MultimodalLM", "SampleLossModule"]
