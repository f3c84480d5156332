"""Floor 6: the engine run through a Trainer."""

from ifloo.stages.callback import InfluenceCallback
from ifloo.stages.doctor import Diagnosis, Subject, examine
from ifloo.stages.influence import InfluenceRun
from ifloo.stages.predictor import InfluencePredictor, InfluenceWriter, ScoredBlock
from ifloo.stages.recorder import RunRecorder
from ifloo.stages.settings import AttributionSettings, described

__all__ = [
    "AttributionSettings",
    "Diagnosis",
    "InfluenceCallback",
    "InfluencePredictor",
    "InfluenceRun",
    "InfluenceWriter",
    "RunRecorder",
    "ScoredBlock",
    "Subject",
    "described",
    "examine",
]
