"""Models: LightningModules that meet the model contract, and adapters for modules that do not."""

from ifloo.models.adapted import Adapted, as_written
from ifloo.models.logistic import LogisticRegression
from ifloo.models.module import SampleLossModule
from ifloo.models.multimodal import MultimodalLM
from ifloo.models.outputs import AdaptedOutputs, LossesOfOutputs

__all__ = [
    "Adapted",
    "AdaptedOutputs",
    "LogisticRegression",
    "LossesOfOutputs",
    "MultimodalLM",
    "SampleLossModule",
    "as_written",
]
