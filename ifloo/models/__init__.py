"""Models: LightningModules that meet the model contract, and adapters for modules that do not."""

from typing import TYPE_CHECKING

from ifloo.former_names import former_names
from ifloo.models.adapted import Adapted, unwrap
from ifloo.models.adapted_outputs import AdaptedOutputs, LossesOfOutputs
from ifloo.models.logistic import LogisticRegression
from ifloo.models.module import SampleLossModule
from ifloo.models.multimodal import MultimodalLM

__all__ = [
    "Adapted",
    "AdaptedOutputs",
    "LogisticRegression",
    "LossesOfOutputs",
    "MultimodalLM",
    "SampleLossModule",
    "unwrap",
]

if not TYPE_CHECKING:  # else every misspelt name would pass mypy
    __getattr__ = former_names(
        __name__,
        {
            "as_written": "ifloo.models.unwrap",
        },
        __all__,
    )
