"""Data modules: where the samples come from, each with an id that no limit, shuffle or batch size changes."""

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
