"""Floor 6: the engine run through a Trainer."""

from ifloo.stages.callback import InfluenceCallback
from ifloo.stages.influence import InfluenceRun
from ifloo.stages.predictor import InfluencePredictor, InfluenceWriter, ScoredBlock
from ifloo.stages.recorder import RunRecorder
from ifloo.stages.settings import AttributionSettings, described

__all__ = [
    "AttributionSettings",
    "InfluenceCallback",
    "InfluencePredictor",
    "InfluenceRun",
    "InfluenceWriter",
    "RunRecorder",
    "ScoredBlock",
    "described",
]
