"""The wing of models: LightningModules that meet the contract."""

from ifloo.models.logistic import LogisticRegression
from ifloo.models.module import SampleLossModule

__all__ = ["LogisticRegression", "SampleLossModule"]
