"""Data modules and data sets; every sample has an id that does not depend on limits, shuffling or the batch size."""

from typing import TYPE_CHECKING

from ifloo.data.adapted import AdaptedData, serves_attribution, unwrap_data
from ifloo.data.digits import DigitSet
from ifloo.data.fit_record import FitRecord
from ifloo.data.mnist import MNISTDataModule
from ifloo.data.multimodal import ByteTokenizer, HuggingFaceTokenizer, MultimodalDataModule, MultimodalSet, Tokenizer
from ifloo.data.protocol import AttributionData, CaptionedSet, ConversationSet, DataNotes, SampleSet, SampleSets
from ifloo.data.samples import Samples
from ifloo.former_names import former_names

__all__ = [
    "AdaptedData",
    "AttributionData",
    "ByteTokenizer",
    "CaptionedSet",
    "ConversationSet",
    "DataNotes",
    "DigitSet",
    "FitRecord",
    "HuggingFaceTokenizer",
    "MNISTDataModule",
    "MultimodalDataModule",
    "MultimodalSet",
    "SampleSet",
    "SampleSets",
    "Samples",
    "Tokenizer",
    "serves_attribution",
    "unwrap_data",
]

if not TYPE_CHECKING:  # else every misspelt name would pass mypy
    __getattr__ = former_names(
        __name__,
        {
            "data_as_written": "ifloo.data.unwrap_data",
        },
        __all__,
    )
