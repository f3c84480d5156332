"""Floor 7: attribution run through a Trainer."""

from typing import TYPE_CHECKING

from ifloo.former_names import former_names
from ifloo.stages.callback.callback import InfluenceCallback
from ifloo.stages.run_recorder import RunRecorder
from ifloo.stages.scores.influence import InfluenceStage
from ifloo.stages.scores.predictor import InfluencePredictor, InfluenceWriter, ScoredBlock
from ifloo.stages.settings import AttributionSettings, settings_json

__all__ = [
    "AttributionSettings",
    "InfluenceCallback",
    "InfluencePredictor",
    "InfluenceStage",
    "InfluenceWriter",
    "RunRecorder",
    "ScoredBlock",
    "settings_json",
]

if not TYPE_CHECKING:  # else every misspelt name would pass mypy
    __getattr__ = former_names(
        __name__,
        {
            "Diagnosis": "ifloo.doctor.Diagnosis",
            "InfluenceRun": "ifloo.stages.InfluenceStage",
            "Subject": "ifloo.doctor.DoctorInput",
            "described": "ifloo.stages.settings_json",
            "examine": "ifloo.doctor.examine",
        },
        __all__,
    )
