"""Data modules and data sets; every sample has an id that does not depend on limits, shuffling or the batch size."""

from ifloo.data.adapted import AdaptedData, Samples, data_as_written, serves_attribution
from ifloo.data.digits import DigitSet
from ifloo.data.mnist import MNISTDataModule
from ifloo.data.multimodal import ByteTokenizer, HuggingFaceTokenizer, MultimodalDataModule, MultimodalSet, Tokenizer
from ifloo.data.protocol import AttributionData, CaptionedSet, ConversationSet, DataNotes, SampleSet, SampleSets

__all__ = [
    "AdaptedData",
    "AttributionData",
    "ByteTokenizer",
    "CaptionedSet",
    "ConversationSet",
    "DataNotes",
    "DigitSet",
    "HuggingFaceTokenizer",
    "MNISTDataModule",
    "MultimodalDataModule",
    "MultimodalSet",
    "SampleSet",
    "SampleSets",
    "Samples",
    "Tokenizer",
    "data_as_written",
    "serves_attribution",
]
